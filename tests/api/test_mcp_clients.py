"""Real MCP clients against `/mcp`: the official SDK in both eras, and FastMCP's; upstreams of both eras behind it."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastmcp import Client as FastClient
from fastmcp.client.transports import StreamableHttpTransport
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from gateway.mcp_client.servers.launch import serving
from gateway.mcp_client.servers.raw_http import Exchange, legacy, raw_mcp, text, until
from gateway.mcp_client.servers.sdk import SdkServer
from serving import Crib

ERAS = ["auto", "legacy"]  # 2026-07-28 by discovery, and the handshake
SDK_SCRIPT = Path(__file__).parent.parent / "gateway" / "mcp_client" / "servers" / "sdk.py"


@contextlib.asynccontextmanager
async def client_of(
    crib: Crib, mode: str, path: str = "/mcp", key: str | None = None, **options: Any
) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {key or crib.api_key}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=20) as http,
        Client(streamable_http_client(crib.url + path, http_client=http), mode=mode, **options) as client,
    ):
        yield client


@pytest.fixture(scope="module")
async def upstream(crib: Crib) -> AsyncIterator[SdkServer]:
    """An SDK server over streamable HTTP, added as the tool set `sdk`."""
    server = SdkServer()
    app = server.mcp.streamable_http_app()
    async with serving(app) as url:
        await crib.add_mcp("sdk", {"url": f"{url}/mcp"})
        yield server


@pytest.fixture(scope="module")
async def old_upstream(crib: Crib) -> AsyncIterator[None]:
    """A server that knows nothing but the handshake of 2025-03-26, added as the tool set `old`."""

    async def answer(exchange: Exchange) -> None:
        if exchange.method == "tools/list":
            exchange.reply(result={"tools": [{"name": "ancient", "inputSchema": {"type": "object"}}]})
        else:
            exchange.reply(result=text(exchange.params["arguments"]))

    async with raw_mcp(legacy(answer, version="2025-03-26")) as server:
        await crib.add_mcp("old", {"url": server.url})
        yield


@pytest.fixture(scope="module")
async def stdio_upstream(crib: Crib) -> None:
    """A server on standard streams, added as the tool set `stdio`."""
    await crib.add_mcp("stdio", {"command": sys.executable, "args": [str(SDK_SCRIPT)]})


@pytest.mark.usefixtures("upstream")
@pytest.mark.parametrize("mode", ERAS)
async def test_the_official_client_lists_and_calls(crib: Crib, mode: str) -> None:
    async with client_of(crib, mode) as client:
        assert client.server_info.name == "toolcrib"
        assert client.protocol_version == ("2026-07-28" if mode == "auto" else "2025-11-25")
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert {"echo", "steps", "hang"} <= names
        result = await client.call_tool("echo", {"value": "Grüezi \u2028 {}"})
        assert result.content[0].text == "Grüezi \u2028 {}"
        assert result.structured_content == {"result": "Grüezi \u2028 {}"}


@pytest.mark.usefixtures("old_upstream")
@pytest.mark.parametrize("mode", ERAS)
async def test_a_client_of_either_era_uses_a_server_of_the_older_one(crib: Crib, mode: str) -> None:
    async with client_of(crib, mode, "/mcp/old") as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["ancient"]
        result = await client.call_tool("ancient", {"a": [1, None]})
        assert result.content[0].text == '{"a": [1, null]}'


@pytest.mark.usefixtures("stdio_upstream")
@pytest.mark.parametrize("mode", ERAS)
async def test_a_client_of_either_era_uses_a_server_on_standard_streams(crib: Crib, mode: str) -> None:
    async with client_of(crib, mode, "/mcp/stdio") as client:
        assert (await client.call_tool("echo", {"value": "x"})).content[0].text == "x"


@pytest.mark.usefixtures("upstream")
async def test_another_client_implementation_lists_and_calls(crib: Crib) -> None:
    transport = StreamableHttpTransport(f"{crib.url}/mcp/sdk", headers={"X-API-Key": crib.api_key})
    async with FastClient(transport) as client:
        assert "echo" in {tool.name for tool in await client.list_tools()}
        assert (await client.call_tool("echo", {"value": "x"})).structured_content == {"result": "x"}


@pytest.mark.usefixtures("upstream")
@pytest.mark.parametrize("mode", ERAS)
async def test_progress_reaches_the_client_under_its_own_token(crib: Crib, mode: str) -> None:
    seen: list[tuple[float, float | None]] = []

    async def progress(done: float, total: float | None, _message: str | None) -> None:
        seen.append((done, total))

    async with client_of(crib, mode, "/mcp/sdk") as client:
        result = await client.call_tool("steps", {}, progress_callback=progress)
        assert result.content[0].text == "done"
        await until(lambda: len(seen) == 3)
    assert seen == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("mode", ERAS)
async def test_a_cancelled_call_is_cancelled_upstream_and_recorded(crib: Crib, upstream: SdkServer, mode: str) -> None:
    upstream.started.clear()
    upstream.cancelled.clear()
    async with client_of(crib, mode, "/mcp/sdk") as client:
        call = asyncio.create_task(client.call_tool("hang", {}))
        await asyncio.wait_for(upstream.started.wait(), 20)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await asyncio.wait_for(upstream.cancelled.wait(), 20)
        async with asyncio.timeout(20):
            while not await crib.audit(tool="hang", outcome="cancelled"):
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("mode", ERAS)
async def test_clients_hear_that_the_list_of_tools_changed(crib: Crib, mode: str) -> None:
    heard = asyncio.Event()

    async def on_message(message: Any) -> None:
        if "tools/list_changed" in str(
            getattr(message, "method", getattr(getattr(message, "root", None), "method", ""))
        ):
            heard.set()

    async with client_of(crib, mode, message_handler=on_message) as client:
        if mode == "auto":
            listening = client.listen(tools_list_changed=True)
            async with listening as subscription:
                news = asyncio.create_task(anext(aiter(subscription)))
                await crib.add_tool_set("news modern")
                assert "ToolsListChanged" in type(await asyncio.wait_for(news, 20)).__name__
        else:
            await until_listening(crib)
            await crib.add_tool_set("news legacy")
            await asyncio.wait_for(heard.wait(), 20)


async def until_listening(crib: Crib) -> None:
    """Wait until a client's GET stream is open."""
    catalog = crib.parts.deps.catalog
    await until(lambda: bool(catalog._listeners.get(crib.workspace_id)))


