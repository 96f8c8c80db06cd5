"""The MCP endpoints `/mcp` (all tools of the workspace) and `/mcp/{tool set}`, as one ASGI application.

Nothing is kept between requests, so any process can answer any of them. The session id given out at `initialize` is a
random word that also tells the version; it lets a later `notifications/cancelled` find its request in whichever
process runs it. Calls take the pipeline in `gateway/call.py`; here is only translation.
"""

import asyncio
import base64
import contextlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec
import orjson
import structlog
from starlette.types import Receive, Scope, Send

from toolcrib.api.deps import Deps
from toolcrib.api.http_exchange import Exchange, run_unless_gone
from toolcrib.api.kit import BodyTooLarge, read_body, request_id
from toolcrib.api.mcp import protocol as wire
from toolcrib.api.mcp.listing import list_tools
from toolcrib.api.mcp.protocol import Headers, Message, Params, RpcError
from toolcrib.api.mcp.streams import Answered, CallStream, change_stream
from toolcrib.core.auth import Actor
from toolcrib.core.ids import new_id
from toolcrib.errors import AppError, Invalid, NotFound
from toolcrib.gateway.call import ToolRequest
from toolcrib.gateway.catalog import CatalogView, OfferedTool
from toolcrib.gateway.mcp_client.param_headers import ANNOTATION, param_headers, plan_headers

