"""How answers reach the wire: a head goes out with the first of its body, and never waits for what does not come."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from toolcrib.core.web_server import web_server, web_server_socket

DEADLINE_S = 10.0
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def connected(app: ASGIApp) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server of the application."""
    sock = web_server_socket("127.0.0.1", 0)
    server = web_server(app, grace_s=1)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection(*sock.getsockname())
            yield reader, writer
            writer.close()
    finally:
        server.should_exit = True
        await task


def answers(*pieces: bytes, promised: int | None = None, status: int = 200, go: asyncio.Event | None = None) -> ASGIApp:
    """Answers with these pieces of a body, all but the first when `go` is set."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [] if promised is None else [(b"content-length", b"%d" % promised)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for i, piece in enumerate(pieces):
            if i and go is not None:
                await go.wait()
            await send({"type": "http.response.body", "body": piece, "more_body": i < len(pieces) - 1})

    return app


async def test_head_and_body_arrive_together():
    async with connected(answers(b"hello", promised=5)) as (reader, writer):
        for _ in range(20):
            writer.write(GET)
            assert (await reader.read(65536)).endswith(b"\r\n\r\nhello")


async def test_the_first_of_a_body_does_not_wait_for_the_rest():
    go = asyncio.Event()
    async with connected(answers(b"HTTP/1.1 first", b"HTTP/1.1 second", b"end", promised=32, go=go)) as (
        reader,
        writer,
    ):
        writer.write(GET)
        assert await reader.readuntil(b"first")
        go.set()
        assert await reader.readexactly(18) == b"HTTP/1.1 secondend"


async def test_the_head_of_a_stream_does_not_wait_for_its_body():
    go = asyncio.Event()
    async with connected(answers(b"", b"later", go=go)) as (reader, writer):
        writer.write(GET)
        assert b"transfer-encoding: chunked" in await reader.readuntil(b"\r\n\r\n")
        go.set()
        assert await reader.readexactly(10) == b"5\r\nlater\r\n"


async def test_an_answer_to_head_has_the_length_and_no_body():
    async with connected(answers(b"hello", promised=5)) as (reader, writer):
        for _ in range(2):
            writer.write(GET.replace(b"GET", b"HEAD"))
            assert b"content-length: 5" in await reader.readuntil(b"\r\n\r\n")


async def test_requests_sent_at_once_are_answered_in_order():
    async with connected(answers(b"hello", promised=5)) as (reader, writer):
        writer.write(GET * 3)
        for _ in range(3):
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")


async def test_a_head_whose_body_never_comes_still_arrives():
    async with connected(answers(promised=5)) as (reader, writer):
        writer.write(GET)
        assert b"content-length: 5" in await reader.read()
