"""Where the values of a call come from: `with`, names that mean the same, positions, path rules, query pass-through."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from capability.stub import Stub, api, document, face, param, serving, stub, tools


@pytest.fixture
async def up() -> AsyncIterator[Stub]:
    async with stub() as served:
        yield served


async def reached(up: Stub, consumed: Any, exposed: Any, target: str, method: str = "GET", **request: Any) -> Any:
    """What arrives upstream when the exposed operation is asked for."""
    async with serving(document(api(up.url, consumed), face(exposed))) as served:
        answer = await served.http.request(method, target, **request)
        assert answer.status_code == 200, answer.text
    return up.only()


@pytest.mark.parametrize(
    ("exposed", "upstream", "with_", "target"),
    [
        ("/u/{id}", "/users/{id}", None, "/u/7"),
        ("/u/{{id}}", "/users/{{id}}", None, "/u/7"),
        ("/u/{user-id}", "/users/{user_id}", None, "/u/7"),
        ("/u/{accountsid}", "/users/{AccountSid}", None, "/u/7"),
        ("/u/{a}", "/users/{b}", None, "/u/7"),  # by position
        ("/u/{user-id}", "/users/{user_id}", {"user_id": "rest.user_id"}, "/u/7"),
        ("/u/{user-id}", "/users/{user_id}", {"user_id": "shop.user-id"}, "/u/7"),
        ("/u/{user-id}", "/users/{user_id}", {"user_id": "$this.shop.user-id"}, "/u/7"),
        ("/u/{user-id}", "/users/{user_id}", {"user_id": "mcp.user_id"}, "/u/7"),
        ("/u/{user-id}", "/users/{user_id}", {"user-id": "{{user-id}}"}, "/u/7"),
        ("/u/{user-id}", "/users/{user_id}", {"user_id": "7"}, "/u/8"),
        ("/u", "/users/{id}", None, "/u?id=7"),  # the exposed path lost the variable
        ("/u", "/users/{id}", {"id": "rest.query.who"}, "/u?who=7"),
    ],
)
async def test_a_path_variable_is_bound(up: Stub, exposed: str, upstream: str, with_: Any, target: str) -> None:
    operation: dict[str, Any] = {"path": exposed} | ({"with": with_} if with_ else {})
    asked = await reached(up, {"path": upstream}, operation, target)
    assert asked.target.partition("?")[0] == "/users/7"


async def test_a_variable_that_with_has_used_is_not_bound_again_by_position(up: Stub) -> None:
    consumed = {"path": "/users/{user_id}/in/{team}"}
    exposed = {"path": "/u/{user-id}", "with": {"user_id": "rest.user_id"}}
    async with serving(document(api(up.url, consumed), face(exposed))) as served:
        refused = await served.http.get("/u/7")
        assert (refused.status_code, refused.json()["field"]) == (400, "team")
        up.nothing()
        assert (await served.http.get("/u/7?team=red")).status_code == 200
    assert up.only().path == "/users/7/in/red"


async def test_two_unbound_variables_on_both_sides_go_by_position(up: Stub) -> None:
    asked = await reached(up, {"path": "/a/{x}/{y}"}, {"path": "/u/{p}/{q}"}, "/u/1/2")
    assert asked.path == "/a/1/2"


async def test_an_ambiguous_loose_name_binds_nothing(up: Stub) -> None:
    async with serving(document(api(up.url, {"path": "/a/{user_id}"}), face({}))) as served:
        refused = await served.http.get("/x?user-id=1&userId=2")
        assert (refused.status_code, refused.json()["field"]) == (400, "user_id")
        assert (await served.http.get("/x?user-id=1&user_id=2")).status_code == 200
    assert up.only().path == "/a/2"


async def test_a_missing_path_variable_is_400_naming_it_and_nothing_is_sent(up: Stub) -> None:
    async with serving(document(api(up.url, {"path": "/users/{user_id}"}), face({}))) as served:
        assert "path-variable-unbound" in served.rules("warning")
        refused = await served.http.get("/x")
    assert refused.status_code == 400
    assert refused.json()["field"] == "user_id"
    up.nothing()


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("rest.q", "v"),
        ("shop.q", "v"),
        ("rest.nothing", None),
        ("plain", "plain"),
        ("{{q}}", "v"),
        ("{{rest.q}}", "v"),
        ("a-{{q}}-b", "a-v-b"),
        ("{{nothing}}", None),
        ("rest.headers.X-Trace", "t"),
        ("rest.cookie.sid", "c"),
        (5, "5"),
        (False, "false"),
        (0, "0"),
        (["a", "{{q}}"], ["a", "v"]),
    ],
)
async def test_the_forms_of_with(up: Stub, value: Any, sent: Any) -> None:
    consumed = {"inputParameters": [param("p", "query")]}
    headers = {"X-Trace": "t", "Cookie": "sid=c"}
    asked = await reached(up, consumed, {"with": {"p": value}}, "/x?q=v", headers=headers)
    assert asked.query.get("p") == (sent if isinstance(sent, list) else None if sent is None else [sent])


async def test_a_bare_name_is_a_reference_only_when_it_is_declared(up: Stub) -> None:
    consumed = {"inputParameters": [param("p", "query")]}
    declared = {"with": {"p": "city"}, "inputParameters": [param("city", "query")]}
    assert (await reached(up, consumed, declared, "/x?city=Rome")).query["p"] == ["Rome"]
    assert (await reached(up, consumed, {"with": {"p": "city"}}, "/x?city=Rome")).query["p"] == ["city"]


async def test_precedence_is_path_query_body_member_header(up: Stub) -> None:
    consumed = {"method": "POST", "inputParameters": [param("p", "query")]}
    with_ = {"with": {"p": "rest.k"}, "method": "POST"}
    sent = {"json": {"k": "body"}, "headers": {"k": "header"}}
    assert (await reached(up, consumed, {**with_, "path": "/x/{k}"}, "/x/path?k=q", "POST", **sent)).query["p"] == [
        "path"
    ]
    assert (await reached(up, consumed, with_, "/x?k=query", "POST", **sent)).query["p"] == ["query"]
    assert (await reached(up, consumed, with_, "/x", "POST", **sent)).query["p"] == ["body"]
    assert (await reached(up, consumed, with_, "/x", "POST", headers={"k": "header"})).query["p"] == ["header"]


async def test_undeclared_query_goes_on_only_when_neither_side_declares_one(up: Stub) -> None:
    assert (await reached(up, {}, {}, "/x?limit=5&a=b%20c&a=d")).target == "/thing?limit=5&a=b%20c&a=d"
    declared = {"inputParameters": [param("q", "query")]}
    assert (await reached(up, declared, {}, "/x?limit=5&Q=1")).target == "/thing?q=1"
    assert (await reached(up, {}, {"inputParameters": [param("a", "query")]}, "/x?a=1&b=2")).target == "/thing"
    post = {"method": "POST"}
    assert (await reached(up, post, post, "/x?limit=5", "POST")).target == "/thing"


async def test_a_query_value_that_was_used_does_not_go_on_a_second_time(up: Stub) -> None:
    consumed = {"path": "/find/{term}"}
    assert (await reached(up, consumed, {}, "/x?term=a&page=2")).target == "/find/a?page=2"
    assert (await reached(up, consumed, {"with": {"term": "rest.query.t"}}, "/x?t=a&p=2")).target == "/find/a?p=2"


async def test_everything_goes_on_with_pass_query(up: Stub) -> None:
    made = document(api(up.url, {"inputParameters": [param("q", "query")]}), face({}))
    async with serving(made, pass_query=True) as served:
        await served.http.get("/x?q=1&z=2")
    assert up.only().target == "/thing?q=1&z=2"


async def test_query_arrays_repeat_and_unset_values_are_left_out(up: Stub) -> None:
    consumed = {"inputParameters": [param(n, "query") for n in ("a", "b", "c", "d")]}
    assert (await reached(up, consumed, {}, "/x?a=1&a=2&b=&c=0")).target == "/thing?a=1&a=2&b=&c=0"


async def test_a_header_is_filled_from_the_callers_header_and_left_out_when_empty(up: Stub) -> None:
    consumed = {"inputParameters": [param("X-One", "header"), param("X-Two", "header"), param("X-Three", "header")]}
    asked = await reached(up, consumed, {}, "/x?X-Two=q", headers={"x-one": "1", "X-Three": ""})
    assert (asked.get("x-one"), asked.get("x-two"), asked.get("x-three")) == ("1", "q", None)


async def test_operation_inputs_replace_those_of_the_api_and_the_resource(up: Stub) -> None:
    made = api(
        up.url,
        {"inputParameters": [param("v", "query", value="op"), param("x-v", "header", value="op")]},
        inputParameters=[
            param("v", "query", value="api"),
            param("X-V", "header", value="api"),
            param("w", "query", value=3),
        ],
    )
    async with serving(document(made, face({}))) as served:
        await served.http.get("/x")
    asked = up.only()
    assert asked.query == {"v": ["op"], "w": ["3"]}
    assert (asked.get("x-v"), asked.count("x-v")) == ("op", 1)


async def test_cookies_are_sent(up: Stub) -> None:
    consumed = {"inputParameters": [param("sid", "cookie"), param("theme", "cookie", value="dark")]}
    assert (await reached(up, consumed, {}, "/x", headers={"Cookie": "sid=a; other=b"})).get("cookie") == (
        "sid=a; theme=dark"
    )
    assert (await reached(up, consumed, {}, "/x?sid=a;b")).get("cookie") == "sid=a%3Bb; theme=dark"


async def test_an_environment_input_is_a_parameter_and_not_sent(up: Stub) -> None:
    consumed = {
        "path": "/{REGION}/x",
        "inputParameters": [
            param("REGION", "environment"),
            param("TIER", "environment"),
            param("NAME", "environment", value="n-{{TIER}}"),
            param("X-Tier", "header", value="{{TIER}}/{{NAME}}"),
        ],
    }
    async with serving(document(api(up.url, consumed), face({})), {"REGION": "eu", "TIER": "gold"}) as served:
        assert (await served.http.get("/x")).status_code == 200
    asked = up.only()
    assert asked.target == "/eu/x"
    assert asked.get("x-tier") == "gold/n-gold"


async def test_a_variable_of_the_base_comes_from_the_call_then_binds_then_the_environment(up: Stub) -> None:
    made = document(api(up.url + "/{region}", {}), face({}), binds=[{"namespace": "env", "keys": {"REGION": "R"}}])
    async with serving(made, {"R": "bound"}) as served:
        await served.http.get("/x")
        await served.http.get("/x?region=a%2Fb")
    assert [a.target for a in up.asked] == ["/bound/thing", "/a%2Fb/thing"]
    up.asked.clear()
    async with serving(document(api(up.url + "/{region}", {}), face({})), {"REGION": "env"}) as served:
        await served.http.get("/x")
    assert up.only().target == "/env/thing"
    async with serving(document(api(up.url + "/{region}", {}), face({}))) as served:
        assert (await served.http.get("/x")).status_code == 400
    up.nothing()


@pytest.mark.parametrize("base", ["", "/", "/v1", "/v1/"])
@pytest.mark.parametrize("path", ["/thing", "thing", "/thing#X-Amz-Target=a.b", "//thing"])
async def test_base_and_path_are_joined_by_one_slash_and_the_fragment_is_dropped(
    up: Stub, base: str, path: str
) -> None:
    asked = await reached_at(up, up.url + base, path)
    assert asked.target == f"{base.rstrip('/')}/thing"


async def reached_at(up: Stub, url: str, path: str) -> Any:
    async with serving(document(api(url, {"path": path}), face({}))) as served:
        assert (await served.http.get("/x")).status_code == 200
    return up.only()


async def test_an_empty_base_is_502_naming_the_namespace_and_the_option_until_one_is_given(up: Stub) -> None:
    made = document(api("", {}, namespace="bo-api"), face({"call": "bo-api.op"}))
    async with serving(made) as served:
        refused = await served.http.get("/x")
        assert refused.status_code == 502
        assert "--base-uri bo-api=" in refused.json()["detail"]
        assert "NAFTIKO_BASE_URI_BO_API" in refused.json()["detail"]
    for environ, given in (
        ({}, {"bo-api": up.url}),
        ({}, {"*": up.url}),
        ({"NAFTIKO_BASE_URI_BO_API": up.url}, None),
        ({"NAFTIKO_BASE_URI": up.url}, None),
    ):
        async with serving(made, environ, base_uris=given) as served:
            assert (await served.http.get("/x")).status_code == 200
        up.only()


async def test_a_declared_input_has_its_place_and_nothing_unchecked_stands_in_for_it(up: Stub) -> None:
    consumed = {"method": "POST", "inputParameters": [param("id", "query")], "body": {"type": "json", "data": {"a": 1}}}
    exposed = {"method": "POST", "inputParameters": [param("id", "query", type="integer")]}
    asked = await reached(up, consumed, exposed, "/x", "POST", json={"id": "evil"}, headers={"id": "evil"})
    assert asked.target == "/thing"


async def test_a_tool_takes_its_arguments_by_the_same_rules(up: Stub) -> None:
    consumed = api(
        up.url,
        {"name": "get", "path": "/users/{user_id}"},
        {"name": "post", "path": "/users", "method": "POST", "inputParameters": [param("body", "body", required=True)]},
    )
    kit = tools(
        {"name": "get", "call": "up.get"},
        {"name": "get2", "call": "up.get", "with": {"user_id": "tools.who"}},
        {"name": "post", "call": "up.post", "with": {"body": "tools.body"}},
        {
            "name": "default",
            "call": "up.get",
            "inputParameters": [{"name": "user-id", "type": "string", "default": "d"}],
        },
    )
    async with serving(document(consumed, kit)) as served:
        planned = served.capability.plan.mcp["kit"].tools
        assert planned["get"].input_schema == {
            "type": "object",
            "properties": {"user_id": {"type": "string"}},
            "required": ["user_id"],
        }
        assert planned["get2"].input_schema["required"] == ["who"]
        await planned["get"].run({"user_id": "a/b"})
        await planned["get2"].run({"who": "w"})
        await planned["post"].run({"body": {"n": 1}})
        await planned["post"].run({"n": 2})
        await planned["default"].run({})
    assert [(a.target, a.body) for a in up.asked] == [
        ("/users/a%2Fb", b""),
        ("/users/w", b""),
        ("/users", b'{"n":1}'),
        ("/users", b'{"n":2}'),
        ("/users/d", b""),
    ]
