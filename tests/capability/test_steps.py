"""Orchestrations: calls in order, what they store, look-ups, mappings, and what goes wrong in between."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from capability.stub import JSON, Stub, api, document, face, param, serving, stub
from upstream_app import Told

SHIPS = b'[{"imo":"1","name":"A","crew":[7]},{"imo":2,"name":"B"},{"imo":"1","name":"C"}]'


@pytest.fixture
async def up() -> AsyncIterator[Stub]:
    async with stub() as served:
        served.answers = {
            "/ships": Told(SHIPS, 200, JSON),
            "/voyage/7": Told(b'{"id":7,"ship":{"imo":"1"},"crew":[2,"1",9],"from":"NY"}', 200, JSON),
            "/text": Told(b"plain", 200, {"Content-Type": "text/plain"}),
            "/xml": Told(b"<v><name>X</name></v>", 200, {"Content-Type": "application/xml"}),
            "/broken": Told(b'{"error":"no"}', 500, JSON),
        }
        yield served


def consumed(up: Stub) -> dict[str, Any]:
    named = [
        {"name": "port", "type": "string", "mapping": "$.from"},
        {"name": "ship", "type": "object", "mapping": "$.ship"},
    ]
    return api(
        up.url,
        {"name": "ships", "path": "/ships"},
        {"name": "voyage", "path": "/voyage/{id}"},
        {"name": "named", "path": "/voyage/{id}", "outputParameters": named},
        {"name": "text", "path": "/text"},
        {"name": "xml", "path": "/xml", "outputRawFormat": "xml"},
        {"name": "broken", "path": "/broken"},
        {"name": "badxml", "path": "/text", "outputRawFormat": "xml"},
        {"name": "echo", "path": "/echo", "inputParameters": [param("q", "query"), param("r", "query")]},
    )


def call(name: str, target: str, **with_: Any) -> dict[str, Any]:
    return {"type": "call", "name": name, "call": f"up.{target}", **({"with": with_} if with_ else {})}


async def run(
    up: Stub, steps: list[Any], *, get: str = "/v/7", path: str = "/v/{id}", pass_query: bool = False, **more: Any
) -> Any:
    made = document(consumed(up), face({"path": path, "steps": steps, **more}))
    async with serving(made, pass_query=pass_query) as served:
        return await served.http.get(get)


async def test_steps_run_in_order_and_later_ones_see_earlier_ones(up: Stub) -> None:
    steps = [call("voyage", "voyage", id="rest.id"), call("echo", "echo", q="{{voyage.from}}", r="voyage.ship.imo")]
    answer = await run(up, steps, mappings=[{"targetName": "a.b", "value": "$.voyage.crew[1]"}, {"targetName": "a.c", "value": "$.echo.ok"},
                                            {"targetName": "none", "value": "$.voyage.nothing"}])  # fmt: skip
    assert (answer.status_code, answer.json()) == (200, {"a": {"b": "1", "c": True}})
    assert [a.target for a in up.asked] == ["/voyage/7", "/echo?q=NY&r=1"]


async def test_a_step_stores_its_named_outputs(up: Stub) -> None:
    mappings = [{"targetName": "all", "value": "$.v"}]
    answer = await run(up, [call("v", "named", id="rest.id")], mappings=mappings)
    assert answer.json() == {"all": {"port": "NY", "ship": {"imo": "1"}}}


async def test_without_mappings_the_last_call_is_the_answer_shaped_by_the_outputs(up: Stub) -> None:
    steps = [call("s", "ships"), call("v", "voyage", id="{{id}}")]
    assert (await run(up, steps)).json()["from"] == "NY"
    shaped = [{"type": "object", "properties": {"port": {"type": "string", "mapping": "$.from"}}}]
    assert (await run(up, steps, outputParameters=shaped)).json() == {"port": "NY"}
    nothing = [{"targetName": "x", "value": "$.v.nothing"}]
    assert (await run(up, steps, outputParameters=shaped, mappings=nothing)).json() == {"port": "NY"}


async def test_an_error_status_does_not_stop_the_sequence_and_is_not_lost(up: Stub) -> None:
    answer = await run(
        up, [call("b", "broken"), call("s", "ships")], mappings=[{"targetName": "e", "value": "$.b.error"}]
    )
    assert (answer.status_code, answer.json()) == (200, {"e": "no"})
    answer = await run(up, [call("s", "ships"), call("b", "broken")])
    assert (answer.status_code, answer.json()) == (500, {"error": "no"})


async def test_what_is_no_json_is_not_stored_and_does_not_stop(up: Stub) -> None:
    answer = await run(
        up, [call("t", "text"), call("s", "ships")], mappings=[{"targetName": "n", "value": "$.s[0].name"}]
    )
    assert (answer.status_code, answer.json()) == (200, {"n": "A"})
    answer = await run(up, [call("s", "ships"), call("t", "text")])
    assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, "plain", "text/plain")


async def test_other_formats_are_converted_and_a_broken_one_is_502(up: Stub) -> None:
    answer = await run(up, [call("x", "xml")], mappings=[{"targetName": "n", "value": "$.x.name"}])
    assert answer.json() == {"n": "X"}
    assert (await run(up, [call("x", "badxml"), call("s", "ships")])).status_code == 502


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("$.voyage.ship.imo", {"name": "A", "none": None}),
        ("$.voyage.crew", [{"name": "B", "none": None}, {"name": "A", "none": None}]),
        ("$.voyage.crew[*]", [{"name": "B", "none": None}, {"name": "A", "none": None}]),
        ("{{voyage.ship.imo}}", {"name": "A", "none": None}),
        ("rest.imo", {"name": "B", "none": None}),
        ("shop.imo", {"name": "B", "none": None}),
        ("{{imo}}", {"name": "B", "none": None}),
        ("2", {"name": "B", "none": None}),
        ("$.voyage.from", None),
        ("rest.nothing", None),
    ],
)
async def test_a_lookup_finds_entries(up: Stub, value: str, expected: Any) -> None:
    lookup = {"type": "lookup", "name": "found", "index": "ships", "match": "imo", "lookupValue": value,
              "outputParameters": ["name", "none"]}  # fmt: skip
    steps = [
        call("ships", "ships"),
        call("voyage", "voyage", id="rest.id"),
        lookup,
        call("echo", "echo", q="{{found.name}}"),
    ]
    mappings = [{"targetName": "f", "value": "$.found"}, {"targetName": "id", "value": "$.voyage.id"}]
    answer = await run(up, steps, get="/v/7?imo=2", mappings=mappings)
    assert answer.json() == ({"f": expected, "id": 7} if expected is not None else {"id": 7})
    sent = up.asked[-1].query
    assert sent == ({"q": [expected["name"]]} if isinstance(expected, dict) else {})


async def test_a_lookup_into_nothing_is_400(up: Stub) -> None:
    lookup = {"type": "lookup", "name": "l", "index": "t", "match": "a", "lookupValue": "1", "outputParameters": ["a"]}
    answer = await run(up, [call("t", "text"), lookup])
    assert (answer.status_code, answer.json()["code"]) == (400, "step.index_unknown")
    answer = await run(up, [{**lookup, "index": "never"}])
    assert (answer.status_code, answer.json()["code"]) == (400, "step.index_unknown")


async def test_a_missing_argument_of_a_step_is_400_and_a_broken_upstream_502(up: Stub) -> None:
    answer = await run(up, [call("v", "voyage")], path="/v", get="/v")
    assert (answer.status_code, answer.json()["field"]) == (400, "id")
    up.nothing()
    async with serving(document(api("http://127.0.0.1:1", {}), face({"steps": [call("v", "op")]}))) as served:
        assert (await served.http.get("/x")).status_code == 502


async def test_the_with_of_the_operation_is_seen_by_every_step(up: Stub) -> None:
    steps = [call("a", "voyage"), call("b", "echo", q="{{id}}", r="id")]
    answer = await run(up, steps, get="/v/1", path="/v/{other}", **{"with": {"id": "7"}})
    assert answer.status_code == 200
    assert [a.target for a in up.asked] == ["/voyage/7", "/echo?q=7&r=7"]


async def test_a_with_of_one_step_does_not_leak_into_the_next(up: Stub) -> None:
    await run(up, [call("a", "echo", q="1"), call("b", "echo", r="2")], path="/v", get="/v")
    assert [a.target for a in up.asked] == ["/echo?q=1", "/echo?r=2"]


async def test_the_query_of_the_caller_goes_with_no_step(up: Stub) -> None:
    await run(up, [call("s", "ships"), call("v", "voyage")], get="/v/7?page=2", pass_query=True)
    assert [a.target for a in up.asked] == ["/ships", "/voyage/7"]


async def test_an_unknown_target_of_a_step_is_found_at_the_start(up: Stub) -> None:
    async with serving(document(consumed(up), face({"steps": [call("a", "nope")]}))) as served:
        assert served.rules()
        assert (await served.http.get("/x")).status_code == 501
    up.nothing()


async def test_mappings_that_find_nothing_after_a_failure_answer_with_the_failure_and_not_with_other_data(
    up: Stub,
) -> None:
    steps = [call("broken", "broken"), call("ships", "ships")]
    answer = await run(up, steps, mappings=[{"targetName": "name", "value": "$.broken.name"}])
    assert (answer.status_code, answer.json()) == (500, {"error": "no"})
