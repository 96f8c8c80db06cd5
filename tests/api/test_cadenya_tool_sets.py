"""Tool sets: made, read, listed by page, found by name, label and external id, deleted."""

import base64
import json
from typing import Any

import httpx
import pytest

from api.cadenya_calls import CONTRACT, ROOT, Cadenya, names_of
from serving import Crib

INLINED = {"Labels", "UpdateResourceMetadata"}  # have no name of their own in our document
HTTP = {"http": {"baseUrl": "https://api.example.com/v2", "headers": {"X-Team": "blue"}}}


async def pages(cadenya: Cadenya, path: str, **query: Any) -> list[dict[str, Any]]:
    """All pages of a list."""
    found = [await cadenya.ok("GET", path, **query)]
    while cursor := found[-1]["pagination"]["nextCursor"]:
        found.append(await cadenya.ok("GET", path, **query, cursor=cursor))
        assert len(found) < 100
    return found


async def test_all_operations_of_the_contract_are_served_under_their_names(crib: Crib) -> None:
    document = (await crib.http.get("/openapi/cadenya.json")).json()
    asked = [(path, method) for path, item in CONTRACT["paths"].items() for method in item if method != "parameters"]
    assert len(asked) == 11
    for path, method in asked:
        ours = document["paths"]["/v1" + path][method]
        theirs = CONTRACT["paths"][path][method]
        assert ours["operationId"] == theirs["operationId"]
        wanted = {p["$ref"].rpartition("/")[2] for p in theirs.get("parameters", [])}
        assert wanted <= {parameter["name"] for parameter in ours["parameters"]} if wanted else True


@pytest.mark.parametrize("name", sorted(set(CONTRACT["components"]["schemas"]) - INLINED))
async def test_a_schema_of_the_contract_keeps_its_members_and_enums(crib: Crib, name: str) -> None:
    schemas = (await crib.http.get("/openapi/cadenya.json")).json()["components"]["schemas"]
    ours = {schema.get("title", key): schema for key, schema in schemas.items()} | schemas
    wanted = CONTRACT["components"]["schemas"][name]
    schema = ours[name] if name in ours else ours["RpcStatus"]
    assert set(wanted["properties"]) <= set(schema["properties"])
    if name[:6] not in {"Update", "Status"}:
        assert set(wanted.get("required", [])) <= set(schema.get("required", []))
    for member, facts in wanted["properties"].items():
        if "enum" in facts:
            assert schema["properties"][member]["enum"] == facts["enum"]


async def test_a_new_tool_set_has_identity_and_info_from_the_server(cadenya: Cadenya) -> None:
    body = {
        "metadata": {"name": " Weather ", "externalId": "w-1", "labels": {"team": "blue", "tier": ""}},
        "spec": {"adapter": HTTP, "description": "Forecasts"},
    }
    made = await cadenya.ok("POST", "", body)
    metadata = made["metadata"]
    assert (metadata["name"], metadata["externalId"], metadata["labels"]) == (
        "Weather",
        "w-1",
        body["metadata"]["labels"],
    )
    assert metadata["id"].startswith("toolset_")
    assert metadata["workspaceId"] == cadenya.crib.workspace_id
    assert made["spec"] == {"adapter": {"type": "http", **HTTP}, "description": "Forecasts"}
    assert made["info"]["toolCount"] == 0
    assert made["info"]["createdBy"]["spec"]["type"] == "PROFILE_TYPE_API_KEY"
    assert made["info"]["createdBy"]["metadata"]["id"] == metadata["profileId"]
    assert await cadenya.ok("GET", f"/{metadata['id']}") == made


async def test_a_tool_set_may_have_nothing_but_a_name(cadenya: Cadenya) -> None:
    made = await cadenya.ok("POST", "", {"metadata": {"name": "bare"}, "spec": {}})
    assert made["spec"] == {"adapter": {}}
    assert made["metadata"]["externalId"] == ""
    assert made["metadata"]["labels"] == {}


