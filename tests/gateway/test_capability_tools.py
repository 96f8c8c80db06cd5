"""Capability files as tool sets: uploaded over REST, offered over MCP, called through the one pipeline."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from cadenya import Cadenya as VendorClient
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from api.cadenya_calls import BAD_REQUEST, Cadenya
from capability_shop import SHOP, TOKEN, Shop, answer, capability
from raw_upstream import hanging, upstream
from serving import Crib
from toolcrib.domain.adapters import MASK, CapabilityAdapter
from toolcrib.errors import Upstream
from toolcrib.gateway.providers.capability import Capabilities
from upstream_app import App, Asked, Told, app

REST_ONLY = (
    SHOP.partition("  exposes:")[0]
    + """\
  exposes:
    - type: rest
      namespace: shop-rest
      port: 8081
      resources:
        - path: /orders/{order_id}
          operations:
            - {name: read-order, method: GET, description: One order, call: shop.get-order}
"""
)


@pytest.fixture(scope="module")
async def api() -> AsyncIterator[App]:
    """The shop's HTTP API."""
    async with app(answer) as served:
        yield served


@pytest.fixture(scope="module")
async def shop(crib: Crib, api: App) -> Shop:
    """The shop as a tool set."""
    return await Shop.open(crib, "shop", capability(api.url))


@pytest.fixture
def cadenya(crib: Crib) -> Cadenya:
    """The Cadenya dialect, signed in with the first key."""
    return Cadenya(crib)


# ---- what is offered -------------------------------------------------------------------------------------------------


async def test_its_tools_are_offered_with_schemas_and_annotations(crib: Crib, shop: Shop) -> None:
    for path in ("/mcp", f"/mcp/{shop.slug}"):
        listed = (await crib.rpc("tools/list", path=path))["result"]["tools"]
        tool = next(t for t in listed if t["name"] == "get-order")
        assert tool["title"] == "One order"
        assert tool["description"] == "Find an order by its number."
        assert tool["annotations"]["readOnlyHint"] is True
        assert tool["inputSchema"]["required"] == ["id"]
        assert tool["inputSchema"]["properties"]["id"] == {"type": "string", "description": "Its number"}
        assert set(tool["outputSchema"]["properties"]) == {"number", "total"}


async def test_the_official_client_calls_them_and_gets_structured_content(crib: Crib, api: App, shop: Shop) -> None:
    headers = {"Authorization": f"Bearer {crib.api_key}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=20) as http,
        Client(streamable_http_client(f"{crib.url}/mcp/{shop.slug}", http_client=http)) as client,
    ):
        assert {tool.name for tool in (await client.list_tools()).tools} == {
            "get-order",
            "create-order",
            "delete-order",
        }
        result = await client.call_tool("get-order", {"id": "a/b c"})
        assert result.structured_content == {"number": "a%2Fb%20c", "total": 1250}
        assert (await client.call_tool("delete-order", {"order_id": "7"})).is_error is False
    assert api.asked[-2].target == "/orders/a%2Fb%20c"
    assert api.asked[-2].get("authorization") == f"Bearer {TOKEN}"


async def test_a_file_with_rest_alone_offers_its_operations(crib: Crib, api: App) -> None:
    made = await Shop.open(crib, "rest only", capability(api.url, REST_ONLY))
    tool = (await made.tools())["read-order"]
    assert tool["spec"]["description"] == "One order"
    assert tool["spec"]["parameters"]["required"] == ["order_id"]
    assert (await made.call("read-order", order_id="9"))["structuredContent"]["id"] == "9"
    await made.delete()


