"""Findings in capability files as people and programs read them; they name variables, never their values."""

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from toolcrib.capability.findings import Finding
from toolcrib.cli.output import printable

_MARKS = {"error": ("✗", "red"), "warning": ("!", "yellow"), "note": ("·", "dim")}
_ORDER = {"error": 0, "warning": 1, "note": 2}


def as_json(finding: Finding) -> dict[str, Any]:
    """A finding for programs."""
    return {
        "file": finding.at.file,
        "line": finding.at.line,
        "column": finding.at.column,
        "severity": finding.severity,
        "rule": finding.rule,
        "message": finding.message,
        "effect": finding.effect,
        "mend": finding.mend,
    }


def print_findings(findings: Iterable[Finding], *, to_stderr: bool = False) -> None:
    """Print findings by file, the gravest of each first; those of one rule with one remedy share its lines."""
    console = Console(highlight=False, stderr=to_stderr)
    ordered = sorted(findings, key=lambda f: (f.at.file, _ORDER[f.severity], f.rule, f.at.line, f.at.column))
    for file, own in groupby(ordered, key=lambda f: f.at.file):
        console.print(Text(printable(file), style="bold underline"), soft_wrap=True)
        for _, same in groupby(own, key=lambda f: (f.severity, f.rule, f.effect, f.mend)):
            _print_group(console, list(same))
        console.print()


def _print_group(console: Console, findings: list[Finding]) -> None:
    first = findings[0]
    mark, style = _MARKS[first.severity]
    for finding in findings:
        # the whole place on one line, so that terminals and editors make a link of it
        place = f"{finding.at.file}:{finding.at.line}:{finding.at.column}"
        line = Text.assemble(
            (f"  {mark} ", style), (printable(place), "bold"), f"  {printable(_sentence(finding.message))}"
        )
        console.print(line, soft_wrap=True)
    console.print(
        Text.assemble(f"      {printable(_sentence(first.effect))} ", (f"[{first.rule}]", "dim")), soft_wrap=True
    )
    console.print(Text(f"      Mend: {printable(first.mend)}", style="green"), soft_wrap=True)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def count(findings: Iterable[Finding]) -> dict[str, int]:
    """How many of each severity."""
    counted = Counter(finding.severity for finding in findings)
    return {"error": counted["error"], "warning": counted["warning"], "note": counted["note"]}


def count_in_words(findings: Iterable[Finding]) -> str:
    """Such as `1 error, 2 warnings`; `no findings` for none."""
    parts = [f"{n} {kind}{'' if n == 1 else 's'}" for kind, n in count(findings).items() if n]
    return ", ".join(parts) or "no findings"