async def test_a_deleted_tool_set_is_gone_with_its_tools(cadenya: Cadenya) -> None:
    tool_set = await cadenya.create("short-lived", HTTP, externalId="gone")
    tool = await cadenya.create_tool(tool_set, "lost", config={"http": {"requestMethod": "GET"}})
    assert (await cadenya.send("DELETE", f"/{tool_set}")).content == b""
    for path in (
        f"/{tool_set}",
        "/external_id:gone",
        f"/{tool_set}/tools",
        f"/{tool_set}/tools/{tool}",
        f"/{tool_set}/events",
    ):
        await cadenya.refused("GET", path, status=404)
    await cadenya.refused("DELETE", f"/{tool_set}", status=404)
    assert (await cadenya.crib.call("lost")).status_code == 404


async def test_an_external_id_names_one_tool_set_and_finds_it(cadenya: Cadenya) -> None:
    tool_set = await cadenya.create("first", externalId="ext/1 ü")
    body = {"metadata": {"name": "second", "externalId": "ext/1 ü"}, "spec": {}}
    error = await cadenya.refused("POST", "", body, status=409, field="metadata.externalId")
    assert error["code"] == 6
    other = await cadenya.create("other", externalId="ext-2")
    patch = {"metadata": {"name": "other", "externalId": "ext/1 ü"}}
    await cadenya.refused("PUT", f"/{other}", patch, status=409, field="metadata.externalId")
    assert (await cadenya.ok("GET", "/external_id:ext-2"))["metadata"]["id"] == other
    assert (await cadenya.ok("PUT", "/external_id:ext-2", {"spec": {"description": "x"}}))["metadata"]["id"] == other
    assert (await cadenya.ok("GET", "/external_id:ext%2F1%20%C3%BC"))["metadata"]["id"] == tool_set
    await cadenya.refused("GET", "/external_id:", status=404)
    await cadenya.refused("GET", "/external_id:ext", status=404)


async def test_two_workspaces_may_use_the_same_external_id(cadenya: Cadenya) -> None:
    await cadenya.create("mine", externalId="shared")
    async with cadenya.crib.as_(await cadenya.crib.other_workspace_key()) as http:
        other = Cadenya(cadenya.crib, http)
        theirs = await other.create("theirs", externalId="shared")
        assert (await other.ok("GET", "/external_id:shared"))["metadata"]["id"] == theirs


# ---- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["asc", "desc", "ASC"])
async def test_pages_give_every_tool_set_once_in_order_of_creation(cadenya: Cadenya, order: str) -> None:
    prefix = f"paged {ord(order[0])}"
    made = [await cadenya.create(f"{prefix} {i}") for i in range(7)]
    found = await pages(cadenya, "", prefix=prefix, limit=3, sortOrder=order)
    assert [len(page["items"]) for page in found] == [3, 3, 1]
    ids = [item["metadata"]["id"] for page in found for item in page["items"]]
    assert ids == (made[::-1] if order == "desc" else made)
    assert {page["pagination"]["total"] for page in found} == {7}


async def test_the_last_full_page_ends_the_list(cadenya: Cadenya) -> None:
    for i in range(4):
        await cadenya.create(f"even {i}")
    found = await pages(cadenya, "", prefix="even ", limit=2)
    assert [len(page["items"]) for page in found] == [2, 2]


async def test_pages_stay_right_while_tool_sets_come_and_go(cadenya: Cadenya) -> None:
    made = [await cadenya.create(f"moving {i}") for i in range(6)]
    first = await cadenya.ok("GET", prefix="moving", limit=3)
    cursor = first["pagination"]["nextCursor"]
    for gone in (made[0], made[2], made[4]):  # on the page before, the one the cursor stands on, one to come
        await cadenya.ok("DELETE", f"/{gone}")
    late = await cadenya.create("moving late")
    second = await cadenya.ok("GET", prefix="moving", limit=3, cursor=cursor)
    assert [item["metadata"]["id"] for item in second["items"]] == [made[3], made[5], late]
    assert second["pagination"] == {"nextCursor": "", "total": 4}


async def test_newest_first_pages_do_not_show_what_came_later(cadenya: Cadenya) -> None:
    for i in range(4):
        await cadenya.create(f"down {i}")
    first = await cadenya.ok("GET", prefix="down", limit=2, sortOrder="desc")
    await cadenya.create("down 9")
    cursor = first["pagination"]["nextCursor"]
    second = await cadenya.ok("GET", prefix="down", limit=2, sortOrder="desc", cursor=cursor)
    assert names_of(first) + names_of(second) == ["down 3", "down 2", "down 1", "down 0"]