async def test_filters_and_approvals_apply_as_to_any_tool_set(crib: Crib, api: App) -> None:
    def named(name: str) -> dict[str, Any]:
        tests = [{"attribute": "ATTRIBUTE_NAME", "matcher": {"exact": name}}]
        return {"operator": "OPERATOR_AND", "filters": tests}

    choice = {"excludeTools": named("delete-order"), "toolApprovals": {"only": named("create-order")}}
    made = await Shop.open(crib, "choosy", capability(api.url, **choice))
    states = {name: (t["state"], t["spec"]["requiresApproval"]) for name, t in (await made.tools()).items()}
    assert states["delete-order"] == ("STATE_OMITTED", False)
    assert states["create-order"] == ("STATE_AVAILABLE", True)
    refused = await made.ask("create-order", {"article": "x"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "approval.required")
    assert (await made.ask("delete-order", {"order_id": "1"})).status_code == 404
    await made.delete()


# ---- calls -----------------------------------------------------------------------------------------------------------


async def test_every_outcome_is_on_the_record(crib: Crib, shop: Shop) -> None:
    assert (await shop.call("get-order", id="7"))["structuredContent"] == {"number": "7", "total": 1250}
    missing = await shop.call("get-order", id="none")
    assert missing["isError"]
    assert missing["content"][0]["text"] == 'HTTP 404: {"problem":"no such order"}'
    assert (await shop.ask("get-order", {"id": 7})).json()["error"]["code"] == "arguments.invalid"
    assert (await shop.call("create-order", article="tea", count=2))["structuredContent"] == {
        "article": "tea",
        "count": 2,
    }
    rows = await crib.audit(limit=4)
    assert [(row["outcome"], row["arguments"]) for row in rows] == [
        ("ok", {"article": "tea", "count": 2}),
        ("refused", {"id": 7}),
        ("tool_error", {"id": "none"}),
        ("ok", {"id": "7"}),
    ]
    assert {row["tool_set_id"] for row in rows} == {shop.id}


async def test_an_upstream_that_is_away_or_silent_is_a_result(crib: Crib, shop: Shop) -> None:
    away = await Shop.open(crib, "away", capability("http://127.0.0.1:9"))
    result = await away.call("get-order", id="1")
    assert result["isError"]
    assert "127.0.0.1:9" in result["content"][0]["text"]
    await away.delete()
    async with upstream(hanging(b"")) as silent:
        hasty = SHOP.replace("      baseUri:", "      x-toolcrib: {timeout: 50ms}\n      baseUri:")
        slow = await Shop.open(crib, "slow", capability(silent.url, hasty))
        result = await slow.call("get-order", id="1")
        assert result["isError"]
        await asyncio.wait_for(silent.peer_gone.wait(), 10)
        await slow.delete()
    rows = await crib.audit(limit=2)
    assert [(row["outcome"], row["error_code"]) for row in rows] == [
        ("upstream_error", "outbound.timeout"),
        ("upstream_error", "outbound.connect_failed"),
    ]


async def test_a_value_that_is_missing_is_named(crib: Crib, api: App) -> None:
    made = await Shop.open(crib, "poor", capability(api.url, env={}))
    asked = len(api.asked)
    result = await made.call("get-order", id="1")
    assert result["isError"]
    assert "needs shop-token, which has no value: set it in the env of the tool set" in result["content"][0]["text"]
    assert len(api.asked) == asked, "a request without its credentials"
    assert (await crib.audit(limit=1))[0]["error_code"] == "bind.unresolved"
    assert (await made.replace(env={"shop-token": TOKEN}))["type"] == "sync_completed"
    assert (await made.call("get-order", id="1"))["isError"] is False
    await made.delete()


async def test_a_key_without_the_scope_neither_lists_nor_calls(crib: Crib, shop: Shop) -> None:
    async with crib.as_(await crib.key("tool_sets:read")) as http:
        refused = await http.post(f"/api/tools/{shop.slug}__get-order/call", json={"arguments": {"id": "1"}})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "scope.missing")


# ---- over both editions ----------------------------------------------------------------------------------------------


