"""Reads what consumed and exposed operations share: inputs, outputs, bodies, steps and actions.

A part that decides what a call does (`call`, `with`, `steps`, a body) makes its operation unusable when it is broken.
"""

import itertools
import re
from collections.abc import Callable
from typing import Final

from toolcrib.capability import beta
from toolcrib.capability.load_fields import Record, Unusable, kind, short
from toolcrib.capability.spec import (
    ABSENT,
    Action,
    Body,
    BodyType,
    Input,
    Output,
    Step,
    StepMapping,
    WithEntry,
)
from toolcrib.capability.yaml_source import Node, plain

INPUT = kind(
    "input",
    "name in type required description value pattern enum default items properties label tags format example examples "
    "minimum maximum minLength maxLength const style explode selector title",
)
OUTPUT = kind(
    "output",
    "name type description mapping value const properties items values maxLength enum selector required precision "
    "scale contentEncoding contentCompression label tags format pattern default example nullable title",
)
STEP = kind(
    "step",
    "type name description label call with index match lookupValue outputParameters language location file "
    "dependencies",
)
MAPPING = kind("step mapping", "targetName value description")
BODY = kind("body", "type data")
ACTION_FIELDS: Final = "call with steps mappings ref outputParameters"

_PLACES = ("query", "header", "path", "cookie", "body", "environment")
_TYPES: Final[dict[str, str | None]] = {
    **{name: name for name in ("string", "number", "integer", "boolean", "array", "object")},
    **dict.fromkeys(("int", "long"), "integer"),
    **dict.fromkeys(("float", "double", "decimal"), "number"),
    **dict.fromkeys(("str", "text", "date", "date-time", "datetime", "uuid", "uri", "binary", "file"), "string"),
    "bool": "boolean",
    "list": "array",
    "map": "object",
}
_MEDIA: Final[dict[str, BodyType]] = {"json": "json", "xml": "xml", "xwwwformurlencoded": "formUrlEncoded"}
_BODY_TYPES: Final[dict[str, BodyType]] = {
    "json": "json",
    "text": "text",
    "xml": "xml",
    "sparql": "sparql",
    **dict.fromkeys(("formurlencoded", "form", "urlencoded", "xwwwformurlencoded"), "formUrlEncoded"),
    **dict.fromkeys(("multipartform", "multipart", "formdata", "multipartformdata"), "multipartForm"),
    **{f"application{name}": type_ for name, type_ in _MEDIA.items()},
    "textplain": "text",
    "textxml": "xml",
}
_STEP_TYPES: Final = {"call": "call", "index": "lookup", "file": "script"}
_STEP_NEEDS: Final = {"call": ("call",), "lookup": ("index", "match", "lookupValue"), "script": ("file",)}
_NESTING = frozenset({"properties", "items", "values"})  # the fields of an output that are maps themselves
_PATH = re.compile(r"\$(?:$|[.\[])")


def read_inputs(record: Record, *, is_shared: bool = False) -> tuple[Input, ...]:
    """The input parameters of a record; one without a name is dropped.

    `is_shared` says that they hold for many operations: there may be fewer, as each of those gets them all.
    """
    field, most = "inputParameters", 100 if is_shared else 1000
    inputs = _inputs(record, field)
    if len(inputs) > most:
        record.report.error(
            "inputs-many",
            f"The {record.kind.name} has {len(inputs)} inputs; {most} are allowed",
            "the others are dropped",
            "declare them where they are used",
            record.at_field(field),
        )
    return inputs[:most]


def _inputs(record: Record, field: str) -> tuple[Input, ...]:
    node = record.node(field)
    if node is not None and isinstance(node.value, list) and any(child.text for child in node.value):
        named = [_named(child) for child in node.value]
        record.report.warning(
            "type-coerced",
            f"{field} holds plain names",
            "each is an input of that name",
            "write `- name: ...` entries with type and description",
            node.at,
        )
        return record.each_of(((None, child) for child in named), INPUT, _input)
    return record.each(field, INPUT, _input)


def read_outputs(record: Record, field: str = "outputParameters") -> tuple[Output, ...]:
    """The output parameters of a record."""
    return record.each(field, OUTPUT, read_output)


