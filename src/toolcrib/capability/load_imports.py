"""Resolves the imports of a capability file, and takes out what needs files where files are not to be read.

Only files in the folder of the capability or below it are opened, whatever links or dots a path uses. An imported file
is not resolved further: an entry that is itself an import is refused, so there are no cycles.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from toolcrib.capability import beta
from toolcrib.capability.findings import CapabilityInvalid
from toolcrib.capability.load_fields import Record, Report, kind, short
from toolcrib.capability.load_servers import renamed
from toolcrib.capability.spec import (
    Action,
    Aggregate,
    Bind,
    Consumed,
    ConsumedOperation,
    Mark,
    McpServer,
    RestServer,
    Server,
    Skill,
    SkillServer,
)
from toolcrib.capability.yaml_source import Node, parse, read_text

IMPORT = kind("import", "location import as description")
SECTIONS: Final = ("binds", "consumes", "exposes", "aggregates")
_MAX_FILES = 50
_RELATIVE_URI = re.compile(r"file:///?(?=\./)")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a section: the key it stands under if any, and the folder of its file."""

    key: str | None
    node: Node
    folder: str


@dataclass(slots=True)
class _Source:
    """An imported file; `only_binds` while nothing but binds was imported from it."""

    root: Node
    folder: str
    shown: str
    only_binds: bool = True


class Imports:
    """The files that a capability imports from.

    Args:
        path: of the capability as given.
        folder: where it lies; nothing outside is opened.
        report: where findings go.
        allowed: whether files may be read at all.
    """

    def __init__(self, path: str, folder: str, report: Report, *, allowed: bool) -> None:
        self.files: list[str] = []
        self._path = path
        self._folder = folder
        self._report = report
        self._allowed = allowed
        self._sources: dict[str, _Source] = {}
        self._taken: dict[int, Node] = {}  # binds that were imported by name

    def resolve(self, section: str, entries: list[Entry]) -> list[Entry]:
        """The entries of a section, imports replaced by what they name.

        Raises:
            CapabilityInvalid: an import is broken or names what is not there.
        """
        found = []
        for entry in entries:
            if _is_import(entry.node):
                found += self._imported(section, Record(entry.node, IMPORT, self._report))
            else:
                found.append(entry)
        return found

    def binds(self) -> list[Entry]:
        """The binds of the files that anything else is imported from: it may need them."""
        return [
            Entry(key, node, source.folder)
            for source in self._sources.values()
            for key, node in _section(source.root, "binds")
            if not _is_import(node) and not (source.only_binds or id(node) in self._taken)
        ]

    def _imported(self, section: str, record: Record) -> list[Entry]:
        location, namespace = record.text("location"), record.text("import")
        if not location or not namespace:
            self._report.fatal(
                "import-broken",
                "The import lacks its file or its namespace",
                "write `location` and `import`",
                record.at,
            )
        if not self._allowed:
            _refused(self._report, f"The import of {short(namespace)}", "it is left out", record.at)
            return []
        source = self._source(location, record.at)
        source.only_binds = source.only_binds and section == "binds"
        alias = record.text("as") or namespace
        for key, node in _section(source.root, section):
            if _is_import(node):
                if namespace in {_text(node, "as"), _text(node, "import"), key}:
                    self._refuse_nested(source, namespace, node, record.at)
            elif (_text(node, "namespace") or key) == namespace:
                self._taken[id(node)] = node
                return [Entry(key, renamed(node, alias), source.folder)]
        message = f"{source.shown} has no {section} entry with the namespace {short(namespace)}"
        return self._report.fatal("import-unknown", message, "import a namespace that is there", record.at)

    def _refuse_nested(self, source: _Source, namespace: str, node: Node, at: Mark) -> None:
        location = _text(node, "location") or _text(node, "from") or ""
        target = os.path.realpath(Path(source.folder, _RELATIVE_URI.sub("", location)))
        is_cycle = target in {os.path.realpath(self._path), *self._sources}
        self._report.fatal(
            "import-cycle" if is_cycle else "import-nested",
            f"{short(namespace)} is itself an import in {source.shown}"
            + (", which leads back to a file that is being read" if is_cycle else ""),
            "import it from the file that defines it",
            at,
        )

    def _source(self, location: str, at: Mark) -> _Source:
        relative = _RELATIVE_URI.sub("", location)
        if _SCHEME.match(relative) or Path(relative).is_absolute():
            self._outside(location, at)
        path = os.path.realpath(Path(self._folder, relative))
        if not Path(path).is_relative_to(os.path.realpath(self._folder)):
            self._outside(location, at)
        if path == os.path.realpath(self._path):
            self._report.fatal("import-cycle", "The file imports itself", "write the entry where it is", at)
        if path not in self._sources:
            if len(self._sources) >= _MAX_FILES:
                self._report.fatal("import-many", f"It imports more than {_MAX_FILES} files", "import from fewer", at)
            self._sources[path] = self._open(path, relative, at)
        return self._sources[path]

    def _open(self, path: str, relative: str, at: Mark) -> _Source:
        shown = os.path.normpath(Path(self._path).parent / relative)
        try:
            root, findings = parse(read_text(path, shown), shown)
        except CapabilityInvalid as broken:
            self._report.findings[:0] = broken.findings
            if broken.findings[0].rule == "file-unreadable":
                self._report.fatal("import-missing", f"{shown} cannot be read", "check the path of the import", at)
            raise CapabilityInvalid(tuple(self._report.findings)) from None
        for finding in findings:
            self._report.add(finding)
        self.files.append(path)
        return _Source(root, str(Path(path).parent), shown)

    def _outside(self, location: str, at: Mark) -> None:
        self._report.fatal(
            "import-outside",
            f"The import of {short(location)} leads out of the folder of the capability",
            "put the file there or below, and write its relative path",
            at,
        )


