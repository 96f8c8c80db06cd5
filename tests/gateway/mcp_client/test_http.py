"""Streamable HTTP against servers of the official SDK, in both eras and every mode, and against raw ones."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import mcp.types as types
import pytest
from fastmcp import FastMCP
from mcp.server.lowlevel import Server

from gateway.mcp_client.servers.launch import MakePool, failure, over_http, serving
from gateway.mcp_client.servers.raw_http import Exchange, echo, initialized, legacy, raw_mcp, text, until
from gateway.mcp_client.servers.sdk import SdkServer
from toolcrib.gateway.mcp_client import McpUpstreams

MODES = [(json_response, stateless) for json_response in (True, False) for stateless in (True, False)]


def handshake_only(app: Any) -> Any:
    """The same server without the modern era, as the SDK was before 2.0."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if (b"mcp-protocol-version", b"2026-07-28") in scope.get("headers", ()):
            headers = [(b"content-type", b"application/json")]
            error = {"code": -32600, "message": "Bad Request: Unsupported protocol version"}
            body = json.dumps({"jsonrpc": "2.0", "id": "server-error", "error": error}).encode()
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        else:
            await app(scope, receive, send)

    return wrapped


@contextlib.asynccontextmanager
async def sdk_over_http(*, modern: bool = True, **options: Any) -> AsyncIterator[tuple[SdkServer, str]]:
    server = SdkServer()
    app = server.mcp.streamable_http_app(**options)
    async with serving(app if modern else handshake_only(app)) as url:
        yield server, f"{url}/mcp"


# -- real servers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize(("json_response", "stateless"), MODES)
async def test_a_server_of_the_official_sdk_is_listed_and_called(
    pool: McpUpstreams, *, modern: bool, json_response: bool, stateless: bool
) -> None:
    async with sdk_over_http(modern=modern, json_response=json_response, stateless_http=stateless) as (_, url):
        endpoint = over_http(url)
        listed = await pool.list_tools(endpoint, timeout_s=10)
        assert listed.protocol_version == ("2026-07-28" if modern else "2025-11-25")
        assert (listed.server_name, listed.server_version) == ("sdk", "2.3")
        assert len(listed.tools) == 5
        answers = await asyncio.gather(
            *[pool.call_tool(endpoint, "echo", b'{"value":%d}' % n, timeout_s=10) for n in range(20)]
        )
        assert [json.loads(a.result)["structuredContent"]["result"] for a in answers] == [str(n) for n in range(20)]
        assert (await pool.call_tool(endpoint, "broken", b"{}", timeout_s=10)).is_error
        await pool.close()


@pytest.mark.parametrize("modern", [True, False])
async def test_progress_arrives_while_the_call_runs(pool: McpUpstreams, *, modern: bool) -> None:
    async with sdk_over_http(modern=modern) as (_, url):
        seen: list[bytes] = []
        await pool.call_tool(over_http(url), "steps", b"{}", timeout_s=10, on_progress=seen.append)
        assert [json.loads(params)["progress"] for params in seen] == [0, 1, 2]
        await pool.close()


@pytest.mark.parametrize("modern", [True, False])
async def test_cancelling_a_call_stops_the_tool(pool: McpUpstreams, *, modern: bool) -> None:
    async with sdk_over_http(modern=modern) as (server, url):
        call = asyncio.create_task(pool.call_tool(over_http(url), "hang", b"{}", timeout_s=60))
        await asyncio.wait_for(server.started.wait(), 10)
        call.cancel()
        await asyncio.wait_for(server.cancelled.wait(), 10)
        with pytest.raises(asyncio.CancelledError):
            await call
        await pool.close()


@pytest.mark.parametrize("modern", [True, False])
async def test_a_call_that_takes_too_long_stops_the_tool(pool: McpUpstreams, *, modern: bool) -> None:
    async with sdk_over_http(modern=modern) as (server, url):
        endpoint = over_http(url)
        await pool.call_tool(endpoint, "echo", b'{"value":1}', timeout_s=10)
        error = await failure(pool.call_tool(endpoint, "hang", b"{}", timeout_s=0.2))
        assert error.code == "mcp.timeout"
        await asyncio.wait_for(server.cancelled.wait(), 10)
        await pool.close()


@pytest.mark.parametrize("json_response", [True, False])
async def test_the_modern_era_tells_when_tools_change(make_pool: MakePool, *, json_response: bool) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    pool = make_pool(on_tools_changed=told.put_nowait)
    async with sdk_over_http(json_response=json_response) as (_, url):
        endpoint = over_http(url)
        await pool.list_tools(endpoint, timeout_s=10)
        while told.empty():  # the subscription is opened in the background, so the first changes may come too early
            await pool.call_tool(endpoint, "grow", b"{}", timeout_s=10)
        assert await told.get() == endpoint.key
        assert "grown" in [tool["name"] for tool in (await pool.list_tools(endpoint, timeout_s=10)).tools]
        await pool.close()


