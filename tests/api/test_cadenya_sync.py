"""Syncs of MCP tool sets: what the server lists becomes tools, minus what filters say, plus what people decided."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mcp import types

from api.cadenya_calls import Cadenya, names_of
from gateway.mcp_client.servers.raw_http import Exchange, legacy, raw_mcp, text
from mcp_upstream import ChangingServer, changing_server, tool
from serving import DEADLINE_S

AVAILABLE, FILTERED, ARCHIVED = "TOOL_STATUS_AVAILABLE", "TOOL_STATUS_FILTERED", "TOOL_STATUS_ARCHIVED"


@pytest.fixture(scope="module")
async def running_server() -> AsyncIterator[ChangingServer]:
    """An MCP server for all tests here."""
    async with changing_server() as running:
        yield running


@pytest.fixture
async def server(running_server: ChangingServer, cadenya: Cadenya) -> AsyncIterator[ChangingServer]:
    """The server as new, with two tools; the tool sets of the test are deleted afterwards."""
    running_server.reset()
    running_server.offer("read", "write")
    yield running_server
    running_server.open.set()
    for item in (await cadenya.ok("GET", limit=200))["items"]:
        await cadenya.ok("DELETE", f"/{item['metadata']['id']}")


async def add(cadenya: Cadenya, server: ChangingServer, name: str, **mcp: Any) -> str:
    """The id of a synced tool set."""
    tool_set = await cadenya.create(name, {"mcp": {"url": server.url, **mcp}})
    event = await cadenya.crib.synced(tool_set)
    assert event["type"] == "sync_completed", event
    return tool_set


async def change(cadenya: Cadenya, tool_set: str, **mcp: Any) -> None:
    """Change the adapter and wait for the sync that follows."""
    before = (await cadenya.ok("GET", f"/{tool_set}/events", limit=200))["items"]
    await cadenya.ok("PUT", f"/{tool_set}", {"spec": {"adapter": {"mcp": mcp}}})
    assert (await cadenya.crib.synced(tool_set, after=len(before)))["type"] == "sync_completed"


async def by_name(cadenya: Cadenya, tool_set: str) -> dict[str, dict[str, Any]]:
    """The tools of a tool set."""
    items = (await cadenya.ok("GET", f"/{tool_set}/tools", limit=200, includeInfo="true"))["items"]
    return {item["metadata"]["name"]: item for item in items}


async def statuses(cadenya: Cadenya, tool_set: str) -> dict[str, str]:
    """Status by name."""
    return {name: item["spec"]["status"] for name, item in (await by_name(cadenya, tool_set)).items()}


def matching(*matchers: dict[str, Any], operator: str = "OR", attribute: str = "NAME") -> dict[str, Any]:
    filters = [{"attribute": f"ATTRIBUTE_{attribute}", "matcher": matcher} for matcher in matchers]
    return {"operator": f"OPERATOR_{operator}", "filters": filters}


async def test_a_sync_makes_a_tool_of_each_upstream_tool(cadenya: Cadenya, server: ChangingServer) -> None:
    schema = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}, "required": ["b"]}
    notes = types.ToolAnnotations(title="From annotations", read_only_hint=True)
    server.tools = [
        tool("look", title="Look at it", description="Looks.", input_schema=schema, output_schema={"type": "object"}),
        tool("odd name!", annotations=notes, _meta={"vendor": {"x": 1}}),
    ]
    tool_set = await add(cadenya, server, "facts")
    found = await by_name(cadenya, tool_set)
    assert found["look"]["spec"] == {
        "config": {"type": "mcp", "mcp": {"toolName": "look", "toolTitle": "Look at it", "toolDescription": "Looks."}},
        "description": "Looks.",
        "parameters": schema,
        "status": AVAILABLE,
        "requiresApproval": False,
        "llmToolName": "look",
    }
    assert list(found["look"]["spec"]["parameters"]["properties"]) == ["b", "a"]
    assert found["look"]["info"]["signature"] == "look(b, a)"
    assert found["odd name!"]["info"]["callName"] == "odd_name"
    assert found["odd name!"]["spec"]["config"]["mcp"]["toolTitle"] == "From annotations"
    assert found["look"]["info"]["createdBy"]["spec"]["type"] == "PROFILE_TYPE_SYSTEM"
    assert (await cadenya.crib.call("odd_name", {})).json()["data"]["content"][0]["text"] == "odd name! done"
    shown = await cadenya.ok("GET", f"/{tool_set}")
    assert (shown["info"]["toolCount"], "lastSync" in shown["info"]) == (2, True)


async def test_events_tell_what_a_sync_did(cadenya: Cadenya, server: ChangingServer) -> None:
    tool_set = await add(cadenya, server, "events")
    server.offer("read", "fresh", description="changed")
    assert (await cadenya.resync(tool_set))["syncCompleted"] == {
        "message": "2 tools: 1 new, 1 changed, 0 not offered, 1 gone",
        "toolsSynced": 2,
    }
    page = await cadenya.ok("GET", f"/{tool_set}/events", includeInfo="true")
    kinds = [item["event"]["type"] for item in page["items"]]
    assert kinds == ["sync_started", "sync_completed"] * 2
    first = page["items"][0]
    assert first["event"]["syncStarted"]["message"]
    assert first["toolSetId"] == tool_set == first["info"]["toolSet"]["id"]
    assert first["info"]["createdBy"]["spec"]["type"] == "PROFILE_TYPE_SYSTEM"
    latest = await cadenya.ok("GET", f"/{tool_set}/events", sortOrder="desc", limit=1)
    assert latest["items"][0]["event"] == page["items"][3]["event"]
    assert latest["pagination"]["total"] == 4
    assert "info" not in latest["items"][0]


async def test_a_sync_that_changes_nothing_touches_no_tool(cadenya: Cadenya, server: ChangingServer) -> None:
    tool_set = await add(cadenya, server, "still")
    before = await by_name(cadenya, tool_set)
    assert "0 new, 0 changed" in (await cadenya.resync(tool_set))["syncCompleted"]["message"]
    after = await by_name(cadenya, tool_set)
    assert {n: t["metadata"] for n, t in after.items()} == {n: t["metadata"] for n, t in before.items()}


async def test_a_server_that_cannot_be_reached_is_an_event(cadenya: Cadenya) -> None:
    tool_set = await cadenya.create(
        "nobody", {"mcp": {"url": "http://127.0.0.1:9/mcp", "headers": {"X-Key": "s3cret"}}}
    )
    event = await cadenya.crib.synced(tool_set)
    assert event["type"] == "sync_failed"
    assert event["syncFailed"]["error"] is True
    assert event["syncFailed"]["errorType"]
    assert "s3cret" not in str(event)
    assert await statuses(cadenya, tool_set) == {}


async def test_a_failed_sync_keeps_the_tools(cadenya: Cadenya, server: ChangingServer) -> None:
    tool_set = await add(cadenya, server, "kept")
    server.error = RuntimeError("out of order")
    assert (await cadenya.resync(tool_set))["type"] == "sync_failed"
    assert await statuses(cadenya, tool_set) == {"read": AVAILABLE, "write": AVAILABLE}


async def test_only_mcp_tool_sets_are_synced(cadenya: Cadenya) -> None:
    tool_set = await cadenya.create("plain", {"http": {}})
    await cadenya.refused("POST", f"/{tool_set}:sync", field="spec.adapter")
    await cadenya.refused("POST", "/nowhere:sync", status=404)


# ---- filters ---------------------------------------------------------------------------------------------------------

TOOLS = [("Get_Weather", "Weather now"), ("get_news", "News"), ("delete_news", "Remove news")]
ALL = {name for name, _ in TOOLS}


@pytest.mark.parametrize(
    ("chosen", "passes"),
    [
        (matching({"exact": "GET_news"}), {"get_news"}),
        (matching({"exact": "GET_news", "caseSensitive": True}), set()),
        (matching({"startsWith": "get"}), {"Get_Weather", "get_news"}),
        (matching({"startsWith": "get", "caseSensitive": True}), {"get_news"}),
        (matching({"endsWith": "NEWS"}), {"get_news", "delete_news"}),
        (matching({"endsWith": "NEWS", "caseSensitive": True}), set()),
        (matching({"contains": "_w"}), {"Get_Weather"}),
        (matching({"contains": "_W", "caseSensitive": True}), {"Get_Weather"}),
        (matching({"regex": "^get_[a-z]+$"}), {"Get_Weather", "get_news"}),
        (matching({"regex": "^get_[a-z]+$", "caseSensitive": True}), {"get_news"}),
        (matching({"contains": "news"}, attribute="TITLE"), {"get_news", "delete_news"}),
        (matching({"contains": "by Get_Weather"}, attribute="DESCRIPTION"), {"Get_Weather"}),
        (matching({"startsWith": "get"}, {"endsWith": "news"}), ALL),
        (matching({"startsWith": "get"}, {"endsWith": "news"}, operator="AND"), {"get_news"}),
        (matching({"startsWith": "get"}, {"endsWith": "news"}, operator="UNSPECIFIED"), {"get_news"}),
        (matching({"startsWith": "get", "endsWith": "news"}), {"get_news"}),
        (matching(), None),
    ],
)
async def test_filters_choose_what_is_offered(
    cadenya: Cadenya, server: ChangingServer, chosen: dict[str, Any], passes: set[str] | None
) -> None:
    server.tools = [tool(name, title=title, description=f"by {name}") for name, title in TOOLS]
    wanted = ALL if passes is None else passes
    tool_set = await add(cadenya, server, "include", includeTools=chosen)
    offered = {name for name, status in (await statuses(cadenya, tool_set)).items() if status == AVAILABLE}
    assert offered == wanted
    await change(cadenya, tool_set, includeTools=None, excludeTools=chosen)
    offered = {name for name, status in (await statuses(cadenya, tool_set)).items() if status == AVAILABLE}
    assert offered == (ALL if passes is None else ALL - passes)
    await change(cadenya, tool_set, excludeTools=None, toolApprovals={"only": chosen})
    guarded = {name for name, item in (await by_name(cadenya, tool_set)).items() if item["spec"]["requiresApproval"]}
    assert guarded == (passes or set())


async def test_exclusion_wins_over_inclusion(cadenya: Cadenya, server: ChangingServer) -> None:
    server.offer(*ALL)
    include, exclude = matching({"startsWith": "get"}), matching({"contains": "weather"})
    tool_set = await add(cadenya, server, "both", includeTools=include, excludeTools=exclude)
    assert await statuses(cadenya, tool_set) == {
        "Get_Weather": FILTERED,
        "get_news": AVAILABLE,
        "delete_news": FILTERED,
    }
    info = (await cadenya.ok("GET", f"/{tool_set}"))["info"]
    assert (info["toolCount"], info["availableTools"], info["omittedTools"]) == (3, 1, 2)
    assert (await cadenya.crib.call("delete_news")).status_code == 404  # a filtered tool does not exist for agents


@pytest.mark.parametrize(
    ("approvals", "guarded"),
    [
        ({"always": True}, {"read", "write"}),
        ({"always": False}, set()),
        ({}, set()),
        ({"only": matching({"exact": "write"})}, {"write"}),
        ({"always": True, "only": matching({"exact": "write"})}, {"read", "write"}),
        ({"always": False, "only": matching({"exact": "write"})}, {"write"}),
    ],
)
async def test_approvals_follow_the_tool_set(
    cadenya: Cadenya, server: ChangingServer, approvals: dict[str, Any], guarded: set[str]
) -> None:
    tool_set = await add(cadenya, server, "approvals", toolApprovals=approvals)
    found = await by_name(cadenya, tool_set)
    assert {name for name, item in found.items() if item["spec"]["requiresApproval"]} == guarded
    for name, item in found.items():
        assert (await cadenya.crib.call(item["info"]["callName"])).status_code == (403 if name in guarded else 200)
    await cadenya.ok("DELETE", f"/{tool_set}")


# ---- tools that come and go ------------------------------------------------------------------------------------------


async def test_a_vanished_tool_is_archived_and_comes_back_as_itself(cadenya: Cadenya, server: ChangingServer) -> None:
    tool_set = await add(cadenya, server, "returns")
    before = (await by_name(cadenya, tool_set))["write"]
    server.offer("read")
    await cadenya.resync(tool_set)
    assert await statuses(cadenya, tool_set) == {"read": AVAILABLE, "write": ARCHIVED}
    assert (await cadenya.crib.call(before["info"]["callName"])).status_code == 404
    await cadenya.create_tool(await cadenya.create("rival"), before["info"]["callName"])  # its name stays its own
    server.offer("write", "read")
    await cadenya.resync(tool_set)
    after = (await by_name(cadenya, tool_set))["write"]
    assert after["spec"] == before["spec"]
    assert (after["metadata"]["id"], after["info"]["callName"]) == (
        before["metadata"]["id"],
        before["info"]["callName"],
    )


async def test_a_deleted_tool_comes_back_with_the_next_sync(cadenya: Cadenya, server: ChangingServer) -> None:
    tool_set = await add(cadenya, server, "deleted")
    old = (await by_name(cadenya, tool_set))["read"]["metadata"]["id"]
    await cadenya.ok("DELETE", f"/{tool_set}/tools/{old}")
    await cadenya.resync(tool_set)
    assert (await by_name(cadenya, tool_set))["read"]["metadata"]["id"] != old


@pytest.mark.parametrize("status", [FILTERED, ARCHIVED, AVAILABLE])
async def test_a_status_set_by_hand_outlasts_syncs(cadenya: Cadenya, server: ChangingServer, status: str) -> None:
    exclude = matching({"exact": "read"}) if status == AVAILABLE else matching()
    tool_set = await add(cadenya, server, f"pinned {status}", excludeTools=exclude)
    path = f"/{tool_set}/tools/{(await by_name(cadenya, tool_set))['read']['metadata']['id']}"
    await cadenya.ok("PUT", path, {"spec": {"status": status}})
    await cadenya.resync(tool_set)
    await change(cadenya, tool_set, includeTools=matching({"contains": "e"}))
    assert (await statuses(cadenya, tool_set))["read"] == status
    server.offer("write")
    await cadenya.resync(tool_set)
    assert (await statuses(cadenya, tool_set))["read"] == ARCHIVED
    server.offer("read", "write")
    await cadenya.resync(tool_set)
    assert (await statuses(cadenya, tool_set))["read"] == status
    await cadenya.ok("DELETE", f"/{tool_set}")


async def test_an_approval_set_by_hand_outlasts_syncs(cadenya: Cadenya, server: ChangingServer) -> None:
    tool_set = await add(cadenya, server, "pinned approvals", toolApprovals={"always": True})
    path = f"/{tool_set}/tools/{(await by_name(cadenya, tool_set))['read']['metadata']['id']}"
    await cadenya.ok("PUT", path, {"spec": {"requiresApproval": False}})
    await cadenya.resync(tool_set)
    found = await by_name(cadenya, tool_set)
    assert {name: item["spec"]["requiresApproval"] for name, item in found.items()} == {"read": False, "write": True}
    await change(cadenya, tool_set, toolApprovals={"only": matching({"exact": "read"})})
    found = await by_name(cadenya, tool_set)
    assert {name: item["spec"]["requiresApproval"] for name, item in found.items()} == {"read": False, "write": False}


async def test_what_people_add_to_a_synced_tool_stays(cadenya: Cadenya, server: ChangingServer) -> None:
    tool_set = await add(cadenya, server, "adorned")
    path = f"/{tool_set}/tools/{(await by_name(cadenya, tool_set))['read']['metadata']['id']}"
    body = {"metadata": {"name": "read", "externalId": "r-1", "labels": {"a": "b"}}, "spec": {"llmToolName": "reader"}}
    await cadenya.ok("PUT", path, body)
    server.offer("read", description="new text")
    await cadenya.resync(tool_set)
    after = await cadenya.ok("GET", path)
    assert (after["metadata"]["externalId"], after["metadata"]["labels"]) == ("r-1", {"a": "b"})
    assert (after["spec"]["llmToolName"], after["spec"]["description"]) == ("reader", "new text")
    assert (await cadenya.crib.call("reader")).status_code == 200
    assert server.calls == [("read", {})]


async def test_which_upstream_tool_a_synced_tool_is_cannot_be_changed(cadenya: Cadenya, server: ChangingServer) -> None:
    tool_set = await add(cadenya, server, "identity")
    path = f"/{tool_set}/tools/{(await by_name(cadenya, tool_set))['read']['metadata']['id']}"
    for config in (
        {"mcp": {"toolName": "write"}},
        {"mcp": {"toolName": None}},
        {"mcp": None},
        {"bare": {}, "mcp": None},
    ):
        await cadenya.refused("PUT", path, {"spec": {"config": config}}, field="spec.config.mcp.toolName")
    await cadenya.ok("PUT", path, {"spec": {"config": {"mcp": {"toolTitle": "mine until the next sync"}}}})
    assert (await cadenya.resync(tool_set))["type"] == "sync_completed"


async def test_tools_made_by_hand_are_left_alone(cadenya: Cadenya, server: ChangingServer) -> None:
    tool_set = await add(cadenya, server, "handmade")
    made = await cadenya.create_tool(tool_set, "alias", config={"mcp": {"toolName": "read"}})
    before = await cadenya.ok("GET", f"/{tool_set}/tools/{made}")
    server.offer("other")
    await cadenya.resync(tool_set)
    assert await cadenya.ok("GET", f"/{tool_set}/tools/{made}") == before
    await cadenya.crib.call("alias")
    assert server.calls == [("read", {})]


async def test_another_adapter_archives_what_was_synced(cadenya: Cadenya, server: ChangingServer) -> None:
    tool_set = await add(cadenya, server, "left")
    await cadenya.ok("PUT", f"/{tool_set}", {"spec": {"adapter": {"http": {"baseUrl": "https://api.example.com"}}}})
    assert set((await statuses(cadenya, tool_set)).values()) == {ARCHIVED}
    before = (await cadenya.ok("GET", f"/{tool_set}/events"))["items"]
    await cadenya.ok("PUT", f"/{tool_set}", {"spec": {"adapter": {"mcp": {"url": server.url}}}})
    await cadenya.crib.synced(tool_set, after=len(before))
    assert set((await statuses(cadenya, tool_set)).values()) == {AVAILABLE}


# ---- races and odd servers -------------------------------------------------------------------------------------------


async def test_a_sync_of_an_older_revision_is_void(cadenya: Cadenya, server: ChangingServer) -> None:
    tool_set = await add(cadenya, server, "revised")
    server.open.clear()
    server.asked.clear()
    server.offer("stale")
    await cadenya.ok("POST", f"/{tool_set}:sync")
    async with asyncio.timeout(DEADLINE_S):
        await server.asked.wait()  # the old revision's sync has its list, and waits for it to arrive
        server.offer("read", "fresh")
        server.asked.clear()
        await cadenya.ok(
            "PUT", f"/{tool_set}", {"spec": {"adapter": {"mcp": {"excludeTools": matching({"exact": "read"})}}}}
        )
        await server.asked.wait()
        server.open.set()
        while len(await jobs_done(cadenya, tool_set)) < 3:
            await asyncio.sleep(0.01)
    assert sorted(job["stored"] for job in await jobs_done(cadenya, tool_set)) == [False, True, True]
    assert await statuses(cadenya, tool_set) == {"read": FILTERED, "write": ARCHIVED, "fresh": AVAILABLE}
    kinds = [item["event"]["type"] for item in (await cadenya.ok("GET", f"/{tool_set}/events"))["items"]]
    assert kinds.count("sync_completed") == 2


async def jobs_done(cadenya: Cadenya, tool_set: str) -> list[Any]:
    """The results of the finished syncs of a tool set."""
    rows = await cadenya.crib.parts.deps.database.pool.fetch(
        "SELECT result FROM job WHERE kind = 'tool_set.sync' AND payload->>'tool_set_id' = $1 AND state = 'done'",
        tool_set,
    )
    return [row["result"] for row in rows]


async def test_a_tool_set_deleted_during_its_sync_stays_deleted(cadenya: Cadenya, server: ChangingServer) -> None:
    server.open.clear()
    tool_set = await cadenya.create("doomed", {"mcp": {"url": server.url}})
    async with asyncio.timeout(DEADLINE_S):
        await server.asked.wait()
        await cadenya.ok("DELETE", f"/{tool_set}")
        server.open.set()
        while not await jobs_done(cadenya, tool_set):
            await asyncio.sleep(0.01)
    await cadenya.refused("GET", f"/{tool_set}", status=404)
    assert (
        await cadenya.crib.parts.deps.database.pool.fetchval(
            "SELECT count(*) FROM tool WHERE tool_set_id = $1", tool_set
        )
        == 0
    )


async def test_a_name_listed_twice_counts_once_and_is_told(cadenya: Cadenya, server: ChangingServer) -> None:
    server.tools = [tool("twice", description="first"), tool("twice", description="second"), tool("once")]
    tool_set = await add(cadenya, server, "twice")
    for _ in range(2):
        found = await by_name(cadenya, tool_set)
        assert {name: item["spec"]["description"] for name, item in found.items()} == {"twice": "first", "once": ""}
        assert "twice" in (await cadenya.resync(tool_set))["syncCompleted"]["message"]


async def test_names_that_become_the_same_are_told_apart(cadenya: Cadenya, server: ChangingServer) -> None:
    server.offer("a b", "a_b", "a-b", "a/b", "ä" * 80, "ä" * 81)
    tool_set = await add(cadenya, server, "alike")
    found = await by_name(cadenya, tool_set)
    assert len({item["info"]["callName"] for item in found.values()}) == 6
    for name, item in found.items():
        await cadenya.crib.call(item["info"]["callName"])
        assert server.calls[-1][0] == name


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        value = {"allOf": [value]}
    return value


@pytest.mark.parametrize(
    "facts",
    [
        {"title": "a\0b", "description": "c\0d"},
        {"annotations": {"title": "a\0b"}},
        {"annotations": {"title": 5, "readOnlyHint": "perhaps"}},
        {"annotations": [], "title": [], "description": {}, "outputSchema": 5, "_meta": "x"},
        {"inputSchema": {"type": "object", "properties": 5}},
        {"inputSchema": {"type": "object", "properties": [1]}},
        {"inputSchema": {"type": "object", "properties": {"a\0": {"description": "\0"}}}},
        {"inputSchema": {"type": "object", "$ref": "http://127.0.0.1:1/x"}},
        {"inputSchema": {"type": "nonsense", "required": "no"}},
        {"inputSchema": {}},
        {"inputSchema": deep(110)},
        {"inputSchema": deep(200)},
        {"outputSchema": deep(200)},
        {"_meta": {"x": deep(200)}},
        {"description": "long " * 20_000},
        {"title": "\u202e\ufeff\U0001f600"},
        {"unknown": {"member": 1}},
    ],
    ids=lambda facts: str(facts)[:50],
)
async def test_an_odd_tool_is_stored_shown_and_called(cadenya: Cadenya, facts: dict[str, Any]) -> None:
    async def answer(exchange: Exchange) -> None:
        listed = {"name": "odd", "inputSchema": {"type": "object"}, **facts}
        exchange.reply(result={"tools": [listed]} if exchange.method == "tools/list" else text("done"))

    async with raw_mcp(legacy(answer)) as raw:
        tool_set = await cadenya.create("odd", {"mcp": {"url": raw.url}})
        assert (await cadenya.crib.synced(tool_set))["type"] == "sync_completed"
        assert list(await by_name(cadenya, tool_set)) == ["odd"]
        assert (await cadenya.crib.call("odd")).status_code == 200
        listed = (await cadenya.crib.rpc("tools/list", path="/mcp/odd"))["result"]["tools"]
        assert [(item["name"], item["inputSchema"]["type"]) for item in listed] == [("odd", "object")]
        await cadenya.ok("DELETE", f"/{tool_set}")


async def test_a_tool_whose_name_cannot_be_stored_is_left_out(cadenya: Cadenya, server: ChangingServer) -> None:
    server.offer("good", "b\0d", "x" * 20_000)
    tool_set = await add(cadenya, server, "unnamed")
    assert set(await by_name(cadenya, tool_set)) == {"good", "x" * 20_000}
    assert "NUL" in (await cadenya.resync(tool_set))["syncCompleted"]["message"]


async def test_two_thousand_tools_are_synced_and_paged(cadenya: Cadenya, server: ChangingServer) -> None:
    server.offer(*(f"tool {i:04}" for i in range(2000)))
    tool_set = await add(cadenya, server, "many")
    seen: list[str] = []
    cursor = ""
    while True:
        page = await cadenya.ok("GET", f"/{tool_set}/tools", limit=200, **({"cursor": cursor} if cursor else {}))
        seen += names_of(page)
        if not (cursor := page["pagination"]["nextCursor"]):
            break
    assert len(seen) == len(set(seen)) == page["pagination"]["total"] == 2000
    assert "0 new, 0 changed" in (await cadenya.resync(tool_set))["syncCompleted"]["message"]
    server.offer("tool 0000")
    assert "1999 gone" in (await cadenya.resync(tool_set))["syncCompleted"]["message"]
