"""Streamable HTTP: the shapes an answer can have, right and wrong, and the streams that bring news."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.mcp_client.servers.launch import MakePool, over_http
from gateway.mcp_client.servers.raw_http import Exchange, echo, initialized, legacy, raw_mcp, text, until
from toolcrib.gateway.mcp_client import McpUpstreamError, McpUpstreams

Answer = Callable[[Exchange], Awaitable[None]]


async def outcome(pool: McpUpstreams, answer: Answer, timeout_s: float = 10, **options: Any) -> Any:
    """What a call returns or raises when the server answers it so."""
    async with raw_mcp(legacy(answer)) as server:
        endpoint = over_http(server.url)
        try:
            return await pool.call_tool(endpoint, "echo", b'{"a":1}', timeout_s=timeout_s, **options)
        except McpUpstreamError as error:
            return error
        finally:
            await pool.drop(endpoint.key)


def says(status: int, body: bytes, kind: str = "application/json") -> Answer:
    async def answer(exchange: Exchange) -> None:
        rid = str(exchange.message["id"]).encode()
        exchange.respond(status, body.replace(b"@ID@", rid), content_type=kind)

    return answer


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (200, b"{", "application/json", "mcp.protocol_error"),
        (200, b'{"id":999,"result":{}}', "application/json", "mcp.protocol_error"),
        (200, b'{"id":@ID@,"result":[]}', "application/json", "mcp.protocol_error"),
        (200, b'{"id":@ID@,"result":{"content":["\xff"]}}', "application/json", "mcp.protocol_error"),
        (200, b"<html>", "text/html", "mcp.protocol_error"),
        (200, b"", "text/plain", "mcp.protocol_error"),
        (202, b"", "text/plain", "mcp.protocol_error"),
        (200, b"data: nonsense\n\n", "text/event-stream", "mcp.protocol_error"),
        (200, b": nothing\n\n", "text/event-stream", "mcp.closed"),
        (200, b'{"id":@ID@,"error":{"code":-5,"message":"no"}}', "application/json; charset=utf-8", "mcp.rpc_error"),
        (200, b'{"id":null,"error":{"code":-32700,"message":"no"}}', "application/json", "mcp.rpc_error"),
        (422, b'{"id":@ID@,"error":{"code":-32602,"message":"no"}}', "application/json", "mcp.rpc_error"),
        (200, b'data: {"id":@ID@,"error":{"code":-5,"message":"no"}}\n\n', "text/event-stream", "mcp.rpc_error"),
        (500, b"oops", "text/plain", "mcp.unreachable"),
        (429, b"", "text/plain", "mcp.unreachable"),
        (401, b"", "text/plain", "mcp.unauthorized"),
        (418, b"", "text/plain", "mcp.protocol_error"),
    ],
)
async def test_a_wrong_answer_says_what_is_wrong(
    pool: McpUpstreams, status: int, body: bytes, kind: str, code: str
) -> None:
    error = await outcome(pool, says(status, body, kind))
    assert (type(error), error.code) == (McpUpstreamError, code)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"id":"@ID@","result":{"content":[]}}', "application/json"),
        (b'[{"id":@ID@,"result":{"content":[]}}]', "application/json"),
        (b'data: {"id":@ID@,\r\ndata: "result":{"content":[]}}\r\n\r\n', "text/event-stream; charset=utf-8"),
        (
            b'data: {"method":"any"}\n\ndata: {"id":@ID@,"result":{"content":[]}}\n\n',
            "text/event-stream",
        ),
        (b': x\n\ndata: {"id":7777,"result":{}}\n\ndata: {"id":@ID@,"result":{"content":[]}}\n\n', "text/event-stream"),
    ],
)
async def test_every_right_shape_is_understood(pool: McpUpstreams, body: bytes, kind: str) -> None:
    assert (await outcome(pool, says(200, body, kind))).result == b'{"content":[]}'


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"id":@ID@,"result":{"x":"%b"}}' % (b"x" * 200_000), "application/json"),
        (b'data: {"id":@ID@,"result":{"x":"%b"}}\n\n' % (b"x" * 200_000), "text/event-stream"),
    ],
)
async def test_an_answer_over_the_limit_is_refused(make_pool: MakePool, body: bytes, kind: str) -> None:
    pool = make_pool(max_message_bytes=100_000)
    assert (await outcome(pool, says(200, body, kind))).code == "mcp.too_large"


async def test_silence_is_a_timeout(pool: McpUpstreams) -> None:
    async def answer(exchange: Exchange) -> None:
        if exchange.method == "tools/call":
            await exchange.hang()

    error = await outcome(pool, answer, 0.2)
    assert (error.code, "tools/call" in error.message) == ("mcp.timeout", True)


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_an_answer_that_trickles_is_a_timeout_all_the_same(pool: McpUpstreams, kind: str) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n\r\n".encode())
        gone = asyncio.create_task(exchange.hang())
        while not gone.done():
            exchange.writer.write(b" ")
            await asyncio.wait({gone}, timeout=0.02)

    error = await outcome(pool, answer, 0.3)
    assert error.code == "mcp.timeout"


async def test_an_answer_that_breaks_off_is_told(pool: McpUpstreams) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"id"')
        await exchange.end()

    assert (await outcome(pool, answer)).code == "mcp.protocol_error"


async def test_a_cancelled_call_is_cancelled_at_the_server(pool: McpUpstreams) -> None:
    started = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        started.set()
        await exchange.hang()

    async with raw_mcp(legacy(answer)) as server:
        call = asyncio.create_task(pool.call_tool(over_http(server.url), "echo", b"{}", timeout_s=60))
        await started.wait()
        call.cancel()
        await until(lambda: server.methods()[-1] == "notifications/cancelled")
        (asked,) = [e for e in server.seen if e.method == "tools/call"]
        assert server.seen[-1].params == {"requestId": asked.message["id"]}
        await asyncio.wait_for(asked.abandoned.wait(), 10)


# -- event streams -----------------------------------------------------------------------------------------------------


async def test_what_the_server_asks_on_the_stream_is_answered(pool: McpUpstreams) -> None:
    async def answer(exchange: Exchange) -> None:
        if not exchange.method:
            exchange.respond(202)
            return
        exchange.begin()
        exchange.event(id="p", method="ping")
        exchange.event(id=5, method="sampling/createMessage", params={})
        await until(lambda: len([e for e in server.seen if not e.method and e.message]) == 2)
        exchange.event(id=exchange.message["id"], result=text("done"))
        await exchange.end()

    async with raw_mcp(legacy(answer)) as server:
        await pool.call_tool(over_http(server.url), "echo", b"{}", timeout_s=10)
        ping, refusal = [e.message for e in server.seen if not e.method and e.message]
        assert ping == {"jsonrpc": "2.0", "id": "p", "result": {}}
        assert (refusal["id"], refusal["error"]["code"]) == (5, -32601)


async def test_the_answer_does_not_wait_for_the_end_of_its_stream(pool: McpUpstreams) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.event(id=exchange.message["id"], result=text("done"))
        await exchange.hang()

    async with raw_mcp(legacy(answer)) as server:
        answers = await pool.call_tool(over_http(server.url), "echo", b"{}", timeout_s=2)
        assert not answers.is_error
        await pool.close()
        await asyncio.wait_for(server.seen[-1].abandoned.wait(), 10)


async def test_a_stream_that_ends_early_is_taken_up_where_it_ended(pool: McpUpstreams) -> None:
    async def answer(exchange: Exchange) -> None:
        seen = exchange.headers.get("last-event-id")
        exchange.begin()
        if seen is None:
            exchange.event(event_id="a", retry=10)
        elif seen == "a":
            token = {"progressToken": asked(), "progress": 1}
            exchange.event(event_id="b", method="notifications/progress", params=token)
        else:
            exchange.event(event_id="c", id=asked(), result=text("done"))
        await exchange.end()

    def asked() -> int:
        (call,) = [e for e in server.seen if e.method == "tools/call"]
        return int(call.message["id"])

    seen: list[bytes] = []
    async with raw_mcp(legacy(answer, session="s")) as server:
        result = await pool.call_tool(over_http(server.url), "echo", b"{}", timeout_s=10, on_progress=seen.append)
        assert b"done" in result.result
        assert len(seen) == 1
        resumed = [e for e in server.seen if "last-event-id" in e.headers]
        assert [e.headers["last-event-id"] for e in resumed] == ["a", "b"]
        assert {e.headers["mcp-session-id"] for e in resumed} == {"s"}
        await pool.close()


async def test_progress_of_something_else_is_not_passed_on(pool: McpUpstreams) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.begin()
        for token in (exchange.message["id"], str(exchange.message["id"]), -1, "x", None, [1]):
            exchange.event(method="notifications/progress", params={"progressToken": token, "progress": 1})
        exchange.event(id=exchange.message["id"], result=text("done"))
        await exchange.end()

    seen: list[bytes] = []
    assert not (await outcome(pool, answer, on_progress=seen.append)).is_error
    assert len(seen) == 2


async def test_a_stream_that_leads_nowhere_is_given_up(pool: McpUpstreams) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.event(event_id="a", retry=1)
        await exchange.end()

    assert (await outcome(pool, answer)).code == "mcp.closed"


# -- listening ---------------------------------------------------------------------------------------------------------


async def test_news_on_the_get_stream_is_told_and_the_stream_ends_with_the_pool(make_pool: MakePool) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    pool = make_pool(on_tools_changed=told.put_nowait)

    async def answer(exchange: Exchange) -> None:
        if initialized(exchange, session="s", listChanged=True):
            return
        if exchange.http_method == "GET":
            exchange.begin()
            exchange.event(id="p", method="ping")
            exchange.event(method="notifications/tools/list_changed")
            exchange.event(method="notifications/tools/list_changed")
            await exchange.hang()
        elif exchange.method:
            await echo(exchange)
        else:
            exchange.respond(202)

    async with raw_mcp(answer) as server:
        endpoint = over_http(server.url)
        await pool.call_tool(endpoint, "echo", b"{}", timeout_s=10)
        assert await asyncio.wait_for(told.get(), 10) == endpoint.key
        assert told.empty()
        (get,) = [e for e in server.seen if e.http_method == "GET"]
        assert (get.headers["accept"], get.headers["mcp-session-id"]) == ("text/event-stream", "s")
        assert any(e.message.get("id") == "p" and "result" in e.message for e in server.seen)
        await pool.close()
        await asyncio.wait_for(get.abandoned.wait(), 10)


async def test_listening_is_taken_up_again_and_an_open_stream_is_no_use_of_the_session(make_pool: MakePool) -> None:
    pool = make_pool(idle_s=0.3)

    async def answer(exchange: Exchange) -> None:
        if initialized(exchange, session="s", listChanged=True):
            return
        if exchange.http_method != "GET":
            await echo(exchange)
        elif "last-event-id" not in exchange.headers:
            exchange.begin()
            exchange.event(event_id="n1", retry=1)
            await exchange.end()
        else:
            exchange.begin()
            await exchange.hang()

    async with raw_mcp(answer) as server:
        await pool.call_tool(over_http(server.url), "echo", b"{}", timeout_s=10)
        await until(lambda: "DELETE" in server.methods())  # idle, though the stream is open
        await pool.close()


@pytest.mark.parametrize("session", [None, "s"])
async def test_a_server_without_a_listening_stream_is_not_asked_again(pool: McpUpstreams, session: str | None) -> None:
    async def answer(exchange: Exchange) -> None:
        if initialized(exchange, session=session, listChanged=True):
            return
        if exchange.http_method == "GET":
            exchange.respond(405)
        else:
            await echo(exchange)

    async with raw_mcp(answer) as server:
        endpoint = over_http(server.url)
        await pool.call_tool(endpoint, "echo", b"{}", timeout_s=10)
        await until(lambda: not any(task.get_name().startswith("mcp ") for task in asyncio.all_tasks()))
        assert server.methods().count("GET") == (session is not None)
        await pool.close()


# -- errors are the caller's own ---------------------------------------------------------------------------------------


async def test_rpc_error_data_is_kept_raw(pool: McpUpstreams) -> None:
    error = await outcome(pool, says(200, b'{"id":@ID@,"error":{"code":-5,"message":"no","data": {"a" : 1.50}}}'))
    assert json.loads(error.rpc_data) == {"a": 1.5}
    assert error.rpc_data == b'{"a" : 1.50}'


async def test_pages_of_different_sizes_are_read_over_http(pool: McpUpstreams) -> None:
    async def answer(exchange: Exchange) -> None:
        page = int(exchange.params.get("cursor", "0"))
        tools = [{"name": f"t{page}-{n}", "inputSchema": {}} for n in range(page)]
        exchange.reply(result={"tools": tools, "nextCursor": str(page + 1) if page < 4 else ""})

    async with raw_mcp(legacy(answer)) as server:
        assert len((await pool.list_tools(over_http(server.url), timeout_s=10)).tools) == 10


async def test_dropping_an_endpoint_lets_its_calls_finish(pool: McpUpstreams) -> None:
    release = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await release.wait()
        await echo(exchange)

    async with raw_mcp(legacy(answer)) as server:
        endpoint = over_http(server.url)
        call = asyncio.create_task(pool.call_tool(endpoint, "echo", b'{"a":1}', timeout_s=10))
        await until(lambda: "tools/call" in server.methods())
        await pool.drop(endpoint.key)
        release.set()
        assert b"a" in (await call).result
