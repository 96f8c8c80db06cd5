"""Event streams towards MCP clients: the progress of one call, and news that a listing changed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from toolcrib.core.exchange import Exchange
from toolcrib.core.mcp_server import wire
from toolcrib.core.mcp_server.dispatch import Answered
from toolcrib.core.mcp_server.face import About, Asked, C, Face, Listing, OnProgress

_KEEP_ALIVE_S = 15
COALESCE_S = 0.05  # one change seldom comes alone
_KEEP_ALIVE = b": keep-alive\n\n"
_MAX_WAITING = 1000

Answer = Callable[[OnProgress | None], Awaitable[Answered]]


class CallStream:
    """A tool call answered by an event stream: progress as it comes, then the answer."""

    def __init__(self, exchange: Exchange, token: bytes | None) -> None:
        self._exchange = exchange
        self._token = token
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue(_MAX_WAITING)

    async def run(self, answer: Answer) -> None:
        """Stream until the answer is out; a client that goes away cancels the call."""
        exchange = self._exchange
        await exchange.start_stream()
        call = asyncio.ensure_future(answer(self._progress if self._token is not None else None))
        gone = asyncio.create_task(exchange.wait_gone())
        try:
            while not call.done():
                item = asyncio.create_task(self._waiting.get())
                done, _ = await asyncio.wait(
                    {call, gone, item}, timeout=_KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED
                )
                if item in done:
                    await exchange.stream(item.result())
                else:
                    item.cancel()
                if gone in done:
                    return
                if not done:
                    await exchange.stream(_KEEP_ALIVE)
            while not self._waiting.empty():
                await exchange.stream(self._waiting.get_nowait())
            body, _, _ = await call
            await exchange.stream(wire.event(body), last=True)
        finally:
            gone.cancel()
            call.cancel()
            await asyncio.wait({call})

    def _progress(self, params: bytes) -> None:
        """Progress under the client's own token; what a slow client cannot take is left out."""
        if not self._waiting.full():
            self._waiting.put_nowait(wire.event(wire.progress(params, self._token or b"null")))


class Subscription:
    """What a client wants to hear, and what of it has happened since it was last told.

    `listen` is the id and the wishes of a `subscriptions/listen` request of 2026-07-28; the handshake era wishes for
    everything.
    """

    def __init__(self, about: About, listen: tuple[bytes, dict[str, Any]] | None) -> None:
        wishes = about.told()
        if listen is not None:
            wishes = frozenset(kind for kind in wishes if listen[1].get(f"{kind}ListChanged"))
        self._wishes = wishes
        self._changed: set[Listing] = set()
        self._id = listen[0] if listen else None
        self._meta = {"_meta": {wire.META + "subscriptionId": orjson.loads(listen[0])}} if listen else {}
        self.news = asyncio.Event()

    def heard(self, kind: Listing) -> None:
        """Note a change."""
        if kind in self._wishes:
            self._changed.add(kind)
            self.news.set()

    def acknowledged(self) -> bytes:
        """The first message to a listener: which of its wishes are honoured."""
        honoured = {"notifications": {f"{kind}ListChanged": True for kind in sorted(self._wishes)}}
        return wire.notification("subscriptions/acknowledged", honoured | self._meta)

    def take(self) -> list[bytes]:
        """The notifications that are due."""
        changed, self._changed = sorted(self._changed), set()
        self.news.clear()
        return [wire.notification(f"{kind}/list_changed", self._meta) for kind in changed]

    def ended(self, about: About) -> bytes:
        """The answer to a listener when it ends on our side; empty for one of the handshake era."""
        if self._id is None:
            return b""
        return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (
            self._id,
            wire.modern_result(orjson.dumps(self._meta), about.meta),
        )


async def change_stream(
    exchange: Exchange,
    face: Face[C],
    asked: Asked[C],
    shutdown: asyncio.Event,
    *,
    listen: tuple[bytes, dict[str, Any]] | None = None,
) -> None:
    """Tell the client whenever a listing changes, until it goes away or we stop."""
    subscription = Subscription(face.about, listen)
    stop = await face.on_change(asked.caller, subscription.heard)
    gone = asyncio.create_task(exchange.wait_gone())
    closing = asyncio.create_task(shutdown.wait())
    try:
        await exchange.start_stream()
        await exchange.stream(wire.event(subscription.acknowledged()) if listen else _KEEP_ALIVE)
        while not gone.done() and not closing.done():
            news = asyncio.create_task(subscription.news.wait())
            await asyncio.wait({news, gone, closing}, timeout=_KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
            if subscription.news.is_set():
                await asyncio.wait({gone, closing}, timeout=COALESCE_S)
                await exchange.stream(b"".join(map(wire.event, subscription.take())))
            elif not gone.done() and not closing.done():
                await exchange.stream(_KEEP_ALIVE)
        if not gone.done():
            ending = subscription.ended(face.about)
            await exchange.stream(wire.event(ending) if ending else b"", last=True)
    finally:
        stop()
        gone.cancel()
        closing.cancel()
