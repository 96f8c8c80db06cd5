"""Which exposed path a request means: literal segments before mixed ones, those before variables, the rest last.

Segments are percent-decoded one by one, so an encoded slash stays part of its value. A trailing slash is tolerated.
Segments that mix text and variables are matched by RE2: another engine would try all ways to divide a caller's text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import unquote

import re2  # type: ignore[import-untyped]

from toolcrib.capability.template_text import Variable, parse

T = TypeVar("T")


@dataclass(slots=True)
class _Node(Generic[T]):
    literal: "dict[str, _Node[T]]" = field(default_factory=dict)
    mixed: "list[tuple[Any, _Node[T]]]" = field(default_factory=list)
    variable: "_Node[T] | None" = None
    leaves: list[tuple[tuple[str, ...], T]] = field(default_factory=list)
    rest: list[tuple[tuple[str, ...], T]] = field(default_factory=list)


Match = tuple[T, dict[str, str]]


class Router(Generic[T]):
    """Paths with variables, each leading to a target; several targets may share a shape."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, path: str, target: T, *, rest: bool = False) -> None:
        """Add a path; with `rest`, or when it is called `path`, a last segment that is a variable takes what follows.

        Raises:
            TemplateInvalid: the path is no template.
        """
        node = self._root
        names: list[str] = []
        segments = [segment for segment in path.partition("?")[0].partition("#")[0].split("/") if segment]
        for i, segment in enumerate(segments):
            parts = parse(segment, single=True)
            if len(parts) == 1 and isinstance(parts[0], Variable):
                names.append(parts[0].name)
                if i == len(segments) - 1 and (rest or parts[0].name == "path"):
                    node.rest.append((tuple(names), target))
                    return
                node.variable = node.variable or _Node()
                node = node.variable
            elif any(isinstance(part, Variable) for part in parts):
                names += [part.name for part in parts if isinstance(part, Variable)]
                node = _mixed(node, "".join("(.+?)" if isinstance(p, Variable) else re2.escape(p) for p in parts))
            else:
                node = node.literal.setdefault(unquote(segment), _Node())
        node.leaves.append((tuple(names), target))
        if rest:
            node.rest.append(((*names, ""), target))

    def find(self, raw_path: str) -> list[Match[T]]:
        """The targets of a path as it was sent, best shape first; raises UnicodeDecodeError for what is no text."""
        raw = raw_path.split("/")
        if "%" in raw_path:
            segments = [unquote(segment, errors="strict") if "%" in segment else segment for segment in raw]
        else:
            segments = raw
        segments = segments[1:] if segments and not segments[0] else segments
        if segments and not segments[-1]:
            segments = segments[:-1]
        return _walk(self._root, segments, 0, ())


def trailing_variable(segment: str) -> bool:
    """Whether a segment of a path is one variable and nothing else."""
    parts = parse(segment, single=True)
    return len(parts) == 1 and isinstance(parts[0], Variable)


def _mixed(node: _Node[T], pattern: str) -> _Node[T]:
    for known, below in node.mixed:
        if known.pattern == f"(?s:{pattern})":
            return below
    below = _Node[T]()
    node.mixed.append((re2.compile(f"(?s:{pattern})"), below))
    return below


def _walk(node: _Node[T], segments: Sequence[str], at: int, values: tuple[str, ...]) -> list[Match[T]]:
    if at == len(segments):
        found = [(target, dict(zip(names, values, strict=False))) for names, target in node.leaves]
        return found or _rest(node, segments, at, values)
    segment = segments[at]
    below = node.literal.get(segment)
    if below is not None and (hits := _walk(below, segments, at + 1, values)):
        return hits
    for pattern, mixed in node.mixed:
        if (hit := pattern.fullmatch(segment)) and (hits := _walk(mixed, segments, at + 1, values + hit.groups())):
            return hits
    if node.variable is not None and segment and (hits := _walk(node.variable, segments, at + 1, (*values, segment))):
        return hits
    return _rest(node, segments, at, values)


def _rest(node: _Node[T], segments: Sequence[str], at: int, values: tuple[str, ...]) -> list[Match[T]]:
    tail = "/".join(segments[at:])
    return [(target, dict(zip(names, (*values, tail), strict=False))) for names, target in node.rest]