def read_output(record: Record) -> Output:
    """One output parameter with all that is below it."""
    name = record.name()
    mapping, value = record.text("mapping"), record.value("value")
    if mapping is None and isinstance(value, str) and (value.startswith("$") if name else _PATH.match(value)):
        mapping, value = value, ABSENT
    return Output(
        at=record.at,
        name=name,
        type=_type(record),
        description=record.text("description"),
        mapping=mapping,
        value=value,
        properties=_properties(record),
        items=_items(record),
        values=_values(record),
        max_length=record.integer("maxLength", least=0, most=1 << 31),
        enum=_list(record, "enum"),
    )


def read_body(owner: Record) -> Body | None:
    """The body of a consumed operation; raises Unusable when its type is unknown."""
    node = owner.node("body")
    if node is None:
        return None
    if node.text is not None:
        return Body("raw", node.text, node.at)
    if not isinstance(node.value, dict) or not {"type", "data"} & node.value.keys():
        owner.report.warning(
            "body-untyped",
            "The body is JSON without saying so",
            "it is sent as JSON",
            "write `{type: json, data: ...}`",
            node.at,
        )
        return Body("json", plain(node), node.at)
    record = Record(node, BODY, owner.report)
    written = record.text("type", needed=True) or "json"
    type_ = _BODY_TYPES.get(re.sub(r"[^a-z]", "", written.lower()))
    if type_ is None:
        owner.unusable(
            "body-type-unknown",
            f"The body has the unknown type {short(written)}",
            "write json, text, xml, sparql, formUrlEncoded or multipartForm",
            node.at,
        )
    return Body(type_, record.value("data"), node.at)


def read_action(record: Record) -> Action:
    """What a record does; raises Unusable when that cannot be told."""
    ref, call = record.text("ref", needed=True), record.text("call", needed=True)
    steps = record.each("steps", STEP, _step_reader(), needed=True)
    given = [name for name, there in (("ref", ref), ("call", call), ("steps", steps)) if there]
    if len(given) > 1:
        record.report.warning(
            "action-ambiguous",
            f"The {record.kind.name} has {' and '.join(given)}",
            f"{given[0]} is used, the rest is ignored",
            "keep one",
            record.at,
        )
    return Action(
        call=call if given[:1] == ["call"] else None,
        with_=read_with(record),
        steps=steps if given[:1] == ["steps"] else (),
        mappings=_mappings(record),
        ref=ref or None,
        outputs=read_outputs(record),
    )


def read_with(record: Record) -> tuple[WithEntry, ...]:
    """The `with` of an action or a step."""
    node = record.node("with")
    if node is None:
        return ()
    if not isinstance(node.value, dict):
        record.unusable("wrong-type", "with should be a map", "write `name: value` entries", node.at)
    return tuple(WithEntry(key, plain(child), child.at) for key, child in node.value.items())


def _named(child: Node) -> Node:
    return Node({"name": child}, child.at) if child.text else child


def _input(record: Record) -> Input:
    name = record.required_name()
    location = record.text("in")
    if location is not None and location.lower() not in _PLACES:
        record.report.error(
            "input-place-unknown",
            f"The input {short(name)} is in {short(location)}",
            "it is taken as if `in` were not written",
            f"write one of {', '.join(_PLACES)}",
            record.at_field("in"),
        )
        location = None
    return Input(
        name=name,
        at=record.at,
        location=location.lower() if location else None,
        type=_type(record),
        description=record.text("description"),
        required=record.flag("required"),
        value=record.value("value"),
        pattern=record.text("pattern"),
        enum=_list(record, "enum"),
        default=record.value("default"),
        items=record.map("items") or None,
        properties=record.map("properties") or None,
    )


def _type(record: Record) -> str | None:
    written = record.text("type")
    if written is None or written in _TYPES.values():
        return written
    known = _TYPES.get(written.lower())
    taken = f"it is taken as {known}" if known else "any value is taken"
    record.report.warning(
        "type-unknown",
        f"{short(written)} is no type",
        taken,
        "write string, number, integer, boolean, array or object",
        record.at_field("type"),
    )
    return known


