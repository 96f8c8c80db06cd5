"""Functions shared by servers: references, inherited inputs, outputs, hints, mocks, steps."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from capability.stub import JSON, Stub, api, document, face, loaded, serving, stub, tools
from toolcrib.capability.findings import CapabilityInvalid
from upstream_app import Told

CITY = {"name": "city", "type": "string", "description": "The city.", "required": True}
NAME = [{"type": "object", "properties": {"n": {"type": "string", "mapping": "$.name"}}}]


@pytest.fixture
async def up() -> AsyncIterator[Stub]:
    async with stub() as served:
        served.answer = Told(b'{"name":"Rome","k":1}', 200, JSON)
        yield served


def function(name: str = "f", **more: Any) -> dict[str, Any]:
    made = {"name": name, "description": "Weather.", "inputParameters": [CITY], **more}
    if not {"steps", "outputParameters"} & made.keys() or "call" in made:
        made.setdefault("call", "up.op")
    return made


def made(up: Stub, functions: list[Any], *exposes: Any, consumed: Any = None) -> dict[str, Any]:
    aggregates = [{"label": "A", "namespace": "wx", "functions": functions}]
    return document(api(up.url, consumed or {"path": "/w/{city}"}), *exposes, aggregates=aggregates)


async def test_a_function_is_reached_by_rest_and_by_tools(up: Stub) -> None:
    inner = function(**{"with": {"city": "wx.city"}, "call": "up.op"})
    exposed = face({"path": "/w/{city}", "ref": "wx.f"}, {"path": "/fixed", "ref": "wx.f", "with": {"city": "Oslo"}})
    kit = tools({"name": "t", "ref": "wx.f"}, {"name": "u", "ref": "wx.f", "with": {"city": "tools.town"}})
    async with serving(made(up, [inner], exposed, kit)) as served:
        assert (await served.http.get("/w/Rome")).json() == {"name": "Rome", "k": 1}
        await served.http.get("/fixed")
        planned = served.capability.plan.mcp["kit"].tools
        assert planned["t"].input_schema == {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city."}},
            "required": ["city"],
        }
        assert list(planned["u"].input_schema["properties"]) == ["town"]
        await planned["t"].run({"city": "Bonn"})
        await planned["u"].run({"town": "a/b"})
        await served.capability.call("wx.f", {"city": "Kyiv"})
    assert [a.target for a in up.asked] == ["/w/Rome", "/w/Oslo", "/w/Bonn", "/w/a%2Fb", "/w/Kyiv"]


async def test_the_functions_own_outputs_count_else_those_of_the_adapter(up: Stub) -> None:
    mine = [{"type": "object", "properties": {"k": {"type": "number", "mapping": "$.k"}}}]
    functions = [function("own", outputParameters=NAME, call="up.op"), function("bare")]
    exposed = face(
        {"path": "/own/{city}", "ref": "wx.own", "outputParameters": mine},
        {"path": "/bare/{city}", "ref": "wx.bare", "outputParameters": mine},
    )
    async with serving(made(up, functions, exposed)) as served:
        assert (await served.http.get("/own/x")).json() == {"n": "Rome"}
        assert (await served.http.get("/bare/x")).json() == {"k": 1}
        up.answer = Told(b'{"message":"gone"}', 410, JSON)
        answer = await served.http.get("/bare/x")
        assert (answer.status_code, answer.json()) == (410, {"message": "gone"})


async def test_outputs_of_the_adapter_map_other_formats_too(up: Stub) -> None:
    up.answer = Told(b"<r><name>X</name></r>", 200, {"Content-Type": "application/xml"})
    consumed = {"path": "/w/{city}", "outputRawFormat": "xml"}
    exposed = face({"path": "/w/{city}", "ref": "wx.f", "outputParameters": NAME})
    async with serving(made(up, [function()], exposed, consumed=consumed)) as served:
        assert (await served.http.get("/w/x")).json() == {"n": "X"}


async def test_a_mocked_function_and_one_with_steps(up: Stub) -> None:
    mock = function("mock", outputParameters=[{"name": "city", "type": "string", "value": "{{city}}"}])
    steps = function(
        "steps",
        steps=[{"type": "call", "name": "a", "call": "up.op", "with": {"city": "wx.city"}}],
        mappings=[{"targetName": "got", "value": "$.a.name"}],
    )
    exposed = face({"path": "/m/{city}", "ref": "wx.mock"}, {"path": "/s/{city}", "ref": "wx.steps"})
    async with serving(made(up, [mock, steps], exposed)) as served:
        answer = await served.http.get("/m/Rome")
        assert (answer.status_code, answer.json()) == (200, {"city": "Rome"})
        assert (await served.http.get("/s/Rome")).json() == {"got": "Rome"}
    assert up.only().target == "/w/Rome"


@pytest.mark.parametrize(
    ("semantics", "hints", "expected"),
    [
        ({"safe": True, "idempotent": True}, {}, {"readOnlyHint": True, "destructiveHint": False, "idempotentHint": True}),
        ({"safe": False}, {}, {"readOnlyHint": False}),
        ({"safe": True}, {"destructive": True}, {"readOnlyHint": True, "destructiveHint": True}),
        ({"safe": True, "idempotent": False}, {"readOnly": False},
         {"readOnlyHint": False, "destructiveHint": False, "idempotentHint": False}),
    ],
)  # fmt: skip
async def test_semantics_become_hints_unless_the_tool_says_otherwise(
    up: Stub, semantics: Any, hints: Any, expected: Any
) -> None:
    kit = tools({"name": "t", "ref": "wx.f", "hints": hints})
    async with serving(made(up, [function(semantics=semantics)], kit)) as served:
        assert served.capability.plan.mcp["kit"].tools["t"].annotations == expected


@pytest.mark.parametrize("functions", [[function("other")], [function(), function()]])
async def test_an_unknown_or_ambiguous_reference_does_not_start(up: Stub, functions: list[Any]) -> None:
    with pytest.raises(CapabilityInvalid):
        loaded(made(up, functions, face({"ref": "wx.f"})))


async def test_a_missing_input_of_a_function_is_400(up: Stub) -> None:
    async with serving(made(up, [function()], face({"ref": "wx.f"}))) as served:
        refused = await served.http.get("/x")
        assert (refused.status_code, refused.json()["field"]) == (400, "city")
        assert (await served.http.get("/x?city=Rome")).status_code == 200
    assert up.only().target == "/w/Rome"
