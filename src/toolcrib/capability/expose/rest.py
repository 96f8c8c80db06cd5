"""The REST face of a capability: routes, inputs, replies, and forwarding, as one ASGI application.

Failures are problems (RFC 9457) or, for clients that prefer it, plain text. A request whose client goes away is
cancelled. Nothing of the file is parsed here.
"""

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote, unquote_plus

import structlog
from starlette.types import Receive, Scope, Send

from toolcrib.capability.expose.problem import header_of, method_not_allowed, problem, refuse, status_of
from toolcrib.capability.inputs import RestInputs
from toolcrib.capability.operation import FRAMING, Field
from toolcrib.capability.plan import PlannedForward, PlannedPath, PlannedRest, PlannedRoute
from toolcrib.capability.reply import Reply
from toolcrib.capability.routing import Router, trailing_variable
from toolcrib.capability.spec import ABSENT
from toolcrib.capability.telemetry import Telemetry
from toolcrib.capability.templates import RawBody, as_text, encode_query, header_text
from toolcrib.capability.upstream import UpstreamRequest
from toolcrib.core.exchange import ClientGone, Exchange, read_body, run_unless_gone
from toolcrib.errors import AppError, Invalid

_log = structlog.get_logger(__name__)
_BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_OF_A_BODY = ("content-type", "content-language", "content-disposition", "etag", "last-modified")
_FORWARDED_BACK = frozenset({*_OF_A_BODY, "location", "retry-after", "link", "cache-control", "expires", "vary"})
_SEGMENT_SAFE = "%!$&'()*+,;=:@-._~"
_QUERY_SAFE = "%!$'()*+,;:@/?[]-._~=&"
_DEFAULT_LIMIT = 10 * 2**20


