"""Tools of a tool set: made by hand, found, listed, changed, called, deleted."""

from typing import Any

import pytest

from api.cadenya_calls import TOOL_SPEC, Cadenya, names_of
from serving import Crib

HTTP = {"http": {"baseUrl": "http://127.0.0.1:9"}}
GET = {"http": {"requestMethod": "GET", "path": "/users/{id}"}}


@pytest.fixture(scope="module")
async def shared(crib: Crib) -> str:
    """An HTTP tool set for tests that look at single tools."""
    return str((await crib.add_tool_set("shared", HTTP))["metadata"]["id"])


async def test_a_new_tool_has_identity_and_info_from_the_server(cadenya: Cadenya, shared: str) -> None:
    schema = {
        "type": "object",
        "properties": {"id": {"type": "integer"}, "full": {"type": "boolean"}},
        "required": ["id"],
    }
    spec = {
        "config": {"http": {**GET["http"], "headers": {"X-A": "{{ a }}"}, "query": "q={{ q }}", "toolName": "getUser"}},
        "description": "Reads a user.",
        "parameters": schema,
        "status": "TOOL_STATUS_UNSPECIFIED",
    }
    body = {"metadata": {"name": "Get user", "externalId": "u-1", "labels": {"a": "b"}}, "spec": spec}
    made = await cadenya.ok("POST", f"/{shared}/tools", body)
    assert made["metadata"]["id"].startswith("tool_")
    assert (made["metadata"]["externalId"], made["metadata"]["labels"]) == ("u-1", {"a": "b"})
    wanted = {**spec, "config": {"type": "http", **spec["config"]}, "status": "TOOL_STATUS_AVAILABLE"}  # type: ignore[dict-item]
    assert made["spec"] == {**wanted, "requiresApproval": False, "llmToolName": "Get_user"}
    assert list(made["spec"]["parameters"]["properties"]) == ["id", "full"]
    assert made["info"]["signature"] == "Get_user(id, full)"
    assert made["info"]["toolSet"]["id"] == shared
    assert made["info"]["createdBy"]["spec"]["type"] == "PROFILE_TYPE_API_KEY"
    assert await cadenya.ok("GET", f"/{shared}/tools/{made['metadata']['id']}") == made
    assert await cadenya.ok("GET", f"/{shared}/tools/external_id:u-1") == made


async def test_a_tool_may_have_no_adapter_at_all(cadenya: Cadenya) -> None:
    tool_set = await cadenya.create("inline")
    tool = await cadenya.create_tool(tool_set, "inline tool")
    assert (await cadenya.ok("GET", f"/{tool_set}/tools/{tool}"))["spec"]["config"] == {}
    result = (await cadenya.crib.call("inline_tool")).json()["data"]
    assert result["isError"] is True
    assert "no adapter" in result["content"][0]["text"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_every_method_may_be_asked_for(cadenya: Cadenya, shared: str, method: str) -> None:
    config: dict[str, Any] = {"requestMethod": method}
    if method in {"POST", "PUT", "PATCH"}:
        config |= {"requestBodyTemplate": '{"a": {{ a }}}', "requestBodyContentType": "application/json"}
    tool = await cadenya.create_tool(shared, f"by {method}", config={"http": config})
    assert (await cadenya.ok("GET", f"/{shared}/tools/{tool}"))["spec"]["config"]["http"] == config


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"foo": "bar"},
        {"type": "object"},
        {"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"a": {"type": "string"}}},
        {"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
        {"properties": {"a": {"pattern": "^(a+)+$"}, "ü\u2028": {"const": None}}},
        {"properties": {"n": {"maximum": 18446744073709551615, "minimum": -9223372036854775808, "multipleOf": 0.1}}},
    ],
)
async def test_a_schema_comes_back_as_it_was_given(cadenya: Cadenya, shared: str, schema: dict[str, Any]) -> None:
    tool = await cadenya.create_tool(shared, "schema", parameters=schema)
    assert (await cadenya.ok("GET", f"/{shared}/tools/{tool}"))["spec"]["parameters"] == schema


async def test_a_tool_of_one_set_is_not_found_through_another(cadenya: Cadenya, shared: str) -> None:
    other = await cadenya.create("other", HTTP)
    tool = await cadenya.create_tool(shared, "mine", external_id="mine")
    for path in (f"/{other}/tools/{tool}", f"/{other}/tools/external_id:mine", f"/toolset_unknown/tools/{tool}"):
        for method, body in (("GET", None), ("PUT", {"spec": {"description": "x"}}), ("DELETE", None)):
            assert (await cadenya.refused(method, path, body, status=404))["code"] == 5
        assert (await cadenya.http.post(f"/v1/tool_sets{path}:call", json={})).status_code == 404
    assert (await cadenya.ok("GET", f"/{shared}/tools/{tool}"))["spec"]["description"] == TOOL_SPEC["description"]


