"""MCP over streamable HTTP, all revisions, as one ASGI application.

Nothing is kept between requests, so any process can answer any of them. The session id given out at `initialize` is a
random word that also tells the version; it lets a later `notifications/cancelled` find its request.
"""

import asyncio
import base64
import ipaddress
from typing import Final, Generic
from urllib.parse import urlsplit

import msgspec
from starlette.types import Receive, Scope, Send

from toolcrib.core.exchange import BodyTooLarge, Exchange, read_body, run_unless_gone
from toolcrib.core.ids import new_id
from toolcrib.core.mcp_server import wire
from toolcrib.core.mcp_server.dispatch import Dispatcher, parse_message
from toolcrib.core.mcp_server.face import Asked, C, Face
from toolcrib.core.mcp_server.streams import CallStream, change_stream
from toolcrib.core.mcp_server.wire import Headers, Message, RpcError
from toolcrib.errors import AppError, Kind

_ROUTING = (b"mcp-protocol-version", b"mcp-method", b"mcp-name")
PERMITTED_ORIGIN: Final = "toolcrib.permitted_origin"  # in a scope: the origin that rules in front of us let in
_STATUS: Final = {Kind.UNAVAILABLE: 503, Kind.UPSTREAM: 502, Kind.RATE_LIMITED: 429}


