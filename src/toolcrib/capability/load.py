"""Reads a capability file into a `Document`, with findings for all that is not as it should be.

Lenient on purpose: published files break the schema in many ways and still mean something. Whatever can be served is
kept; only a file of which nothing can be is refused. Nothing is decided here about how calls run (`planner.py`).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from toolcrib.capability import beta
from toolcrib.capability.findings import Finding
from toolcrib.capability.load_fields import Kind, Record, Report, Unusable, kind, short
from toolcrib.capability.load_imports import SECTIONS, Entry, Imports, WithoutFiles, section_entries
from toolcrib.capability.load_servers import (
    AGGREGATE,
    BIND,
    CONSUMED,
    EXPOSED,
    read_aggregate,
    read_bind,
    read_consumed,
    read_server,
)
from toolcrib.capability.spec import (
    Action,
    Aggregate,
    Document,
    Mark,
    McpServer,
    RestServer,
    Server,
    Skill,
    SkillServer,
)
from toolcrib.capability.yaml_source import Node, parse, plain, read_text

ROOT = kind("capability file", f"{' '.join(beta.VERSION_KEYS)} info capability {' '.join(SECTIONS)}")
CAPABILITY = kind("capability", f"{' '.join(SECTIONS)} description label tags info")
INFO = kind("info", "label description tags created modified stakeholders version license contact")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A document and what was found while reading it."""

    document: Document
    findings: tuple[Finding, ...]


def load(path: str | os.PathLike[str], *, text: str | None = None, allow_files: bool = True) -> Loaded:
    """Read a capability file and what it imports.

    Args:
        path: of the file; relative files are looked up in its folder.
        text: its text, if it is not to be read from `path`.
        allow_files: whether other files may be read; if not, what needs them is left out with a finding.

    Raises:
        CapabilityInvalid: nothing of it can be served.
    """
    shown = os.fspath(path)
    folder = str(Path(shown).absolute().parent)
    root, findings = parse(read_text(shown, shown) if text is None else text, shown)
    report = Report()
    for finding in findings:
        report.add(finding)
    imports = Imports(shown, folder, report, allowed=allow_files)
    document = _Loader(root, shown, folder, report, imports).document(allow_files=allow_files)
    own = (str(Path(shown).absolute()),) if text is None else ()
    return Loaded(replace(document, files=(*own, *imports.files)), tuple(report.findings))


class _Loader:
    """One load."""

    def __init__(self, root: Node, path: str, folder: str, report: Report, imports: Imports) -> None:
        self._path = path
        self._folder = folder
        self._report = report
        self._imports = imports
        self._version = _version(root, report)
        self._root = Record(root, ROOT, report)
        try:
            self._capability = self._root.record("capability", CAPABILITY)
        except Unusable as broken:
            report.fatal(broken.finding.rule, broken.finding.message, broken.finding.mend, broken.finding.at)
        if self._capability is None and not any(self._root.has(section) for section in SECTIONS):
            report.fatal(
                "capability-missing",
                "The file has no `capability` and no `consumes`",
                "write what it consumes and exposes below `capability`",
                root.at,
            )

    def document(self, *, allow_files: bool) -> Document:
        """The document; raises CapabilityInvalid when nothing can be served."""
        report = self._report
        sections = {section: self._entries(section) for section in SECTIONS}
        sections["binds"] += self._imports.binds()
        consumes = self._each(sections["consumes"], CONSUMED, read_consumed)
        aggregates = self._each(sections["aggregates"], AGGREGATE, lambda record, _: read_aggregate(record))
        servers = self._each(sections["exposes"], EXPOSED, lambda record, _: read_server(record))
        binds = self._each(sections["binds"], BIND, read_bind)
        if not (consumes or servers or aggregates or binds):
            report.fatal(
                "nothing-to-serve", "The file has nothing that can be used", "mend the other findings", self._root.at
            )
        checked = _Checked(report, sections, aggregates)
        servers = tuple(checked.server(server, servers) for server in servers)
        if not allow_files:
            without = WithoutFiles(report)
            without.binds(binds)
            consumes = tuple(without.consumed(api) for api in consumes)
            servers = tuple(without.server(server) for server in servers)
            aggregates = tuple(without.aggregate(aggregate) for aggregate in aggregates)
        info = self._info()
        return Document(
            path=self._path,
            folder=self._folder,
            version=self._version,
            label=(info.text("label") if info else None) or Path(self._path).stem,
            at=self._root.at,
            description=info.text("description") if info else None,
            tags=info.texts("tags") if info else (),
            info=_plain_map(self._root.node("info")),
            binds=binds,
            consumes=consumes,
            servers=servers,
            aggregates=aggregates,
        )

    def _info(self) -> Record | None:
        try:
            return self._root.record("info", INFO)
        except Unusable as broken:
            self._report.add(broken.finding)
            return None

    def _entries(self, section: str) -> list[Entry]:
        own = section_entries(self._root, section, self._folder)
        own += section_entries(self._capability, section, self._folder)
        return self._imports.resolve(section, own)

    def _each(self, entries: list[Entry], kind: Kind, read: Callable[[Record, str], T]) -> tuple[T, ...]:
        found = []
        for entry in entries:
            try:
                found.append(read(Record(entry.node, kind, self._report, entry.key), entry.folder))
            except Unusable as broken:
                self._report.add(broken.finding)
        return tuple(found)


