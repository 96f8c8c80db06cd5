"""YAML text read into a tree of plain values that know where they stand.

Built from parser events in one pass without recursion, so that size, depth and aliases are limited while reading and
hostile input costs little. Only what JSON can say comes out: dates and `yes` are strings, quoted scalars always are.
Tags other than the plain ones are refused; nothing in a file can make an object.
"""

import math
import os
import re
import stat
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import yaml

from toolcrib.capability.findings import CapabilityInvalid, Finding
from toolcrib.capability.spec import Mark


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may cost: bytes of text, levels of nesting, nodes with aliases followed (a long text is several)."""

    size: int = 4 << 20
    depth: int = 100
    nodes: int = 200_000
    findings: int = 100


LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place: the key's for a member of a map, its own start otherwise.

    `text` is a scalar as written (`1.10`, `007`), None for the rest. `size` and `height` count what an alias
    to it adds.
    """

    value: "dict[str, Node] | list[Node] | str | int | float | bool | None"
    at: Mark
    text: str | None = None
    size: int = 1
    height: int = 1


def plain(node: Node) -> Any:
    """The value without places."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def read_text(path: str, shown: str, limits: Limits = LIMITS) -> str:
    """The text of a file; its size is looked at before anything is read.

    Raises:
        CapabilityInvalid: it is not there, no regular file, too large or not UTF-8; `shown` is what it is called.
    """
    start = Mark(shown, 1, 1)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not make us wait
        with os.fdopen(handle, "rb") as file:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                _refuse("file-unreadable", "It is not a regular file", "name a YAML file", start)
            if about.st_size > limits.size:
                _too_large(about.st_size, limits, start)
            data = file.read(limits.size + 1)  # it may have grown since
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "The name is no file name"
        _refuse("file-unreadable", f"The file cannot be read: {reason}", "check the path and its permissions", start)
    if len(data) > limits.size:
        _too_large(len(data), limits, start)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        place = Mark(shown, before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1)
        _refuse("yaml-encoding", "The text is not UTF-8", "save the file as UTF-8", place)


def parse(text: str, file: str, limits: Limits = LIMITS) -> tuple[Node, tuple[Finding, ...]]:
    """The first document of a text, and what is odd about it.

    Raises:
        CapabilityInvalid: it is no YAML, uses what is refused, or is larger than the limits allow.
    """
    if len(text) > limits.size:
        _too_large(len(text), limits, Mark(file, 1, 1))
    _check_characters(text, file)
    if text.lstrip("\ufeff \t\r\n").startswith("{"):  # JSON writes what is beyond U+FFFF as two escapes, YAML as one
        text = _SURROGATES.sub(_join_surrogates, text)
    builder = _Builder(file, limits)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if not builder.take(event):
                break
    except yaml.YAMLError as error:
        raise _broken(error, file) from None
    if builder.root is None:
        _refuse("yaml-broken", "The file is empty", "write a capability", Mark(file, 1, 1))
    return builder.root, tuple(builder.findings)


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DIRECTIVE = re.compile(r"^%", re.MULTILINE)
_MAX_DIRECTIVES = 16  # the parser compares each with all before it
_CHARACTERS_A_NODE = 256  # a long text that many aliases repeat must not come cheaper than many values
_SURROGATES = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,300})(?:\.[0-9]{1,300})?(?:[eE][-+]?[0-9]{1,3})?")
_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_CORE = "tag:yaml.org,2002:"
_TAGS = frozenset({"!", *(_CORE + name for name in ("str", "int", "float", "bool", "null", "map", "seq"))})


@dataclass(slots=True)
class _Frame:
    """A list or a map that is still open; a key waits for its value."""

    value: dict[str, Node] | list[Node]
    at: Mark
    anchor: str | None
    key: tuple[str, Mark] | None = None
    is_merge: bool = False  # the key is a plain `<<`
    merges: list[Node] = field(default_factory=list)
    size: int = 1
    height: int = 1


class _Builder:
    """Makes the tree out of events."""

    def __init__(self, file: str, limits: Limits) -> None:
        self.root: Node | None = None
        self.findings: list[Finding] = []
        self._file = file
        self._limits = limits
        self._open: list[_Frame] = []
        self._anchors: dict[str, Node | None] = {}  # None while what it names is still open
        self._nodes = 0

    def take(self, event: Any) -> bool:
        """Take one event; False when the rest does not matter."""
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._start(event)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._end()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            self._note(
                "yaml-documents",
                "There is a second document in the file",
                "only the first is read",
                "put it into a file of its own",
                self._mark(event),
            )
            return False
        return True

    def _mark(self, event: Any) -> Mark:
        return Mark(self._file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _note(self, rule: str, message: str, effect: str, mend: str, at: Mark) -> None:
        if len(self.findings) < self._limits.findings:
            self.findings.append(Finding(rule, "error", message, effect, mend, at))

    def _count(self, nodes: int, height: int, at: Mark) -> None:
        self._nodes += nodes
        if self._nodes > self._limits.nodes:
            message = f"It holds more than {self._limits.nodes} values once its aliases are followed"
            _refuse("yaml-too-many-nodes", message, "split it into several capabilities", at)
        if len(self._open) + height > self._limits.depth:
            message = f"It is nested more than {self._limits.depth} levels deep"
            _refuse("yaml-too-deep", message, "flatten it", at)

    def _scalar(self, event: Any) -> None:
        at = self._mark(event)
        self._check_tag(event.tag, at)
        text: str = event.value
        if "\0" in text:
            _refuse("yaml-encoding", "It holds a NUL character", "leave it out", at)
        is_plain = event.implicit[0] or event.tag not in {None, "!", _CORE + "str"}
        size = 1 + len(text) // _CHARACTERS_A_NODE
        self._count(size, 1, at)
        frame = self._open[-1] if self._open else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            frame.key = (text, at)
            frame.is_merge = is_plain and text == "<<"
            if event.anchor is not None:
                self._anchors[event.anchor] = Node(text, at, text, size)
            return
        self._add(Node(_scalar(text) if is_plain else text, self._place(at), text, size), event.anchor)

    def _place(self, at: Mark) -> Mark:
        """Where the next value is said to stand: at its key, if it has one."""
        key = self._open[-1].key if self._open else None
        return key[1] if key is not None else at

    def _start(self, event: Any) -> None:
        at = self._mark(event)
        self._check_tag(event.tag, at)
        frame = self._open[-1] if self._open else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            _refuse("yaml-key", "A key is a list or a map", "use texts as keys; quote {{variables}}", at)
        self._count(1, 1, at)
        value: dict[str, Node] | list[Node] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._open.append(_Frame(value, self._place(at), event.anchor))
        if event.anchor is not None:
            self._anchors[event.anchor] = None

    def _end(self) -> None:
        frame = self._open.pop()
        if isinstance(frame.value, dict):
            for merged in frame.merges:
                self._merge(frame.value, merged)
        self._add(Node(frame.value, frame.at, None, frame.size, frame.height), frame.anchor)

    def _merge(self, into: dict[str, Node], merged: Node) -> None:
        for source in merged.value if isinstance(merged.value, list) else [merged]:
            if not isinstance(source.value, dict):
                self._note("yaml-merge", "`<<` merges no map", "it is ignored", "name a map's anchor", merged.at)
                continue
            for key, child in source.value.items():
                into.setdefault(key, child)

    def _alias(self, event: Any) -> None:
        at = self._mark(event)
        node = self._anchors.get(event.anchor)
        if node is None:
            what = "stands inside what it names" if event.anchor in self._anchors else "names no anchor before it"
            _refuse("yaml-alias", f"The alias *{event.anchor} {what}", "write the value out", at)
        self._count(node.size, node.height, at)
        frame = self._open[-1] if self._open else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            if node.text is None:
                _refuse("yaml-key", "A key is a list or a map", "use texts as keys", at)
            frame.key, frame.is_merge = (node.text, at), False
            return
        self._add(node, None)

    def _add(self, node: Node, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._open:
            self.root = node
            return
        frame = self._open[-1]
        frame.size += node.size
        frame.height = max(frame.height, node.height + 1)
        if isinstance(frame.value, list):
            frame.value.append(node)
            return
        key, at = frame.key or ("", node.at)
        frame.key = None
        if frame.is_merge:
            frame.merges.append(node)
            return
        if key in frame.value:
            self._note(
                "yaml-duplicate-key",
                f"The key {_short(key)} stands here a second time",
                "the last one counts",
                "keep one of them",
                at,
            )
        frame.value[key] = node

    def _check_tag(self, tag: str | None, at: Mark) -> None:
        if tag is not None and tag not in _TAGS:
            _refuse("yaml-tag", f"The tag {_short(tag)} is not supported", "write the value without a tag", at)


def _scalar(text: str) -> str | int | float | bool | None:
    """What a plain scalar means; numbers that JSON could not carry exactly stay texts."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text) and not text.lstrip("-").isdigit() and math.isfinite(number := float(text)):
        return number
    return text


