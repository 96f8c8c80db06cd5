"""The segments and conditions of a JSONPath as closures: what each does with a value. No parsing here.

A segment gives one value or appends any number; chained, those that give many work on lists, breadth by breadth, with
no recursion. Each pays for what it visits, so that neither a wide nor a deep document can make a path run away.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from toolcrib.capability.jsonpath_operators import FUNCTIONS, Budget, Operator
from toolcrib.capability.spec import ABSENT

Step = str | int  # the name of a member, or an index
Read = Callable[[Any, Budget], Any]  # a value, or ABSENT
Test = Callable[[Any, Budget], bool]
_Many = Callable[[Any, Budget, list[Any]], bool]  # appends what it finds; False if it does not apply to the value


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment: `one` gives a single value, otherwise `many` gives any number. A function takes a whole result.

    With both, `many` is for what stands below `..`.
    """

    one: Read | None = None
    many: _Many | None = None
    step: Step | None = None
    test: Test | None = None  # of a filter
    is_function: bool = False


def chain(segments: list[Segment]) -> tuple[Read, bool]:
    """Joins segments into one reader, and says whether that gives a single value."""
    stages: list[Read] = []
    spread: list[_Many] = []
    for segment in segments:
        if segment.one is not None and (segment.is_function or not spread):
            if spread:
                stages.append(_gather(spread))
                spread = []
            stages.append(segment.one)
        elif segment.one is not None:
            spread.append(_each(segment.one))
        elif segment.many is not None:
            spread.append(segment.many)
    is_single = not spread
    if spread:
        stages.append(_gather(spread))

    def read(value: Any, budget: Budget) -> Any:
        for stage in stages:
            value = stage(value, budget)
            if value is ABSENT:
                return ABSENT
        return value

    return (stages[0] if len(stages) == 1 else read), is_single


def _gather(spread: list[_Many]) -> Read:
    first, rest = spread[0], tuple(spread[1:])

    def read(value: Any, budget: Budget) -> Any:
        found: list[Any] = []
        if not first(value, budget, found):
            return ABSENT
        for many in rest:
            budget.pay(len(found))
            following: list[Any] = []
            for entry in found:
                many(entry, budget, following)
            found = following
        return found

    return read


def _each(one: Read) -> _Many:
    def many(value: Any, budget: Budget, found: list[Any]) -> bool:
        entry = one(value, budget)
        if entry is not ABSENT:
            found.append(entry)
        return True

    return many


def name_segment(name: str) -> Segment:
    """`.name` or `['name']`."""

    def one(value: Any, _budget: Budget) -> Any:
        return value.get(name, ABSENT) if isinstance(value, dict) else ABSENT

    return Segment(one=one, step=name)


def index_segment(index: int) -> Segment:
    """`[n]`, counted from the end if negative."""

    def one(value: Any, _budget: Budget) -> Any:
        return value[index] if isinstance(value, list) and -len(value) <= index < len(value) else ABSENT

    return Segment(one=one, step=index)


def indices_segment(indices: tuple[int, ...]) -> Segment:
    """`[n, m]`: those there are."""

    def many(value: Any, budget: Budget, found: list[Any]) -> bool:
        if not isinstance(value, list):
            return False
        budget.pay(len(indices))
        found += [value[index] for index in indices if -len(value) <= index < len(value)]
        return True

    return Segment(many=many)


def names_segment(names: tuple[str, ...], *, is_last: bool) -> Segment:
    """Several names: at the end of a path an object of those there are, before that each of them.

    Below `..` such an object is made only where all of them are.
    """

    def one(value: Any, _budget: Budget) -> Any:
        return {name: value[name] for name in names if name in value} if isinstance(value, dict) else ABSENT

    def complete(value: Any, budget: Budget, found: list[Any]) -> bool:
        budget.pay(len(names))
        if isinstance(value, dict) and all(name in value for name in names):
            found.append({name: value[name] for name in names})
        return True

    def many(value: Any, budget: Budget, found: list[Any]) -> bool:
        if not isinstance(value, dict):
            return False
        budget.pay(len(names))
        found += [value[name] for name in names if name in value]
        return True

    return Segment(one=one, many=complete) if is_last else Segment(many=many)


