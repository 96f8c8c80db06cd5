"""One HTTP request on plain ASGI, for the hot doors: tool calls over MCP and REST."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

T = TypeVar("T")
_PATIENCE_S = 0.05


class ClientGone(Exception):
    """The client closed the connection before its answer."""


class Exchange:
    """A request and the way to answer it."""

    __slots__ = ("_send", "headers", "method", "path", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

    async def reply(
        self,
        body: bytes,
        status: int = 200,
        headers: Sequence[tuple[bytes, bytes]] = (),
        media: bytes = b"application/json",
    ) -> None:
        """Answer with a whole body."""
        head = [(b"content-length", str(len(body)).encode()), *headers]
        if body:
            head.append((b"content-type", media))
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self._send({"type": "http.response.body", "body": body})

    async def start_stream(self) -> None:
        """Begin an event stream."""
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-cache, no-transform"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def stream(self, chunk: bytes, *, last: bool = False) -> None:
        """Send a part of the stream."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": not last})

    async def wait_gone(self) -> None:
        """Return when the client has closed the connection; only after the body was read."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


async def run_unless_gone(exchange: Exchange, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away first.

    Most calls end before anybody loses patience, so the connection is watched only after a moment.

    Raises:
        ClientGone: the client went away.
    """
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=_PATIENCE_S)
        if done:
            return task.result()
        gone = asyncio.create_task(exchange.wait_gone())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