async def test_a_session_that_the_sdk_has_expired_is_opened_again(pool: McpUpstreams) -> None:
    async with sdk_over_http(modern=False, session_idle_timeout=0.05) as (server, url):
        endpoint = over_http(url)
        await pool.call_tool(endpoint, "echo", b'{"value":1}', timeout_s=10)
        await until(lambda: not server.mcp.session_manager._server_instances)
        answer = await pool.call_tool(endpoint, "echo", b'{"value":2}', timeout_s=10)
        assert json.loads(answer.result)["structuredContent"] == {"result": "2"}
        await pool.close()


async def test_a_fastmcp_server_works(pool: McpUpstreams) -> None:
    fast = FastMCP("fast")

    @fast.tool
    def add(a: int, b: int) -> int:
        return a + b

    async with serving(fast.http_app()) as url:
        answer = await pool.call_tool(over_http(f"{url}/mcp"), "add", b'{"a":2,"b":3}', timeout_s=10)
        assert json.loads(answer.result)["structuredContent"] == {"result": 5}
        await pool.close()


async def test_arguments_that_a_tool_wants_in_headers_are_sent_there(pool: McpUpstreams) -> None:
    region = {"type": "string", "x-mcp-header": "Region"}
    schema = {"type": "object", "properties": {"region": region}}
    good = types.Tool(name="größe", input_schema=schema)
    bad = types.Tool(name="bad", input_schema={"type": "object", "properties": {"r": {**region, "type": "number"}}})

    async def list_tools(ctx: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[good, bad])

    async def call_tool(ctx: Any, params: Any) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(type="text", text=params.arguments["region"])])

    server = Server("low", version="1", on_list_tools=list_tools, on_call_tool=call_tool)
    async with serving(server.streamable_http_app(json_response=True)) as url:
        endpoint = over_http(f"{url}/mcp")
        answer = await pool.call_tool(endpoint, "größe", '{"region":"süd"}'.encode(), timeout_s=10)
        assert json.loads(answer.result)["content"][0]["text"] == "süd"
        listed = await pool.list_tools(endpoint, timeout_s=10)
        assert [tool["name"] for tool in listed.tools] == ["größe"]
        assert "x-mcp-header" in listed.problems[0]
        await pool.close()


# -- opening -----------------------------------------------------------------------------------------------------------


async def test_a_call_is_one_request(pool: McpUpstreams) -> None:
    async with raw_mcp(legacy(echo)) as server:
        endpoint = over_http(
            server.url, headers=(("Authorization", "Bearer t"), ("Accept", "x"), ("MCP-Session-Id", "y"))
        )
        for n in range(3):
            answer = await pool.call_tool(endpoint, "echo", b'{"n":%d}' % n, timeout_s=10)
            assert b'\\"n\\": %d' % n in answer.result
        assert server.methods() == [
            "server/discover",
            "initialize",
            "notifications/initialized",
            *["tools/call"] * 3,
        ]
        assert server.served.connections == 1
        sent = server.seen[-1].headers
        assert sent["authorization"] == "Bearer t"
        assert sent["accept"] == "application/json, text/event-stream"
        assert sent["mcp-protocol-version"] == "2025-11-25"
        assert "mcp-session-id" not in sent
        assert "mcp-protocol-version" not in server.seen[1].headers


async def test_a_modern_call_carries_its_envelope_and_routing_headers(pool: McpUpstreams) -> None:
    async def answer(exchange: Exchange) -> None:
        if exchange.method == "server/discover":
            exchange.reply(result={"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}})
        else:
            exchange.reply(result={**text(exchange.params["_meta"]), "resultType": "complete"})

    async with raw_mcp(answer) as server:
        await pool.call_tool(over_http(server.url), " odd name", b'{"a":1}', timeout_s=10)
        sent = server.seen[-1]
        assert sent.headers["mcp-protocol-version"] == "2026-07-28"
        assert sent.headers["mcp-method"] == "tools/call"
        assert sent.headers["mcp-name"] == "=?base64?IG9kZCBuYW1l?="
        assert set(sent.params["_meta"]) == {
            "io.modelcontextprotocol/protocolVersion",
            "io.modelcontextprotocol/clientCapabilities",
            "io.modelcontextprotocol/clientInfo",
        }


def probe_refused(status: int, body: bytes, kind: str) -> Callable[[Exchange], Awaitable[None]]:
    async def answer(exchange: Exchange) -> None:
        if exchange.method == "server/discover":
            exchange.respond(status, body, content_type=kind)
        elif not initialized(exchange, "2024-11-05"):
            await echo(exchange)

    return answer


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"No session"}}', "application/json"),
        (404, b"<html>", "text/html"),
        (403, b"", "text/plain"),
        (500, b"Internal Server Error", "text/plain"),
        (202, b"", "text/plain"),
        (200, b"not json", "application/json"),
        (200, b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"?"}}', "application/json"),
        (200, b'{"jsonrpc":"2.0","id":1,"result":{}}', "application/json"),
        (200, b'{"jsonrpc":"2.0","id":1,"result":{"supportedVersions":["2025-11-25"]}}', "application/json"),
        (400, b'{"id":1,"error":{"code":-32022,"message":"","data":{"supported":["2025-06-18"]}}}', "application/json"),
    ],
)
async def test_whatever_an_old_server_says_to_the_probe_it_is_initialised(
    pool: McpUpstreams, status: int, body: bytes, kind: str
) -> None:
    async with raw_mcp(probe_refused(status, body, kind)) as server:
        await pool.call_tool(over_http(server.url), "echo", b"{}", timeout_s=10)
        assert server.seen[-1].headers["mcp-protocol-version"] == "2024-11-05"


