"""The later edition, as the vendor's own client library speaks it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import pytest
from cadenya import APIError, types
from cadenya import Cadenya as Client

from api.cadenya_calls import Cadenya
from mcp_upstream import ChangingServer, changing_server
from serving import Crib

T = TypeVar("T")
HTTP = {"type": "http", "http": {"base_url": "http://127.0.0.1:9", "headers": {"X-Y": "z"}}}
TOOL: dict[str, Any] = {
    "description": "x",
    "requires_approval": False,
    "parameters": {"type": "object", "properties": {"id": {"type": "string"}}},
    "config": {"type": "http", "http": {"request_method": "GET", "path": "/x/{id}"}},
}


async def do(work: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call the client, which is synchronous."""
    return await asyncio.to_thread(work, *args, **options)


def speaking(crib: Crib, *, api_key: str | None = None, workspace_id: str | None = None) -> Client:
    """The vendor's client, with the first key and workspace unless others are given."""
    return Client(base_url=crib.url, api_key=api_key or crib.api_key, workspace_id=workspace_id or crib.workspace_id)


@pytest.fixture
def client(crib: Crib) -> Iterator[Client]:
    """The vendor's client, with the first key."""
    with speaking(crib) as made:
        yield made


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[ChangingServer]:
    """An MCP server with three tools."""
    async with changing_server() as running:
        running.offer("read", "write", "delete")
        yield running


async def test_a_tool_set_is_created_read_changed_and_deleted(client: Client) -> None:
    sets = client.tool_sets
    metadata = {"name": "Vendor", "external_id": "v-1", "labels": {"a": "b"}}
    made = await do(sets.create, metadata=metadata, spec={"adapter": HTTP, "description": "d"})
    assert isinstance(made.spec.adapter, types.ToolSetAdapter_HttpVariant)
    assert (made.spec.adapter.type, made.spec.adapter.http.base_url) == ("http", "http://127.0.0.1:9")
    assert (made.metadata.external_id, made.metadata.labels, made.spec.description) == ("v-1", {"a": "b"}, "d")
    assert made.state == "STATE_ACTIVE"
    assert await do(sets.retrieve, made.metadata.id) == made
    assert await do(sets.retrieve, "external_id:v-1") == made
    changed = await do(
        sets.update, made.metadata.id, spec={"description": "new", "adapter": HTTP}, update_mask="spec.description"
    )
    assert (changed.spec.description, changed.spec.adapter) == ("new", made.spec.adapter)
    changed = await do(sets.update, made.metadata.id, metadata={"name": "Renamed"})
    assert (changed.metadata.name, changed.metadata.labels) == ("Renamed", {"a": "b"})
    changed = await do(sets.update, made.metadata.id, spec={"adapter": {"type": "bare", "bare": {}}})
    assert changed.spec.adapter is None
    assert await do(sets.delete, made.metadata.id) is None
    with pytest.raises(APIError) as caught:
        await do(sets.retrieve, made.metadata.id)
    assert (caught.value.status_code, caught.value.code) == (404, 5)


async def test_lists_walk_their_pages_by_themselves(client: Client) -> None:
    for i in range(5):
        await do(
            client.tool_sets.create,
            metadata={"name": f"walk {i}", "labels": {"odd": str(i % 2)}},
            spec={"adapter": {"type": "bare", "bare": {}}},
        )

    def names(**options: Any) -> list[str]:
        return [item.metadata.name for item in client.tool_sets.list(prefix="walk", limit=2, **options)]

    assert await do(names) == [f"walk {i}" for i in range(5)]
    assert await do(names, sort_order="desc") == [f"walk {i}" for i in reversed(range(5))]
    assert await do(names, labels="odd=1") == ["walk 1", "walk 3"]
    assert await do(names, query="k 3") == ["walk 3"]
    assert await do(names, state="STATE_ACTIVE", include_info=True) == [f"walk {i}" for i in range(5)]
    assert await do(names, state="STATE_ARCHIVED") == []


async def test_a_tool_is_created_read_listed_changed_and_deleted(client: Client) -> None:
    tool_set = (await do(client.tool_sets.create, metadata={"name": "Tools"}, spec={"adapter": HTTP})).metadata.id
    tools = client.tool_sets.tools
    made = [await do(tools.create, tool_set, metadata={"name": f"tool {i}"}, spec=TOOL) for i in range(3)]
    assert isinstance(made[0].spec.config, types.ToolSpec_Config_Http)
    assert made[0].spec.config.http.request_method == "GET"
    assert made[0].state == "STATE_AVAILABLE"
    assert await do(tools.retrieve, tool_set, made[1].metadata.id) == made[1]

    def names(**options: Any) -> list[str]:
        return [item.metadata.name for item in tools.list(tool_set, limit=2, **options)]

    assert await do(names) == ["tool 0", "tool 1", "tool 2"]
    assert await do(names, prefix="tool 2", include_info=True) == ["tool 2"]
    changed = await do(
        tools.update, tool_set, made[2].metadata.id, metadata={"name": "renamed"}, update_mask="metadata.name"
    )
    assert (changed.metadata.name, changed.spec.description) == ("renamed", "x")
    part = {**TOOL, "description": "second", "requires_approval": True}
    changed = await do(tools.update, tool_set, made[2].metadata.id, spec=part)
    assert (changed.spec.description, changed.spec.requires_approval) == ("second", True)
    changed = await do(
        tools.update, tool_set, made[2].metadata.id, spec=part | {"config": {"type": "bare", "bare": {}}}
    )
    assert changed.spec.config is None
    await do(tools.delete, tool_set, made[2].metadata.id)
    assert await do(names) == ["tool 0", "tool 1"]