async def test_an_external_id_names_one_tool_of_its_set(cadenya: Cadenya, shared: str) -> None:
    await cadenya.create_tool(shared, "one", external_id="a/b:c?d")
    body = {"metadata": {"name": "two", "externalId": "a/b:c?d"}, "spec": TOOL_SPEC}
    error = await cadenya.refused("POST", f"/{shared}/tools", body, status=409, field="metadata.externalId")
    assert error["code"] == 6
    await cadenya.create_tool(shared, "two", external_id="two")
    change = {"metadata": {"name": "two", "externalId": "a/b:c?d"}}
    await cadenya.refused("PUT", f"/{shared}/tools/external_id:two", change, status=409, field="metadata.externalId")
    path = f"/{shared}/tools/external_id:a%2Fb:c%3Fd"
    assert (await cadenya.ok("GET", path))["metadata"]["name"] == "one"
    assert (await cadenya.http.post(f"/v1/tool_sets{path}:call", json={})).json()["isError"] is True
    other = await cadenya.create("elsewhere")
    await cadenya.create_tool(other, "one", external_id="a/b:c?d")  # another set may use it too


async def test_names_are_unique_where_agents_call_them(cadenya: Cadenya) -> None:
    first, second = await cadenya.create("First set"), await cadenya.create("Second set")
    calls = []
    for tool_set in (first, first, second):
        tool = await cadenya.create_tool(tool_set, "same name!")
        calls.append((await cadenya.ok("GET", f"/{tool_set}/tools/{tool}"))["info"]["callName"])
    assert calls == ["same_name", "same_name_2", "second_set__same_name"]


async def test_a_renamed_tool_is_called_by_its_new_name(cadenya: Cadenya, shared: str) -> None:
    tool = await cadenya.create_tool(shared, "old name")
    changed = await cadenya.ok("PUT", f"/{shared}/tools/{tool}", {"metadata": {"name": "new name"}})
    assert changed["info"]["callName"] == "new_name"
    assert (await cadenya.crib.call("new_name")).status_code == 200
    assert (await cadenya.crib.call("old_name")).status_code == 404
    changed = await cadenya.ok("PUT", f"/{shared}/tools/{tool}", {"spec": {"llmToolName": "by choice"}})
    assert (changed["metadata"]["name"], changed["spec"]["llmToolName"]) == ("new name", "by_choice")


@pytest.mark.parametrize(
    ("status", "answer"), [("AVAILABLE", 200), ("FILTERED", 404), ("ARCHIVED", 404), ("UNSPECIFIED", 200)]
)
async def test_only_available_tools_exist_for_agents(cadenya: Cadenya, shared: str, status: str, answer: int) -> None:
    name = f"seen_{status}"
    tool = await cadenya.create_tool(shared, name, status=f"TOOL_STATUS_{status}")
    assert (await cadenya.crib.call(name)).status_code == answer
    listed = (await cadenya.crib.rpc("tools/list"))["result"]["tools"]
    assert (name in [item["name"] for item in listed]) == (answer == 200)
    assert (await cadenya.ok("GET", f"/{shared}/tools/{tool}"))["metadata"]["name"] == name  # people still see it


async def test_a_tool_that_needs_approval_is_not_run(cadenya: Cadenya, shared: str) -> None:
    tool = await cadenya.create_tool(shared, "guarded", config=GET, requiresApproval=True)
    response = await cadenya.crib.call("guarded", {"id": 1})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "approval.required")
    await cadenya.ok("PUT", f"/{shared}/tools/{tool}", {"spec": {"requiresApproval": False}})
    assert (await cadenya.crib.call("guarded", {"id": 1})).status_code == 200


async def test_a_deleted_tool_is_gone(cadenya: Cadenya, shared: str) -> None:
    tool = await cadenya.create_tool(shared, "brief")
    assert (await cadenya.send("DELETE", f"/{shared}/tools/{tool}")).content == b""
    await cadenya.refused("GET", f"/{shared}/tools/{tool}", status=404)
    await cadenya.refused("DELETE", f"/{shared}/tools/{tool}", status=404)
    assert (await cadenya.crib.call("brief")).status_code == 404
    await cadenya.create_tool(shared, "brief")  # its name is free again
    assert (await cadenya.crib.call("brief")).status_code == 200


async def test_a_config_must_be_of_the_kind_of_the_adapter(cadenya: Cadenya, shared: str) -> None:
    by_mcp = {"metadata": {"name": "x"}, "spec": {**TOOL_SPEC, "config": {"mcp": {"toolName": "x"}}}}
    by_http = {"metadata": {"name": "x"}, "spec": {**TOOL_SPEC, "config": GET}}
    mcp = await cadenya.create("mcp", {"mcp": {"url": "http://127.0.0.1:9/mcp"}})
    none = await cadenya.create("none")
    await cadenya.refused("POST", f"/{shared}/tools", by_mcp, field="spec.config.mcp")
    await cadenya.refused("POST", f"/{mcp}/tools", by_http, field="spec.config.http")
    await cadenya.refused("POST", f"/{none}/tools", by_http, field="spec.config.http")
    await cadenya.refused("POST", f"/{none}/tools", by_mcp, field="spec.config.mcp")
    assert await cadenya.create_tool(mcp, "alias", config={"mcp": {"toolName": "x", "toolTitle": "X"}})