async def test_an_old_server_that_hangs_on_the_probe_is_initialised(make_pool: MakePool) -> None:
    async def answer(exchange: Exchange) -> None:
        if exchange.method == "server/discover":
            await exchange.hang()
        elif not initialized(exchange):
            await echo(exchange)

    async with raw_mcp(answer) as server:
        await make_pool(open_timeout_s=2).call_tool(over_http(server.url), "echo", b"{}", timeout_s=10)


async def test_a_server_of_unknown_versions_only_is_refused_by_name(pool: McpUpstreams) -> None:
    body = b'{"id":1,"error":{"code":-32022,"message":"","data":{"supported":["2030-01-01"]}}}'
    async with raw_mcp(probe_refused(400, body, "application/json")) as server:
        error = await failure(pool.call_tool(over_http(server.url), "echo", b"{}", timeout_s=10))
        assert (error.code, "2030-01-01" in error.message) == ("mcp.protocol_error", True)
        assert server.methods() == ["server/discover"]


async def test_concurrent_first_calls_open_one_session_and_share_its_failure(pool: McpUpstreams) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.respond(503, retry_after="7")

    async with raw_mcp(answer) as server:
        endpoint = over_http(server.url)
        calls = [failure(pool.call_tool(endpoint, "echo", b"{}", timeout_s=10)) for _ in range(10)]
        errors = await asyncio.gather(*calls)
        assert {(error.code, error.details["status"]) for error in errors} == {("mcp.unreachable", 503)}
        assert len({id(error) for error in errors}) == 10
        assert server.methods() == ["server/discover", "initialize"]
        await failure(pool.call_tool(endpoint, "echo", b"{}", timeout_s=10))
        assert len(server.seen) == 4  # the next call tries again


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_credentials_are_told_with_where_to_get_some(pool: McpUpstreams, status: int) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.respond(status, b"secret words", www_authenticate='Bearer resource_metadata="https://x/y"')

    async with raw_mcp(answer) as server:
        error = await failure(pool.call_tool(over_http(server.url), "echo", b"{}", timeout_s=10))
        assert error.code == "mcp.unauthorized"
        assert error.details == {"status": status, "www_authenticate": 'Bearer resource_metadata="https://x/y"'}
        assert "secret" not in error.message


async def test_nobody_there_is_unreachable(pool: McpUpstreams) -> None:
    async with raw_mcp(echo) as server:
        endpoint = over_http(server.url)
    error = await failure(pool.call_tool(endpoint, "echo", b"{}", timeout_s=10))
    assert error.code == "mcp.unreachable"


async def test_a_redirect_within_the_origin_is_followed_once_for_all(pool: McpUpstreams) -> None:
    async def answer(exchange: Exchange) -> None:
        if exchange.path == "/mcp":
            exchange.respond(307, location="/mcp/")
        elif not initialized(exchange):
            await echo(exchange)

    async with raw_mcp(answer) as server:
        for _ in range(3):
            await pool.call_tool(over_http(server.url, headers=(("x-key", "k"),)), "echo", b"{}", timeout_s=10)
        assert [e.path for e in server.seen if e.method == "tools/call"] == ["/mcp/"] * 3


@pytest.mark.parametrize(
    ("location", "named"),
    [
        ("https://elsewhere.example/mcp?token=t", "elsewhere.example"),
        ("http://[token", "the server"),
        ("", "the server"),
    ],
)
async def test_a_redirect_elsewhere_is_not_followed(pool: McpUpstreams, location: str, named: str) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.respond(308 if location else 302, location=location)

    async with raw_mcp(answer) as server:
        error = await failure(pool.call_tool(over_http(server.url), "echo", b"{}", timeout_s=10))
        assert error.code == "mcp.protocol_error"
        assert named in error.message
        assert "token" not in error.message