async def test_an_mcp_tool_set_is_synced_and_tells_so(client: Client, crib: Crib, server: ChangingServer) -> None:
    chosen = {
        "operator": "OPERATOR_OR",
        "filters": [
            {"attribute": "ATTRIBUTE_NAME", "matcher": {"type": "contains", "contains": "d", "case_sensitive": False}}
        ],
    }
    mcp = {"url": server.url, "include_tools": chosen, "tool_approvals": {"type": "only", "only": chosen}}
    made = await do(client.tool_sets.create, metadata={"name": "M"}, spec={"adapter": {"type": "mcp", "mcp": mcp}})
    assert isinstance(made.spec.adapter, types.ToolSetAdapter_McpVariant)
    shown = made.spec.adapter.mcp
    assert isinstance(shown.include_tools.filters[0].matcher, types.ToolSetAdapter_StringMatcher_Contains)
    assert isinstance(shown.tool_approvals, types.ToolSetAdapter_ApprovalRequirementFilter_Only)
    await crib.synced(made.metadata.id)
    events = [item async for item in walked(client.tool_sets.list_events, made.metadata.id, limit=1, include_info=True)]
    assert [event.event.type for event in events] == ["syncStarted", "syncCompleted"]
    assert isinstance(events[1].event, types.ToolSetEventData_SyncCompleted)
    assert events[1].event.sync_completed.tools_synced == 3
    assert events[1].tool_set_id == made.metadata.id
    tools = [item async for item in walked(client.tool_sets.tools.list, made.metadata.id)]
    assert {item.metadata.name: item.state for item in tools} == {
        "read": "STATE_AVAILABLE",
        "write": "STATE_OMITTED",
        "delete": "STATE_AVAILABLE",
    }
    assert {item.metadata.name for item in tools if item.spec.requires_approval} == {"read", "delete"}
    everything = {"tool_approvals": {"type": "always", "always": True}}
    changed = await do(client.tool_sets.update, made.metadata.id, spec={"adapter": {"type": "mcp", "mcp": everything}})
    assert isinstance(changed.spec.adapter.mcp.tool_approvals, types.ToolSetAdapter_ApprovalRequirementFilter_Always)
    assert changed.spec.adapter.mcp.url == server.url


async def walked(work: Callable[..., Any], *args: Any, **options: Any) -> AsyncIterator[Any]:
    """The items of all pages."""
    for item in await do(lambda: list(work(*args, **options))):
        yield item


async def test_the_workspace_in_the_path_must_be_the_own_one(client: Client, crib: Crib) -> None:
    tool_set = (await do(client.tool_sets.create, metadata={"name": "Own"}, spec={"adapter": HTTP})).metadata.id
    for workspace in ("workspace_other", crib.workspace_id.lower(), "%2e%2e"):
        for work in (
            lambda c: c.tool_sets.list(),
            lambda c: c.tool_sets.retrieve(tool_set),
            lambda c: c.tool_sets.create(metadata={"name": "x"}, spec={"adapter": HTTP}),
            lambda c: c.tool_sets.update(tool_set, metadata={"name": "x"}),
            lambda c: c.tool_sets.delete(tool_set),
            lambda c: c.tool_sets.list_events(tool_set),
            lambda c: c.tool_sets.tools.list(tool_set),
            lambda c: c.tool_sets.tools.create(tool_set, metadata={"name": "x"}, spec=TOOL),
        ):
            with speaking(crib, workspace_id=workspace) as stranger, pytest.raises(APIError) as caught:
                await do(work, stranger)
            assert caught.value.status_code == 404
    with speaking(crib, api_key=await crib.other_workspace_key()) as other, pytest.raises(APIError) as caught:
        await do(other.tool_sets.retrieve, tool_set)
    assert caught.value.status_code == 404


async def test_both_editions_show_the_same_things(client: Client, crib: Crib, cadenya: Cadenya) -> None:
    tool_set = await cadenya.create("Shared", {"http": {"baseUrl": "http://127.0.0.1:9"}})
    tool = await cadenya.create_tool(tool_set, "shared", config={"http": {"requestMethod": "GET"}})
    base = f"/v1/workspaces/{crib.workspace_id}/tool_sets/{tool_set}"
    for path in ("", "/tools", f"/tools/{tool}"):
        assert (await crib.http.get(base + path)).json() == await cadenya.ok("GET", f"/{tool_set}{path}")
    assert (await crib.http.post(f"{base}/tools/{tool}:call", json={})).json()["isError"] is True
    assert (await do(client.tool_sets.tools.retrieve, tool_set, tool)).metadata.name == "shared"


async def test_errors_name_the_field_for_this_client_too(client: Client, crib: Crib) -> None:
    with pytest.raises(APIError, match=r"spec\.adapter\.http\.baseUrl|URL") as caught:
        await do(
            client.tool_sets.create,
            metadata={"name": "x"},
            spec={"adapter": {"type": "http", "http": {"base_url": "ftp://x"}}},
        )
    assert (caught.value.status_code, caught.value.code) == (400, 3)
    with speaking(crib, api_key="tck_wrong") as wrong, pytest.raises(APIError) as caught:
        await do(wrong.tool_sets.list)
    assert (caught.value.status_code, caught.value.code) == (401, 16)