class McpHttp(Generic[C]):
    """The ASGI application; give it HTTP requests only.

    Attributes:
        dispatcher: answers the messages; take its `cancel` for news from other processes.
    """

    def __init__(
        self,
        face: Face[C],
        *,
        max_request_bytes: int,
        allowed_origins: frozenset[str] = frozenset(),
        origins_setting: str = "",
        callers_sign_in: bool = False,
        closing: asyncio.Event,
    ) -> None:
        """Serve `face`.

        Args:
            face: what is served.
            max_request_bytes: largest request body.
            allowed_origins: web origins other than our own that may use this server.
            origins_setting: where to allow more of them, for the message to one that was refused.
            callers_sign_in: whether who has no credentials gets nothing, whatever page sends the request.
            closing: set when the server stops, so that streams end.
        """
        self.dispatcher = Dispatcher(face)
        self._face = face
        self._max_request_bytes = max_request_bytes
        self._allowed_origins = allowed_origins
        self._origins_setting = f" ({origins_setting})" if origins_setting else ""
        self._callers_sign_in = callers_sign_in
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        exchange = Exchange(scope, receive, send)
        try:
            await self._serve(exchange)
        except AppError as error:
            rpc = wire.rpc_error(error, self._face.about.realm)
            status = 413 if isinstance(error, BodyTooLarge) else rpc.status(modern=False)
            await exchange.reply(
                rpc.body(b"null"), status if status != 200 else _STATUS.get(error.kind, 404), rpc.headers
            )
        except RpcError as error:
            await exchange.reply(error.body(b"null"), error.status(modern=False))

    async def _serve(self, exchange: Exchange) -> None:
        headers = exchange.headers
        self._check_origin(headers, exchange.scope)
        caller = await self._face.admit(exchange)
        version = headers.get("mcp-protocol-version")
        session = headers.get("mcp-session-id")
        if version is None:
            version = _session_version(session)
        asked = Asked(caller, version, session, headers)
        if exchange.method == "POST":
            await self._post(exchange, asked)
        elif exchange.method == "GET" and not asked.modern:
            if "text/event-stream" not in headers.get("accept", ""):
                raise RpcError(wire.INVALID_REQUEST, "A GET asks for text/event-stream", status=406)
            await change_stream(exchange, self._face, asked, self._closing)
        elif exchange.method == "DELETE" and not asked.modern:
            await exchange.reply(b"", 204)
        else:
            allow = "POST" if asked.modern else "GET, POST, DELETE"
            error = RpcError(wire.INVALID_REQUEST, "Method not allowed")
            await exchange.reply(error.body(b"null"), 405, [(b"allow", allow.encode())])

    async def _post(self, exchange: Exchange, asked: Asked[C]) -> None:
        accept = exchange.headers.get("accept", "*/*")
        json_ok = "application/json" in accept or "*/*" in accept or "application/*" in accept
        sse_ok = "text/event-stream" in accept
        if not json_ok and not sse_ok:
            raise RpcError(wire.INVALID_REQUEST, "Accept must name application/json or text/event-stream", status=406)
        body = await read_body(exchange.receive, self._max_request_bytes)
        if body.lstrip()[:1] == b"[" and not asked.modern:  # batches exist in 2025-03-26 and before
            answers = await self.dispatcher.answer_batch(asked, body)
            await exchange.reply(answers or b"", 200 if answers else 202)
            return
        message = parse_message(body)
        if message is None:
            await exchange.reply(b"", 202)
            return
        await self._message(exchange, asked, message, json_ok=json_ok, sse_ok=sse_ok)

    async def _message(
        self, exchange: Exchange, asked: Asked[C], message: Message, *, json_ok: bool, sse_ok: bool
    ) -> None:
        id_ = wire.message_id(message)
        if id_ is None:
            await self.dispatcher.note(asked, message)
            await exchange.reply(b"", 202)
            return
        answer = self.dispatcher.answer
        try:
            params = wire.parse_params(message)
            if asked.modern:
                wire.check_modern(message, params, _routing_headers(exchange))
            if message.method == "tools/call":
                if asked.modern:
                    await self._face.check_call(asked, params)
                token = params.meta.progress_token if params.meta else msgspec.UNSET
                if sse_ok and (token is not msgspec.UNSET or not json_ok):
                    stream = CallStream(exchange, None if token is msgspec.UNSET else bytes(token))
                    await stream.run(lambda progress: answer(asked, message, params, id_, progress))
                    return
                answering = answer(asked, message, params, id_, None)
                body, status, extra = await (run_unless_gone(exchange, answering) if asked.modern else answering)
            elif message.method == "subscriptions/listen" and asked.modern:
                if not sse_ok:
                    raise RpcError(wire.INVALID_REQUEST, "A listen answer is an event stream", status=406)
                listen = (id_, params.notifications or {})
                await change_stream(exchange, self._face, asked, self._closing, listen=listen)
                return
            else:
                body, status, extra = await answer(asked, message, params, id_, None)
        except (AppError, RpcError) as error:
            rpc = error if isinstance(error, RpcError) else wire.rpc_error(error, self._face.about.realm)
            body, status, extra = rpc.body(id_), rpc.status(modern=asked.modern), rpc.headers
        if message.method == "initialize":
            extra = [(b"mcp-session-id", _new_session(body))]
        await exchange.reply(body, status, extra)

    def _check_origin(self, headers: dict[str, str], scope: Scope) -> None:
        """A web page may not use somebody's browser to reach us, unless its origin is ours or was allowed.

        An origin is not ours for having led to us: a page can make the name of its own server point to the machine of
        its visitor (DNS rebinding), and is then believed to be of that server.
        """
        origin = headers.get("origin")
        if origin is None or origin in self._allowed_origins or scope.get(PERMITTED_ORIGIN) == origin:
            return
        host = headers.get("host", "").lower()
        is_ours = _netloc(origin) == host and (self._callers_sign_in or not _is_rebound(scope, host))
        if not is_ours:
            raise RpcError(wire.INVALID_REQUEST, f"This origin is not allowed{self._origins_setting}", status=403)


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _is_rebound(scope: Scope, host: str) -> bool:
    """Whether somebody on this very machine knows it by a name that it has not."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost" or name.endswith(".localhost"):
            return False
        server = scope.get("server")
        return server is not None and ipaddress.ip_address(server[0]).is_loopback and not _is_address(name)
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _new_session(body: bytes) -> bytes:
    """A session id that tells the negotiated version, for clients that send no version header."""
    version = next((v for v in wire.HANDSHAKE_VERSIONS if b'"protocolVersion":"' + v.encode() in body), "")
    return f"{new_id('mcp')}.{version}".encode()


def _session_version(session: str | None) -> str:
    version = session.rpartition(".")[2] if session else ""
    return version if version in wire.HANDSHAKE_VERSIONS else wire.ASSUMED_VERSION


def _routing_headers(exchange: Exchange) -> Headers:
    doubled = None
    if len(exchange.headers) != len(exchange.scope["headers"]):  # some name comes more than once
        seen = [name for name, _ in exchange.scope["headers"]]
        doubled = next((name.decode() for name in _ROUTING if seen.count(name) > 1), None)
    get = exchange.headers.get
    return Headers(get("mcp-protocol-version"), get("mcp-method"), _decoded(get("mcp-name")), doubled)


def _decoded(value: str | None) -> str | None:
    """A header value that may be written as `=?base64?...?=`."""
    if value is None or not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    try:
        return base64.b64decode(value[9:-2], validate=True).decode()
    except ValueError:
        return None
