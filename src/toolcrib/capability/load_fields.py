"""Typed reading of the maps of a capability file: what does not fit becomes a finding at its place.

A field that can be understood is coerced with a warning; one that cannot is an error finding and reads as absent, or,
where a wrong guess would be worse than nothing (`needed`), makes its whole record `Unusable`.
"""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from toolcrib.capability import beta
from toolcrib.capability.findings import CapabilityInvalid, Finding, Severity
from toolcrib.capability.spec import ABSENT, Mark
from toolcrib.capability.yaml_source import Node, plain

_PER_RULE = 200  # findings of one rule that are kept; a broken file should not answer with a larger one
_LONGEST_ADDRESS = 2048
_YES = frozenset({"true", "yes", "on"})
_NO = frozenset({"false", "no", "off"})

T = TypeVar("T")


class Unusable(Exception):
    """A record that cannot be read; the finding says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


class Report:
    """The findings of one load."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._count: dict[str, int] = {}

    def add(self, finding: Finding) -> None:
        """Keep a finding, unless there are very many of its rule."""
        count = self._count[finding.rule] = self._count.get(finding.rule, 0) + 1
        if count <= _PER_RULE:
            self.findings.append(finding)

    def is_full(self, rule: str) -> bool:
        """Whether further findings of the rule are dropped, so that a costly message need not be made."""
        return self._count.get(rule, 0) >= _PER_RULE

    def error(self, rule: str, message: str, effect: str, mend: str, at: Mark) -> None:
        """The part at that place is not served as written."""
        self._find(rule, "error", message, effect, mend, at)

    def warning(self, rule: str, message: str, effect: str, mend: str, at: Mark) -> None:
        """It works, perhaps not as meant."""
        self._find(rule, "warning", message, effect, mend, at)

    def note(self, rule: str, message: str, effect: str, mend: str, at: Mark) -> None:
        """It works as said; worth knowing."""
        self._find(rule, "note", message, effect, mend, at)

    def fatal(self, rule: str, message: str, mend: str, at: Mark) -> NoReturn:
        """Nothing can be served; raises CapabilityInvalid with all that was found, this first."""
        finding = Finding(rule, "error", message, "nothing is served", mend, at)
        raise CapabilityInvalid((finding, *self.findings))

    def _find(self, rule: str, severity: Severity, message: str, effect: str, mend: str, at: Mark) -> None:
        self.add(Finding(rule, severity, message, effect, mend, at))


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of record: what it is called in messages, and the fields it has."""

    name: str
    fields: frozenset[str]


def kind(name: str, fields: str) -> Kind:
    """A kind of record, its fields separated by spaces."""
    return Kind(name, frozenset(fields.split()))


class Record:
    """The fields of one map under the names of alpha2.

    Args:
        node: the map.
        kind: what it is; other fields than that has are warned about.
        report: where findings go.
        key: the name that a keyed map gave it.

    Raises:
        Unusable: the node is no map.
    """

    def __init__(self, node: Node, kind: Kind, report: Report, key: str | None = None) -> None:
        self.at = node.at
        self.kind = kind
        self.report = report
        self._fields: dict[str, Node] = {}
        if not isinstance(node.value, dict):
            raise Unusable(_wrong(f"The {kind.name}", "a map", node, "it is dropped"))
        for written, child in node.value.items():
            name = beta.field_name(kind.name, written)
            if name in kind.fields:
                if name not in self._fields or name == written:
                    self._fields[name] = child
            elif not written.startswith("x-"):
                self._unknown(written, child.at)
        self._key = key

    def at_field(self, field: str) -> Mark:
        """Where a field stands, or the record if it has none."""
        return self._fields[field].at if field in self._fields else self.at

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return field in self._fields and self._fields[field].value is not None

    def is_written(self, field: str) -> bool:
        """Whether the field is there, even as null."""
        return field in self._fields

    def as_written(self, *, skip: str) -> dict[str, Any]:
        """All fields but one, scalars as the texts they were written as."""
        return {
            name: child.text if child.text is not None else plain(child)
            for name, child in self._fields.items()
            if name != skip and child.value is not None
        }

    def node(self, field: str) -> Node | None:
        """The field as read, None if absent or null."""
        return self._fields[field] if self.has(field) else None

    def name(self, field: str = "name") -> str | None:
        """What the record is called: by the key it stands under, else by its field."""
        written = self.text(field)
        if self._key is None or written in {None, self._key} or field != "name":
            return written or self._key
        self.report.warning(
            "name-twice",
            f"The {self.kind.name} has the key {short(self._key)} and the name {short(written)}",
            "the key is its name",
            "leave the name out",
            self.at_field(field),
        )
        return self._key

    def required_name(self) -> str:
        """The name that must be there; raises Unusable."""
        found = self.name()
        if not found:
            self.unusable("name-missing", f"The {self.kind.name} has no name", "give it a name")
        return found

    def text(self, field: str, *, needed: bool = False) -> str | None:
        """A text; numbers and booleans as written. None if absent or null."""
        node = self.node(field)
        if node is None:
            return None
        if node.text is None:
            self._mismatch(field, "a text", node, needed=needed)
            return None
        return node.text

    def required_text(self, field: str) -> str:
        """A text that must be there; raises Unusable."""
        found = self.text(field, needed=True)
        if not found:
            self.unusable(
                f"{field}-missing", f"The {self.kind.name} has no {field}", f"give it a {field}", self.at_field(field)
            )
        return found

    def address(self, field: str) -> str:
        """A path or base URI, empty if absent; raises Unusable if it is longer than servers take."""
        found = (self.text(field, needed=True) or "").strip()
        if len(found) > _LONGEST_ADDRESS:
            what = f"The {field} of the {self.kind.name} has {len(found)} characters"
            self.unusable("address-long", what, f"keep it below {_LONGEST_ADDRESS}", self.at_field(field))
        return found

    def flag(self, field: str) -> bool | None:
        """True or false; words for them with a warning."""
        node = self.node(field)
        if node is None or isinstance(node.value, bool):
            return None if node is None else bool(node.value)
        word = (node.text or "").strip().lower()
        if word in _YES or word in _NO:
            self._coerced(field, "a boolean", node, "true" if word in _YES else "false")
            return word in _YES
        self._mismatch(field, "a boolean", node)
        return None

    def integer(self, field: str, *, least: int, most: int) -> int | None:
        """A whole number within bounds; one in quotes with a warning."""
        node = self.node(field)
        if node is None:
            return None
        value = node.value
        if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 20:
            value = int(value)
            self._coerced(field, "a number", node, str(value))
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self._mismatch(field, f"a whole number from {least} to {most}", node)
            return None
        return value

    def value(self, field: str) -> Any:
        """Any value, ABSENT if absent or null."""
        node = self.node(field)
        return ABSENT if node is None else plain(node)

    def map(self, field: str) -> dict[str, Any]:
        """A map of anything; empty if absent."""
        node = self.node(field)
        if node is None:
            return {}
        if not isinstance(node.value, dict):
            self._mismatch(field, "a map", node)
            return {}
        found: dict[str, Any] = plain(node)
        return found

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts; a single one counts as a list of one."""
        node = self.node(field)
        if node is None:
            return ()
        if node.text is not None:
            self._coerced(field, "a list", node, "a list of one")
            return (node.text,)
        if not isinstance(node.value, list):
            self._mismatch(field, "a list of texts", node)
            return ()
        found = []
        for child in node.value:
            if child.text is None or child.value is None:
                self._mismatch(field, "a list of texts", child)
            else:
                found.append(child.text)
        return tuple(found)

    def record(self, field: str, kind: Kind) -> "Record | None":
        """A record in a field; raises Unusable if it is no map."""
        node = self.node(field)
        return None if node is None else Record(node, kind, self.report)

    def each(self, field: str, kind: Kind, read: Callable[["Record"], T], *, needed: bool = False) -> tuple[T, ...]:
        """The records of a list or keyed map, read; one that is unusable is dropped with its finding.

        Raises:
            Unusable: with `needed`, if the field or any of its records is.
        """
        return self.each_of(self.entries(field, kind, needed=needed), kind, read, needed=needed)

    def each_of(
        self,
        entries: Iterable[tuple[str | None, Node]],
        kind: Kind,
        read: Callable[["Record"], T],
        *,
        needed: bool = False,
    ) -> tuple[T, ...]:
        """As `each`, of nodes that are at hand."""
        found: list[T] = []
        for key, node in entries:
            try:
                found.append(read(Record(node, kind, self.report, key)))
            except Unusable as broken:
                if needed:
                    raise
                self.report.add(broken.finding)
        return tuple(found)

    def entries(self, field: str, kind: Kind, *, needed: bool = False) -> Iterable[tuple[str | None, Node]]:
        """The nodes of a list or keyed map with their keys; a record alone counts as a list of one."""
        node = self.node(field)
        if node is None:
            return []
        if isinstance(node.value, list) or beta.is_keyed(node):
            return beta.members(node)
        if isinstance(node.value, dict) and any(beta.field_name(kind.name, key) in kind.fields for key in node.value):
            self._coerced(field, "a list", node, "a list of one")
            return [(None, node)]
        self._mismatch(field, "a list", node, needed=needed)
        return []

    def unusable(self, rule: str, message: str, mend: str, at: Mark | None = None) -> NoReturn:
        """Give the record up."""
        effect = f"the {self.kind.name} is dropped"
        raise Unusable(Finding(rule, "error", message, effect, mend, at or self.at))

    def _unknown(self, key: str, at: Mark) -> None:
        if self.report.is_full("unknown-key"):
            return
        close = difflib.get_close_matches(key[:60], self.kind.fields, n=1)
        mend = f"write {close[0]}, if that was meant" if close else "leave it out, or start it with x-"
        self.report.warning("unknown-key", f"A {self.kind.name} has no {short(key)}", "it is ignored", mend, at)

    def _coerced(self, field: str, wanted: str, node: Node, taken: str) -> None:
        self.report.warning(
            "type-coerced", f"{field} should be {wanted}", f"it is taken as {taken}", f"write {wanted}", node.at
        )

    def _mismatch(self, field: str, wanted: str, node: Node, *, needed: bool = False) -> None:
        dropped = f"the {self.kind.name} is dropped" if needed else "it is ignored"
        finding = _wrong(field, wanted, node, dropped)
        if needed:
            raise Unusable(finding)
        self.report.add(finding)


def short(text: str) -> str:
    """A text of the file, cut to be quoted in a message."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _wrong(what: str, wanted: str, node: Node, effect: str) -> Finding:
    written = {dict: "a map", list: "a list", str: "a text", bool: "a boolean", type(None): "nothing"}
    is_a = written.get(type(node.value), "a number")
    return Finding("wrong-type", "error", f"{what} should be {wanted}, not {is_a}", effect, f"write {wanted}", node.at)