def slice_segment(part: slice) -> Segment:
    """`[start:stop:step]`."""

    def many(value: Any, budget: Budget, found: list[Any]) -> bool:
        if not isinstance(value, list):
            return False
        entries = value[part]
        budget.pay(len(entries))
        found += entries
        return True

    return Segment(many=many)


def wildcard_segment() -> Segment:
    """`*`: the members of an object or the elements of an array; nothing of anything else."""

    def many(value: Any, budget: Budget, found: list[Any]) -> bool:
        if isinstance(value, list | dict):
            budget.pay(len(value))
            found += value.values() if isinstance(value, dict) else value
        return True

    return Segment(many=many)


def filter_segment(test: Test) -> Segment:
    """The elements of an array that pass, or the object itself if it does."""

    def many(value: Any, budget: Budget, found: list[Any]) -> bool:
        if isinstance(value, list):
            budget.pay(len(value))
            found += [entry for entry in value if test(entry, budget)]
        elif not isinstance(value, dict):
            return False
        elif test(value, budget):
            found.append(value)
        return True

    return Segment(many=many, test=test)


def _walk(value: Any, budget: Budget) -> Iterator[Any]:
    """Every object and array from the value down, parents first, in the order of the document."""
    stack = [value]
    while stack:
        node = stack.pop()
        if not isinstance(node, list | dict):
            continue
        budget.pay(1 + len(node))
        yield node
        children = node.values() if isinstance(node, dict) else node
        stack += [child for child in reversed(children) if isinstance(child, list | dict)]


def descent_segment(segment: Segment) -> Segment:
    """`..` before a segment, which is tried on everything below.

    A filter tests each object, and each scalar of an array: no object is found a second time through its array.
    """
    inner = segment.many if segment.many is not None else _each(segment.one) if segment.one is not None else None
    test = segment.test
    if inner is None:
        raise ValueError("nothing follows '..'")

    def many(value: Any, budget: Budget, found: list[Any]) -> bool:
        for node in _walk(value, budget):
            if test is None:
                inner(node, budget, found)
            elif isinstance(node, dict):
                if test(node, budget):
                    found.append(node)
            else:
                found += [entry for entry in node if not isinstance(entry, list | dict) and test(entry, budget)]
        return True

    return Segment(many=many)


@dataclass(frozen=True, slots=True)
class Operand:
    """One side of a comparison. `regex` is the test of a regular expression, which has no value."""

    read: Read
    is_path: bool = False
    is_single: bool = True
    regex: Test | None = None


def literal(value: Any) -> Operand:
    """A constant."""
    return Operand(read=lambda _item, _budget: value)


def comparison(left: Operand, right: Operand, operator: Operator) -> Test:
    """Two operands and the operator between them."""
    read_left, read_right = left.read, right.read
    return lambda item, budget: operator(read_left(item, budget), read_right(item, budget), budget)


def regex_match(left: Operand, regex: Test) -> Test:
    """`=~`."""
    read = left.read
    return lambda item, budget: regex(read(item, budget), budget)


def list_of(entries: list[Operand]) -> Operand:
    """A list whose entries are operands."""
    reads = tuple(entry.read for entry in entries)
    return Operand(read=lambda item, budget: [read(item, budget) for read in reads])


def negation(test: Test) -> Test:
    """`!`."""
    return lambda item, budget: not test(item, budget)


def conjunction(tests: list[Test]) -> Test:
    """`&&`."""
    return lambda item, budget: all(test(item, budget) for test in tests)


def disjunction(tests: list[Test]) -> Test:
    """`||`."""
    return lambda item, budget: any(test(item, budget) for test in tests)


def existence(operand: Operand) -> Test:
    """A path alone: something is there, null included."""
    read, is_single = operand.read, operand.is_single

    def test(item: Any, budget: Budget) -> bool:
        value = read(item, budget)
        return value is not ABSENT and (is_single or bool(value))

    return test


def function_segment(name: str, arguments: tuple[Operand, ...]) -> Segment:
    """A function, applied to the whole result before it; its arguments are read from the root."""
    function = FUNCTIONS[name]
    reads = tuple(argument.read for argument in arguments)

    def one(value: Any, budget: Budget) -> Any:
        if not reads:
            return function(value, [], budget)
        found = (read(budget.root, budget) for read in reads)
        return function(value, [entry for entry in found if entry is not ABSENT], budget)

    return Segment(one=one, is_function=True)
