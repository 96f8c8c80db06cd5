"""What filters and functions of a JSONPath do with values: comparisons, membership, aggregates. No parsing here.

Semantics are Jayway's: a number equals the text that spells it, an ordering across types is false, a missing value
equals nothing. Regular expressions run in re2, in linear time. Whatever walks a list pays for it from the `Budget` of
the evaluation, so that a document cannot make a path take quadratic time.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import re2  # type: ignore[import-untyped]

from toolcrib.capability.spec import ABSENT

_VISITS: Final = 2_000_000  # about a second of work; a body of tens of megabytes has fewer nodes
_TEXT_PER_VISIT: Final = 64  # characters that are searched in about the time of one visit
_LONGEST_NUMBER: Final = 400  # characters
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


class Exhausted(ValueError):
    """A path took more work than one evaluation may."""


class Budget:
    """The work left for one evaluation of a path, and the document it runs on."""

    __slots__ = ("left", "root")

    def __init__(self, root: Any) -> None:
        self.root = root
        self.left = _VISITS

    def pay(self, visits: int) -> None:
        """Takes that many visits off; raises Exhausted when none are left."""
        self.left -= visits
        if self.left < 0:
            raise Exhausted


Operator = Callable[[Any, Any, Budget], bool]
Function = Callable[[Any, list[Any], Budget], Any]


def is_number(value: Any) -> bool:
    """Whether it is a JSON number (true and false are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(left: Any, right: Any, _budget: Budget) -> bool:
    if left is ABSENT or right is ABSENT:
        return False
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, str) and is_number(right):
        return _spells(left, right)
    if isinstance(right, str) and is_number(left):
        return _spells(right, left)
    return bool(left == right)


def _spells(text: str, number: float) -> bool:
    return len(text) <= _LONGEST_NUMBER and _NUMBER.fullmatch(text) is not None and float(text) == number


def _same(left: Any, right: Any, budget: Budget) -> bool:
    return isinstance(left, str) == isinstance(right, str) and _equal(left, right, budget)


def _ordered(compare: Callable[[Any, Any], bool]) -> Operator:
    def test(left: Any, right: Any, _budget: Budget) -> bool:
        if (is_number(left) and is_number(right)) or (isinstance(left, str) and isinstance(right, str)):
            return compare(left, right)
        return False

    return test


def _is_in(left: Any, right: Any, budget: Budget) -> bool:
    if not isinstance(right, list):
        return False
    budget.pay(len(right))
    return any(_equal(left, entry, budget) for entry in right)