class _Checked:
    """Judges what refers to other parts of the file: unknown targets keep the file from being served.

    What refers to a part that was itself dropped is dropped too.
    """

    def __init__(self, report: Report, sections: dict[str, list[Entry]], aggregates: tuple[Aggregate, ...]) -> None:
        self._report = report
        self._functions: set[str] = set()
        for aggregate in aggregates:
            for function in aggregate.functions:
                ref = f"{aggregate.namespace}.{function.name}"
                if ref in self._functions:
                    report.fatal("ref-duplicate", f"There are two functions {short(ref)}", "rename one", function.at)
                self._functions.add(ref)
        self._written_functions = {ref for entry in sections["aggregates"] for ref in _written_functions(entry)}
        self._written_servers = {_written(entry.node, "namespace") or entry.key for entry in sections["exposes"]}

    def server(self, server: Server, siblings: tuple[Server, ...]) -> Server:
        """The server without what refers to dropped parts."""
        if isinstance(server, RestServer):
            resources = tuple(
                replace(resource, operations=tuple(o for o in resource.operations if self._refers(o.action, o.at)))
                for resource in server.resources
            )
            return replace(server, resources=resources)
        if isinstance(server, McpServer):
            return replace(
                server,
                tools=tuple(tool for tool in server.tools if self._refers(tool.action, tool.at)),
                resources=tuple(r for r in server.resources if self._refers(r.action, r.at)),
            )
        if isinstance(server, SkillServer):
            sources = {s.namespace for s in siblings if isinstance(s, RestServer | McpServer)}
            return replace(server, skills=tuple(self._skill(skill, sources) for skill in server.skills))
        return server

    def _refers(self, action: Action, at: Mark) -> bool:
        if action.ref is None or action.ref in self._functions:
            return True
        if action.ref not in self._written_functions:
            self._report.fatal(
                "ref-unknown", f"There is no function {short(action.ref)}", "refer to `namespace.function`", at
            )
        self._dropped(f"The function {short(action.ref)} was dropped", at)
        return False

    def _skill(self, skill: Skill, sources: set[str]) -> Skill:
        tools = []
        for tool in skill.tools:
            if (tool.source_namespace is None) == (tool.instruction is None):
                self._report.fatal(
                    "skill-tool-source",
                    f"The tool {short(tool.name)} needs either `from` or `instruction`",
                    "write one of them",
                    tool.at,
                )
            if tool.instruction is not None and skill.location is None:
                self._report.fatal(
                    "skill-location-missing",
                    f"The tool {short(tool.name)} has an instruction, but its skill no location",
                    "give the skill the folder that holds the file",
                    tool.at,
                )
            if tool.source_namespace is None or tool.source_namespace in sources:
                tools.append(tool)
            elif tool.source_namespace not in self._written_servers:
                self._report.fatal(
                    "skill-source-unknown",
                    f"There is no REST or MCP server {short(tool.source_namespace)}",
                    "name a server of this file",
                    tool.at,
                )
            else:
                self._dropped(f"The server {short(tool.source_namespace)} cannot be a source", tool.at)
        return replace(skill, tools=tuple(tools))

    def _dropped(self, message: str, at: Mark) -> None:
        self._report.error("target-dropped", message, "what refers to it is dropped too", "mend it first", at)


def _version(root: Node, report: Report) -> str:
    """The version that the file says it has; raises CapabilityInvalid for shapes of before 0.4."""
    if not isinstance(root.value, dict):
        report.fatal("not-a-map", "The file holds no map", "start with `naftiko: 1.0.0-alpha2`", root.at)
    key = next((key for key in beta.VERSION_KEYS if key in root.value), None)
    if key is None:
        report.warning(
            "version-missing",
            "The file does not say which version of the format it has",
            "it is read as 1.0.0-alpha2",
            "start with `naftiko: 1.0.0-alpha2`",
            root.at,
        )
        return ""
    node = root.value[key]
    if isinstance(node.value, dict):
        report.fatal(
            "version-old",
            f"`{key}` is a map: this is a file of the format before 0.4, which described sandboxes and cannot be run",
            "write it anew as `naftiko: 1.0.0-alpha2` with `capability.consumes` and `capability.exposes`",
            node.at,
        )
    text = node.text or ""
    if not beta.KNOWN_VERSION.fullmatch(text):
        report.warning(
            "version-unknown",
            f"The version {short(text)} is not known",
            "it is read as 1.0.0-alpha2, in the spellings of beta too",
            "write 1.0.0-alpha2 or a later one up to beta5",
            node.at,
        )
    return text


def _written(node: Node, key: str) -> str | None:
    child = node.value.get(key) if isinstance(node.value, dict) else None
    return child.text if child is not None else None


def _written_functions(entry: Entry) -> list[str]:
    """The references that an aggregate would have, had none of its functions been dropped."""
    if not isinstance(entry.node.value, dict):
        return []
    namespace = _written(entry.node, "namespace") or entry.key
    fields = [entry.node.value[key] for key in ("functions", "flows") if key in entry.node.value]
    return [
        f"{namespace}.{key or _written(node, 'name')}" for functions in fields for key, node in beta.members(functions)
    ]


def _plain_map(node: Node | None) -> dict[str, Any]:
    value = plain(node) if node is not None else None
    return value if isinstance(value, dict) else {}
