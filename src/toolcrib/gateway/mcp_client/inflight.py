"""Requests that share one connection: who waits for which answer, and what arrives unasked.

Used where one channel carries everything (standard input and output, the old event stream). Answers are matched by id;
a slow one never holds up another. Every waiter is settled exactly once: by its answer, its deadline, its caller's
cancellation, or the end of the connection.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog
from msgspec import UNSET, Raw

from toolcrib.errors import AppError
from toolcrib.gateway.mcp_client.contract import OnProgress, again
from toolcrib.gateway.mcp_client.jsonrpc import Message, NotJsonRpc, notification_bytes, read_messages, reply_bytes

UNCANCELLABLE = frozenset({"initialize", "server/discover"})
"""Methods whose abandonment the server must not be told of."""

_log = structlog.get_logger(__name__)


class _ProgressParams(msgspec.Struct):
    progressToken: int | str | None = None  # noqa: N815  the wire's name


_progress = msgspec.json.Decoder(_ProgressParams)


@dataclass(slots=True, eq=False)
class _Waiter:
    future: asyncio.Future[Message]
    on_progress: OnProgress | None


class InFlight:
    """The requests in flight on one connection.

    Args:
        send: writes a message (our answer to a server's request) without waiting.
        on_tools_changed: called for each `notifications/tools/list_changed`.
    """

    def __init__(self, send: Callable[[bytes], None], on_tools_changed: Callable[[], None]) -> None:
        self._send = send
        self._on_tools_changed = on_tools_changed
        self._waiters: dict[int, _Waiter] = {}
        self.ended: AppError | None = None

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, request_id: int, on_progress: OnProgress | None) -> asyncio.Future[Message]:
        """Wait for this answer; raises the reason when the connection has ended."""
        if self.ended is not None:
            raise again(self.ended)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiters[request_id] = _Waiter(future, on_progress)
        return future

    def discard(self, request_id: int) -> None:
        """Stop waiting; a late answer is dropped."""
        self._waiters.pop(request_id, None)

    def receive(self, data: bytes) -> None:
        """Handle a message as it arrived; raises NotJsonRpc."""
        messages = read_messages(data)
        if not messages or any(m.method is UNSET and m.result is UNSET and not m.error for m in messages):
            raise NotJsonRpc("neither a request, a notification nor a response")
        for message in messages:
            if message.method is UNSET:
                self._settle(message)
            elif message.id is UNSET:
                self._notified(message)
            else:
                self._send(reply_bytes(message))

    def fail(self, request_id: int, error: AppError) -> bool:
        """Fail one request; False when nobody waits for it."""
        waiter = self._waiters.pop(request_id, None)
        if waiter is None or waiter.future.done():
            return False
        waiter.future.set_exception(error)
        return True

    def end(self, error: AppError) -> None:
        """The connection is over: everyone who waits, and everyone who comes later, gets this error."""
        if self.ended is None:
            self.ended = error
            for request_id in list(self._waiters):
                self.fail(request_id, again(error))

    def _settle(self, message: Message) -> None:
        request_id = message.id
        if isinstance(request_id, str) and request_id.isdecimal() and len(request_id) < 20:
            request_id = int(request_id)
        waiter = self._waiters.pop(request_id, None) if isinstance(request_id, int) else None
        if waiter is not None and not waiter.future.done():
            waiter.future.set_result(message)

    def _notified(self, message: Message) -> None:
        if message.method == "notifications/tools/list_changed":
            self._on_tools_changed()
        elif message.method == "notifications/progress" and isinstance(message.params, Raw):
            params = bytes(message.params)
            token = progress_token(params)
            waiter = self._waiters.get(token) if token is not None else None
            if waiter is not None and waiter.on_progress is not None:
                tell_progress(waiter.on_progress, params)


def progress_token(params: bytes) -> int | None:
    """Our token in the parameters of `notifications/progress`; None when there is none of ours."""
    try:
        token = _progress.decode(params).progressToken
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(token, str):
        return int(token) if token.isdecimal() and len(token) < 20 else None
    return token


def tell_progress(on_progress: OnProgress, params: bytes) -> None:
    """Hand progress to the caller; the caller's bug must not end a connection that others use."""
    try:
        on_progress(params)
    except Exception:  # noqa: BLE001  a callback may fail in any way
        _log.exception("mcp.progress_callback_failed")


def cancelled_bytes(request_id: int) -> bytes:
    """The notification that nobody waits for this request any more."""
    return notification_bytes(b"notifications/cancelled", b'{"requestId":%d}' % request_id)


def expire(future: asyncio.Future[Message]) -> None:
    """Fail a waiter whose deadline has come."""
    if not future.done():
        future.set_exception(TimeoutError())


def ignore(future: asyncio.Future[Message]) -> None:
    """Take note of an answer, or of the end of the connection, that nobody needs."""
    if not future.cancelled():
        future.exception()
