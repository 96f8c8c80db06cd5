"""`toolcrib capability validate`: everything that is odd about capability files, for people, programs and CI."""

import re
from pathlib import Path
from typing import Annotated

import typer

from toolcrib.capability.findings import CapabilityInvalid, Finding
from toolcrib.capability.rules import every_rule
from toolcrib.capability.sarif import sarif
from toolcrib.cli.capability_findings import as_json as finding_as_json
from toolcrib.cli.capability_findings import count, count_in_words, print_findings
from toolcrib.cli.capability_options import BaseUri, EnvFile, Surroundings, must_exist
from toolcrib.cli.failure import FAILED, WRONG, CommandFailed
from toolcrib.cli.loop import run
from toolcrib.cli.options import Json
from toolcrib.cli.output import print_json, print_table, say, wants_json

_IS_CAPABILITY = re.compile(rb"^\s*\{?\s*[\"']?(naftiko|ikanos|capability)[\"']?\s*:", re.MULTILINE)
_LOOKED_AT = 4 << 20  # bytes of a file in a folder
_SKIPPED = frozenset({"node_modules", "__pycache__"})


def validate(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE...", help="Capability files, and folders to search for .yaml and .yml.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
    as_sarif: Annotated[bool, typer.Option("--sarif", help="Print SARIF 2.1.0, for code hosts.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="List all rules instead.")] = False,
    base_uri: BaseUri = None,
    env_file: EnvFile = None,
) -> None:
    """Say everything that is odd about capability files: where, which rule, what the engine does, how to mend it.

    Nothing is sent. Ends with 1 if there is an error.

    Examples:
        toolcrib capability validate shop.yaml
        toolcrib capability validate capabilities/ --strict --sarif > findings.sarif
        toolcrib capability validate shop.yaml --json | jq -r '.findings[] | select(.severity == "error").message'
    """
    if rules:
        _print_rules(as_json=as_json)
        return
    if not files:
        raise CommandFailed("Name a capability file or a folder.", WRONG)
    must_exist(files)
    surroundings = Surroundings.of(base_uri, env_file)
    chosen, skipped = _search(files)
    found = run(lambda: _look(chosen, surroundings))
    failed = any(f.severity == "error" or (strict and f.severity == "warning") for f in found)
    if as_sarif:
        print_json(sarif(found))
    elif wants_json(as_json):
        print_json(
            {
                "ok": not failed,
                "files": list(map(str, chosen)),
                "skipped": list(map(str, skipped)),
                "counts": count(found),
                "findings": list(map(finding_as_json, found)),
            }
        )
    else:
        print_findings(found)
    for path in skipped:
        say(f"{path} is no capability file: skipped.")
    if not chosen:
        raise CommandFailed("There is no capability file there.")
    say(f"{len(chosen)} file{'' if len(chosen) == 1 else 's'}: {count_in_words(found)}.")
    if failed:
        raise typer.Exit(FAILED)


def _print_rules(*, as_json: bool) -> None:
    rules = every_rule()
    if wants_json(as_json):
        print_json(rules)
    else:
        print_table(("RULE", "WHAT IT ASKS FOR"), list(rules.items()))


def _search(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """The files to look at, and those of folders that are no capabilities."""
    chosen: dict[Path, None] = {}
    skipped: list[Path] = []
    for path in paths:
        if not path.is_dir():
            chosen[path] = None
            continue
        for file in sorted(path.rglob("*")):
            inside = file.relative_to(path).parts
            hidden = any(part.startswith(".") or part in _SKIPPED for part in inside)
            if file.suffix not in {".yaml", ".yml"} or hidden or not file.is_file():
                continue
            if _is_capability(file):
                chosen[file] = None
            else:
                skipped.append(file)
    return list(chosen), skipped


def _is_capability(file: Path) -> bool:
    """Whether a file means to be a capability, broken or not."""
    try:
        with file.open("rb") as opened:
            return _IS_CAPABILITY.search(opened.read(_LOOKED_AT)) is not None
    except OSError:
        return True  # and what is wrong with it will be said


async def _look(files: list[Path], surroundings: Surroundings) -> list[Finding]:
    """The findings of all files, each once: what several import is found several times."""
    found: dict[Finding, None] = {}
    capabilities = []
    load = surroundings.loader()
    for file in files:
        try:
            capability = load(str(file))
        except CapabilityInvalid as error:
            found |= dict.fromkeys(error.findings)
        else:
            found |= dict.fromkeys(capability.findings)
            capabilities.append(capability)
            await capability.close()
    surroundings.must_know(capabilities)
    return list(found)
