"""Output parameters: an upstream JSON tree becomes what the caller gets, by closures compiled once.

Owns the mapping of whole bodies, the named outputs of steps, mocks, and the JSON Schema of a mapped result. A value
keeps its upstream type; only a static `value` is brought to the declared one, and `structured` does so for schemas.
Nothing here raises for what a document holds.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from toolcrib.capability.inputs import Inputs as Arguments
from toolcrib.capability.jsonpath import Path, compile_path
from toolcrib.capability.scalars import from_text, to_boolean, to_integer, to_number, to_string
from toolcrib.capability.spec import ABSENT, Mark, Output

MISSING: Final = ABSENT  # nothing could be made of the body

Render = Callable[[str], Callable[[Arguments], str]]

_Reader = Callable[[Any, Arguments], Any]
_Kind = Literal["value", "array", "map", "object"]
_SCALARS: Final = frozenset({"string", "number", "integer", "boolean"})
_DEEPEST: Final = 64  # outputs inside each other


class OutputInvalid(ValueError):
    """An output parameter that cannot be compiled; `at` is where it stands."""

    def __init__(self, at: Mark, message: str) -> None:
        super().__init__(message)
        self.at = at


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """The compiled outputs of an operation or tool.

    `identity` says that the body is relayed byte for byte. `shape` is the output that certainly makes an object with
    declared properties of any body, None if there is no such one.
    """

    identity: bool
    shape: Output | None
    readers: tuple[_Reader, ...]
    mapped_readers: tuple[_Reader | None, ...]  # the same with static values as null

    def apply(self, tree: Any, params: Arguments) -> Any:
        """The whole body made of the tree: the first output that is not null; MISSING if all are."""
        for read in self.readers:
            value = read(tree, params)
            if value is not None:
                return value
        return MISSING

    def apply_error(self, tree: Any, params: Arguments) -> Any:
        """Like `apply` for an error body: an output counts only if a mapping in it found something."""
        for read, read_mapped in zip(self.readers, self.mapped_readers, strict=True):
            if read_mapped is not None and not _is_hollow(read_mapped(tree, params)):
                return read(tree, params)
        return MISSING


def compile_outputs(outputs: tuple[Output, ...], render: Render, *, lone: bool = False) -> OutputPlan:
    """Compiles the outputs of a whole body; `render` makes a function of a static value's template.

    `lone` takes what is no list for the only entry of one: in XML a list of one looks like its entry.

    Raises:
        OutputInvalid: a path that is none, or outputs nested too deeply.
    """
    compiled = [(output, read) for output in outputs if (read := _compile(output, render, lone=lone)) is not None]
    first = compiled[0][0] if compiled else None
    return OutputPlan(
        identity=first is None or (_is_whole(first) and (_kind(first) == "value" or len(compiled) == 1)),
        shape=first if first is not None and _is_certain_object(first) else None,
        readers=tuple(read for _, read in compiled),
        mapped_readers=tuple(_compile(output, None, lone=lone) for output, _ in compiled),
    )


def named_outputs(outputs: tuple[Output, ...], render: Render) -> Callable[[Any, Arguments], Any]:
    """What a step keeps of a body: an object of the named outputs, of an array its elements with those added.

    Without named outputs it is the first output that is not null, and the raw body if there is none.

    Raises:
        OutputInvalid: as `compile_outputs`.
    """
    named = [(output.name, _compile(output, render) or _read_null) for output in outputs if output.name]
    if not named:
        plan = compile_outputs(outputs, render)

        def read_unnamed(tree: Any, params: Arguments) -> Any:
            value = plan.apply(tree, params)
            return tree if value is MISSING else value

        return read_unnamed

    def add(element: Any, params: Arguments) -> Any:
        if not isinstance(element, dict):
            return element
        found = {name: value for name, read in named if (value := read(element, params)) is not None}
        return {**element, **found}

    def read(tree: Any, params: Arguments) -> Any:
        if isinstance(tree, list):
            return [add(element, params) for element in tree]
        return {name: read(tree, params) for name, read in named}

    return read


def compile_mock(outputs: tuple[Output, ...], render: Render) -> Callable[[Arguments], Any] | None:
    """The answer made of static values alone, an object by output names; None if no output has any.

    The answer is MISSING if all of them came out empty.

    Raises:
        OutputInvalid: outputs nested too deeply.
    """
    entries = [(output.name or "value", make) for output in outputs if (make := _mock(output, render, 0)) is not None]
    if not entries:
        return None

    def mock(params: Arguments) -> Any:
        made = {name: value for name, make in entries if (value := make(params)) is not None}
        return made or MISSING

    return mock


def output_schema(plan: OutputPlan) -> dict[str, Any] | None:
    """The JSON Schema (2020-12) of what `structured` makes; None unless every body becomes an object.

    Every member may be null. An object without declared properties stands for any JSON value.
    """
    return None if plan.shape is None else {**_schema(plan.shape), "type": "object"}


def structured(plan: OutputPlan) -> Callable[[Any], Any]:
    """Brings the scalars of a mapped result to their declared types, null where that would lose something.

    The result is valid against `output_schema`; without such a schema the value is given back as it is.
    """
    if plan.shape is None:
        return lambda value: value
    coerce = _coercion(plan.shape)
    return lambda value: coerce(value if isinstance(value, dict) else {})


def _read_null(_tree: Any, _params: Arguments) -> None:
    return None


def _read_root(tree: Any, _params: Arguments) -> Any:
    return tree


def _is_static(output: Output) -> bool:
    return output.value is not ABSENT and output.value is not None


def _type(output: Output) -> str:
    return (output.type or "").lower()


def _kind(output: Output) -> _Kind:
    kind = _type(output)
    if kind == "array" or (kind != "object" and kind not in _SCALARS and output.items is not None):
        return "array"
    if kind in _SCALARS:
        return "value"
    if output.values is not None and (output.mapping or not output.properties):
        return "map"
    return "object" if output.properties else "value"


def _path(output: Output) -> Path | None:
    if output.mapping is None or not output.mapping.strip():
        return None
    try:
        return compile_path(output.mapping)
    except ValueError as error:
        raise OutputInvalid(output.at, str(error)) from error


def _is_at_root(output: Output) -> bool:
    """Whether it takes the body itself: objects and arrays do so without a mapping too."""
    path = _path(output)
    return path.is_root if path is not None else _kind(output) != "value" or _type(output) == "object"


def _is_whole(output: Output) -> bool:
    """Whether it gives the body as it is, or null."""
    has_parts = output.properties or output.items is not None or output.values is not None
    return not _is_static(output) and not has_parts and output.max_length is None and _is_at_root(output)


def _is_certain_object(output: Output) -> bool:
    return not _is_static(output) and _kind(output) == "object" and _is_at_root(output)


def _is_hollow(value: Any) -> bool:
    """Whether all leaves are null."""
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            stack += node.values()
        elif isinstance(node, list):
            stack += node
        elif node is not None:
            return False
    return True


def _compile(
    output: Output, render: Render | None, *, is_entry: bool = False, depth: int = 0, lone: bool = False
) -> _Reader | None:
    """The reader of an output; None if it is always null. Without `render` static values are null.

    `is_entry` marks the items of an array and the entries of a map, which without a mapping stand for themselves.
    """
    if depth > _DEEPEST:
        raise OutputInvalid(output.at, f"outputs are nested deeper than {_DEEPEST}")
    if _is_static(output):
        return None if render is None else _read_static(output, render)
    kind = _kind(output)
    path = _path(output)
    if path is None and kind == "value" and _type(output) != "object" and not is_entry:
        return None
    if kind == "value":
        return _read_value(output, path)
    build = {"array": _build_array, "map": _build_map, "object": _build_object}[kind](output, render, depth, lone)
    if path is None or path.is_root:
        return build
    locate = path.read

    def read(tree: Any, params: Arguments) -> Any:
        value = locate(tree)
        return None if value is None else build(value, params)

    return read


def _read_static(output: Output, render: Render) -> _Reader:
    make = _static(output, render)
    return lambda _tree, params: make(params)


def _read_value(output: Output, path: Path | None) -> _Reader:
    longest = output.max_length
    if path is None or path.is_root:
        if longest is None:
            return _read_root
        return lambda tree, _params: _cut(tree, longest)
    locate = path.read
    if longest is None:
        return lambda tree, _params: locate(tree)
    return lambda tree, _params: _cut(locate(tree), longest)


def _cut(value: Any, longest: int) -> Any:
    return value[:longest] if isinstance(value, str) and longest >= 0 else value


def _build_array(output: Output, render: Render | None, depth: int, lone: bool) -> _Reader:  # noqa: FBT001
    if output.items is None:
        return lambda value, _params: _rows(value, lone=lone)
    read_item = _compile(output.items, render, is_entry=True, depth=depth + 1, lone=lone) or _read_null
    if read_item is _read_root:
        return lambda value, _params: _rows(value, lone=lone)

    def build(value: Any, params: Arguments) -> Any:
        rows = _rows(value, lone=lone)
        return None if rows is None else [read_item(element, params) for element in rows]

    return build


def _rows(value: Any, *, lone: bool) -> list[Any] | None:
    if isinstance(value, list):
        return value
    return [value] if lone and value is not None else None


def _build_map(output: Output, render: Render | None, depth: int, lone: bool) -> _Reader:  # noqa: FBT001
    entry = output.values
    read_entry = (entry and _compile(entry, render, is_entry=True, depth=depth + 1, lone=lone)) or _read_null

    def build(value: Any, params: Arguments) -> Any:
        if not isinstance(value, dict):
            return None
        return {key: read_entry(member, params) for key, member in value.items()}

    return build


def _build_object(output: Output, render: Render | None, depth: int, lone: bool) -> _Reader:  # noqa: FBT001
    members = [_member_name(field) for _, field in output.properties]
    if all(member is not None for member in members):
        keys = tuple((name, member) for (name, _), member in zip(output.properties, members, strict=True))

        def pick(value: Any, _params: Arguments) -> Any:
            if not isinstance(value, dict):
                return {name: None for name, _ in keys}
            find = value.get
            return {name: find(member) for name, member in keys}

        return pick
    readers = tuple(
        (name, _compile(field, render, depth=depth + 1, lone=lone) or _read_null) for name, field in output.properties
    )
    return lambda value, params: {name: read(value, params) for name, read in readers}


def _member_name(field: Output) -> str | None:
    """The member a property copies unchanged, None if it does anything else: most objects are built of these alone."""
    if _is_static(field) or _kind(field) != "value" or field.max_length is not None:
        return None
    path = _path(field)
    if path is None or path.steps is None or len(path.steps) != 1 or not isinstance(path.steps[0], str):
        return None
    return path.steps[0]


def _static(output: Output, render: Render) -> Callable[[Arguments], Any]:
    """A static value as a function of the call, in the declared type if its text can be read as that."""
    value, kind, longest = output.value, _type(output), output.max_length
    make = _template(value, render)
    if isinstance(value, str):
        return lambda params: from_text(make(params), kind) if kind != "string" else make(params)[:longest]
    if kind == "string":
        return lambda params: to_string(make(params))
    return make


def _template(value: Any, render: Render) -> Callable[[Arguments], Any]:
    if isinstance(value, str):
        return render(value)
    if isinstance(value, dict):
        members = tuple((key, _template(member, render)) for key, member in value.items())
        return lambda params: {key: make(params) for key, make in members}
    if isinstance(value, list):
        entries = tuple(_template(entry, render) for entry in value)
        return lambda params: [make(params) for make in entries]
    return lambda _params: value


def _mock(output: Output, render: Render, depth: int) -> Callable[[Arguments], Any] | None:
    if depth > _DEEPEST:
        raise OutputInvalid(output.at, f"outputs are nested deeper than {_DEEPEST}")
    if _is_static(output):
        return _static(output, render)
    if output.properties:
        made = ((name, _mock(field, render, depth + 1)) for name, field in output.properties)
        fields = tuple((name, make) for name, make in made if make is not None)
        return _mock_object(fields) if fields else None
    make_item = _mock(output.items, render, depth + 1) if output.items is not None else None
    return _mock_array(make_item) if make_item is not None else None


def _mock_object(fields: tuple[tuple[str, Callable[[Arguments], Any]], ...]) -> Callable[[Arguments], Any]:
    def mock(params: Arguments) -> Any:
        return {name: value for name, make in fields if (value := make(params)) is not None} or None

    return mock


def _mock_array(make_item: Callable[[Arguments], Any]) -> Callable[[Arguments], Any]:
    def mock(params: Arguments) -> Any:
        item = make_item(params)
        return None if item is None else [item]

    return mock


def _schema(output: Output) -> dict[str, Any]:
    kind = _kind(output)
    schema: dict[str, Any] = {}
    if kind == "object":
        schema = {
            "type": ["object", "null"],
            "properties": {name: _schema(field) for name, field in output.properties},
        }
    elif kind == "map" and output.values is not None:
        schema = {"type": ["object", "null"], "additionalProperties": _schema(output.values)}
    elif kind == "array":
        schema = {"type": ["array", "null"]}
        if output.items is not None:
            schema["items"] = _schema(output.items)
    elif _type(output) in _SCALARS:
        schema = {"type": [_type(output), "null"]}
    if output.description:
        schema["description"] = output.description
    return schema


def _coercion(output: Output) -> Callable[[Any], Any]:
    """Makes any value valid against the schema of the output; one that is already is given back itself."""
    kind = _kind(output)
    if kind == "object":
        return _coerce_object(tuple((name, _coercion(field)) for name, field in output.properties))
    if kind == "map" and output.values is not None:
        entry = _coercion(output.values)
        return lambda value: {key: entry(member) for key, member in value.items()} if isinstance(value, dict) else None
    if kind == "array":
        item = _coercion(output.items) if output.items is not None else lambda value: value
        return _coerce_array(item)
    return _TO_TYPE.get(_type(output), lambda value: value)


def _coerce_object(fields: tuple[tuple[str, Callable[[Any], Any]], ...]) -> Callable[[Any], Any]:
    def coerce(value: Any) -> Any:
        if not isinstance(value, dict):
            return None
        changed = {}
        for name, coerce_field in fields:
            old = value.get(name, ABSENT)
            new = coerce_field(None if old is ABSENT else old)
            if new is not old:
                changed[name] = new
        return {**value, **changed} if changed else value

    return coerce


def _coerce_array(item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def coerce(value: Any) -> Any:
        if not isinstance(value, list):
            return None
        made = [item(element) for element in value]
        return value if all(map(operator.is_, made, value)) else made

    return coerce


_TO_TYPE: Final[dict[str, Callable[[Any], Any]]] = {
    "string": to_string,
    "number": to_number,
    "integer": to_integer,
    "boolean": to_boolean,
}