def forged(*position: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "not-a-cursor",
        "%00",
        "é",
        "WzFd",
        "W10",
        "e30",
        "A" * 5000,
        forged("yesterday", "x"),
        forged("2026-01-01T00:00:00Z", 1),
        forged("2026-01-01T00:00:00Z", "x", "y"),
        forged("2026-01-01T00:00:00", "x"),
        forged("0001-01-01T00:00:00+14:00", "x"),
        forged("2026-01-01T00:00:00Z", "\0"),
        forged("2026-01-01T00:00:00Z", "\ud800"),
    ],
)
@pytest.mark.parametrize("path", ["", "/external_id:cursors/tools", "/external_id:cursors/events"])
async def test_a_cursor_that_no_page_gave_is_refused(cadenya: Cadenya, cursor: str, path: str) -> None:
    if (await cadenya.send("GET", "/external_id:cursors")).status_code == 404:
        await cadenya.create("cursors", externalId="cursors")
    await cadenya.refused("GET", path, cursor=cursor, field="cursor")


async def test_a_cursor_of_another_list_gives_no_foreign_rows(cadenya: Cadenya) -> None:
    for i in range(2):
        await cadenya.create(f"foreign {i}")
    cursor = (await cadenya.ok("GET", prefix="foreign", limit=1))["pagination"]["nextCursor"]
    async with cadenya.crib.as_(await cadenya.crib.other_workspace_key()) as http:
        page = await Cadenya(cadenya.crib, http).ok("GET", cursor=cursor)
    assert page == {"items": [], "pagination": {"nextCursor": "", "total": 0}}


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "ten", "", "1e2", "0x10", "-9223372036854775809"])
async def test_a_limit_that_is_no_positive_integer_is_refused(cadenya: Cadenya, limit: str) -> None:
    await cadenya.refused("GET", limit=limit, field="limit")


@pytest.mark.parametrize("limit", ["201", "99999999999999999999999", "9" * 4000])
async def test_a_huge_limit_counts_as_the_largest(cadenya: Cadenya, limit: str) -> None:
    await cadenya.ok("GET", limit=limit, prefix="no such")


@pytest.mark.parametrize("order", ["up", "ascending", "created_at", "asc;drop", "desc "])
async def test_an_unknown_order_is_refused(cadenya: Cadenya, order: str) -> None:
    await cadenya.refused("GET", sortOrder=order, field="sortOrder")


async def test_a_page_has_at_most_two_hundred_tool_sets(cadenya: Cadenya) -> None:
    async with cadenya.crib.as_(await cadenya.crib.other_workspace_key()) as http:
        other = Cadenya(cadenya.crib, http)
        for i in range(201):
            await other.create(f"many {i}")
        assert len((await other.ok("GET", limit=1000))["items"]) == 200
        assert len((await other.ok("GET"))["items"]) == 50


# ---- what a list shows -----------------------------------------------------------------------------------------------


async def test_a_prefix_is_the_beginning_of_a_name_in_any_case(cadenya: Cadenya) -> None:
    for name in ("Äpfel rot", "äpfel grün", "saure Äpfel", "50%_off", "50 percent"):
        await cadenya.create(name)
    assert names_of(await cadenya.ok("GET", prefix="äPFEL")) == ["Äpfel rot", "äpfel grün"]
    assert names_of(await cadenya.ok("GET", prefix="50%_")) == ["50%_off"]
    assert names_of(await cadenya.ok("GET", prefix="50__")) == []
    assert names_of(await cadenya.ok("GET", query="äpfel")) == ["Äpfel rot", "äpfel grün", "saure Äpfel"]


@pytest.mark.parametrize("name", ["prefix", "cursor", "query", "labels"])
async def test_a_nul_in_a_query_is_refused(cadenya: Cadenya, name: str) -> None:
    await cadenya.refused("GET", **{name: "a\0b"}, field=name)