async def test_create_read_change_and_delete_in_the_published_edition(cadenya: Cadenya, api: App) -> None:
    made = await cadenya.create("published", capability(api.url))
    await cadenya.crib.synced(made)
    wire = (await cadenya.ok("GET", f"/{made}"))["spec"]["adapter"]
    assert wire["capability"]["source"] == SHOP
    assert wire["capability"]["env"] == {"shop-token": TOKEN}
    assert wire["capability"]["baseUris"] == {"shop": api.url}
    body = {"spec": {"adapter": {"capability": {"baseUris": {}}}}, "updateMask": "spec.adapter.capability.baseUris"}
    changed = (await cadenya.ok("PUT", f"/{made}", body))["spec"]["adapter"]["capability"]
    assert "baseUris" not in changed
    assert (changed["source"], changed["env"]) == (SHOP, {"shop-token": TOKEN})
    tool = (await cadenya.ok("GET", f"/{made}/tools"))["items"][0]
    assert tool["spec"]["config"]["capability"]["toolName"] == tool["metadata"]["name"]
    await cadenya.ok("DELETE", f"/{made}")
    await cadenya.refused("GET", f"/{made}", status=404)


async def test_create_change_and_delete_in_the_later_edition(crib: Crib, api: App) -> None:
    root = f"/v1/workspaces/{crib.workspace_id}/tool_sets"
    body = {"metadata": {"name": "later"}, "spec": {"adapter": {"type": "capability", **capability(api.url)}}}
    made = (await crib.http.post(root, json=body)).json()
    path = f"{root}/{made['metadata']['id']}"
    await crib.synced(made["metadata"]["id"])
    patched = await crib.http.patch(path, json={"spec": {"adapter": {"capability": {"env": {"shop-token": MASK}}}}})
    assert patched.status_code == 200
    assert patched.json()["spec"]["adapter"]["capability"]["env"] == {"shop-token": TOKEN}
    assert (await crib.http.delete(path)).status_code == 200


async def test_the_vendors_client_does_not_stumble_over_one(crib: Crib, shop: Shop) -> None:
    with VendorClient(base_url=crib.url, api_key=crib.api_key, workspace_id=crib.workspace_id) as client:
        sets = await asyncio.to_thread(lambda: list(client.tool_sets.list()))
        tools = await asyncio.to_thread(lambda: list(client.tool_sets.tools.list(shop.id)))
        renamed = await asyncio.to_thread(
            lambda: client.tool_sets.update(shop.id, metadata={"name": "Shop"}, update_mask="metadata.name")
        )
    assert shop.id in {item.metadata.id for item in sets}
    assert "get-order" in {tool.metadata.name for tool in tools}
    assert renamed.metadata.name == "Shop"
    assert (await shop.call("get-order", id="1"))["isError"] is False


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("naftiko: 1.0.0-alpha2\ncapability:\n  exposes: [", "capability.invalid", "capability.yaml:4:1"),
        ("just a text", "capability.invalid", "capability.yaml:1:1"),
        ("naftiko: {}\n", "capability.invalid", "capability.yaml:1:1"),
        (SHOP.partition("  exposes:")[0], "capability.no_tools", "no tools"),
        (" ", "capability.source_invalid", "YAML"),
    ],
    ids=["broken", "no map", "old", "no tools", "empty"],
)
async def test_a_file_that_cannot_be_served_is_refused_at_its_line(
    crib: Crib, source: str, code: str, said: str
) -> None:
    before = (await crib.http.get("/v1/tool_sets", params={"limit": 200})).json()["pagination"]["total"]
    body = {"metadata": {"name": "broken"}, "spec": {"adapter": {"capability": {"source": source}}}}
    for root in ("/v1/tool_sets", f"/v1/workspaces/{crib.workspace_id}/tool_sets"):
        refused = await crib.http.post(root, json=body)
        assert refused.status_code == 400
        details = {detail["@type"]: detail for detail in refused.json()["details"]}
        assert details[BAD_REQUEST]["fieldViolations"][0]["field"] == "spec.adapter.capability.source"
        assert code in json.dumps(details)
        assert said in refused.json()["message"]
    after = (await crib.http.get("/v1/tool_sets", params={"limit": 200})).json()["pagination"]["total"]
    assert after == before