async def test_a_call_by_id_is_checked_and_answers_in_this_dialect(cadenya: Cadenya, shared: str) -> None:
    schema = {
        "type": "object",
        "properties": {"id": {"type": "integer"}},
        "required": ["id"],
        "additionalProperties": False,
    }
    tool = await cadenya.create_tool(shared, "typed", config=GET, parameters=schema)
    path = f"/{shared}/tools/{tool}:call"
    for arguments, field in (
        ({}, "arguments"),
        ({"id": "one"}, "arguments.id"),
        ({"id": 1, "more": 2}, "arguments"),
        ([], "arguments"),
        ("x", "arguments"),
        (None, "arguments"),
    ):
        assert (await cadenya.refused("POST", path, {"arguments": arguments}, field=field))["code"] == 3
    for body in (b"", b"{}", b"null", b"[]", b'{"args":{}}', b'{"arguments":{"id":1}', b"\xff"):
        assert (await cadenya.refused("POST", path, body))["code"] == 3
    for method in ("GET", "DELETE"):  # `:call` may be the end of an external id
        await cadenya.refused(method, path, status=404)
    result = await cadenya.ok("POST", path, {"arguments": {"id": 1}})
    assert result["isError"] is True  # nothing listens there


# ---- lists -----------------------------------------------------------------------------------------------------------


async def test_tools_are_paged_found_and_shown_like_tool_sets(cadenya: Cadenya) -> None:
    tool_set = await cadenya.create("listed", HTTP)
    for i in range(5):
        status = "TOOL_STATUS_ARCHIVED" if i == 4 else "TOOL_STATUS_AVAILABLE"
        body = {
            "metadata": {"name": f"List {i}", "labels": {"even": str(i % 2 == 0)}},
            "spec": {**TOOL_SPEC, "status": status},
        }
        await cadenya.ok("POST", f"/{tool_set}/tools", body)
    await cadenya.create_tool(tool_set, "other", description="not LISTED by name", requiresApproval=True)
    path = f"/{tool_set}/tools"
    first = await cadenya.ok("GET", path, limit=4)
    cursor = first["pagination"]["nextCursor"]
    await cadenya.ok("DELETE", f"{path}/{first['items'][3]['metadata']['id']}")
    await cadenya.create_tool(tool_set, "late")
    second = await cadenya.ok("GET", path, limit=4, cursor=cursor)
    assert names_of(first) + names_of(second) == ["List 0", "List 1", "List 2", "List 3", "List 4", "other", "late"]
    assert second["pagination"] == {"nextCursor": "", "total": 6}
    assert names_of(await cadenya.ok("GET", path, sortOrder="desc", limit=2)) == ["late", "other"]
    assert names_of(await cadenya.ok("GET", path, prefix="LIST ")) == ["List 0", "List 1", "List 2", "List 4"]
    assert names_of(await cadenya.ok("GET", path, query="listed")) == ["other"]
    assert names_of(await cadenya.ok("GET", path, labels="even=True")) == ["List 0", "List 2", "List 4"]
    assert names_of(await cadenya.ok("GET", path, names=["late", "List 0", "list 1"])) == ["List 0", "late"]
    assert names_of(await cadenya.ok("GET", path, states=["STATE_ARCHIVED"])) == ["List 4"]
    assert names_of(await cadenya.ok("GET", path, requiresApproval="true")) == ["other"]
    assert "info" not in second["items"][0]
    full = (await cadenya.ok("GET", path, includeInfo="true", prefix="late"))["items"][0]
    assert full["info"]["toolSet"]["name"] == "listed"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", "0"),
        ("limit", "-1"),
        ("limit", "1.5"),
        ("sortOrder", "up"),
        ("cursor", "x"),
        ("includeInfo", "2"),
        ("labels", "a"),
        ("states[0]", "STATE_GONE"),
        ("states[0]", ""),
        ("requiresApproval", "x"),
        ("prefix", "\x00"),
    ],
)
async def test_a_bad_question_is_refused_by_name(cadenya: Cadenya, shared: str, name: str, value: str) -> None:
    await cadenya.refused("GET", f"/{shared}/tools", field=name, **{name.removesuffix("[0]"): value})


async def test_a_list_of_an_unknown_tool_set_is_not_found(cadenya: Cadenya) -> None:
    for path in ("/toolset_unknown/tools", "/toolset_unknown/events"):
        await cadenya.refused("GET", path, status=404)
    await cadenya.refused("POST", "/toolset_unknown/tools", {"metadata": {"name": "x"}, "spec": TOOL_SPEC}, status=404)
