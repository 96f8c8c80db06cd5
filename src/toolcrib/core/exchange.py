"""One HTTP request on plain ASGI, for doors where every microsecond counts: its head, its body, its answer."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar, cast

from starlette.types import Receive, Scope, Send

from toolcrib.errors import Invalid, Unavailable

T = TypeVar("T")
_PATIENCE_S = 0.05


class ClientGone(Exception):
    """The client closed the connection before its answer."""


class BodyTooLarge(Invalid):
    """The request body exceeds the limit; a kind of its own so that edges can answer 413."""


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


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole request body.

    Raises:
        BodyTooLarge: it exceeds `limit` bytes.
        Unavailable: the client went away.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Unavailable("request.disconnected", "The client went away.")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge("body.too_large", f"The request body is larger than {limit} bytes.", limit_bytes=limit)
        parts.append(chunk)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def run_unless_gone(exchange: Exchange, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away first.

    Most calls end before anybody loses patience, so the connection is watched only after a moment.

    Raises:
        ClientGone: the client went away.
    """
    watch = _Watch(exchange)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.gone and watch.task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        watch.end()


class _Watch:
    """Cancels the task that made it when the client closes the connection, until `end`."""

    __slots__ = ("_exchange", "_timer", "_watcher", "gone", "task")

    def __init__(self, exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        self.task = cast("asyncio.Task[object]", asyncio.current_task(loop))
        self.gone = False
        self._exchange = exchange
        self._watcher: asyncio.Task[None] | None = None
        self._timer = loop.call_later(_PATIENCE_S, self._begin)

    def _begin(self) -> None:
        self._watcher = asyncio.create_task(self._exchange.wait_gone())
        self._watcher.add_done_callback(self._left)

    def _left(self, watcher: "asyncio.Task[None]") -> None:
        if self._watcher is watcher and not watcher.cancelled():
            self.gone = True
            self.task.cancel()

    def end(self) -> None:
        self._timer.cancel()
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
