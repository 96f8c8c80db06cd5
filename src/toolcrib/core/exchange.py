"""One HTTP request on plain ASGI, for doors where every microsecond counts: its head, its body, its answer."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

from starlette.types import Receive, Scope, Send

from toolcrib.errors import Invalid, Unavailable

T = TypeVar("T")
_PATIENCE_S = 0.03


class ClientGone(Exception):
    """The client closed the connection before its answer."""


class BodyTooLarge(Invalid):
    """The request body exceeds the limit; a kind of its own so that edges can answer 413."""


class Exchange:
    """A request and the way to answer it."""

    __slots__ = ("_headers", "_send", "method", "path", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._headers: dict[str, str] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers, names in lower case; of a name that comes more than once, the last."""
        if self._headers is None:
            self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.scope["headers"]}
        return self._headers

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

    __slots__ = ("_exchange", "_patience", "_watcher", "gone", "task")

    def __init__(self, exchange: Exchange) -> None:
        self.task = cast("asyncio.Task[object]", asyncio.current_task())
        self.gone = False
        self._exchange = exchange
        self._watcher: asyncio.Task[None] | None = None
        self._patience = _patience_of(self.task.get_loop())
        self._patience.add(self)

    def begin(self) -> None:
        """Patience is at its end: watch the connection."""
        self._watcher = asyncio.create_task(self._exchange.wait_gone())
        self._watcher.add_done_callback(self._left)

    def _left(self, watcher: "asyncio.Task[None]") -> None:
        if self._watcher is watcher and not watcher.cancelled():
            self.gone = True
            self.task.cancel()

    def end(self) -> None:
        """The work is done; who leaves now leaves it alone."""
        self._patience.discard(self)
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()


class _Patience:
    """Calls that nobody has lost patience with yet: one timer for all of them, because nearly all end before it.

    A call is watched after one to two times `_PATIENCE_S`.
    """

    __slots__ = ("_new", "_old", "_ticking")

    def __init__(self) -> None:
        self._new: set[_Watch] = set()
        self._old: set[_Watch] = set()  # those that a tick has seen
        self._ticking = False

    def add(self, watch: _Watch) -> None:
        self._new.add(watch)
        if not self._ticking:
            self._ticking = True
            watch.task.get_loop().call_later(_PATIENCE_S, self._tick)

    def discard(self, watch: _Watch) -> None:
        self._new.discard(watch)
        self._old.discard(watch)

    def _tick(self) -> None:
        for watch in self._old:
            watch.begin()
        self._old, self._new = self._new, set()
        self._ticking = bool(self._old)
        if self._ticking:
            asyncio.get_running_loop().call_later(_PATIENCE_S, self._tick)


_patiences: "WeakKeyDictionary[asyncio.AbstractEventLoop, _Patience]" = WeakKeyDictionary()


def _patience_of(loop: asyncio.AbstractEventLoop) -> _Patience:
    patience = _patiences.get(loop)
    if patience is None:
        patience = _patiences[loop] = _Patience()
    return patience