async def test_a_broken_new_version_changes_nothing(crib: Crib, shop: Shop) -> None:
    body = {"spec": {"adapter": {"capability": {"source": "naftiko: ["}}}}
    refused = await crib.http.put(f"/v1/tool_sets/{shop.id}", json=body)
    assert refused.status_code == 400
    assert (await shop.call("get-order", id="7"))["isError"] is False


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"baseUris": {"shop": "ftp://x"}}, "spec.adapter.capability.baseUris.shop"),
        ({"env": {"a b": "x"}}, "spec.adapter.capability.env"),
        ({"env": {"A": MASK}}, "spec.adapter.capability.env.A"),
        ({"env": {"A": "x" * 100_001}}, "spec.adapter.capability.env"),
        ({"includeTools": {"operator": "OPERATOR_AND", "filters": [{"attribute": "ATTRIBUTE_NAME", "matcher": {"regex": "("}}]}}, "spec.adapter.capability.includeTools.filters[0].matcher.regex"),
    ],
)  # fmt: skip
async def test_what_no_adapter_can_have_is_refused_by_name(
    cadenya: Cadenya, api: App, members: dict[str, Any], field: str
) -> None:
    body = {"metadata": {"name": "wrong"}, "spec": {"adapter": capability(api.url, **members)}}
    await cadenya.refused("POST", "", body, field=field)


# ---- secrets ---------------------------------------------------------------------------------------------------------


async def test_values_are_shown_to_those_alone_who_may_set_them(crib: Crib, shop: Shop) -> None:
    async with crib.as_(await crib.key("tool_sets:read")) as reader:
        shown = await reader.get(f"/v1/tool_sets/{shop.id}")
        assert TOKEN not in shown.text
        assert shown.json()["spec"]["adapter"]["capability"]["env"] == {"shop-token": MASK}
    async with crib.as_(await crib.key("tool_sets:*")) as writer:
        shown = (await writer.get(f"/v1/tool_sets/{shop.id}")).json()
        assert shown["spec"]["adapter"]["capability"]["env"] == {"shop-token": TOKEN}


async def test_writing_the_mask_back_keeps_the_value(api: App, shop: Shop) -> None:
    assert (await shop.replace(source=SHOP + "\n", env={"shop-token": MASK}))["type"] == "sync_completed"
    await shop.call("get-order", id="7")
    assert api.asked[-1].get("authorization") == f"Bearer {TOKEN}"


async def test_an_api_that_quotes_a_value_is_not_quoted(crib: Crib, shop: Shop) -> None:
    result = await shop.call("get-order", id="quoting")
    assert result["isError"]
    assert "bad credentials" in json.dumps(result)
    assert TOKEN not in json.dumps(result)
    assert TOKEN not in json.dumps(await crib.audit())


# ---- changes ---------------------------------------------------------------------------------------------------------


async def test_a_new_version_keeps_ids_and_what_people_chose(crib: Crib, api: App) -> None:
    made = await Shop.open(crib, "versions", capability(api.url))
    before = await made.tools()
    path = f"/v1/tool_sets/{made.id}/tools/{before['create-order']['metadata']['id']}"
    body = {"spec": {"requiresApproval": True}, "updateMask": "spec.requiresApproval"}
    assert (await crib.http.put(path, json=body)).status_code == 200
    renamed = SHOP.replace("- name: delete-order\n          description", "- name: forget-order\n          description")
    event = await made.replace(source=renamed.replace("Order something.", "Order a thing."))
    assert event["syncCompleted"]["message"] == "3 tools: 1 new, 1 changed, 0 not offered, 1 gone"
    after = await made.tools()
    assert after["create-order"]["metadata"]["id"] == before["create-order"]["metadata"]["id"]
    assert after["create-order"]["spec"]["requiresApproval"]
    assert after["create-order"]["spec"]["description"] == "Order a thing."
    assert after["delete-order"]["state"] == "STATE_ARCHIVED"
    assert (await made.call("forget-order", order_id="1"))["isError"] is False
    assert (await made.replace(source=SHOP))["type"] == "sync_completed"
    back = await made.tools()
    assert back["delete-order"]["metadata"]["id"] == before["delete-order"]["metadata"]["id"]
    assert back["delete-order"]["state"] == "STATE_AVAILABLE"
    await made.delete()