def _list(record: Record, field: str) -> tuple[object, ...]:
    node = record.node(field)
    if node is None:
        return ()
    if isinstance(node.value, list):
        return tuple(plain(child) for child in node.value)
    return record.texts(field)


def _properties(record: Record) -> tuple[tuple[str, Output], ...]:
    node = record.node("properties")
    if node is None:
        return ()
    found = []
    for key, child in beta.members(node):
        try:
            output = _output(child, record, key)
        except Unusable as broken:
            record.report.add(broken.finding)
            continue
        if name := key or output.name:
            found.append((name, output))
    if not isinstance(node.value, (dict, list)):
        record.each("properties", OUTPUT, read_output)  # says what is wrong
    return tuple(found)


def _output(node: Node, record: Record, key: str | None) -> Output:
    """An output; a text alone is short for its mapping or value."""
    if node.text is None or node.value is None:
        return read_output(Record(node, OUTPUT, record.report, key))
    is_path = _PATH.match(node.text) is not None
    return Output(
        at=node.at, name=key, mapping=node.text if is_path else None, value=ABSENT if is_path else plain(node)
    )


def _items(record: Record) -> Output | None:
    """What an array holds; several named entries are the properties of its objects."""
    node = record.node("items")
    if node is None:
        return None
    keyed = isinstance(node.value, dict) and beta.is_keyed(node) and not node.value.keys() <= _NESTING
    if isinstance(node.value, dict) and not keyed:
        return read_output(Record(node, OUTPUT, record.report))
    outputs = record.each("items", OUTPUT, read_output)
    if len(outputs) < 2 and not keyed:
        return outputs[0] if outputs else None
    return Output(at=node.at, type="object", properties=tuple((o.name, o) for o in outputs if o.name))


def _values(record: Record) -> Output | None:
    node = record.node("values")
    return None if node is None else _output(node, record, None)


def _mappings(record: Record) -> tuple[StepMapping, ...]:
    node = record.node("mappings")
    if node is not None and isinstance(node.value, dict) and not beta.is_keyed(node):
        return tuple(StepMapping(key, child.text or "", child.at) for key, child in node.value.items())
    return record.each("mappings", MAPPING, _mapping, needed=True)


def _mapping(record: Record) -> StepMapping:
    target = record.name("targetName")
    if not target:
        record.unusable("target-missing", "The step mapping has no targetName", "say where its value goes")
    return StepMapping(target, record.required_text("value"), record.at)


def _step_reader() -> Callable[[Record], Step]:
    """Reads one step after the other; one without a name is called after its position."""
    position = itertools.count(1)

    def read(record: Record) -> Step:
        name = record.name()
        fallback = f"step-{next(position)}"
        if not name:
            record.report.warning(
                "name-missing", "The step has no name", f"it is called {fallback}", "give it a name", record.at
            )
        type_ = record.text("type") or next((t for f, t in _STEP_TYPES.items() if record.has(f)), "")
        needs = _STEP_NEEDS.get(type_.lower())
        if needs is None:
            record.unusable(
                "step-type-unknown",
                f"The step has the unknown type {short(type_)}",
                "write call, lookup or script",
                record.at_field("type"),
            )
        for field in needs:
            record.required_text(field)
        return Step(
            type=type_.lower(),
            name=name or fallback,
            at=record.at,
            call=record.text("call"),
            with_=read_with(record),
            index=record.text("index"),
            match=record.text("match"),
            lookup_value=record.text("lookupValue"),
            output_names=_output_names(record),
            language=record.text("language"),
            location=record.text("location"),
            file=record.text("file"),
            dependencies=record.texts("dependencies"),
        )

    return read


def _output_names(record: Record) -> tuple[str, ...]:
    """The fields that a lookup takes: plain names, or outputs of which the names count."""
    node = record.node("outputParameters")
    if node is None or node.text is not None:
        return record.texts("outputParameters")
    names = [key or child.text or _name_of(child) for key, child in beta.members(node)]
    if not names or not all(names):
        record.unusable("wrong-type", "outputParameters should be a list of names", "write the names", node.at)
    return tuple(name for name in names if name)


def _name_of(node: Node) -> str | None:
    named = node.value.get("name") if isinstance(node.value, dict) else None
    return named.text if named is not None else None