_log = structlog.get_logger(__name__)
CANCEL_NEWS = "mcp.cancel"
_MAX_BATCH = 50
_ROUTING = (b"mcp-protocol-version", b"mcp-method", b"mcp-name")
_CAPABILITIES = {"tools": {"listChanged": True}}
_INSTRUCTIONS = "Tools issued by Toolcrib. Every call is recorded; some tools may need a person's approval."


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who asks, through which endpoint, in which dialect of MCP."""

    actor: Actor
    tool_set: str | None
    version: str
    session: str | None
    headers: dict[str, str]

    @property
    def modern(self) -> bool:
        return self.version not in wire.HANDSHAKE_VERSIONS

    def find(self, name: str) -> Any:
        """How the pipeline finds the tool behind `name`."""

        def find(view: CatalogView) -> OfferedTool | None:
            if self.tool_set is None:
                return view.find(name)
            tool_set = view.tool_sets.get(self.tool_set)
            return tool_set.by_name.get(name) if tool_set else None

        return find


class McpApp:
    """The ASGI application."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._cancelled: set[str] = set()
        deps.database.bus.subscribe(CANCEL_NEWS, self._cancel_here)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        exchange = Exchange(scope, receive, send)
        try:
            await self._serve(exchange)
        except AppError as error:
            rpc = wire.rpc_error(error)
            status = 413 if isinstance(error, BodyTooLarge) else rpc.status(modern=False)
            await exchange.reply(rpc.body(b"null"), status if status != 200 else 404, rpc.headers)
        except RpcError as error:
            await exchange.reply(error.body(b"null"), error.status(modern=False))

    async def _serve(self, exchange: Exchange) -> None:
        headers = exchange.headers
        self._check_origin(headers)
        actor = await self._deps.sign_in.actor(headers.get("authorization"), headers.get("x-api-key"))
        version = headers.get("mcp-protocol-version")
        session = headers.get("mcp-session-id")
        if version is None:
            version = _session_version(session)
        caller = _Caller(actor, _tool_set(exchange.path), version, session, headers)
        if caller.tool_set is not None:
            view = await self._deps.catalog.view(actor.workspace_id)
            if caller.tool_set not in view.tool_sets:
                raise NotFound("tool_set.unknown", f"There is no tool set {caller.tool_set!r} in this workspace.")
        if exchange.method == "POST":
            await self._post(exchange, caller)
        elif exchange.method == "GET" and not caller.modern:
            if "text/event-stream" not in headers.get("accept", ""):
                raise RpcError(wire.INVALID_REQUEST, "A GET asks for text/event-stream", status=406)
            await change_stream(exchange, self._deps, actor)
        elif exchange.method == "DELETE" and not caller.modern:
            await exchange.reply(b"", 204)
        else:
            allow = "POST" if caller.modern else "GET, POST, DELETE"
            error = RpcError(wire.INVALID_REQUEST, "Method not allowed")
            await exchange.reply(error.body(b"null"), 405, [(b"allow", allow.encode())])

    async def _post(self, exchange: Exchange, caller: _Caller) -> None:
        accept = exchange.headers.get("accept", "*/*")
        json_ok = "application/json" in accept or "*/*" in accept or "application/*" in accept
        sse_ok = "text/event-stream" in accept
        if not json_ok and not sse_ok:
            raise RpcError(wire.INVALID_REQUEST, "Accept must name application/json or text/event-stream", status=406)
        body = await read_body(exchange.receive, self._deps.max_request_bytes)
        if body.lstrip()[:1] == b"[" and not caller.modern:
            await self._batch(exchange, caller, body)
            return
        try:
            message = wire.decode_message(body)
        except (msgspec.MsgspecError, RecursionError) as error:
            known = isinstance(error, msgspec.ValidationError)
            code, reason = (
                (wire.INVALID_REQUEST, "Not a JSON-RPC message") if known else (wire.PARSE_ERROR, "Parse error")
            )
            raise RpcError(code, reason, status=400) from None
        if message.method is msgspec.UNSET or message.jsonrpc != "2.0":
            if message.method is msgspec.UNSET and message.jsonrpc == "2.0" and message.id is not msgspec.UNSET:
                await exchange.reply(b"", 202)  # an answer to a question that we never ask
                return
            raise RpcError(wire.INVALID_REQUEST, "Body must be a JSON-RPC 2.0 request or notification")
        await self._message(exchange, caller, message, json_ok=json_ok, sse_ok=sse_ok)

    async def _message(
        self, exchange: Exchange, caller: _Caller, message: Message, *, json_ok: bool, sse_ok: bool
    ) -> None:
        id_ = wire.message_id(message)
        if id_ is None:
            await self._notification(caller, message)
            await exchange.reply(b"", 202)
            return
        try:
            params = wire.parse_params(message)
            if caller.modern:
                wire.check_modern(message, params, _routing_headers(exchange))
                await self._check_param_headers(caller, message, params)
            if message.method == "subscriptions/listen" and caller.modern:
                if not sse_ok:
                    raise RpcError(wire.INVALID_REQUEST, "A listen answer is an event stream", status=406)
                await change_stream(exchange, self._deps, caller.actor, listen=(id_, params.notifications or {}))
                return
            if message.method == "tools/call":
                token = params.meta.progress_token if params.meta else msgspec.UNSET
                if sse_ok and (token is not msgspec.UNSET or not json_ok):
                    stream = CallStream(exchange, None if token is msgspec.UNSET else bytes(token))
                    await stream.run(lambda progress: self._answer(caller, message, params, id_, progress))
                    return
                answer = self._answer(caller, message, params, id_, None)
                body, status, extra = await (run_unless_gone(exchange, answer) if caller.modern else answer)
            else:
                body, status, extra = await self._answer(caller, message, params, id_, None)
        except RpcError as error:
            body, status, extra = error.body(id_), error.status(modern=caller.modern), error.headers
        if message.method == "initialize":
            extra = [(b"mcp-session-id", _new_session(body))]
        await exchange.reply(body, status, extra)

    async def _answer(self, caller: _Caller, message: Message, params: Params, id_: bytes, progress: Any) -> Answered:
        """The whole JSON-RPC answer to a request, with the HTTP status and headers that go with it."""
        try:
            result = await self._result(caller, message, params, id_, progress)
        except AppError as error:
            rpc = wire.rpc_error(error)
        except RpcError as error:
            rpc = error
        else:
            return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (id_, result), 200, []
        return rpc.body(id_), rpc.status(modern=caller.modern), rpc.headers

    async def _result(self, caller: _Caller, message: Message, params: Params, id_: bytes, progress: Any) -> bytes:
        match message.method:
            case "tools/call":
                return await self._call(caller, params, id_, progress)
            case "tools/list":
                caller.actor.must("tools:call")
                view = await self._deps.catalog.view(caller.actor.workspace_id)
                return list_tools(view, caller.tool_set, params.cursor, self._deps.mcp_page_size, modern=caller.modern)
            case "initialize" if not caller.modern:
                asked = params.protocol_version
                version = asked if asked in wire.HANDSHAKE_VERSIONS else wire.LATEST_HANDSHAKE
                return orjson.dumps(
                    {
                        "protocolVersion": version,
                        "capabilities": _CAPABILITIES,
                        "serverInfo": wire.SERVER_INFO,
                        "instructions": _INSTRUCTIONS,
                    }
                )
            case "ping" if not caller.modern:
                return b"{}"
            case "server/discover" if caller.modern:
                discovered = {
                    "supportedVersions": [wire.MODERN],
                    "capabilities": _CAPABILITIES,
                    "instructions": _INSTRUCTIONS,
                    "ttlMs": 3_600_000,
                    "cacheScope": "public",
                }
                return wire.modern_result(orjson.dumps(discovered))
        raise RpcError(wire.METHOD_NOT_FOUND, f"Method not found: {str(message.method)[:100]}")

    async def _call(self, caller: _Caller, params: Params, id_: bytes, progress: Any) -> bytes:
        if params.name is None:
            raise RpcError(wire.INVALID_PARAMS, "tools/call needs a name")
        arguments = (
            b"{}"
            if params.arguments is msgspec.UNSET or bytes(params.arguments) == b"null"
            else bytes(params.arguments)
        )
        request = ToolRequest(caller.find(params.name), params.name, arguments, "mcp", request_id.get(), progress)
        key = None if caller.modern else _cancel_key(caller, id_)
        if key is not None and (task := asyncio.current_task()):
            self._running[key] = task
        try:
            result = (await self._deps.calls.call(caller.actor, request)).body
        except asyncio.CancelledError:
            if key is None or key not in self._cancelled:
                raise
            if task := asyncio.current_task():
                task.uncancel()
            raise RpcError(wire.CANCELLED, "Request cancelled") from None
        except NotFound as error:
            raise RpcError(wire.INVALID_PARAMS, f"Unknown tool: {params.name[:256]}", {"code": error.code}) from None
        except Invalid as error:  # a result and no protocol error, so that the model can mend its arguments
            result = orjson.dumps({"content": [{"type": "text", "text": error.message}], "isError": True})
        finally:
            if key is not None:
                self._running.pop(key, None)
                self._cancelled.discard(key)
        return wire.modern_result(result) if caller.modern else wire.handshake_result(result, caller.version)

    async def _notification(self, caller: _Caller, message: Message) -> None:
        if message.method != "notifications/cancelled" or caller.modern:
            return
        params = wire.parse_params(message)
        if params.request_id is msgspec.UNSET:
            return
        key = _cancel_key(caller, bytes(params.request_id))
        if key is None or key in self._running:
            self._cancel_here(key or "")
        elif len(key) < 4000:  # PostgreSQL takes news of up to 8,000 bytes
            async with self._deps.database.tx() as tx:
                await tx.publish(CANCEL_NEWS, key)

    def _cancel_here(self, key: str) -> None:
        if task := self._running.pop(key, None):
            self._cancelled.add(key)
            task.cancel()

    async def _batch(self, exchange: Exchange, caller: _Caller, body: bytes) -> None:
        """Batches exist in 2025-03-26 and before; each message is answered as if it had come alone."""
        try:
            parts = wire.decode_batch(body)
            messages = [wire.decode_message(part) for part in parts[: _MAX_BATCH + 1]]
        except (msgspec.MsgspecError, RecursionError):
            raise RpcError(wire.PARSE_ERROR, "Parse error") from None
        if not messages or len(messages) > _MAX_BATCH:
            raise RpcError(wire.INVALID_REQUEST, f"A batch has 1 to {_MAX_BATCH} messages")

        async def one(message: Message) -> bytes | None:
            id_: bytes | None = b"null"
            try:
                id_ = wire.message_id(message)
                if id_ is None:
                    await self._notification(caller, message)
                    return None
                return (await self._answer(caller, message, wire.parse_params(message), id_, None))[0]
            except RpcError as error:
                return error.body(id_ or b"null")

        answers = [answer for answer in await asyncio.gather(*map(one, messages)) if answer is not None]
        if answers:
            await exchange.reply(b"[" + b",".join(answers) + b"]", 200)
        else:
            await exchange.reply(b"", 202)

    async def _check_param_headers(self, caller: _Caller, message: Message, params: Params) -> None:
        """Arguments that the tool's schema wants repeated as `Mcp-Param-*` headers must agree with them."""
        if message.method != "tools/call" or params.name is None:
            return
        tool = caller.find(params.name)(await self._deps.catalog.view(caller.actor.workspace_id))
        if tool is None or ANNOTATION not in tool.schema_text:
            return
        with contextlib.suppress(ValueError):  # a schema that breaks the annotation's rules asks for no headers
            plan = plan_headers(orjson.loads(tool.schema_text))
            arguments = orjson.loads(bytes(params.arguments)) if params.arguments is not msgspec.UNSET else {}
            wanted = {name.lower(): value for name, value in param_headers(plan, arguments)}
            for _, name in plan:
                header = f"mcp-param-{name.lower()}"
                if caller.headers.get(header) != wanted.get(header):
                    raise RpcError(wire.HEADER_MISMATCH, f"{header} header does not match the request body")

    def _check_origin(self, headers: dict[str, str]) -> None:
        """A web page may not use somebody's browser to reach us, unless its origin is ours or was allowed."""
        origin = headers.get("origin")
        if origin is None or origin in self._deps.allowed_origins:
            return
        if urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise RpcError(
                wire.INVALID_REQUEST, "This origin is not allowed (TOOLCRIB_MCP_ALLOWED_ORIGINS)", status=403
            )


def _tool_set(path: str) -> str | None:
    rest = path.removeprefix("/mcp").strip("/")
    return rest or None


def _new_session(body: bytes) -> bytes:
    """A session id that tells the negotiated version, for clients that send no version header."""
    version = next((v for v in wire.HANDSHAKE_VERSIONS if b'"protocolVersion":"' + v.encode() in body), "")
    return f"{new_id('mcp')}.{version}".encode()


def _session_version(session: str | None) -> str:
    version = session.rpartition(".")[2] if session else ""
    return version if version in wire.HANDSHAKE_VERSIONS else wire.ASSUMED_VERSION


def _cancel_key(caller: _Caller, id_: bytes) -> str | None:
    """Names a running request across processes; without a session ids of several clients would be mixed up."""
    if caller.session is None:
        return None
    return f"{caller.actor.key_id or caller.actor.principal_id} {caller.session} {id_.decode(errors='replace')}"


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
