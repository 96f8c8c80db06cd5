"""YAML bodies: the first document, with the scalars of YAML 1.2's core schema.

So `no`, `on`, dates and 12:30 are strings, as JSON readers expect; tags other than the core ones are ignored, nothing
is ever constructed. Merge keys (`<<`) are honoured. The tree is built from libyaml's events without recursion, and an
alias counts as everything it stands for: a bomb is refused before it is written out.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import yaml

from toolcrib.capability.formats.charsets import to_text
from toolcrib.capability.formats.limits import MAX_DEPTH, MAX_NODES, TOO_DEEP, json_number

_MAX_DIRECTIVES: Final = 100  # libyaml compares each %TAG with all before it
_TEXT_PER_BYTE: Final = 10  # how far aliases may multiply the text of a body
_SPARE_TEXT: Final = 1_000_000
_CONSTANTS: Final = {"null": None, "Null": None, "NULL": None, "~": None, "": None} | {
    word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")
}
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,400}|0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_STRING_TAG: Final = "tag:yaml.org,2002:str"
_Decoder = Callable[[bytes, str | None], Any]


def open_decoder(_name: str, _schema: str | None, _folders: tuple[str, ...]) -> _Decoder:
    """The decoder; YAML has no schema here."""
    return lambda body, charset: load(to_text(body, charset))


def load(text: str) -> Any:
    """The tree of the first document, None if there is none; raises ValueError."""
    if text.count("%TAG") > _MAX_DIRECTIVES:
        raise ValueError("it has too many %TAG directives")
    builder = _Builder(_SPARE_TEXT + _TEXT_PER_BYTE * len(text))
    try:
        for event in _first_document(text):
            builder.take(event)
    except yaml.MarkedYAMLError as e:
        place = f", line {e.problem_mark.line + 1} column {e.problem_mark.column + 1}" if e.problem_mark else ""
        raise ValueError(f"{e.problem or 'it is not YAML'}{place}") from None
    except yaml.YAMLError:
        raise ValueError("it holds characters that YAML does not allow") from None
    return builder.root


def _first_document(text: str) -> Iterator[yaml.Event]:
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.DocumentEndEvent):
            return
        if isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
            yield event


def scalar(text: str) -> Any:
    """The value of a plain scalar in the core schema."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[:1] not in "+-.0123456789":
        return text
    if _INTEGER.fullmatch(text):
        return json_number(int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)))
    if _FLOAT.fullmatch(text):
        value = float(text)
        return value if math.isfinite(value) else text
    not_finite = _NOT_FINITE.fullmatch(text)
    if not_finite:
        return json_number(float(not_finite[1] + "inf") if not_finite[2] else float("nan"))
    return text


class _Open:
    """A collection that is still open; `height` is the levels below it, `nodes` and `size` what it holds."""

    __slots__ = ("anchor", "height", "key", "merges", "nodes", "size", "tree", "wants_key")

    def __init__(self, tree: dict[str, Any] | list[Any], anchor: str | None) -> None:
        self.tree = tree
        self.anchor = anchor
        self.key = ""
        self.wants_key = isinstance(tree, dict)
        self.merges: list[Any] = []
        self.height = 0
        self.nodes = 1
        self.size = 0


class _Builder:
    """Builds the tree from libyaml's events, and keeps the account of what aliases write out."""

    def __init__(self, max_size: int) -> None:
        self.root: Any = None
        self._max_size = max_size
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int, int, int]] = {}  # value, height, nodes, size

    def take(self, event: yaml.Event) -> None:
        """Feed one event of the document."""
        if isinstance(event, yaml.ScalarEvent):
            is_plain = event.implicit[0] and event.tag != _STRING_TAG
            value = scalar(event.value) if is_plain or _is_core(event.tag) else event.value
            wants_key = self._open and self._open[-1].wants_key
            self._place(event.anchor, event.value if wants_key else value, 0, 1, len(event.value))
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise ValueError("it uses an anchor before its value is complete")
            self._place(None, *self._anchors[event.anchor])
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(self._open) >= MAX_DEPTH:
                raise ValueError(TOO_DEEP)
            self._open.append(_Open({} if isinstance(event, yaml.MappingStartEvent) else [], event.anchor))
        else:
            done = self._open.pop()
            if isinstance(done.tree, dict):
                for merged in done.merges:
                    done.tree.update((key, merged[key]) for key in merged if key not in done.tree)
            self._place(done.anchor, done.tree, done.height + 1, done.nodes, done.size)

    def _place(self, anchor: str | None, value: Any, height: int, nodes: int, size: int) -> None:
        """Put a complete value where it belongs; `nodes` and `size` count everything inside it."""
        if anchor:
            self._anchors[anchor] = (value, height, nodes, size)
        if not self._open:
            self.root = value
            return
        parent = self._open[-1]
        parent.height = max(parent.height, height)
        parent.nodes += nodes
        parent.size += size
        if len(self._open) + height > MAX_DEPTH:
            raise ValueError(TOO_DEEP)
        if parent.nodes > MAX_NODES:
            raise ValueError(f"it stands for more than {MAX_NODES} values")
        if parent.size > self._max_size:
            raise ValueError("its aliases stand for too much text")
        if isinstance(parent.tree, list):
            parent.tree.append(value)
        elif parent.wants_key:
            parent.key = _key(value)
            parent.wants_key = False
        else:
            merges = _merged(value) if parent.key == "<<" else []
            parent.merges += merges
            if not merges:
                parent.tree[parent.key] = value
            parent.wants_key = True


def _is_core(tag: str | None) -> bool:
    return tag in {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null")}


def _key(value: Any) -> str:
    """The text of a key: as written, or that of the value which an alias stands for."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    raise ValueError("a key of a mapping is itself a collection")


def _merged(value: Any) -> list[dict[str, Any]]:
    """The mappings that a merge key brings in, the strongest first; empty if the value is nothing to merge."""
    found = value if isinstance(value, list) else [value]
    return found if all(isinstance(one, dict) for one in found) else []
