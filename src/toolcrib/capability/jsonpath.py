"""JSONPath as capability files use it (Jayway 2.9), compiled once into closures over parsed JSON.

A path of names and indices alone is a few dictionary look-ups. Everything else runs on a `Budget`, walks with a stack
of its own, and never raises: a path that is missing, does not fit or costs too much reads as None. Paths that may give
several values always give a list. Where Jayway and RFC 9535 differ Jayway decides: a filter on an object tests the
object itself, `['a','b']` at the end gives an object, `1 == '1'`. A slice with a negative end is the RFC's.
"""

import json
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

from toolcrib.capability.jsonpath_operators import FUNCTIONS, OPERATORS, Budget, compile_regex
from toolcrib.capability.jsonpath_segments import (
    Operand,
    Read,
    Segment,
    Step,
    Test,
    chain,
    comparison,
    conjunction,
    descent_segment,
    disjunction,
    existence,
    filter_segment,
    function_segment,
    index_segment,
    indices_segment,
    list_of,
    literal,
    name_segment,
    names_segment,
    negation,
    regex_match,
    slice_segment,
    wildcard_segment,
)
from toolcrib.capability.spec import ABSENT

_T = TypeVar("_T")

_FAULTS: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_LONGEST: Final = 4096  # characters of a path
_DEEPEST: Final = 32  # brackets and negations inside each other in a filter

_NAME: Final = re.compile(r"[^.\[]+")
_NAME_IN_FILTER: Final = re.compile(r"[^\s.\[\]()<>=!&|,~'\"]+")
_CALL: Final = re.compile(r"([A-Za-z]+)\(")
_QUOTED: Final = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_INTEGER: Final = re.compile(r"-?[0-9]{1,15}")
_SLICE: Final = re.compile(r"\s*(-?[0-9]{1,15})?\s*:\s*(-?[0-9]{1,15})?\s*(?::\s*(-?[0-9]{1,15})?\s*)?(?=\])")
_SCALAR: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|(?:true|false|null)\b")
_REGEX: Final = re.compile(r"/((?:[^/\\]|\\.)*)/([A-Za-z]*)")
_OPERATOR: Final = re.compile(
    r"===|!==|==|!=|<=|>=|<|>|=~|(?:in|nin|contains|subsetof|all|anyof|noneof|size|empty)\b", re.IGNORECASE
)


class Path:
    """A compiled path: call it with a parsed document, or use `read`, the bare function, where every call counts.

    `steps` are the names and indices of a path that has nothing else, otherwise None.
    """

    __slots__ = ("is_root", "read", "steps", "text")

    def __init__(self, text: str, read: Callable[[Any], Any], steps: tuple[Step, ...] | None) -> None:
        self.text = text
        self.read = read
        self.steps = steps
        self.is_root = steps == ()

    def __call__(self, tree: Any) -> Any:
        """The value at the path; None if there is none. Never raises."""
        return self.read(tree)

    def __repr__(self) -> str:
        return f"Path({self.text!r})"


def compile_path(text: str) -> Path:
    """Compiles a path; one without `$` starts at the root as well.

    Raises:
        ValueError: it is no path; the message names the problem and where it is.
    """
    source = text.strip()
    if not source or len(source) > _LONGEST:
        raise ValueError("the path is empty" if not source else f"the path is longer than {_LONGEST} characters")
    if source in {"$", "$.", "@", "@."}:
        return Path(text, lambda tree: tree, ())
    parser = _Parser(source)
    segments = parser.whole()
    if all(segment.step is not None for segment in segments):
        steps = tuple(segment.step for segment in segments if segment.step is not None)
        return Path(text, _plain(steps), steps)
    read_all, _ = chain(segments)

    def read(tree: Any) -> Any:
        try:
            value = read_all(tree, Budget(tree))
        except _FAULTS:
            return None
        return None if value is ABSENT else value

    return Path(text, read, None)