async def test_a_session_id_that_no_header_can_carry_is_refused(pool: McpUpstreams) -> None:
    async def answer(exchange: Exchange) -> None:
        initialized(exchange, session="two words")

    async with raw_mcp(answer) as server:
        error = await failure(pool.call_tool(over_http(server.url), "echo", b"{}", timeout_s=10))
        assert (error.code, "malformed id" in error.message) == ("mcp.protocol_error", True)


# -- sessions ----------------------------------------------------------------------------------------------------------


class Sessions:
    """A stateful handshake server that can forget its sessions."""

    def __init__(self, refusal: tuple[int, bytes] = (404, b"Session not found")) -> None:
        self.refusal = refusal
        self.opened = 0
        self.known: set[str] = set()
        self.calls = 0

    async def answer(self, exchange: Exchange) -> None:
        if exchange.method == "initialize":
            self.opened += 1
            self.known.add(f"s{self.opened}")
            initialized(exchange, session=f"s{self.opened}")
        elif exchange.method == "tools/call":
            if exchange.headers.get("mcp-session-id") in self.known:
                self.calls += 1
                await echo(exchange)
            else:
                exchange.respond(self.refusal[0], self.refusal[1])
        elif not initialized(exchange):
            exchange.respond(405)


@pytest.mark.parametrize("refusal", [(404, b""), (400, b"Bad Request: No valid session ID provided")])
async def test_a_forgotten_session_is_opened_again_and_the_call_repeated(
    make_pool: MakePool, refusal: tuple[int, bytes]
) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    pool, sessions = make_pool(on_tools_changed=told.put_nowait), Sessions(refusal)
    async with raw_mcp(sessions.answer) as server:
        endpoint = over_http(server.url)
        await pool.call_tool(endpoint, "echo", b"{}", timeout_s=10)
        sessions.known.clear()
        calls = [pool.call_tool(endpoint, "echo", b'{"n":%d}' % n, timeout_s=10) for n in range(10)]
        answers = await asyncio.gather(*calls)
        assert all(b'\\"n\\": %d}' % n in answers[n].result for n in range(10))
        assert (sessions.opened, sessions.calls) == (2, 11)
        assert server.methods().count("server/discover") == 1  # which era it is was remembered
        assert await asyncio.wait_for(told.get(), 10) == endpoint.key
        await pool.close()
        assert server.methods().count("DELETE") == 1  # of the session that the server knows


async def test_a_server_that_forgets_every_session_is_asked_twice_only(pool: McpUpstreams) -> None:
    async def answer(exchange: Exchange) -> None:
        if not initialized(exchange, session="s"):
            exchange.respond(404)

    async with raw_mcp(answer) as server:
        error = await failure(pool.call_tool(over_http(server.url), "echo", b"{}", timeout_s=10))
        assert error.details["status"] == 404
        assert server.methods().count("tools/call") == 2


async def test_a_server_replaced_by_one_of_the_other_era_is_met_anew(pool: McpUpstreams) -> None:
    modern = True

    async def answer(exchange: Exchange) -> None:
        if exchange.headers.get("mcp-protocol-version") == "2026-07-28":
            if not modern:
                exchange.error(-32000, "Bad Request: Unsupported protocol version", status=400)
            elif exchange.method == "server/discover":
                exchange.reply(result={"supportedVersions": ["2026-07-28"], "capabilities": {}})
            else:
                await echo(exchange)
        elif modern:
            exchange.error(-32022, "Unsupported", status=400, data={"supported": ["2026-07-28"]})
        elif not initialized(exchange):
            await echo(exchange)

    async with raw_mcp(answer) as server:
        endpoint = over_http(server.url)
        for modern in (True, False, True):
            await pool.call_tool(endpoint, "echo", b"{}", timeout_s=10)
            assert ("mcp-method" in server.seen[-1].headers) is modern


async def test_closing_ends_the_session_and_does_not_wait_for_ever(make_pool: MakePool) -> None:
    async def answer(exchange: Exchange) -> None:
        if exchange.http_method == "DELETE":
            await exchange.hang()
        elif exchange.http_method == "GET":
            exchange.respond(405)
        elif not initialized(exchange, session="s"):
            await echo(exchange)

    pool = make_pool()
    async with raw_mcp(answer) as server:
        await pool.call_tool(over_http(server.url), "echo", b"{}", timeout_s=10)
        await asyncio.wait_for(pool.close(), 4)
        assert server.methods()[-1] == "DELETE"


async def test_an_idle_session_is_ended(make_pool: MakePool) -> None:
    pool, sessions = make_pool(idle_s=0.05), Sessions()
    async with raw_mcp(sessions.answer) as server:
        await pool.call_tool(over_http(server.url), "echo", b"{}", timeout_s=10)
        await until(lambda: "DELETE" in server.methods())
        await pool.close()
