"""A hand-written HTTP server for MCP: every request becomes an `Exchange`, which the test answers byte by byte."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from raw_upstream import Reader, Upstream, Writer, upstream

INFO = {"name": "raw", "version": "7"}


class Exchange:
    """One request and the way to answer it."""

    def __init__(self, request: bytes, reader: Reader, writer: Writer) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.http_method, self.path, _ = first.split(" ")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.message: dict[str, Any] = json.loads(body) if body else {}
        self.method = self.message.get("method", "")
        self.params = self.message.get("params", {})
        self.reader, self.writer = reader, writer
        self.abandoned = asyncio.Event()

    def respond(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A complete answer."""
        lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    def reply(self, *, status: int = 200, headers: dict[str, str] | None = None, **members: Any) -> None:
        """A JSON-RPC response to this request."""
        body = json.dumps({"jsonrpc": "2.0", "id": self.message.get("id"), **members}).encode()
        self.respond(status, body, content_type="application/json", **(headers or {}))

    def error(self, code: int, message: str, *, status: int = 200, data: Any = None) -> None:
        """A JSON-RPC error."""
        self.reply(status=status, error={"code": code, "message": message, "data": data})

    def begin(self) -> None:
        """Start an event stream, which ends with the connection."""
        self.writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")

    def event(self, *, event_id: str | None = None, retry: int | None = None, **members: Any) -> None:
        """One event; without members it carries no data."""
        lines = [f"id: {event_id}"] if event_id is not None else []
        lines += [f"retry: {retry}"] if retry is not None else []
        lines += ["data: " + json.dumps({"jsonrpc": "2.0", **members})] if members else ["data:"]
        self.writer.write("\n".join([*lines, "", ""]).encode())

    async def hang(self) -> None:
        """Say nothing until the client gives up."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        self.abandoned.set()
        self.writer.close()

    async def end(self) -> None:
        """End the stream by closing the connection."""
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()
            self.writer.close()


Answer = Callable[[Exchange], Awaitable[None]]


class RawMcp:
    """A running server; `seen` holds every exchange in order."""

    def __init__(self, served: Upstream) -> None:
        self.url = served.url + "mcp" if served.url.endswith("/") else served.url + "/mcp"
        self.served = served
        self.seen: list[Exchange] = []

    def methods(self) -> list[str]:
        """What was asked, in order: JSON-RPC methods, or HTTP methods where there was no message."""
        return [exchange.method or exchange.http_method for exchange in self.seen]


@contextlib.asynccontextmanager
async def raw_mcp(answer: Answer) -> AsyncIterator[RawMcp]:
    """Serve with `answer`; requests on different connections are answered at the same time."""
    server: RawMcp

    async def handle(served: Upstream, reader: Reader, writer: Writer) -> None:
        while not writer.is_closing():
            exchange = Exchange(await served.request(reader), reader, writer)
            server.seen.append(exchange)
            await answer(exchange)
            await writer.drain()

    async with upstream(handle) as served:
        server = RawMcp(served)
        yield server


def initialized(exchange: Exchange, version: str = "2025-11-25", *, session: str | None = None, **tools: Any) -> bool:
    """Handle what opens a session of the handshake era, refusing the modern probe; False for everything else."""
    if exchange.method == "server/discover":
        exchange.respond(400, b"Bad Request: Missing session ID", content_type="text/plain")
    elif exchange.method == "initialize":
        result = {"protocolVersion": version, "capabilities": {"tools": tools}, "serverInfo": INFO}
        exchange.reply(result=result, headers={"mcp_session_id": session} if session else None)
    elif exchange.method.startswith("notifications/"):
        exchange.respond(202)
    elif exchange.http_method == "DELETE":
        exchange.respond(200)
    else:
        return False
    return True


def text(value: Any) -> dict[str, Any]:
    """A tool result."""
    return {"content": [{"type": "text", "text": json.dumps(value)}], "isError": False}


def legacy(answer: Callable[[Exchange], Awaitable[None]], **options: Any) -> Callable[[Exchange], Awaitable[None]]:
    """A handshake server whose other requests go to `answer`; it offers no GET stream."""

    async def handle(exchange: Exchange) -> None:
        if initialized(exchange, **options):
            return
        if exchange.http_method == "GET" and "last-event-id" not in exchange.headers:
            exchange.respond(405)
        else:
            await answer(exchange)

    return handle


async def echo(exchange: Exchange) -> None:
    exchange.reply(result=text(exchange.params["arguments"]))


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    """Wait for something that nothing announces."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