async def test_labels_in_a_list_must_all_fit(cadenya: Cadenya) -> None:
    await cadenya.create("l1", labels={"env": "prod", "team": "a"})
    await cadenya.create("l2", labels={"env": "prod", "team": "b"})
    assert names_of(await cadenya.ok("GET", labels="env=prod")) == ["l1", "l2"]
    assert names_of(await cadenya.ok("GET", labels="env=prod, team=b")) == ["l2"]
    assert names_of(await cadenya.ok("GET", labels="env=test")) == []
    await cadenya.refused("GET", labels="env", field="labels")


async def test_lists_have_info_only_when_asked(cadenya: Cadenya) -> None:
    tool_set = await cadenya.create("informed", HTTP)
    for status in ("AVAILABLE", "AVAILABLE", "FILTERED", "ARCHIVED"):
        await cadenya.create_tool(tool_set, f"t {status}", status=f"TOOL_STATUS_{status}")
    plain = (await cadenya.ok("GET", prefix="informed"))["items"][0]
    assert "info" not in plain
    full = (await cadenya.ok("GET", prefix="informed", includeInfo="true"))["items"][0]
    assert full["info"]["toolCount"] == 3  # archived tools do not count
    assert (full["info"]["availableTools"], full["info"]["omittedTools"]) == (2, 1)
    assert {**plain, "info": full["info"]} == full
    await cadenya.refused("GET", includeInfo="maybe", field="includeInfo")


async def test_a_workspace_sees_only_its_own(cadenya: Cadenya) -> None:
    tool_set = await cadenya.create("private", HTTP, externalId="private")
    tool = await cadenya.create_tool(tool_set, "secret tool")
    async with cadenya.crib.as_(await cadenya.crib.other_workspace_key()) as http:
        other = Cadenya(cadenya.crib, http)
        assert (await other.ok("GET"))["items"] == []
        for path in (f"/{tool_set}", "/external_id:private", f"/{tool_set}/tools", f"/{tool_set}/tools/{tool}"):
            assert (await other.refused("GET", path, status=404))["code"] == 5
        await other.refused("PUT", f"/{tool_set}", {"metadata": {"name": "mine now"}}, status=404)
        await other.refused("DELETE", f"/{tool_set}", status=404)
        mine = await other.create("mine")
        await other.refused("GET", f"/{mine}/tools/{tool}", status=404)
    assert (await cadenya.ok("GET", f"/{tool_set}"))["metadata"]["name"] == "private"


# ---- who may ---------------------------------------------------------------------------------------------------------


async def test_secrets_are_masked_for_who_may_only_read(cadenya: Cadenya) -> None:
    adapter = {
        "http": {"baseUrl": "https://api.example.com", "headers": {"Authorization": "Bearer s3cret", "X-B": "b"}}
    }
    tool_set = await cadenya.create("sealed", adapter)
    async with cadenya.crib.as_(await cadenya.crib.key("tool_sets:read")) as http:
        reader = Cadenya(cadenya.crib, http)
        shown = await reader.ok("GET", f"/{tool_set}")
        assert shown["spec"]["adapter"]["http"]["headers"] == {"Authorization": "********", "X-B": "********"}
        assert "s3cret" not in (await http.get(ROOT)).text
        await reader.refused("PUT", f"/{tool_set}", {"spec": shown["spec"]}, status=403)
    # written back by somebody else, the masks keep what is stored
    masked = shown["spec"]["adapter"]["http"] | {"headers": {"Authorization": "********", "X-C": "c"}}
    kept = await cadenya.ok("PUT", f"/{tool_set}", {"spec": {"adapter": {"http": masked}}})
    assert kept["spec"]["adapter"]["http"]["headers"] == {"Authorization": "Bearer s3cret", "X-C": "c"}
    masked["headers"] = {"X-New": "********"}
    path = "spec.adapter.http.headers.X-New"
    await cadenya.refused("PUT", f"/{tool_set}", {"spec": {"adapter": {"http": masked}}}, field=path)


async def test_secrets_are_sealed_in_the_database(cadenya: Cadenya) -> None:
    tool_set = await cadenya.create("at rest", {"http": {"headers": {"X-Key": "plain-text-secret"}}})
    row = await cadenya.crib.parts.deps.database.pool.fetchrow("SELECT * FROM tool_set WHERE id = $1", tool_set)
    assert row is not None
    assert "plain-text-secret" not in repr(dict(row))