def section_entries(record: Record | None, section: str, folder: str) -> list[Entry]:
    """The entries that a section of the file itself has."""
    if record is None:
        return []
    return [Entry(key, node, folder) for key, node in record.entries(section, _ENTRY)]


_ENTRY = kind("section", "namespace type baseUri keys import from location functions flows")


def _section(root: Node, section: str) -> list[tuple[str | None, Node]]:
    """A section of an imported file: at its root and below `capability`."""
    if not isinstance(root.value, dict):
        return []
    inner = root.value.get("capability")
    found = beta.members(root.value[section]) if section in root.value else []
    if inner is not None and isinstance(inner.value, dict) and section in inner.value:
        found += beta.members(inner.value[section])
    return found


def _is_import(node: Node) -> bool:
    return (
        isinstance(node.value, dict) and "import" in node.value and not {"type", "baseUri", "keys"} & node.value.keys()
    )


def _text(node: Node, key: str) -> str | None:
    child = node.value.get(key) if isinstance(node.value, dict) else None
    return child.text if child is not None else None


def _refused(report: Report, what: str, effect: str, at: Mark) -> None:
    report.error("file-refused", f"{what} needs files, which are not read here", effect, "write it into this file", at)


class WithoutFiles:
    """Takes out of a document what would make the engine open files."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def binds(self, binds: tuple[Bind, ...]) -> None:
        """Says that files of binds are not read: their variables come from where all others do."""
        for bind in binds:
            if bind.location is not None:
                self._report.warning(
                    "file-refused",
                    f"The bind {short(bind.namespace)} names a file, which is not read here",
                    "its keys are looked up like those of binds without location",
                    "give the values another way",
                    bind.at,
                )

    def consumed(self, api: Consumed) -> Consumed:
        """An API without the operations that need schema files."""
        resources = tuple(
            replace(resource, operations=tuple(filter(self._has_no_schema, resource.operations)))
            for resource in api.resources
        )
        return replace(api, resources=resources)

    def server(self, server: Server) -> Server:
        """A server without what is read from folders."""
        if isinstance(server, RestServer):
            resources = tuple(
                replace(resource, operations=tuple(o for o in resource.operations if self._runs(o.action, o.at)))
                for resource in server.resources
            )
            return replace(server, resources=resources)
        if isinstance(server, McpServer):
            return replace(
                server,
                tools=tuple(tool for tool in server.tools if self._runs(tool.action, tool.at)),
                resources=tuple(
                    r for r in server.resources if self._is_inline(r.location, r.at) and self._runs(r.action, r.at)
                ),
                prompts=tuple(prompt for prompt in server.prompts if self._is_inline(prompt.location, prompt.at)),
            )
        if isinstance(server, SkillServer):
            return replace(server, skills=tuple(self._skill(skill) for skill in server.skills))
        return server

    def aggregate(self, aggregate: Aggregate) -> Aggregate:
        """An aggregate without functions that run scripts."""
        return replace(aggregate, functions=tuple(f for f in aggregate.functions if self._runs(f.action, f.at)))

    def _skill(self, skill: Skill) -> Skill:
        if skill.location is None:
            return skill
        _refused(self._report, f"The skill {short(skill.name)}", "it is listed without its files", skill.at)
        return replace(skill, location=None, tools=tuple(tool for tool in skill.tools if tool.instruction is None))

    def _runs(self, action: Action, at: Mark) -> bool:
        if all(step.type != "script" for step in action.steps):
            return True
        _refused(self._report, "A script step", "what runs it is dropped", at)
        return False

    def _is_inline(self, location: str | None, at: Mark) -> bool:
        if location is not None:
            _refused(self._report, "The location", "this is dropped", at)
        return location is None

    def _has_no_schema(self, operation: ConsumedOperation) -> bool:
        if (operation.raw_format or "").lower() not in {"avro", "protobuf"}:
            return True
        _refused(self._report, f"The schema of {short(operation.name)}", "the operation is dropped", operation.at)
        return False