def _contains(left: Any, right: Any, budget: Budget) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        budget.pay(len(left) // _TEXT_PER_VISIT)
        return right in left
    return _is_in(right, left, budget)


def _subset_of(left: Any, right: Any, budget: Budget) -> bool:
    return isinstance(left, list) and isinstance(right, list) and all(_is_in(entry, right, budget) for entry in left)


def _any_of(left: Any, right: Any, budget: Budget) -> bool:
    return isinstance(left, list) and any(_is_in(entry, right, budget) for entry in left)


def _none_of(left: Any, right: Any, budget: Budget) -> bool:
    return isinstance(left, list) and isinstance(right, list) and not _any_of(left, right, budget)


def _has_size(left: Any, right: Any, _budget: Budget) -> bool:
    return isinstance(left, list | str) and is_number(right) and len(left) == right


def _is_empty(left: Any, right: Any, _budget: Budget) -> bool:
    return isinstance(left, list | str | dict) and isinstance(right, bool) and (not left) == right


OPERATORS: Final[Mapping[str, Operator]] = {
    "==": _equal,
    "!=": lambda left, right, budget: not _equal(left, right, budget),
    "===": _same,
    "!==": lambda left, right, budget: not _same(left, right, budget),
    "<": _ordered(lambda left, right: left < right),
    "<=": _ordered(lambda left, right: left <= right),
    ">": _ordered(lambda left, right: left > right),
    ">=": _ordered(lambda left, right: left >= right),
    "in": _is_in,
    "nin": lambda left, right, budget: not _is_in(left, right, budget),
    "contains": _contains,
    "subsetof": _subset_of,
    "all": lambda left, right, budget: _subset_of(right, left, budget),
    "anyof": _any_of,
    "noneof": _none_of,
    "size": _has_size,
    "empty": _is_empty,
}


def compile_regex(pattern: str, flags: str) -> Callable[[Any, Budget], bool]:
    """The test of `=~ /pattern/flags`: the whole text matches, or that of one entry of a list.

    Raises:
        ValueError: a pattern or flag that linear-time matching does not have (look-around, back-references).
    """
    if unknown := set(flags) - set("imsuUd"):
        raise ValueError(f"unknown flag {min(unknown)!r} of the regular expression")
    inline = "".join(flag for flag in "ims" if flag in flags)
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(f"(?{inline}){pattern}" if inline else pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        detail = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"the regular expression /{pattern}/ is not usable: {detail}") from error

    def test(value: Any, budget: Budget) -> bool:
        if isinstance(value, list):
            budget.pay(len(value))
            return any(not isinstance(entry, list) and test(entry, budget) for entry in value)
        if isinstance(value, bool):
            value = "true" if value else "false"
        elif is_number(value):
            value = str(value)
        if not isinstance(value, str):
            return False
        budget.pay(len(value) // _TEXT_PER_VISIT)
        return compiled.fullmatch(value) is not None

    return test


def _numbers(value: Any, more: list[Any], budget: Budget) -> list[Any]:
    numbers = [entry for entry in more if is_number(entry)]
    for source in (value, *more):
        if isinstance(source, list):
            budget.pay(len(source))
            numbers += [entry for entry in source if is_number(entry)]
    return numbers


def _aggregate(over: Callable[[list[Any]], Any]) -> Function:
    def function(value: Any, more: list[Any], budget: Budget) -> Any:
        numbers = _numbers(value, more, budget)
        return over(numbers) if numbers else ABSENT

    return function


def _deviation(numbers: list[Any]) -> float:
    mean = sum(numbers) / len(numbers)
    return math.sqrt(sum((number - mean) ** 2 for number in numbers) / len(numbers))


def _length(value: Any, _more: list[Any], _budget: Budget) -> Any:
    return len(value) if isinstance(value, list | dict) else ABSENT


def _keys(value: Any, _more: list[Any], budget: Budget) -> Any:
    if not isinstance(value, dict):
        return ABSENT
    budget.pay(len(value))
    return list(value)


def _entry(value: Any, index: int) -> Any:
    if isinstance(value, list) and -len(value) <= index < len(value):
        return value[index]
    return ABSENT


def _index(value: Any, more: list[Any], _budget: Budget) -> Any:
    return _entry(value, more[0]) if more and isinstance(more[0], int) else ABSENT


def _concat(value: Any, more: list[Any], budget: Budget) -> Any:
    entries = value if isinstance(value, list) else []
    budget.pay(len(entries))
    return "".join(entry for entry in [*entries, *more] if isinstance(entry, str))


def _append(value: Any, more: list[Any], budget: Budget) -> Any:
    if not isinstance(value, list):
        return ABSENT
    budget.pay(len(value))
    return [*value, *more]


FUNCTIONS: Final[Mapping[str, Function]] = {
    "length": _length,
    "size": _length,
    "keys": _keys,
    "min": _aggregate(min),
    "max": _aggregate(max),
    "sum": _aggregate(sum),
    "avg": _aggregate(lambda numbers: sum(numbers) / len(numbers)),
    "stddev": _aggregate(_deviation),
    "first": lambda value, _more, _budget: _entry(value, 0),
    "last": lambda value, _more, _budget: _entry(value, -1),
    "index": _index,
    "concat": _concat,
    "append": _append,
}