@pytest.mark.usefixtures("upstream")
async def test_an_upstreams_own_change_is_synced_and_told(crib: Crib) -> None:
    assert (await crib.call("grow")).json()["data"]["isError"] is False
    async with asyncio.timeout(20):
        while "grown" not in [t["name"] for t in (await crib.rpc("tools/list", path="/mcp/sdk"))["result"]["tools"]]:
            await asyncio.sleep(0.05)


@pytest.mark.usefixtures("upstream")
@pytest.mark.parametrize("mode", ERAS)
async def test_refusals_are_protocol_errors_and_failures_are_results(crib: Crib, mode: str) -> None:
    async with client_of(crib, mode, "/mcp/sdk") as client:
        with pytest.raises(MCPError, match="Unknown tool: nope"):
            await client.call_tool("nope", {})
        broken = await client.call_tool("broken", {})
        assert broken.is_error
        missing = await client.call_tool("echo", {})
        assert missing.is_error
        assert "value" in missing.content[0].text


async def test_a_key_without_the_scope_sees_no_tools(crib: Crib) -> None:
    key = await crib.key("audit:read")
    async with crib.as_(key) as http:
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        response = await http.post("/mcp", json=body, headers={"Accept": "application/json"})
    assert response.status_code == 403
    assert 'scope="tools:call"' in response.headers["www-authenticate"]


@pytest.mark.usefixtures("upstream")
async def test_another_workspace_sees_nothing_of_ours(crib: Crib) -> None:
    key = await crib.other_workspace_key()
    async with client_of(crib, "auto", key=key) as client:
        assert (await client.list_tools()).tools == []
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("echo", {"value": "x"})
    async with crib.as_(key) as http:
        assert (await http.post("/mcp/sdk", json={})).status_code == 404
