"""Capability files on their way to a server: made whole, judged here first, and given the values that they need.

The server reads no other files and no environment, so imports are written into the text, and the values of binds come
from `--env`. The server decides; what is said here is said earlier and all at once.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolcrib.capability.bundle import bundle
from toolcrib.capability.capability import Capability
from toolcrib.capability.findings import CapabilityInvalid, Finding
from toolcrib.cli.client import Server
from toolcrib.cli.failure import FAILED, WRONG, CommandFailed
from toolcrib.cli.inventory import ToolSetEntry, find_tool_set
from toolcrib.cli.output import say
from toolcrib.domain.adapters import MASK

_SHOWN = 30  # findings


@dataclass(frozen=True, slots=True)
class CapabilityFile:
    """A capability file ready to be sent: `text` stands on its own."""

    path: Path
    text: str
    capability: Capability

    @classmethod
    def read(cls, path: Path, *, env: Mapping[str, str], base_uris: Mapping[str, str]) -> "CapabilityFile":
        """Read and judge a file; says what it imports.

        Raises:
            CommandFailed: there is no such file, it cannot be served, or a base URI is of an API that it does not name.
        """
        if not path.is_file():
            raise CommandFailed(f"There is no file {path}.", WRONG)
        try:
            text, imported = bundle(path)
            shown = f"{path} with its imports" if imported else path  # lines are those of the text
            capability = Capability.load(shown, text=text, environ=env, base_uris=base_uris, files=False)
        except CapabilityInvalid as error:
            _say_findings(error.findings, path)
            raise CommandFailed(f"{path} cannot be served.", FAILED) from None
        known = [api.namespace for api in capability.document.consumes]
        if unknown := next((name for name in base_uris if name not in {*known, "*"}), None):
            raise CommandFailed(f"--base-uri: {path} consumes no {unknown!r}, only {', '.join(known)}.", WRONG)
        if imported:
            say(f"What {path} imports was written into it: {', '.join(Path(file).name for file in imported)}.")
        return cls(path, text, capability)

    @property
    def name(self) -> str:
        """What a tool set of it is called: the file's name without its ending."""
        return self.path.name.partition(".")[0] or self.path.name

    def say_findings(self, stored: Collection[str] = ()) -> None:
        """Say what does not work or works otherwise, and which values are missing; `stored` are known to the server."""
        _say_findings(tuple(f for f in self.capability.findings if f.rule != "bind-unresolved"), self.path)
        missing = {m.variable for m in self.capability.plan.binds.missing}
        for bind in self.capability.document.binds:
            for variable, key in bind.keys.items():
                if variable in missing and key not in stored:
                    ways = f"--env {key}=VALUE" + (f", or --env {key} for the one here" if key in os.environ else "")
                    say(f"{variable} has no value, so calls that need it will fail: give it with {ways}.")


def _say_findings(findings: tuple[Finding, ...], path: Path) -> None:
    serious = [finding for finding in findings if finding.severity != "note"]
    for finding in serious[:_SHOWN]:
        at = finding.at
        say(
            f"{at.file}:{at.line}:{at.column}: {finding.severity}: {finding.message.rstrip('.')}; {finding.effect}."
            f" Mend: {finding.mend}. [{finding.rule}]"
        )
    if len(serious) > _SHOWN:
        say(f"{len(serious) - _SHOWN} more: `toolcrib capability validate {path}` lists them all.")


def stored_capability(server: Server, name: str) -> tuple[ToolSetEntry, dict[str, Any]]:
    """A tool set that is a capability, and its adapter as the server tells it.

    Raises:
        CommandFailed: there is no such tool set, or it is something else.
    """
    tool_set = find_tool_set(server, name)
    adapter = server.get(tool_set.path, expects="metadata")["spec"]["adapter"]
    if "capability" not in adapter:
        raise CommandFailed(f"The tool set {tool_set.name} is no capability but {tool_set.kind or 'bare'}.", WRONG)
    return tool_set, dict(adapter["capability"])


def replacement(
    stored: Mapping[str, Any], text: str, *, env: Mapping[str, str], base_uris: Mapping[str, str]
) -> dict[str, Any]:
    """The members of the adapter to send: a new text, and the given values on top of those that are stored."""
    kept = dict.fromkeys(stored.get("env", {}), MASK)
    return {"source": text, "env": {**kept, **env}, "baseUris": {**stored.get("baseUris", {}), **base_uris}}
