"""XML bodies by the rules of Jackson, which users of the format know.

The root's name is dropped; children are members, repeated ones an array; attributes are members without a prefix;
text beside attributes or children is the member ""; leaves are strings, an empty element is "", `xsi:nil` is null.
Namespaces go: names are local names. Declarations inside a document type are refused, as
defusedxml does: so no entities, neither bombs nor files.
"""

import itertools
import re
from collections.abc import Callable
from typing import Any, Final
from xml.parsers import expat

from toolcrib.capability.formats.charsets import to_text
from toolcrib.capability.formats.limits import MAX_DEPTH, TOO_DEEP

_NIL: Final = "http://www.w3.org/2001/XMLSchema-instance nil"
_DECLARED: Final = re.compile(rb"<\?xml[^>]{1,80}?encoding\s*=\s*[\"'](?!utf|UTF)([A-Za-z0-9._-]{1,40})[\"']")


def open_decoder(_name: str, _schema: str | None, _folders: tuple[str, ...]) -> Callable[[bytes, str | None], Any]:
    """The decoder; XML has no schema here."""
    return _decode


def _decode(body: bytes, charset: str | None) -> Any:
    if not body.strip():
        return None
    tree = _Tree()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.ordered_attributes = True
    parser.StartElementHandler = tree.start
    parser.EndElementHandler = tree.end
    parser.CharacterDataHandler = tree.text
    parser.StartDoctypeDeclHandler = _doctype
    parser.SkippedEntityHandler = _entity
    declared = _DECLARED.match(body) if charset is None else None
    if declared:
        charset = declared[1].decode("ascii")
    try:
        # The charset of the answer wins; expat itself knows Unicode encodings and little else.
        parser.Parse(body if charset is None else to_text(body, charset), True)
    except expat.ExpatError as e:
        raise ValueError(f"{expat.ErrorString(e.code)}, line {e.lineno} column {e.offset + 1}") from None
    return tree.root


def _doctype(_name: str, _system: str | None, _public: str | None, has_declarations: int) -> None:
    if has_declarations:
        raise ValueError("its document type has declarations, which are not accepted")


def _entity(name: str, _is_parameter: int) -> None:
    raise ValueError(f"it uses the unknown entity {name[:40]!r}")


class _Element:
    """An element that is still open. `text` holds None where a child stood: text on both sides is two pieces."""

    __slots__ = ("is_nil", "members", "name", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: dict[str, Any] = {}
        self.text: list[str | None] = []
        self.is_nil = False

    def add(self, name: str, value: Any) -> None:
        """One more member; the second of a name makes an array. No value is a list itself."""
        if name not in self.members:
            self.members[name] = value
        elif isinstance(self.members[name], list):
            self.members[name].append(value)
        else:
            self.members[name] = [self.members[name], value]

    def value(self) -> Any:
        if not self.members:
            return None if self.is_nil else "".join(piece for piece in self.text if piece)
        for is_mark, pieces in itertools.groupby(self.text, lambda piece: piece is None):
            piece = "" if is_mark else "".join(piece for piece in pieces if piece)
            if piece and not piece.isspace():
                self.add("", piece)
        return self.members


class _Tree:
    """Builds the tree from expat's events, without recursion."""

    def __init__(self) -> None:
        self.root: Any = None
        self._open: list[_Element] = []

    def start(self, name: str, attributes: list[str]) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise ValueError(TOO_DEEP)
        element = _Element(name.rpartition(" ")[2])
        pairs = iter(attributes)
        for key, value in zip(pairs, pairs, strict=True):
            if key == _NIL:
                element.is_nil = value.strip() in {"true", "1"}
            else:
                element.add(key.rpartition(" ")[2], value)
        if self._open:
            self._open[-1].text.append(None)
        self._open.append(element)

    def text(self, text: str) -> None:
        self._open[-1].text.append(text)

    def end(self, _name: str) -> None:
        element = self._open.pop()
        if self._open:
            self._open[-1].add(element.name, element.value())
        else:
            self.root = element.value()