def _check_characters(text: str, file: str) -> None:
    found = _FORBIDDEN.search(text, 1 if text.startswith("\ufeff") else 0)
    if found is not None:
        message = f"It holds the character U+{ord(found.group()):04X}, which YAML does not allow"
        _refuse(
            "yaml-encoding", message, "leave it out or save the file as UTF-8", _place_of(text, found.start(), file)
        )
    if sum(1 for _ in _DIRECTIVE.finditer(text)) > _MAX_DIRECTIVES:
        _refuse("yaml-directives", "It has too many % lines", "leave them out", Mark(file, 1, 1))


def _place_of(text: str, index: int, file: str) -> Mark:
    return Mark(file, text.count("\n", 0, index) + 1, index - (text.rfind("\n", 0, index) + 1) + 1)


def _join_surrogates(found: re.Match[str]) -> str:
    high, low = int(found[2], 16), int(found[3], 16)
    return f"{found[1]}\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08X}"


def _broken(error: yaml.YAMLError, file: str) -> CapabilityInvalid:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = Mark(file, mark.line + 1, mark.column + 1) if mark is not None else Mark(file, 1, 1)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
    context = getattr(error, "context", None)
    mend = "mend the YAML at this place"
    if "cannot start any token" in problem:
        mend = "indent with spaces, not tabs, and quote texts that start with @, ` or %"
    elif "mapping values are not allowed" in problem:
        mend = "quote a text that holds `: `, and check the indentation"
    message = f"The YAML is broken: {problem}" + (f" {context}" if context else "")
    return CapabilityInvalid((Finding("yaml-broken", "error", message, _NOTHING, mend, place),))


_NOTHING = "nothing is served"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _too_large(size: int, limits: Limits, at: Mark) -> NoReturn:
    message = f"The file has {size} bytes; {limits.size} are allowed"
    _refuse("file-too-large", message, "split it into several capabilities", at)


def _refuse(rule: str, message: str, mend: str, at: Mark) -> NoReturn:
    raise CapabilityInvalid((Finding(rule, "error", message, _NOTHING, mend, at),))
