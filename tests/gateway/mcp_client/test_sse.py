"""The HTTP+SSE transport of 2024-11-05, and how `auto` finds its way to it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.mcp_client.servers.launch import MakePool, failure, over_http, serving
from gateway.mcp_client.servers.raw_http import Exchange, raw_mcp, text, until
from gateway.mcp_client.servers.sdk import SdkServer
from toolcrib.gateway.mcp_client import McpUpstreams


@pytest.fixture
async def sdk() -> AsyncIterator[tuple[SdkServer, str]]:
    server = SdkServer()
    async with serving(server.mcp.sse_app()) as url:
        yield server, f"{url}/sse"


@pytest.mark.parametrize("transport", ["auto", "sse"])
async def test_a_server_of_the_official_sdk_is_listed_and_called(
    pool: McpUpstreams, sdk: tuple[SdkServer, str], transport: str
) -> None:
    endpoint = over_http(sdk[1], transport)
    listed = await pool.list_tools(endpoint, timeout_s=10)
    assert (listed.protocol_version, listed.server_name, len(listed.tools)) == ("2025-11-25", "sdk", 5)
    calls = [pool.call_tool(endpoint, "echo", b'{"value":%d}' % n, timeout_s=10) for n in range(20)]
    answers = await asyncio.gather(*calls)
    assert [json.loads(a.result)["structuredContent"]["result"] for a in answers] == [str(n) for n in range(20)]
    seen: list[bytes] = []
    await pool.call_tool(endpoint, "steps", b"{}", timeout_s=10, on_progress=seen.append)
    assert len(seen) == 3
    await pool.close()


async def test_cancelling_a_call_stops_the_tool(pool: McpUpstreams, sdk: tuple[SdkServer, str]) -> None:
    server, url = sdk
    call = asyncio.create_task(pool.call_tool(over_http(url, "sse"), "hang", b"{}", timeout_s=60))
    await asyncio.wait_for(server.started.wait(), 10)
    call.cancel()
    await asyncio.wait_for(server.cancelled.wait(), 10)
    with pytest.raises(asyncio.CancelledError):
        await call
    await pool.close()


class RawSse:
    """A server whose stream and messages the test controls."""

    def __init__(self, target: str = "/messages?sid=") -> None:
        self.target = target
        self.forgotten: set[str] = set()
        self.streams: list[Exchange] = []
        self.post_status = 202
        self.hold_posts = False

    async def answer(self, exchange: Exchange) -> None:
        if exchange.http_method == "GET":
            exchange.begin()
            exchange.writer.write(f"event: endpoint\ndata: {self.target}{len(self.streams)}\n\n".encode())
            self.streams.append(exchange)
            await exchange.hang()
        elif exchange.path == "/mcp":
            exchange.respond(405)
        elif exchange.method == "initialize":
            exchange.respond(202)
            info = {"name": "old", "version": "1"}
            self.send(exchange, result={"protocolVersion": "2024-11-05", "capabilities": {}, "serverInfo": info})
        elif exchange.method != "tools/call":
            exchange.respond(202)
        elif exchange.path in self.forgotten:
            exchange.respond(404)
        elif self.post_status != 202:
            exchange.respond(self.post_status)
        else:
            await self.call(exchange)

    async def call(self, exchange: Exchange) -> None:
        self.send(exchange, result=text(exchange.params["arguments"]))
        if self.hold_posts:
            await exchange.hang()
        else:
            exchange.respond(202)

    def send(self, exchange: Exchange, **members: Any) -> None:
        self.streams[-1].event(id=exchange.message["id"], **members)


async def test_the_stream_is_found_after_the_post_was_refused_and_remembered(pool: McpUpstreams) -> None:
    raw = RawSse()
    async with raw_mcp(raw.answer) as server:
        endpoint = over_http(server.url, headers=(("authorization", "Bearer t"),))
        assert b"a" in (await pool.call_tool(endpoint, "echo", b'{"a":1}', timeout_s=10)).result
        first = server.methods()
        assert first[:3] == ["server/discover", "initialize", "GET"]
        assert {e.headers["authorization"] for e in server.seen} == {"Bearer t"}
        await raw.streams[-1].end()
        await until(raw.streams[0].abandoned.is_set)
        for _ in range(2):
            await pool.call_tool(endpoint, "echo", b"{}", timeout_s=10)
        assert server.methods()[len(first) :][0] == "GET"
        assert len(raw.streams) == 2
        await pool.close()


async def test_neither_transport_says_both_reasons(pool: McpUpstreams) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.respond(404)

    async with raw_mcp(answer) as server:
        error = await failure(pool.call_tool(over_http(server.url), "echo", b"{}", timeout_s=10))
        assert error.code == "mcp.protocol_error"
        assert "refused initialize with HTTP 404" in error.message
        assert "refused an event stream with HTTP 404" in error.message


async def test_an_answer_before_the_end_of_its_post_counts(pool: McpUpstreams) -> None:
    raw = RawSse()
    raw.hold_posts = True
    async with raw_mcp(raw.answer) as server:
        assert await pool.call_tool(over_http(server.url, "sse"), "echo", b"{}", timeout_s=5)
        await pool.close()


async def test_messages_go_to_the_streams_own_origin_only(pool: McpUpstreams) -> None:
    async with raw_mcp(RawSse("http://elsewhere.example/messages?token=t").answer) as server:
        error = await failure(pool.call_tool(over_http(server.url, "sse"), "echo", b"{}", timeout_s=5))
        assert error.code == "mcp.protocol_error"
        assert "elsewhere.example" in error.message
        assert "token" not in error.message


async def test_the_end_of_the_stream_fails_what_is_in_flight_and_the_next_call_opens_another(
    pool: McpUpstreams,
) -> None:
    raw = RawSse()
    async with raw_mcp(raw.answer) as server:
        endpoint = over_http(server.url, "sse")
        await pool.call_tool(endpoint, "echo", b"{}", timeout_s=10)
        raw.send = lambda exchange, **members: None  # type: ignore[method-assign]
        waiting = asyncio.create_task(failure(pool.call_tool(endpoint, "echo", b"{}", timeout_s=30)))
        await until(lambda: server.methods().count("tools/call") == 2)
        await raw.streams[-1].end()
        assert (await waiting).code == "mcp.closed"
        del raw.send
        await pool.call_tool(endpoint, "echo", b"{}", timeout_s=10)
        await pool.close()


async def test_a_session_that_the_server_forgot_is_opened_again(pool: McpUpstreams) -> None:
    raw = RawSse()
    async with raw_mcp(raw.answer) as server:
        endpoint = over_http(server.url, "sse")
        await pool.call_tool(endpoint, "echo", b"{}", timeout_s=10)
        raw.forgotten.add("/messages?sid=0")
        assert b"a" in (await pool.call_tool(endpoint, "echo", b'{"a":1}', timeout_s=10)).result
        assert len(raw.streams) == 2
        await pool.close()


@pytest.mark.parametrize(("status", "code"), [(401, "mcp.unauthorized"), (500, "mcp.unreachable")])
async def test_a_refused_message_fails_its_call(pool: McpUpstreams, status: int, code: str) -> None:
    raw = RawSse()
    raw.post_status = status
    async with raw_mcp(raw.answer) as server:
        assert (await failure(pool.call_tool(over_http(server.url, "sse"), "echo", b"{}", timeout_s=5))).code == code
        await pool.close()


async def test_a_dead_connection_is_found_out_after_a_timeout(make_pool: MakePool) -> None:
    pool, raw = make_pool(liveness_s=0.1), RawSse()
    async with raw_mcp(raw.answer) as server:
        endpoint = over_http(server.url, "sse")
        await pool.call_tool(endpoint, "echo", b"{}", timeout_s=10)
        raw.send = lambda exchange, **members: None  # type: ignore[method-assign]
        assert (await failure(pool.call_tool(endpoint, "echo", b"{}", timeout_s=0.1))).code == "mcp.timeout"
        await asyncio.wait_for(raw.streams[0].abandoned.wait(), 10)
        del raw.send
        await pool.call_tool(endpoint, "echo", b"{}", timeout_s=10)
        await pool.close()


@pytest.mark.parametrize(
    ("first", "code"),
    [(b"data: " + b"x" * 200_000, "mcp.too_large"), (b"", "mcp.closed"), (None, "mcp.timeout")],
)
async def test_a_stream_without_an_address_is_refused(make_pool: MakePool, first: bytes | None, code: str) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.begin()
        if first is None:
            await exchange.hang()
        else:
            exchange.writer.write(first)
            await exchange.end()

    async with raw_mcp(answer) as server:
        pool = make_pool(max_message_bytes=100_000, open_timeout_s=0.2)
        error = await failure(pool.call_tool(over_http(server.url, "sse"), "echo", b"{}", timeout_s=5))
        assert error.code == code
        await pool.close()