@contextlib.asynccontextmanager
async def held(reached: asyncio.Event, release: asyncio.Event) -> AsyncIterator[App]:
    """A shop that answers when told to."""

    async def wait(asked: Asked) -> Told:
        reached.set()
        await release.wait()
        return Told(b'{"id":"old","cents":1}', 200, {"Content-Type": "application/json"})

    async with app(wait) as served:
        yield served


@pytest.mark.parametrize("change", ["replace", "delete"])
async def test_a_call_under_way_ends_well_when_its_file_goes(crib: Crib, api: App, change: str) -> None:
    reached, release = asyncio.Event(), asyncio.Event()
    async with held(reached, release) as slow:
        made = await Shop.open(crib, f"moving {change}", capability(slow.url))
        running = asyncio.create_task(made.call("get-order", id="1"))
        await asyncio.wait_for(reached.wait(), 10)
        if change == "replace":
            await made.replace(baseUris={"shop": api.url})
            assert (await made.call("get-order", id="2"))["structuredContent"]["number"] == "2"
        else:
            await made.delete()
            assert (await made.ask("get-order", {"id": "2"})).status_code == 404
        release.set()
        assert (await running)["structuredContent"] == {"number": "old", "total": 1}


async def test_two_workspaces_never_see_each_others(crib: Crib, api: App, shop: Shop) -> None:
    async with crib.as_(await crib.other_workspace_key()) as stranger:
        assert (await stranger.get(f"/v1/tool_sets/{shop.id}")).status_code == 404
        listed = (await stranger.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})).json()
        assert listed["result"]["tools"] == []
        asked = len(api.asked)
        refused = await stranger.post(f"/api/tools/{shop.slug}__get-order/call", json={"arguments": {"id": "1"}})
        assert refused.status_code == 404
        assert len(api.asked) == asked


# ---- what is kept compiled -------------------------------------------------------------------------------------------


async def test_files_are_compiled_once_and_the_least_used_are_forgotten(api: App) -> None:
    def adapter(number: int) -> CapabilityAdapter:
        return CapabilityAdapter(f"{SHOP}# {number} {'x' * 900_000}", {"shop": api.url}, {"shop-token": TOKEN})

    async def call(number: int) -> None:
        await kept.call_tool(f"set:{number}", adapter(number), "get-order", b'{"id":"1"}', timeout_s=10)

    kept = Capabilities(api.outbound, max_result_bytes=10_000)
    await asyncio.gather(*(call(1) for _ in range(5)))
    assert list(kept._kept) == ["set:1"]
    for number in (2, 3, 1, 4, 5, 6, 7, 8, 9, 10):
        await call(number)
    assert list(kept._kept) == [f"set:{number}" for number in (1, 4, 5, 6, 7, 8, 9, 10)]
    kept.retire("set:9")
    await call(9)
    await kept.close()
    assert not kept._kept
    assert kept._size == 0


async def test_a_result_larger_than_the_operator_allows_is_an_error(api: App) -> None:
    few = Capabilities(api.outbound, max_result_bytes=10)
    adapter = CapabilityAdapter(SHOP, {"shop": api.url}, {"shop-token": TOKEN})
    with pytest.raises(Upstream, match="more than 10 bytes"):
        await few.call_tool("set:1", adapter, "get-order", b'{"id":"1"}', timeout_s=10)
    await few.close()
