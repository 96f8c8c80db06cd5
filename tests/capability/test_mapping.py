"""Output parameters: whole bodies, named outputs of steps, mocks, and the schema of what comes out."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolcrib.capability.mapping import (
    MISSING,
    OutputInvalid,
    OutputPlan,
    compile_mock,
    compile_outputs,
    named_outputs,
    output_schema,
    structured,
)
from toolcrib.capability.spec import ABSENT, Mark, Output

AT = Mark("capability.yaml", 3, 7)
CUSTOMER = {"id": 7, "name": "Acme", "tags": ["a", "b"], "address": {"city": "Paris", "zip": None}, "active": True}


def render(text: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda params: re.sub(r"\{\{(\w+)\}\}", lambda match: str(params.get(match[1], "")), text)


def out(kind: str | None = None, mapping: str | None = None, **fields: Any) -> Output:
    properties = tuple(fields.pop("properties", {}).items())
    return Output(at=AT, type=kind, mapping=mapping, properties=properties, **fields)


def plan(*outputs: Output) -> OutputPlan:
    return compile_outputs(outputs, render)


def mapped(tree: Any, *outputs: Output, **params: Any) -> Any:
    return plan(*outputs).apply(tree, params)


@pytest.mark.parametrize(
    ("outputs", "identity"),
    [
        ((), True),
        ((out("object", "$."),), True),
        ((out("object"),), True),
        ((out("array", "$"),), True),
        ((out(None, "$."),), True),
        ((out("string", "$."),), True),
        ((out("string", name="no-mapping"), out("object", "$.")), True),
        ((out("string", name="imo"), out("number", name="year")), True),  # nothing can apply: the raw body
        ((out("object", "$."), out("string", "$.id")), True),
        ((out("array", "$."), out("string", "$.id")), False),  # the second applies to what is no array
        ((out("object", "$.data"),), False),
        ((out("object", properties={"id": out("string", "$.id")}),), False),
        ((out("array", "$.", items=out("object")),), False),
        ((out("object", "$.", values=out("string")),), False),
        ((out("string", "$.", max_length=3),), False),
        ((out("string", value="fixed"),), False),
    ],
)
def test_a_body_is_relayed_when_the_first_output_that_can_apply_takes_all_of_it(
    outputs: tuple[Output, ...], identity: bool
) -> None:
    assert plan(*outputs).identity is identity


@pytest.mark.parametrize("tree", [CUSTOMER, [CUSTOMER], "text", 1, False])
def test_an_object_without_properties_gives_the_value_at_its_mapping_whatever_it_is(tree: Any) -> None:
    assert mapped(tree, out("object", "$.")) == tree
    assert mapped(tree, out("object")) == tree
    assert mapped({"data": tree}, out("object", "$.data")) == tree


def test_the_first_output_that_is_not_null_is_the_whole_body() -> None:
    outputs = (out("string", "$.missing"), out("array", "$.name"), out("string", "$.name"), out("number", "$.id"))
    assert mapped(CUSTOMER, *outputs) == "Acme"
    assert mapped({}, *outputs) is MISSING
    assert mapped(CUSTOMER, out("string", name="unmapped")) is MISSING
    assert mapped(CUSTOMER, out("string", " ")) is MISSING


def test_a_mapped_value_keeps_its_upstream_type() -> None:
    assert mapped(CUSTOMER, out("string", "$.id")) == 7
    assert mapped(CUSTOMER, out("number", "$.name")) == "Acme"
    assert mapped(CUSTOMER, out("boolean", "$.address")) == {"city": "Paris", "zip": None}


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("string", "hello {{who}}", "hello Ann"),
        ("string", 12, "12"),
        ("string", True, "true"),
        (None, "12", "12"),
        ("number", "{{n}}", 12),
        ("number", "1.5", 1.5),
        ("number", 3, 3),
        ("Number", "7", 7),
        ("number", "many", "many"),
        ("integer", "7", 7),
        ("boolean", "true", True),
        ("boolean", "False", False),
        ("object", '{"n": {{n}}}', {"n": 12}),
        ("object", {"n": "{{n}}", "deep": [{"who": "{{who}}"}]}, {"n": "12", "deep": [{"who": "Ann"}]}),
        ("array", "[1, 2]", [1, 2]),
        ("array", ["{{who}}", 2], ["Ann", 2]),
    ],
)
def test_a_static_value_is_rendered_and_brought_to_the_declared_type(
    kind: str | None, value: Any, expected: Any
) -> None:
    assert mapped(CUSTOMER, out(kind, value=value), who="Ann", n=12) == expected
    assert mapped(CUSTOMER, out("object", properties={"v": out(kind, value=value)}), who="Ann", n=12) == {"v": expected}


def test_a_static_number_without_text_is_null() -> None:
    assert mapped(CUSTOMER, out("number", value="{{absent}}")) is MISSING
    assert mapped(CUSTOMER, out("string", value=None, mapping="$.name")) == "Acme"


def test_an_object_has_each_property_with_null_for_what_is_missing() -> None:
    output = out(
        "object",
        properties={
            "key": out("string", "$.id"),
            "town": out("string", "$.address.city"),
            "gone": out("string", "$.nope.deeper"),
            "unmapped": out("string"),
            "origin": out("string", value="crm-{{tenant}}"),
            "whole": out("object", "$.address"),
        },
    )
    assert mapped(CUSTOMER, output, tenant="eu") == {
        "key": 7,
        "town": "Paris",
        "gone": None,
        "unmapped": None,
        "origin": "crm-eu",
        "whole": {"city": "Paris", "zip": None},
    }


def test_properties_that_are_members_are_read_from_what_is_no_object_as_null() -> None:
    output = out("object", properties={"a": out("string", "$.a"), "b": out("string", "$['b']")})
    assert mapped({"a": 1}, output) == {"a": 1, "b": None}
    assert mapped([1], output) == {"a": None, "b": None}


def test_nested_objects_and_arrays_recurse_at_every_level() -> None:
    output = out(
        "object",
        properties={
            "specs": out("object", properties={"id": out("number", "$.id")}),  # no mapping: the same root
            "address": out("object", "$.address", properties={"town": out("string", "$.city")}),
            "nowhere": out("object", "$.nope", properties={"town": out("string", "$.city")}),
            "orders": out(
                "array",
                "$.orders",
                items=out(
                    "object",
                    properties={
                        "no": out("number", "$.id"),
                        "lines": out("array", "$.lines", items=out("object", properties={"s": out("string", "$.sku")})),
                        "kind": out("string", value="order"),
                    },
                ),
            ),
        },
    )
    tree = {**CUSTOMER, "orders": [{"id": 1, "lines": [{"sku": "x"}, {}]}, {"id": 2}]}
    assert mapped(tree, output) == {
        "specs": {"id": 7},
        "address": {"town": "Paris"},
        "nowhere": None,
        "orders": [
            {"no": 1, "lines": [{"s": "x"}, {"s": None}], "kind": "order"},
            {"no": 2, "lines": None, "kind": "order"},
        ],
    }


def test_the_items_of_an_array() -> None:
    rows = [{"id": 1, "n": {"v": "one"}}, {"id": 2}, 3]
    assert mapped(rows, out("array", "$.")) == rows
    assert mapped(rows, out("array", items=out("object"))) == rows
    assert mapped(rows, out("array", "$.", items=out("number", "$.id"))) == [1, 2, None]
    assert mapped(rows, out("array", "$.", items=out("string"))) == rows
    assert mapped(rows, out("array", "$.", items=out("object", "$.n", properties={"w": out("string", "$.v")}))) == [
        {"w": "one"},
        None,
        None,
    ]
    assert mapped({"rows": [[1, 2], [3]]}, out("array", "$.rows", items=out("array", items=out("number")))) == [
        [1, 2],
        [3],
    ]
    assert mapped({"t": ["long text"]}, out("array", "$.t", items=out("string", max_length=4))) == ["long"]
    assert mapped({"rows": {"no": "array"}}, out("array", "$.rows", items=out("string"))) is MISSING
    assert mapped({"a": [{"b": 1}, {"b": 2}]}, out("array", "$.a[*].b")) == [1, 2]


def test_a_map_sends_each_entry_through_its_values() -> None:
    rates = {"rates": {"EUR": {"v": 1.1, "n": "euro"}, "USD": {"n": "dollar"}}}
    assert mapped(rates, out("object", "$.rates", values=out("number", "$.v"))) == {"EUR": 1.1, "USD": None}
    assert mapped(rates, out("object", "$.rates", values=out("object"))) == rates["rates"]
    assert mapped(
        rates, out("object", "$.rates", values=out("object", properties={"name": out("string", "$.n", max_length=3)}))
    ) == {"EUR": {"name": "eur"}, "USD": {"name": "dol"}}
    assert mapped({"rates": [1]}, out("object", "$.rates", values=out("number", "$.v"))) is MISSING


def test_max_length_cuts_characters_of_texts_alone() -> None:
    assert mapped({"t": "héllo wörld"}, out("string", "$.t", max_length=4)) == "héll"
    assert mapped({"t": 123456}, out("string", "$.t", max_length=4)) == 123456
    assert mapped({"t": "abc"}, out("object", properties={"t": out("string", "$.t", max_length=2)})) == {"t": "ab"}


def test_an_error_body_counts_as_mapped_only_if_a_mapping_found_something() -> None:
    shaped = plan(
        out("object", properties={"id": out("string", "$.id"), "kind": out("string", value="customer")}),
        out("object", properties={"reason": out("string", "$.message")}),
    )
    assert shaped.apply_error({"detail": "no"}, {}) is MISSING
    assert shaped.apply_error({"message": "no"}, {}) == {"reason": "no"}
    assert shaped.apply_error({"id": 1}, {}) == {"id": 1, "kind": "customer"}
    assert plan(out("string", value="fixed")).apply_error({"detail": "no"}, {}) is MISSING
    assert plan(out("array", "$.rows[*].id")).apply_error({"rows": []}, {}) is MISSING


def test_a_bad_path_and_too_deep_outputs_are_refused_with_their_place() -> None:
    with pytest.raises(OutputInvalid, match="a name is expected") as refused:
        plan(out("object", properties={"x": out("string", "$.a.")}))
    assert refused.value.at == AT
    deep = out("object", properties={"x": out("string", "$.a")})
    for _ in range(80):
        deep = out("object", properties={"x": deep})
    with pytest.raises(OutputInvalid, match="deeper than 64"):
        plan(deep)


def test_a_step_keeps_its_named_outputs() -> None:
    read = named_outputs((out("string", "$.id", name="user-id"), out("string", "$.nope", name="gone")), render)
    assert read(CUSTOMER, {}) == {"user-id": 7, "gone": None}
    assert read([{"id": 1, "n": "a"}, {"n": "b"}, 3], {}) == [{"id": 1, "n": "a", "user-id": 1}, {"n": "b"}, 3]


def test_a_step_without_named_outputs_keeps_the_first_or_the_body() -> None:
    assert named_outputs((), render)(CUSTOMER, {}) is CUSTOMER
    assert named_outputs((out("string", "$.nope"), out("string", "$.name")), render)(CUSTOMER, {}) == "Acme"
    assert named_outputs((out("string", "$.nope"),), render)(CUSTOMER, {}) is CUSTOMER


def test_a_mock_is_an_object_of_the_static_values() -> None:
    mock = compile_mock(
        (
            out("string", value="Hello {{who}}", name="greeting"),
            out("number", value="{{n}}"),
            out("object", name="empty", properties={"x": out("string", "$.x")}),
            out(
                "object",
                name="ship",
                properties={
                    "imo": out("string", value="{{n}}"),
                    "unset": out("string"),
                    "crew": out("array", items=out("object", properties={"on": out("boolean", value="true")})),
                },
            ),
        ),
        render,
    )
    assert mock is not None
    assert mock({"who": "Ann", "n": 12}) == {
        "greeting": "Hello Ann",
        "value": 12,
        "ship": {"imo": "12", "crew": [{"on": True}]},
    }


def test_a_mock_needs_a_static_value_and_may_come_out_empty() -> None:
    assert compile_mock((), render) is None
    assert compile_mock((out("string", "$.name", name="n"), out("string", value=None)), render) is None
    mock = compile_mock(
        (out("number", value="{{n}}", name="n"), out("array", items=out("number", value="{{n}}"))), render
    )
    assert mock is not None
    assert mock({}) is MISSING
    assert mock({"n": 0}) == {"n": 0, "value": [0]}


PROMISED = out(
    "object",
    properties={
        "id": out("string", "$.id", description="Its key."),
        "count": out("number", "$.count"),
        "whole": out("integer", "$.count"),
        "on": out("boolean", "$.on"),
        "any": out("object", "$.any"),
        "list": out("array", "$.list"),
        "rows": out("array", "$.list", items=out("object", properties={"n": out("number", "$.n")})),
        "names": out("array", "$.list", items=out("string")),
        "rates": out("object", "$.map", values=out("number")),
        "part": out("object", "$.any", properties={"id": out("string", "$.id"), "fixed": out("number", value="7")}),
        "same": out("object", properties={"id": out("integer", "$.id")}),
    },
)


def test_the_schema_of_an_object_with_declared_properties() -> None:
    schema = output_schema(plan(PROMISED))
    assert schema is not None
    jsonschema_rs.meta.validate(schema)
    assert schema["type"] == "object"
    assert "additionalProperties" not in schema
    assert "required" not in schema
    members = schema["properties"]
    assert members["id"] == {"type": ["string", "null"], "description": "Its key."}
    assert members["any"] == {}
    assert members["list"] == {"type": ["array", "null"]}
    assert members["rows"]["items"]["properties"] == {"n": {"type": ["number", "null"]}}
    assert members["rates"] == {"type": ["object", "null"], "additionalProperties": {"type": ["number", "null"]}}


@pytest.mark.parametrize(
    "outputs",
    [
        (),
        (out("object", "$."),),
        (out("array", "$."),),
        (out("string", "$.id"), PROMISED),  # the first may win
        (dataclasses.replace(PROMISED, mapping="$.data"),),  # may be null, then the raw body goes out
        (dataclasses.replace(PROMISED, value="static"),),
        (out("object", "$.", values=out("string")),),
    ],
)
def test_no_schema_is_promised_for_what_may_be_anything(outputs: tuple[Output, ...]) -> None:
    assert output_schema(plan(*outputs)) is None
    assert structured(plan(*outputs))([1]) == [1]


def test_outputs_that_never_apply_do_not_stand_in_the_way_of_a_schema() -> None:
    at_root = dataclasses.replace(PROMISED, mapping="$.")
    assert output_schema(plan(out("string", name="unmapped"), at_root)) is not None


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("string", 1, "1"),
        ("string", 1.5, "1.5"),
        ("string", True, "true"),
        ("string", {"a": [1]}, '{"a":[1]}'),
        ("string", None, None),
        ("string", 2**70, None),
        ("number", "12", 12),
        ("number", "-0.5", -0.5),
        ("number", "1e3", 1000.0),
        ("number", "007", None),
        ("number", "0.10000000000000000001", None),
        ("number", "99999999999999999999", None),
        ("number", "1e999", None),
        ("number", "nan", None),
        ("number", float("inf"), None),
        ("number", True, None),
        ("number", [1], None),
        ("integer", 2.0, 2),
        ("integer", 2.5, None),
        ("integer", "12", 12),
        ("boolean", "true", True),
        ("boolean", "FALSE", False),
        ("boolean", 1, None),
        (None, {"a": 1}, {"a": 1}),
    ],
)
def test_scalars_are_brought_to_the_declared_type_or_null(kind: str | None, value: Any, expected: Any) -> None:
    coerced = structured(plan(out("object", properties={"v": out(kind, "$.v")})))({"v": value, "extra": 1})
    assert coerced == {"v": expected, "extra": 1}
    assert type(coerced["v"]) is type(expected)


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
    | st.sampled_from(["12", "-1.5", "true", "1e400"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "n", "x"]), inner, max_size=3),
    max_leaves=12,
)
_outputs = st.recursive(
    st.builds(
        out,
        st.sampled_from([None, "string", "number", "integer", "boolean", "object", "array", "weird"]),
        st.sampled_from([None, "$", "$.id", "$.n", "$..id", "$.x.length()"]),
        value=st.sampled_from([ABSENT, ABSENT, "12", "{{p}}", 5, {"a": "{{p}}"}]),
        max_length=st.sampled_from([None, 2]),
    ),
    lambda inner: st.builds(
        out,
        st.sampled_from([None, "object", "array", "string"]),
        st.sampled_from([None, None, "$.", "$.id", "$.x"]),
        properties=st.dictionaries(st.sampled_from(["id", "n", "x"]), inner, max_size=3),
        items=st.none() | inner,
        values=st.none() | inner,
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(tree=st.dictionaries(st.sampled_from(["id", "count", "on", "any", "list", "map"]), _json) | _json)
def test_a_structured_result_is_always_valid_against_the_schema(tree: Any) -> None:
    promised = plan(PROMISED)
    schema = output_schema(promised)
    assert schema is not None
    jsonschema_rs.validate(schema, structured(promised)(promised.apply(tree, {})))
    jsonschema_rs.validate(schema, structured(promised)(tree))  # whatever else the body was


@settings(max_examples=400, deadline=None)
@given(outputs=st.lists(_outputs, max_size=3), tree=_json)
def test_any_outputs_map_any_document(outputs: list[Output], tree: Any) -> None:
    compiled = compile_outputs(tuple(outputs), render)
    result = compiled.apply(tree, {"p": "3"})
    assert result is not None
    if compiled.identity:
        assert result is MISSING or result == tree
    compiled.apply_error(tree, {})
    named_outputs(tuple(outputs), render)(tree, {})
    if (mock := compile_mock(tuple(outputs), render)) is not None:
        assert mock({}) is MISSING or isinstance(mock({}), dict)
    if (schema := output_schema(compiled)) is not None:
        jsonschema_rs.meta.validate(schema)
        jsonschema_rs.validate(schema, structured(compiled)(result))


def test_in_xml_a_list_of_one_looks_like_its_entry_and_is_mapped_as_a_list() -> None:
    name = Output(AT, mapping="$.id")
    outputs = (Output(AT, type="array", mapping="$.v", items=Output(AT, type="object", properties=(("n", name),))),)
    for tree in ({"v": {"id": "1"}}, {"v": [{"id": "1"}]}):
        assert compile_outputs(outputs, render, lone=True).apply(tree, {}) == [{"n": "1"}]
    assert compile_outputs(outputs, render).apply({"v": {"id": "1"}}, {}) is MISSING