class RestApp:
    """The ASGI application of a REST server.

    Args:
        planned: the server.
        telemetry: told of every request.
        prefix: a path in front of all others (`/name`), for several capabilities on one port.
        max_request_bytes: larger bodies are answered 413.
    """

    def __init__(
        self,
        planned: PlannedRest,
        telemetry: Telemetry,
        *,
        prefix: str = "",
        max_request_bytes: int = _DEFAULT_LIMIT,
    ) -> None:
        self._telemetry = telemetry
        self._prefix = prefix
        self._limit = max_request_bytes
        self._router: Router[tuple[PlannedPath, dict[str, PlannedRoute]]] = Router()
        for path in planned.paths:
            methods: dict[str, PlannedRoute] = {}
            for route in path.routes:
                methods.setdefault(route.method, route)
            if "GET" in methods:
                methods.setdefault("HEAD", methods["GET"])
            self._router.add(path.path, (path, methods), rest=path.forward is not None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        try:
            await self._serve(scope, receive, send)
        except AppError as error:
            await refuse(send, error, accept=header_of(scope, b"accept"))
        except ClientGone:
            pass
        except _BrokenOff as error:
            _log.warning("capability.forward_broken", reason=str(error))
        except Exception:  # noqa: BLE001 - a bug must not take the connection down
            _log.exception("capability.request_failed", path=scope["path"])
            accept = header_of(scope, b"accept")
            await problem(send, 500, "Internal Server Error", "internal error", accept=accept)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw_path = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("latin-1").partition("?")[0]
        if self._prefix:
            raw_path = raw_path.removeprefix(self._prefix)
        try:
            found = self._router.find(raw_path)
        except UnicodeDecodeError:
            raise Invalid("path.not_text", "The path holds percent-escapes that are no UTF-8.") from None
        if not found:
            accept = header_of(scope, b"accept")
            await problem(send, 404, "Not Found", f"there is no resource at {raw_path[:200]}", accept=accept)
            return
        method = scope["method"]
        for (_, methods), variables in found:
            route = methods.get(method)
            if route is not None:
                await self._operation(route, variables, scope, receive, send)
                return
        for (path, _), _ in found:
            if path.forward is not None:
                await self._forward(path.forward, _tail(path.path, raw_path), scope, receive, send)
                return
        allowed = dict.fromkeys(name for (_, methods), _ in found for name in methods)
        if method == "OPTIONS":
            allow = ", ".join([*allowed, "OPTIONS"]).encode()
            await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", allow)]})
            await send({"type": "http.response.body", "body": b""})
            return
        await method_not_allowed(send, [*allowed, "OPTIONS"], accept=header_of(scope, b"accept"))

    async def _operation(
        self, route: PlannedRoute, variables: dict[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        content = await self._content(scope, receive)
        inputs = RestInputs(variables, scope["query_string"], scope["headers"], content)
        inputs.passes_query = route.passes_query
        exchange = Exchange(scope, receive, send)
        with self._observed(route.operation_id, scope) as seen:
            if route.declare is not None:
                route.declare(inputs)
            reply: Reply = await run_unless_gone(exchange, route.action.run(inputs))
            seen.status = reply.status
        await _send_reply(send, reply, head_only=scope["method"] == "HEAD")

    def _observed(self, operation_id: str, scope: Scope) -> "_Observed | _Unobserved":
        telemetry = self._telemetry
        if telemetry.metrics is None and not telemetry.recorder.active:
            return _UNOBSERVED
        return _Observed(telemetry, operation_id, scope)

    async def _content(self, scope: Scope, receive: Receive) -> RawBody | None:
        body = await read_body(receive, self._limit)  # what comes after it is the client going away
        return RawBody(body, header_of(scope, b"content-type") or None) if body else None

    async def _forward(self, forward: PlannedForward, tail: str, scope: Scope, receive: Receive, send: Send) -> None:
        if forward.broken is not None:
            raise forward.broken.with_traceback(None)
        content = await self._content(scope, receive)
        url = forward.base.render(forward.api.defaults).rstrip("/") + tail
        query = _forwarded_query(forward, scope["query_string"])
        if query:
            url += f"?{query}"
        headers = _forwarded(forward, scope["headers"])
        body = content.data if content is not None else None
        request = UpstreamRequest(scope["method"], url, headers, body, "forward")
        with self._observed(f"forward {scope['method']}", scope) as seen:
            await run_unless_gone(Exchange(scope, receive, send), self._relay(forward, request, send, seen))

    async def _relay(self, forward: PlannedForward, request: UpstreamRequest, send: Send, seen: Any) -> None:
        started = False
        try:
            async with forward.upstream.stream(request) as stream:
                seen.status = stream.status
                head = [
                    (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
                    for name, value in stream.headers.items()
                    if name.lower() in _FORWARDED_BACK or name.lower().startswith("x-ratelimit-")
                ]
                await send({"type": "http.response.start", "status": stream.status, "headers": head})
                started = True
                async for chunk in stream.chunks():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except AppError as error:
            if not started:
                raise
            # the head is out: an unfinished body is the only way left to say that it broke
            raise _BrokenOff(error.code) from None


class _BrokenOff(Exception):
    """An upstream failed in the middle of a body that was already on its way to the client."""


class _Unobserved:
    """Stands for a request that nobody counts."""

    status = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing."""


_UNOBSERVED = _Unobserved()


class _Observed(_Unobserved):
    """A request under the eyes of metrics and traces."""

    def __init__(self, telemetry: Telemetry, operation_id: str, scope: Scope) -> None:
        self._telemetry = telemetry
        self._operation_id = operation_id
        attributes = {"naftiko.adapter.type": "rest", "naftiko.operation.id": operation_id}
        self._span = telemetry.recorder.request_span("rest.request", scope["headers"], attributes)

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        self._span.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Count it, and end its span."""
        failed = None
        if isinstance(error, AppError):
            self.status, failed = status_of(error), error.code
        elif error is not None:
            self.status, failed = 500, type(error).__name__
        elif self.status >= 400:
            failed = f"http_{self.status}"
        if failed is not None and self.status >= 500:
            self._span.fail(failed)
        self._span.__exit__(kind, error, traceback)
        seconds = time.perf_counter() - self._started
        self._telemetry.observe_request("rest", self._operation_id, self.status, seconds, failed)


def _tail(path: str, raw_path: str) -> str:
    """What follows a forwarding path, as it was sent: with its slash in front, or nothing.

    Raises:
        Invalid: it has . or .. segments, hidden in percent-escapes or not.
    """
    shape = [segment for segment in path.split("/") if segment]
    fixed = len(shape) - bool(shape and trailing_variable(shape[-1]))
    segments = raw_path.lstrip("/").split("/")[fixed:]
    for segment in segments:
        if not {".", ".."}.isdisjoint(unquote(segment).replace("\\", "/").split("/")):
            raise Invalid("path.climbs", "The path may not have . or .. segments.")
    tail = "/".join(quote(segment, safe=_SEGMENT_SAFE) for segment in segments)
    return f"/{tail}" if tail else ""


def _forwarded_query(forward: PlannedForward, sent: bytes) -> str:
    """The query as it was sent, and the API's own values in place of those of the same name."""
    own = {f.name: as_text(value) for f in forward.api.query if (value := f.value({})) is not ABSENT}
    pairs = forward.api.harmless(quote(sent, safe=_QUERY_SAFE)).split("&") if sent else []
    if own:
        pairs = [pair for pair in pairs if unquote_plus(pair.partition("=")[0]) not in own]
    return "&".join([*pairs, *(f"{quote(name)}={encode_query(text, name)}" for name, text in own.items())])


def _forwarded(forward: PlannedForward, sent: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """The trusted headers of the caller, those that describe its body, and the API's own."""
    own = [(f.name, text) for f in forward.api.headers if (text := _field_text(f))]
    names = {name.lower() for name, _ in own}
    trusted = (forward.trusted | {"content-type", "accept"}) - FRAMING
    for raw_name, raw_value in sent:
        name = raw_name.decode("latin-1")
        if name not in names and name in trusted:
            own.append((name, raw_value.decode("latin-1")))
    return own


def _field_text(item: Field) -> str:
    value = item.value({})
    return "" if value is ABSENT else header_text(value)


async def _send_reply(send: Send, reply: Reply, *, head_only: bool) -> None:
    head = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in reply.headers]
    status = reply.status
    if status not in {204, 304} and status >= 200:
        head.append((b"content-length", str(len(reply.body)).encode()))
        if reply.media is not None:
            head.append((b"content-type", reply.media.encode("latin-1", "replace")))
    await send({"type": "http.response.start", "status": status, "headers": head})
    body = b"" if head_only or status in {204, 304} else reply.body
    await send({"type": "http.response.body", "body": body})