@pytest.mark.parametrize(
    ("scopes", "reads", "writes"),
    [
        (["tool_sets:read"], True, False),
        (["tool_sets:*"], True, True),
        (["tool_sets:read", "tool_sets:write"], True, True),
        (["tools:call", "audit:read"], False, False),
    ],
)
async def test_a_key_does_only_what_its_scopes_say(
    cadenya: Cadenya, scopes: list[str], reads: bool, writes: bool
) -> None:
    async with cadenya.crib.as_(await cadenya.crib.key(*scopes)) as http:
        scoped = Cadenya(cadenya.crib, http)
        body = {"metadata": {"name": "by key"}, "spec": {}}
        for allowed, method, sent in ((reads, "GET", None), (writes, "POST", body)):
            if allowed:
                await scoped.ok(method, "", sent)
            else:
                assert (await scoped.refused(method, "", sent, status=403))["code"] == 7


async def test_a_command_needs_its_own_scope(cadenya: Cadenya) -> None:
    adapter = {"mcp": {"command": "true", "env": {"TOKEN": "s3cret"}}}
    async with cadenya.crib.as_(await cadenya.crib.key("tool_sets:*")) as http:
        writer = Cadenya(cadenya.crib, http)
        body = {"metadata": {"name": "command"}, "spec": {"adapter": adapter}}
        assert (await writer.refused("POST", "", body, status=403))["code"] == 7
        tool_set = await cadenya.create("command", adapter)
        for spec in ({"adapter": {"mcp": {"args": ["-c", "id"]}}}, {"adapter": {"mcp": {"env": {"PATH": "/tmp"}}}}):
            await writer.refused("PUT", f"/{tool_set}", {"spec": spec}, status=403)
        renamed = await writer.ok("PUT", f"/{tool_set}", {"metadata": {"name": "renamed"}})
        assert renamed["spec"]["adapter"]["mcp"] == {"command": "true", "env": {"TOKEN": "********"}, "headers": {}}
    kept = await cadenya.ok("GET", f"/{tool_set}")
    assert kept["spec"]["adapter"]["mcp"]["env"] == {"TOKEN": "s3cret"}
    async with cadenya.crib.as_(await cadenya.crib.key("tool_sets:read")) as http:
        shown = await Cadenya(cadenya.crib, http).ok("GET", f"/{tool_set}")
        assert shown["spec"]["adapter"]["mcp"]["env"] == {"TOKEN": "********"}


async def test_a_tool_set_knows_the_key_that_made_it(cadenya: Cadenya) -> None:
    async with cadenya.crib.as_(await cadenya.crib.key("tool_sets:*")) as http:
        made = await Cadenya(cadenya.crib, http).ok("POST", "", {"metadata": {"name": "by a key"}, "spec": {}})
    assert made["info"]["createdBy"]["spec"] == {"type": "PROFILE_TYPE_API_KEY", "email": "", "name": "test"}


async def test_errors_carry_the_request_id_of_the_caller(cadenya: Cadenya) -> None:
    response = await cadenya.http.get(f"{ROOT}/nope", headers={"X-Request-Id": "trace-1"})
    assert (response.status_code, response.headers["x-request-id"]) == (404, "trace-1")


async def test_methods_that_a_path_lacks_are_refused(cadenya: Cadenya) -> None:
    for method, path in (("DELETE", ""), ("PATCH", "/x"), ("POST", "/x"), ("PUT", "/x/tools"), ("POST", "/x/events")):
        assert (await cadenya.refused(method, path, status=405))["code"] == 3
    assert (await cadenya.send("PATCH", "/x/tools/y")).headers["allow"] == "DELETE, GET, PUT"
    assert (await cadenya.crib.http.get("/api/tools/x/call")).headers["allow"] == "POST"
    await cadenya.refused("GET", "/x/y/z/w", status=404)


async def test_nobody_is_served_without_a_key(crib: Crib) -> None:
    async with httpx.AsyncClient(base_url=crib.url) as http:
        for headers in ({}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer"}, {"X-API-Key": ""}):
            response = await http.get(ROOT, headers=headers)
            assert (response.status_code, response.json()["code"]) == (401, 16)
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await http.get(ROOT, headers={"X-API-Key": crib.api_key})).status_code == 200
