"""Streamable HTTP: every message is a POST, answered by one JSON document or by an event stream.

A JSON answer costs one request and nothing else. An event stream is read as it comes, because the server may report
progress or ask something on it; one that ends early is taken up again where the server hands out event ids. A session
that the server does not know any more is reported as `SessionLost`. Connections belong to `core/http.py`.
"""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

import structlog
from msgspec import UNSET, Raw

from toolcrib.core.http import OutboundClient, OutboundError, OutboundStream
from toolcrib.errors import AppError
from toolcrib.gateway.mcp_client.contract import (
    McpEndpoint,
    McpUpstreamError,
    OnProgress,
    SessionLost,
    again,
    plain_text,
)
from toolcrib.gateway.mcp_client.event_stream import EventReader, EventTooLarge
from toolcrib.gateway.mcp_client.inflight import UNCANCELLABLE, cancelled_bytes, progress_token, tell_progress
from toolcrib.gateway.mcp_client.jsonrpc import Message, NotJsonRpc, answers, read_message, read_messages, reply_bytes
from toolcrib.gateway.mcp_client.session import UNSUPPORTED_VERSION, Headers, rpc_failure

_OURS = re.compile(
    r"accept|content-type|last-event-id|mcp-session-id|mcp-protocol-version|mcp-method|mcp-name|mcp-param-.*"
)
_WANTS_NEW_SESSION = re.compile(r"session|protocol[ -]version|initiali[sz]e", re.IGNORECASE)
_SESSION_ID = re.compile(r"[\x21-\x7e]{1,2048}")
_ERROR_BODY_BYTES = 64 * 1024
_SHORT_S = 5.0
_RECONNECTIONS = 3
_MAX_REDIRECTS = 5
_MAX_TASKS = 64
_STEADY_S = 30.0  # a listening stream that lived this long was no failure
_LONGEST_DELAY_S = 60.0

_log = structlog.get_logger(__name__)