def _plain(steps: tuple[Step, ...]) -> Callable[[Any], Any]:
    """Reads names and indices; the two commonest shapes without a loop."""
    if all(isinstance(step, str) for step in steps) and len(steps) <= 2:
        first, last = steps[0], steps[-1]

        def read_one(tree: Any) -> Any:
            return tree.get(first) if isinstance(tree, dict) else None

        def read_two(tree: Any) -> Any:
            if isinstance(tree, dict):
                tree = tree.get(first)
                if isinstance(tree, dict):
                    return tree.get(last)
            return None

        return read_one if len(steps) == 1 else read_two

    def read(tree: Any) -> Any:
        for step in steps:
            if isinstance(tree, dict):
                tree = tree.get(step) if isinstance(step, str) else None
            elif isinstance(tree, list) and isinstance(step, int) and -len(tree) <= step < len(tree):
                tree = tree[step]
            else:
                return None
        return tree

    return read


class _Parser:
    """Reads one path text from left to right; its methods raise ValueError with the place of the problem."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def whole(self) -> list[Segment]:
        """The segments of the whole text."""
        if self.text[0] in "$@":
            self.at = 1
            if self.text[1] not in ".[":
                raise self.problem("'.' or '[' is expected")
        elif self.text[0] not in ".[":
            return [*self.member(in_filter=False), *self.segments(in_filter=False)]
        return self.segments(in_filter=False)

    def problem(self, what: str) -> ValueError:
        """The error to raise: what is wrong, and where."""
        return ValueError(f"{what} at character {self.at + 1} of the path {self.text!r}")

    def take(self, token: str) -> bool:
        """Moves past the token if it is next."""
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def expect(self, token: str) -> None:
        """Moves past the token, which must be next."""
        if not self.take(token):
            raise self.problem(f"{token!r} is expected")

    def scan(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Moves past what the pattern matches here."""
        match = pattern.match(self.text, self.at)
        if match is not None:
            self.at = match.end()
        return match

    def blank(self) -> None:
        """Moves past white space."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def deeper(self) -> None:
        """Counts a nesting, which must not go too deep."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self.problem("the filter is nested too deeply")

    def segments(self, *, in_filter: bool) -> list[Segment]:
        """All segments from here to the end of the path."""
        segments: list[Segment] = []
        while self.at < len(self.text):
            if self.take(".."):
                following = [self.bracket()] if self.take("[") else self.member(in_filter=in_filter)
                segments += [descent_segment(following[0]), *following[1:]]
            elif self.take("."):
                segments += [self.bracket()] if self.take("[") else self.member(in_filter=in_filter)
            elif self.take("["):
                segments.append(self.bracket())
            elif in_filter:
                break
            else:
                raise self.problem("'.' or '[' is expected")
        return segments

    def member(self, *, in_filter: bool) -> list[Segment]:
        """A name, `*` or a function after a dot."""
        if (call := _CALL.match(self.text, self.at)) is not None:
            self.at = call.end()
            return [self.function(call[1])]
        if (match := self.scan(_NAME_IN_FILTER if in_filter else _NAME)) is None or not match[0].strip():
            raise self.problem("a name is expected")
        name = match[0].strip()
        if "]" in name:
            raise self.problem(f"']' without '[' in {name!r}")
        return [wildcard_segment() if name == "*" else name_segment(name)]

    def function(self, name: str) -> Segment:
        """A function whose opening bracket has been read."""
        if name not in FUNCTIONS:
            raise self.problem(f"unknown function {name}(), known are {', '.join(FUNCTIONS)};")
        self.deeper()
        arguments: list[Operand] = []
        self.blank()
        while not self.take(")"):
            if arguments:
                self.expect(",")
            self.blank()
            arguments.append(self.operand())
            self.blank()
        self.depth -= 1
        return function_segment(name, tuple(arguments))

    def bracket(self) -> Segment:
        """What stands in square brackets, the first of which has been read."""
        self.blank()
        if self.take("*"):
            segment = wildcard_segment()
        elif self.take("?"):
            segment = filter_segment(self.either())
        elif (match := self.scan(_SLICE)) is not None:
            start, stop, step = (None if bound is None else int(bound) for bound in match.groups())
            if step == 0:
                raise self.problem("a slice cannot step by 0")
            segment = slice_segment(slice(start, stop, step))
        elif self.text.startswith(("'", '"'), self.at):
            names = tuple(self.series(self.quoted))
            self.blank()
            is_last = self.at + 1 >= len(self.text)
            segment = name_segment(names[0]) if len(names) == 1 else names_segment(names, is_last=is_last)
        else:
            indices = tuple(self.series(self.index))
            segment = index_segment(indices[0]) if len(indices) == 1 else indices_segment(indices)
        self.blank()
        self.expect("]")
        return segment

    def series(self, entry: Callable[[], _T]) -> list[_T]:
        """Entries with commas between them."""
        entries = [entry()]
        self.blank()
        while self.take(","):
            self.blank()
            entries.append(entry())
            self.blank()
        return entries

    def quoted(self) -> str:
        """A text in single or double quotes."""
        if (match := self.scan(_QUOTED)) is None:
            raise self.problem("a closed quotation is expected")
        return _ESCAPE.sub(
            lambda found: chr(int(found[1][1:], 16)) if len(found[1]) > 1 else _ESCAPED.get(found[1], found[1]),
            match[1] if match[1] is not None else match[2],
        )

    def index(self) -> int:
        """A whole number."""
        if (match := self.scan(_INTEGER)) is None:
            raise self.problem("an index, a quoted name, '*', a slice or '?' is expected")
        return int(match[0])

    def either(self) -> Test:
        """Conditions joined by `||`."""
        tests = [self.both()]
        while self.take("||"):
            tests.append(self.both())
        return tests[0] if len(tests) == 1 else disjunction(tests)

    def both(self) -> Test:
        """Conditions joined by `&&`."""
        tests = [self.condition()]
        while self.take("&&"):
            tests.append(self.condition())
        return tests[0] if len(tests) == 1 else conjunction(tests)

    def condition(self) -> Test:
        """One condition, negated or in brackets perhaps, with the white space around it."""
        self.deeper()
        self.blank()
        if self.take("!"):
            test = negation(self.condition())
        elif self.take("("):
            test = self.either()
            self.expect(")")
        else:
            test = self.comparison()
        self.blank()
        self.depth -= 1
        return test

    def comparison(self) -> Test:
        """Two operands and what compares them, or a path that must exist."""
        left = self.operand()
        self.blank()
        if (match := self.scan(_OPERATOR)) is None:
            if not left.is_path:
                raise self.problem("a comparison is expected")
            return existence(left)
        self.blank()
        right = self.operand()
        if match[0] == "=~" and right.regex is not None and left.regex is None:
            return regex_match(left, right.regex)
        if match[0] == "=~" or left.regex is not None or right.regex is not None:
            raise self.problem("'=~' compares a value with a regular expression /.../")
        return comparison(left, right, OPERATORS[match[0].lower()])

    def operand(self) -> Operand:
        """A path, a literal or a regular expression."""
        following = self.text[self.at : self.at + 1]
        if following in {"@", "$"}:
            self.at += 1
            return self.path(from_root=following == "$")
        if following in {"'", '"'}:
            return literal(self.quoted())
        if following == "/" and (match := self.scan(_REGEX)) is not None:
            test = compile_regex(match[1].replace("\\/", "/"), match[2])
            return Operand(read=lambda _item, _budget: ABSENT, regex=test)
        if self.take("["):
            self.deeper()
            self.blank()
            entries = [] if self.text.startswith("]", self.at) else self.series(self.operand)
            self.blank()
            self.expect("]")
            self.depth -= 1
            return list_of(entries)
        if following == "{":
            return literal(self.object())
        if (match := self.scan(_SCALAR)) is not None:
            return literal(json.loads(match[0]))
        raise self.problem("a path, a value or a regular expression is expected")

    def object(self) -> Any:
        """A JSON object."""
        try:
            value, self.at = json.JSONDecoder().raw_decode(self.text, self.at)
        except (ValueError, RecursionError):
            raise self.problem("a JSON object is expected") from None
        return value

    def path(self, *, from_root: bool) -> Operand:
        """A path inside a filter, after its `@` or `$`."""
        segments = self.segments(in_filter=True)
        if not segments:
            read: Read = (lambda _item, budget: budget.root) if from_root else (lambda item, _budget: item)
            return Operand(read=read, is_path=True)
        inner, is_single = chain(segments)
        outer: Read = (lambda _item, budget: inner(budget.root, budget)) if from_root else inner
        return Operand(read=outer, is_path=True, is_single=is_single)
