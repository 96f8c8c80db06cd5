"""MCP over a pair of byte streams, a message a line: what a client starts as a child process.

Requests run side by side; a cancelled one is not answered, as the protocol wants it. At the end of input the requests
under way are finished, then `serve` returns. Both eras may come over the same streams.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Generic

import msgspec
import structlog

from toolcrib.core.mcp_server import wire
from toolcrib.core.mcp_server.dispatch import Dispatcher, parse_message
from toolcrib.core.mcp_server.face import Asked, C, Face, OnProgress
from toolcrib.core.mcp_server.standard_streams import Reader, Writer
from toolcrib.core.mcp_server.streams import COALESCE_S, Subscription
from toolcrib.core.mcp_server.wire import Message, Params, RpcError
from toolcrib.errors import AppError

_log = structlog.get_logger(__name__)
_CHUNK = 65_536
_MAX_RUNNING = 1000
_MAX_BATCHES = 20  # under way; each may hold fifty requests
_LISTEN = "subscriptions/listen"
_BATCH = "batch"


class McpStdio(Generic[C]):
    """One client on one pair of streams."""

    def __init__(self, face: Face[C], caller: C, writer: Writer, *, max_line_bytes: int) -> None:
        self._face = face
        self._caller = caller
        self._writer = writer
        self._max_line_bytes = max_line_bytes
        self._dispatcher = Dispatcher(face)
        self._version = wire.ASSUMED_VERSION
        self._requests: dict[bytes, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._initialized = False
        self._broken = False

    async def serve(self, reader: Reader) -> None:
        """Serve until the end of input; cancelling it cancels every request."""
        try:
            async for line in _lines(reader, self._max_line_bytes):
                if self._broken:
                    break
                if line is None:
                    too_long = f"A message is larger than {self._max_line_bytes} bytes"
                    await self._send(RpcError(wire.INVALID_REQUEST, too_long).body(b"null"))
                elif line.strip():
                    await self._line(line)
            if calls := {task for task in self._requests.values() if task.get_name() != _LISTEN}:
                await asyncio.wait(calls)
        finally:
            rest = {*self._background, *self._requests.values()}
            for task in rest:
                task.cancel()
            if rest:
                await asyncio.wait(rest)

    async def _line(self, line: bytes) -> None:
        """Take a message; requests go on by themselves, but the handshake decides how to read the next message."""
        try:
            if line.lstrip()[:1] == b"[":
                if sum(task.get_name() == _BATCH for task in self._requests.values()) >= _MAX_BATCHES:
                    raise RpcError(wire.UNAVAILABLE, "Too many batches at once")
                self._start(None, self._batch(line), _BATCH)
                return
            message = parse_message(line)
            if message is None:
                return
            id_ = wire.message_id(message)
            if id_ is None:
                await self._note(message)
            elif message.method == "initialize":
                await self._request(message, id_)
            elif len(self._requests) >= _MAX_RUNNING:
                await self._send(RpcError(wire.UNAVAILABLE, "Too many requests at once").body(id_))
            elif id_ in self._requests:
                await self._send(RpcError(wire.INVALID_REQUEST, "A request with this id is under way").body(id_))
            else:
                self._start(id_, self._request(message, id_), str(message.method))
        except RpcError as error:
            await self._send(error.body(b"null"))

    def _start(self, id_: bytes | None, work: Coroutine[Any, Any, None], name: str) -> None:
        key = id_ if id_ is not None else b"batch %d" % id(work)
        task = asyncio.create_task(work, name=name)
        self._requests[key] = task
        task.add_done_callback(lambda _: self._requests.pop(key, None))

    async def _note(self, message: Message) -> None:
        if message.method == "notifications/cancelled":
            params = wire.parse_params(message)
            if params.request_id is not msgspec.UNSET and (task := self._requests.get(bytes(params.request_id))):
                task.cancel()
        elif message.method == "notifications/initialized" and not self._initialized:
            self._initialized = True
            self._spawn(self._tell(Subscription(self._face.about, None)))

    async def _batch(self, line: bytes) -> None:
        try:
            answers = await self._dispatcher.answer_batch(self._asked(self._version), line)
        except RpcError as error:
            answers = error.body(b"null")
        if answers is not None:
            await self._send(answers)

    async def _request(self, message: Message, id_: bytes) -> None:
        try:
            params = wire.parse_params(message)
            modern = params.meta is not None and params.meta.version is not msgspec.UNSET
            if modern:
                wire.check_modern(message, params, None)
            if modern and message.method == _LISTEN:
                subscription = Subscription(self._face.about, (id_, params.notifications or {}))
                await self._tell(subscription, subscription.acknowledged())
            asked = self._asked(wire.MODERN if modern else self._version)
            if modern and message.method == "tools/call":
                await self._face.check_call(asked, params)
            if message.method == "initialize" and not modern:
                self._version = wire.negotiated(params)
            body, _, _ = await self._dispatcher.answer(asked, message, params, id_, self._progress(params))
        except RpcError as error:
            body = error.body(id_)
        except AppError as error:
            body = wire.rpc_error(error, self._face.about.realm).body(id_)
        except Exception:  # noqa: BLE001 - the last net: logged once, answered without a word of it
            _log.exception("mcp.request_failed", method=str(message.method)[:100])
            body = RpcError(wire.INTERNAL_ERROR, "Internal error").body(id_)
        await self._send(body)

    def _asked(self, version: str) -> Asked[C]:
        return Asked(self._caller, version, None, {})

    def _progress(self, params: Params) -> OnProgress | None:
        if params.meta is None or params.meta.progress_token is msgspec.UNSET:
            return None
        token = bytes(params.meta.progress_token)

        def tell(progress: bytes) -> None:
            self._writer.write(_as_line(wire.progress(progress, token)))
            self._spawn(self._drain())

        return tell

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _tell(self, subscription: Subscription, first: bytes | None = None) -> None:
        stop = await self._face.on_change(self._caller, subscription.heard)
        try:
            if first is not None:
                await self._send(first)
            while True:
                await subscription.news.wait()
                await asyncio.sleep(COALESCE_S)
                for notification in subscription.take():
                    await self._send(notification)
        finally:
            stop()

    async def _send(self, body: bytes) -> None:
        self._writer.write(_as_line(body))
        await self._drain()

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
        except OSError:  # nobody reads any more; input ends soon, or with the next line
            self._broken = True


def _as_line(body: bytes) -> bytes:
    return wire.one_line(body) + b"\n"


async def _lines(reader: Reader, limit: int) -> AsyncIterator[bytes | None]:
    """The lines of a stream without their ends; None for one longer than `limit` bytes."""
    begun = bytearray()
    skipping = False
    while chunk := await reader.read(_CHUNK):
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            if skipping:
                skipping = False
            else:
                yield None if len(begun) + len(end) > limit else bytes(begun) + end
            begun.clear()
        if not skipping:
            begun += rest
            if len(begun) > limit:
                begun.clear()
                skipping = True
                yield None
    if begun and not skipping:
        yield bytes(begun)