class HttpTransport:
    """One server over streamable HTTP, with its session if it keeps one."""

    modern_first = True
    has_headers = True

    def __init__(
        self,
        endpoint: McpEndpoint,
        outbound: OutboundClient,
        *,
        max_message_bytes: int,
        on_tools_changed: Callable[[], None],
    ) -> None:
        self._url = endpoint.url or ""
        self._name = server_name(self._url)
        self._outbound = outbound
        self._max_bytes = max_message_bytes
        self._on_tools_changed = on_tools_changed
        self._own_headers = own_headers(endpoint)
        self._version: str | None = None
        self._modern = False
        self._session_id: str | None = None
        self._session_gone = False  # the server said so
        self._headers: Headers = ()
        self._redirects = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.ended: AppError | None = None

    def adopt(self, version: str | None, *, modern: bool) -> None:
        """From now on send this version's headers; None before the handshake has settled it."""
        self._version, self._modern = version, modern
        if version is None or modern:
            self._session_id = None
        self._compose_headers()

    def _compose_headers(self) -> None:
        headers = [("accept", "application/json, text/event-stream"), ("content-type", "application/json")]
        if self._version is not None:
            headers.append(("mcp-protocol-version", self._version))
        if self._session_id is not None:
            headers.append(("mcp-session-id", self._session_id))
        self._headers = (*headers, *self._own_headers)

    # -- requests ------------------------------------------------------------------------------------------------------

    async def request(
        self,
        request_id: int,
        method: str,
        body: bytes,
        deadline: float,
        *,
        on_progress: OnProgress | None = None,
        extra_headers: Headers = (),
    ) -> Message:
        """Send a request and wait for its answer until `deadline` (event loop time).

        Raises:
            McpUpstreamError: whatever went wrong.
            SessionLost: the server does not know our session and did nothing.
        """
        if self.ended is not None:
            raise again(self.ended)
        headers = (*self._headers, ("mcp-method", method), *extra_headers) if self._modern else self._headers
        try:
            message = await self._post(request_id, method, body, deadline, headers, on_progress)
        except (asyncio.CancelledError, TimeoutError, OutboundError) as exc:
            gave_up = not isinstance(exc, OutboundError) or exc.code == "outbound.timeout"
            if gave_up and not self._modern and method not in UNCANCELLABLE:  # the modern era has been told by closing
                self._spawn(self.notify(cancelled_bytes(request_id), asyncio.get_running_loop().time() + _SHORT_S))
            if isinstance(exc, asyncio.CancelledError):
                raise
            raise self._failure(exc, method) from exc
        return message

    async def _post(
        self,
        request_id: int,
        method: str,
        body: bytes,
        deadline: float,
        headers: Headers,
        on_progress: OnProgress | None,
    ) -> Message:
        left_s = max(deadline - asyncio.get_running_loop().time(), 0.001)
        exchange = self._outbound.stream(
            "POST", self._url, headers=headers, body=body, timeout_s=left_s, idle_timeout_s=math.inf
        )
        answer = await exchange.__aenter__()
        kept = False
        try:
            kind = content_type(answer)
            if answer.status == 200 and kind == "application/json":
                async with asyncio.timeout_at(deadline):
                    message = self._matching(await answer.read(self._max_bytes), request_id)
            elif answer.status == 200 and kind == "text/event-stream":
                reader = EventReader(self._max_bytes)
                chunks = answer.chunks()
                async with asyncio.timeout_at(deadline):
                    found = await self._read_answer(chunks, reader, request_id, on_progress)
                    message = found or await self._resume(reader, request_id, on_progress)
                kept = found is not None and self._spawn(_drain(chunks, exchange))
            elif self._follows(answer):
                return await self._post(request_id, method, body, deadline, headers, on_progress)
            else:
                raise await self._refusal(answer, method, left_s)
            if method == "initialize":
                self._session_id = self._given_session(answer)
                self._compose_headers()
            return message
        finally:
            if not kept:
                await exchange.__aexit__(None, None, None)

    def _given_session(self, answer: OutboundStream) -> str | None:
        session_id = answer.headers.get("mcp-session-id")
        if session_id and not _SESSION_ID.fullmatch(session_id):
            raise McpUpstreamError("mcp.protocol_error", f"{self._name} opened a session with a malformed id")
        return session_id or None

    def _matching(self, data: bytes, request_id: int) -> Message:
        try:
            messages = read_messages(data)
        except NotJsonRpc as exc:
            reason = plain_text(str(exc), 200)
            raise McpUpstreamError(
                "mcp.protocol_error", f"{self._name} answered with malformed JSON: {reason}"
            ) from exc
        for message in messages:
            if answers(message, request_id) or (message.id is None and message.error):
                return message
        raise McpUpstreamError("mcp.protocol_error", f"{self._name} answered some other request than ours")

    async def _read_answer(
        self, chunks: AsyncIterator[bytes], reader: EventReader, request_id: int, on_progress: OnProgress | None
    ) -> Message | None:
        """The response out of an event stream, or None if the stream ends before it."""
        try:
            async for chunk in chunks:
                for event in reader.feed(chunk):
                    message = read_message(event.data)
                    if answers(message, request_id) or (message.method is UNSET and message.id is None):
                        return message
                    await self._unasked(message, request_id, on_progress)
        except EventTooLarge:
            limit = self._max_bytes
            raise McpUpstreamError("mcp.too_large", f"{self._name} sent a message of more than {limit} bytes") from None
        except NotJsonRpc as exc:
            reason = plain_text(str(exc), 200)
            raise McpUpstreamError("mcp.protocol_error", f"{self._name} sent malformed JSON: {reason}") from exc
        except OutboundError:
            if reader.last_id is None or self._modern:
                raise
        return None

    async def _unasked(self, message: Message, request_id: int, on_progress: OnProgress | None) -> None:
        if message.method is UNSET:
            return
        if message.id is not UNSET:
            if not self._modern:  # there, servers ask nothing
                await self.notify(reply_bytes(message), asyncio.get_running_loop().time() + _SHORT_S)
        elif message.method == "notifications/tools/list_changed":
            self._on_tools_changed()
        elif message.method == "notifications/progress" and on_progress is not None and isinstance(message.params, Raw):
            params = bytes(message.params)
            if progress_token(params) == request_id:
                tell_progress(on_progress, params)

    async def _resume(self, reader: EventReader, request_id: int, on_progress: OnProgress | None) -> Message:
        """Take up a response stream that ended early; the caller's deadline is around this."""
        failures = 0
        while reader.last_id is not None and not self._modern and failures < _RECONNECTIONS:
            await asyncio.sleep(1.0 if reader.retry_s is None else reader.retry_s)
            seen = reader.last_id
            headers = (*self._stream_headers(), ("last-event-id", seen))
            reader = _continued(reader, self._max_bytes)
            with suppress(OutboundError):
                async with self._outbound.stream("GET", self._url, headers=headers, idle_timeout_s=math.inf) as answer:
                    if answer.status != 200 or content_type(answer) != "text/event-stream":
                        break
                    message = await self._read_answer(answer.chunks(), reader, request_id, on_progress)
                    if message is not None:
                        return message
            failures = 0 if reader.last_id != seen else failures + 1
        raise McpUpstreamError("mcp.closed", f"{self._name} ended the answer before it was complete")

    async def notify(self, body: bytes, deadline: float) -> None:
        """Send a notification, or a reply. Nobody waits for the outcome, so failures are only worth a debug line."""
        left_s = deadline - asyncio.get_running_loop().time()
        headers = self._headers
        try:
            async with self._outbound.stream(
                "POST", self._url, headers=headers, body=body, timeout_s=max(left_s, 0.001)
            ) as answer:
                if answer.status >= 300:
                    _log.debug("mcp.notification_refused", server=self._name, status=answer.status)
        except OutboundError as exc:
            _log.debug("mcp.notification_failed", server=self._name, reason=exc.message)

    # -- refusals ------------------------------------------------------------------------------------------------------

    def _follows(self, answer: OutboundStream) -> bool:
        """Whether the answer is a redirect within the same origin; the session then uses the new address."""
        if answer.status not in {307, 308} or self._redirects >= _MAX_REDIRECTS:
            return False
        target = resolve(self._url, answer.headers.get("location") or "")
        if target is None or not same_origin(self._url, target):
            return False
        self._redirects += 1
        self._url = target
        return True

    async def _refusal(self, answer: OutboundStream, method: str, left_s: float) -> McpUpstreamError | SessionLost:
        status = answer.status
        body = b""
        with suppress(OutboundError, TimeoutError):
            async with asyncio.timeout(min(left_s, _SHORT_S)):
                body = await answer.read(_ERROR_BODY_BYTES)
        error = refusal(self._name, method, answer, body)
        if method in UNCANCELLABLE or error.code == "mcp.unauthorized":
            return error
        if self._session_id is not None:
            if status == 404 or (status == 400 and b"session" in body.lower()):
                self._session_gone = True
                return SessionLost(error)
        elif error.rpc_code == UNSUPPORTED_VERSION or (
            status in {400, 404, 405} and (error.rpc_code is None or _WANTS_NEW_SESSION.search(error.message))
        ):
            return SessionLost(error)  # the server behind this address was replaced by one of the other era
        return error

    def _failure(self, exc: Exception, method: str) -> McpUpstreamError:
        if isinstance(exc, OutboundError) and exc.code != "outbound.timeout":
            return unreachable(exc)
        return McpUpstreamError("mcp.timeout", f"{self._name} did not answer {method} in time")

    # -- listening -----------------------------------------------------------------------------------------------------

    def listen(self, request_id: int, body: bytes | None) -> None:
        """Listen for changes of the tools in the background."""
        if body is not None:
            headers = (*self._headers, ("mcp-method", "subscriptions/listen"))
            self._spawn(self._keep_listening(request_id, "POST", headers, body))
        elif self._session_id is not None:
            self._spawn(self._keep_listening(None, "GET", self._stream_headers(), None))

    def _stream_headers(self) -> Headers:
        return tuple(
            (name, "text/event-stream" if name == "accept" else value)
            for name, value in self._headers
            if name != "content-type"
        )

    async def _keep_listening(
        self, request_id: int | None, http_method: str, headers: Headers, body: bytes | None
    ) -> None:
        """Read a listening stream, again and again; returns when the server does not offer one."""
        loop = asyncio.get_running_loop()
        delay_s = 1.0
        missed = False
        reader = EventReader(self._max_bytes)
        while True:
            started_at = loop.time()
            resume = (("last-event-id", reader.last_id),) if reader.last_id is not None and body is None else ()
            reader = _continued(reader, self._max_bytes)
            try:
                async with self._outbound.stream(
                    http_method, self._url, headers=(*headers, *resume), body=body, idle_timeout_s=math.inf
                ) as answer:
                    if answer.status < 500 and (answer.status != 200 or content_type(answer) != "text/event-stream"):
                        return
                    if answer.status == 200:
                        if missed:
                            self._on_tools_changed()  # what happened meanwhile was not told
                        missed = False
                        await self._read_answer(answer.chunks(), reader, request_id or -1, None)
                        missed = request_id is not None  # the modern era repeats nothing
                    else:
                        missed = True
            except AppError as exc:
                _log.debug("mcp.listening_failed", server=self._name, reason=exc.message)
                missed = True
            if loop.time() - started_at > _STEADY_S:
                delay_s = 1.0
            await asyncio.sleep(delay_s if reader.retry_s is None else max(delay_s, reader.retry_s))
            delay_s = min(delay_s * 2, _LONGEST_DELAY_S)

    # -- the end -------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the session, telling the server if it keeps one; bounded in time. Calls in flight may still finish."""
        if self.ended is not None:
            return
        self.ended = McpUpstreamError("mcp.closed", f"the session with {self._name} was closed")
        for task in list(self._tasks):
            task.cancel()
        if self._session_id is not None and not self._session_gone:
            with suppress(OutboundError):
                await self._outbound.request(
                    "DELETE", self._url, headers=self._headers, timeout_s=2.0, max_bytes=_ERROR_BODY_BYTES
                )
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> bool:
        if len(self._tasks) >= _MAX_TASKS or self.ended is not None:
            work.close()
            return False
        task = asyncio.create_task(work, name=f"mcp {self._name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True


async def _drain(chunks: AsyncIterator[bytes], exchange: AbstractAsyncContextManager[OutboundStream]) -> None:
    """Read a stream to its end, which is usually the next packet, so that its connection can serve again."""
    try:
        with suppress(OutboundError, TimeoutError):
            async with asyncio.timeout(_SHORT_S):
                async for _ in chunks:
                    pass
    finally:
        await exchange.__aexit__(None, None, None)


def _continued(reader: EventReader, max_bytes: int) -> EventReader:
    """A reader for a new body that carries on with the ids of the old one."""
    fresh = EventReader(max_bytes, last_id=reader.last_id)
    fresh.retry_s = reader.retry_s
    return fresh


def own_headers(endpoint: McpEndpoint) -> Headers:
    """The endpoint's headers without those that belong to the protocol."""
    return tuple((name, value) for name, value in endpoint.headers if not _OURS.fullmatch(name.lower()))


def server_name(url: str) -> str:
    """Host and port, for messages: the rest of a URL may be secret."""
    try:
        return plain_text(urlsplit(url).netloc.rpartition("@")[2], 200) or "the server"
    except ValueError:
        return "the server"


def resolve(url: str, reference: str) -> str | None:
    """The address that a reference found at `url` means; None when it means nothing."""
    try:
        target = urljoin(url, reference)
        urlsplit(target).port  # noqa: B018  reading it is the check
    except ValueError:
        return None
    return target


def same_origin(url: str, target: str) -> bool:
    """Whether `target` has the scheme, host and port of `url`, or is the same host moved from http to https."""
    old, new = urlsplit(url), urlsplit(target)
    if old.hostname != new.hostname or new.username is not None:
        return False
    ports = {"http": 80, "https": 443}
    before, after = old.port or ports.get(old.scheme), new.port or ports.get(new.scheme)
    return (old.scheme, before) == (new.scheme, after) or (
        (old.scheme, before, new.scheme, after) == ("http", 80, "https", 443)
    )


def content_type(answer: OutboundStream) -> str:
    """The media type, without parameters."""
    return (answer.headers.get("content-type") or "").partition(";")[0].strip().lower()


def unreachable(exc: OutboundError) -> McpUpstreamError:
    """A failed HTTP exchange, in the words of this package."""
    codes = {
        "outbound.timeout": "mcp.timeout",
        "outbound.too_large": "mcp.too_large",
        "outbound.protocol_error": "mcp.protocol_error",
        "outbound.closed": "mcp.closed",
    }
    return McpUpstreamError(codes.get(exc.code, "mcp.unreachable"), exc.message)


def refusal(name: str, method: str, answer: OutboundStream, body: bytes) -> McpUpstreamError:
    """What an HTTP status other than success means; `details["status"]` keeps it."""
    status = answer.status
    if status in {401, 403}:
        return McpUpstreamError(
            "mcp.unauthorized",
            f"{name} refused our credentials (HTTP {status})",
            status=status,
            www_authenticate=answer.headers.get("www-authenticate"),
        )
    if content_type(answer) == "application/json":
        with suppress(NotJsonRpc):
            message = read_message(body)
            if message.error:
                return rpc_failure(message, status=status)
    if 300 <= status < 400:
        target = server_name(answer.headers.get("location") or "")
        return McpUpstreamError(
            "mcp.protocol_error",
            f"{name} redirects to {target}, which is not followed; use that address",
            status=status,
        )
    if status < 300:
        kind = content_type(answer) or "nothing"
        said = "without an answer" if status != 200 else f"with {plain_text(kind, 80)} instead of JSON or events"
        return McpUpstreamError("mcp.protocol_error", f"{name} answered {method} {said} (HTTP {status})", status=status)
    code = "mcp.unreachable" if status >= 500 or status in {408, 429} else "mcp.protocol_error"
    retry_after = answer.headers.get("retry-after")
    return McpUpstreamError(code, f"{name} refused {method} with HTTP {status}", status=status, retry_after=retry_after)
