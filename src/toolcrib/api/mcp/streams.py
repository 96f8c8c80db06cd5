"""Event streams towards MCP clients: the progress of one call, and news that the list of tools changed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import orjson

from toolcrib.api.deps import Deps
from toolcrib.api.http_exchange import Exchange
from toolcrib.api.mcp.protocol import event, modern_result
from toolcrib.core.auth import Actor

_KEEP_ALIVE_S = 15
_COALESCE_S = 0.05
_KEEP_ALIVE = b": keep-alive\n\n"
_SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
_MAX_WAITING = 1000

Answered = tuple[bytes, int, list[tuple[bytes, bytes]]]  # body, HTTP status, headers
Answer = Callable[[Callable[[bytes], None] | None], Awaitable[Answered]]


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
            await exchange.stream(event(body), last=True)
        finally:
            gone.cancel()
            call.cancel()
            await asyncio.wait({call})

    def _progress(self, params: bytes) -> None:
        """An upstream's progress under the client's own token; what a slow client cannot take is left out."""
        if self._waiting.full():
            return
        values = msgspec.json.decode(params, type=dict[str, msgspec.Raw])
        values["progressToken"] = msgspec.Raw(self._token or b"null")
        body = b'{"jsonrpc":"2.0","method":"notifications/progress","params":%b}' % msgspec.json.encode(values)
        self._waiting.put_nowait(event(body))


async def change_stream(
    exchange: Exchange, deps: Deps, actor: Actor, *, listen: tuple[bytes, dict[str, Any]] | None = None
) -> None:
    """Tell the client whenever the workspace's tools change, until it goes away or we stop.

    `listen` is the id and the wishes of a `subscriptions/listen` request of 2026-07-28; the handshake era opens this
    stream with a GET and wishes for everything.
    """
    changed = asyncio.Event()
    wanted = listen is None or bool(listen[1].get("toolsListChanged"))
    await deps.catalog.view(actor.workspace_id)  # news is told of what was once looked at
    stop = deps.catalog.on_change(actor.workspace_id, changed.set) if wanted else (lambda: None)
    meta = {"_meta": {_SUBSCRIPTION: orjson.loads(listen[0])}} if listen else {}
    gone = asyncio.create_task(exchange.wait_gone())
    closing = asyncio.create_task(deps.closing.wait())
    try:
        await exchange.start_stream()
        if listen:
            honoured = {"notifications": {"toolsListChanged": True} if wanted else {}}
            await exchange.stream(_notification("subscriptions/acknowledged", honoured | meta))
        else:
            await exchange.stream(_KEEP_ALIVE)
        while not gone.done() and not closing.done():
            news = asyncio.create_task(changed.wait())
            await asyncio.wait({news, gone, closing}, timeout=_KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
            if changed.is_set():
                await asyncio.wait({gone, closing}, timeout=_COALESCE_S)  # one change seldom comes alone
                changed.clear()
                await exchange.stream(_notification("tools/list_changed", meta))
            elif not gone.done() and not closing.done():
                await exchange.stream(_KEEP_ALIVE)
        if not gone.done():
            ending = b""
            if listen:
                result = modern_result(orjson.dumps(meta))
                ending = event(b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (listen[0], result))
            await exchange.stream(ending, last=True)
    finally:
        stop()
        gone.cancel()
        closing.cancel()


def _notification(method: str, params: dict[str, Any]) -> bytes:
    return event(orjson.dumps({"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params}))
