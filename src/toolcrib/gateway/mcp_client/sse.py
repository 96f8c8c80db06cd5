"""The HTTP+SSE transport of 2024-11-05: one event stream carries every answer, messages go out as POSTs.

The server names the address for messages in its first event; it must be of the stream's own origin. The stream is the
session: when it ends, everything in flight fails and the next call opens a new one.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import structlog

from toolcrib.core.http import OutboundClient, OutboundError
from toolcrib.errors import AppError
from toolcrib.gateway.mcp_client.contract import McpEndpoint, McpUpstreamError, OnProgress, SessionLost, plain_text
from toolcrib.gateway.mcp_client.event_stream import EventReader, EventTooLarge
from toolcrib.gateway.mcp_client.http import (
    content_type,
    own_headers,
    refusal,
    resolve,
    same_origin,
    server_name,
    unreachable,
)
from toolcrib.gateway.mcp_client.inflight import UNCANCELLABLE, InFlight, cancelled_bytes, expire, ignore
from toolcrib.gateway.mcp_client.jsonrpc import Message, NotJsonRpc
from toolcrib.gateway.mcp_client.session import Headers

_ERROR_BODY_BYTES = 64 * 1024
_SHORT_S = 5.0
_MAX_TASKS = 256

_log = structlog.get_logger(__name__)


class SseTransport:
    """One server over HTTP+SSE.

    Args:
        on_end: called once when the stream has ended, with calls in flight already failed.
    """

    modern_first = False
    has_headers = False

    def __init__(
        self,
        endpoint: McpEndpoint,
        outbound: OutboundClient,
        *,
        max_message_bytes: int,
        on_tools_changed: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._url = endpoint.url or ""
        self._name = server_name(self._url)
        self._outbound = outbound
        self._max_bytes = max_message_bytes
        self._on_end = on_end
        self._in_flight = InFlight(self._reply, on_tools_changed)
        self._own_headers = own_headers(endpoint)
        self._headers: Headers = (("content-type", "application/json"), *self._own_headers)
        self._target: asyncio.Future[str] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, deadline: float) -> None:
        """Open the stream and wait for the address that takes messages; raises McpUpstreamError."""
        self._target = asyncio.get_running_loop().create_future()
        self._target.add_done_callback(_seen)
        self._reader = asyncio.create_task(self._read(self._target), name=f"mcp {self._name}")
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(self._target)
        except TimeoutError:
            raise McpUpstreamError("mcp.timeout", f"{self._name} did not open its event stream in time") from None

    @property
    def ended(self) -> AppError | None:
        """Why no more requests can be sent, or None."""
        return self._in_flight.ended

    def adopt(self, version: str | None, *, modern: bool) -> None:
        """The protocol version is in the messages alone; nothing to do here."""

    async def request(
        self,
        request_id: int,
        method: str,
        body: bytes,
        deadline: float,
        *,
        on_progress: OnProgress | None = None,
        extra_headers: Headers = (),  # noqa: ARG002  this transport predates them
    ) -> Message:
        """Send a request and wait for its answer; raises McpUpstreamError, or SessionLost when it was not accepted."""
        future = self._in_flight.add(request_id, on_progress)
        future.add_done_callback(ignore)
        timer = future.get_loop().call_at(deadline, expire, future)
        # The answer may come before the POST that asked for it is done, so both are waited for at once.
        post = asyncio.create_task(self._post(body, deadline, future), name=f"mcp {self._name}")
        try:
            return await future
        except (TimeoutError, asyncio.CancelledError) as exc:
            if method not in UNCANCELLABLE:
                self._reply(cancelled_bytes(request_id))
            if isinstance(exc, asyncio.CancelledError):
                raise
            raise McpUpstreamError("mcp.timeout", f"{self._name} did not answer {method} in time") from None
        finally:
            timer.cancel()
            self._in_flight.discard(request_id)
            self._finish(post)

    async def notify(self, body: bytes, deadline: float) -> None:
        """Send a notification; failures show at the next request."""
        await self._post(body, deadline, None)

    def listen(self, request_id: int, body: bytes | None) -> None:
        """Nothing to ask for: news of changes arrives on the stream."""

    async def close(self) -> None:
        """Close the stream."""
        self._in_flight.end(McpUpstreamError("mcp.closed", f"the session with {self._name} was closed"))
        tasks = [task for task in (self._reader, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    # -- sending -------------------------------------------------------------------------------------------------------

    async def _post(self, body: bytes, deadline: float, waiter: asyncio.Future[Message] | None) -> None:
        """Send a message; `waiter` fails if it was not accepted."""
        if self._target is None or not self._target.done():
            return  # a server that talks before it says where to answer
        left_s = max(deadline - asyncio.get_running_loop().time(), 0.001)
        error: Exception
        try:
            async with self._outbound.stream(
                "POST", self._target.result(), headers=self._headers, body=body, timeout_s=left_s
            ) as answer:
                if answer.status < 300:
                    return
                said = b""
                with suppress(OutboundError):
                    said = await answer.read(_ERROR_BODY_BYTES)
                error = refusal(self._name, "a message", answer, said)
                if answer.status in {400, 404} and error.rpc_code is None:
                    error = SessionLost(error)
        except OutboundError as exc:
            error = unreachable(exc)
        except AppError as exc:
            error = exc
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def _finish(self, post: asyncio.Task[None]) -> None:
        """Let the POST end by itself, for a while, so that its connection can serve again."""
        if not post.done():
            self._tasks.add(post)
            post.add_done_callback(self._tasks.discard)
            post.get_loop().call_later(_SHORT_S, post.cancel)

    def _reply(self, body: bytes) -> None:
        self._spawn(self._post(body, asyncio.get_running_loop().time() + _SHORT_S, None))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._tasks) >= _MAX_TASKS or self.ended is not None:
            work.close()
            return
        task = asyncio.create_task(work, name=f"mcp {self._name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- receiving -----------------------------------------------------------------------------------------------------

    async def _read(self, target: asyncio.Future[str]) -> None:
        error: AppError
        try:
            error = await self._read_stream(target)
        except OutboundError as exc:
            error = unreachable(exc)
        except EventTooLarge:
            error = McpUpstreamError(
                "mcp.too_large", f"{self._name} sent a message of more than {self._max_bytes} bytes"
            )
        except AppError as exc:  # the address policy forbids it
            error = exc
        if not target.done():
            target.set_exception(error)
        if self._in_flight.ended is None:
            self._in_flight.end(error)
            self._on_end()

    async def _read_stream(self, target: asyncio.Future[str]) -> McpUpstreamError:
        """Handle events until the stream ends; returns why it did."""
        headers = (("accept", "text/event-stream"), *self._own_headers)
        async with self._outbound.stream("GET", self._url, headers=headers, idle_timeout_s=math.inf) as answer:
            if answer.status != 200 or content_type(answer) != "text/event-stream":
                return refusal(self._name, "an event stream", answer, b"")
            reader = EventReader(self._max_bytes)
            async for chunk in answer.chunks():
                for event in reader.feed(chunk):
                    if event.name == "endpoint" and not target.done():
                        address = resolve(self._url, event.data.decode(errors="replace").strip()) or ""
                        if not same_origin(self._url, address):
                            return McpUpstreamError(
                                "mcp.protocol_error",
                                f"{self._name} wants messages sent to {server_name(address)}, another origin",
                            )
                        target.set_result(address)
                    elif event.name == "message":
                        self._message(event.data)
        return McpUpstreamError("mcp.closed", f"{self._name} ended the event stream")

    def _message(self, data: bytes) -> None:
        try:
            self._in_flight.receive(data)
        except NotJsonRpc as exc:
            _log.warning("mcp.foreign_event", server=self._name, reason=plain_text(str(exc), 200))


def _seen(target: asyncio.Future[str]) -> None:
    if not target.cancelled():
        target.exception()
