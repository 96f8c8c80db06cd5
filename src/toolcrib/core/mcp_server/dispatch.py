"""From a JSON-RPC message to its answer, whatever carried it: methods, batches, cancellation.

A running request is found again by caller, session and id, so that a later notification can cancel it from whichever
process it reaches. Nothing else is kept between messages.
"""

import asyncio
from typing import Any, Generic, cast

import msgspec
import orjson

from toolcrib.core.mcp_server import wire
from toolcrib.core.mcp_server.face import Asked, C, Face, OnProgress
from toolcrib.core.mcp_server.wire import Message, Params, RpcError
from toolcrib.errors import AppError, Invalid, NotFound

Answered = tuple[bytes, int, list[tuple[bytes, bytes]]]  # body, HTTP status, headers
_MAX_BATCH = 50
_MAX_KEY = 4000  # characters; news between processes has a size limit
_CANCELLABLE = frozenset({"tools/call", "resources/read"})


def parse_message(body: bytes) -> Message | None:
    """A request or notification; None for an answer to a question, which we never ask.

    Raises:
        RpcError: it is neither.
    """
    try:
        message = wire.decode_message(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        known = isinstance(error, msgspec.ValidationError)
        code, reason = (wire.INVALID_REQUEST, "Not a JSON-RPC message") if known else (wire.PARSE_ERROR, "Parse error")
        raise RpcError(code, reason, status=400) from None
    if message.method is msgspec.UNSET or message.jsonrpc != "2.0":
        if message.method is msgspec.UNSET and message.jsonrpc == "2.0" and message.id is not msgspec.UNSET:
            return None
        raise RpcError(wire.INVALID_REQUEST, "Body must be a JSON-RPC 2.0 request or notification")
    return message


class Dispatcher(Generic[C]):
    """Answers messages out of a face."""

    def __init__(self, face: Face[C]) -> None:
        self._face = face
        self._listings = {
            "tools/list": face.list_tools,
            "resources/list": face.list_resources,
            "resources/templates/list": face.list_templates,
            "prompts/list": face.list_prompts,
        }
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._cancelled: set[str] = set()

    async def answer(
        self, asked: Asked[C], message: Message, params: Params, id_: bytes, on_progress: OnProgress | None
    ) -> Answered:
        """The whole JSON-RPC answer to a request, with the HTTP status and headers that go with it."""
        try:
            if message.method in _CANCELLABLE:
                result = await self._cancellable(asked, message, params, id_, on_progress)
            else:
                result = await self._result(asked, message, params)
        except AppError as error:
            rpc = wire.rpc_error(error, self._face.about.realm)
        except RpcError as error:
            rpc = error
        else:
            return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (id_, result), 200, []
        return rpc.body(id_), rpc.status(modern=asked.modern), rpc.headers

    async def answer_batch(self, asked: Asked[C], body: bytes) -> bytes | None:
        """The answers to a batch, each as if its message had come alone; None when nothing in it asked for one.

        Raises:
            RpcError: it is no batch.
        """
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
                    await self.note(asked, message)
                    return None
                return (await self.answer(asked, message, wire.parse_params(message), id_, None))[0]
            except RpcError as error:
                return error.body(id_ or b"null")

        answers = [answer for answer in await asyncio.gather(*map(one, messages)) if answer is not None]
        return b"[" + b",".join(answers) + b"]" if answers else None

    async def note(self, asked: Asked[C], message: Message) -> None:
        """Take a notification; all but those that cancel are of no concern."""
        if message.method != "notifications/cancelled" or asked.session is None:
            return
        params = wire.parse_params(message)
        if params.request_id is msgspec.UNSET:
            return
        key = self._key(asked, bytes(params.request_id))
        if key in self._running:
            self.cancel(key)
        elif len(key) < _MAX_KEY:
            await self._face.cancel_elsewhere(key)

    def cancel(self, key: str) -> None:
        """Cancel a request if it runs in this process; `key` is what `Face.cancel_elsewhere` was given."""
        if task := self._running.pop(key, None):
            self._cancelled.add(key)
            task.cancel()

    async def _cancellable(
        self, asked: Asked[C], message: Message, params: Params, id_: bytes, on_progress: OnProgress | None
    ) -> bytes:
        key = None if asked.session is None else self._key(asked, id_)
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        if key is not None:
            self._running[key] = task
        try:
            if message.method == "resources/read":
                return await self._read(asked, params)
            if params.name is None:
                raise RpcError(wire.INVALID_PARAMS, "tools/call needs a name")
            try:
                result = await self._face.call_tool(asked, params.name, _arguments(params), on_progress)
            except NotFound as error:
                known = {"code": error.code}
                raise RpcError(wire.INVALID_PARAMS, f"Unknown tool: {params.name[:256]}", known) from None
            except Invalid as error:  # a result and no protocol error, so that the model can mend its arguments
                result = orjson.dumps({"content": [{"type": "text", "text": error.message}], "isError": True})
        except asyncio.CancelledError:
            if key is None or key not in self._cancelled:
                raise
            task.uncancel()
            raise RpcError(wire.CANCELLED, "Request cancelled") from None
        finally:
            if key is not None:
                self._running.pop(key, None)
                self._cancelled.discard(key)
        if asked.modern:
            return wire.modern_result(result, self._face.about.meta)
        return wire.handshake_result(result, asked.version)

    async def _read(self, asked: Asked[C], params: Params) -> bytes:
        if params.uri is None:
            raise RpcError(wire.INVALID_PARAMS, "resources/read needs a uri")
        result = await self._face.read_resource(asked, params.uri)
        return wire.completed(result, self._face.about.meta) if asked.modern else result

    async def _result(self, asked: Asked[C], message: Message, params: Params) -> bytes:
        face, about = self._face, self._face.about
        if listing := self._listings.get(str(message.method)):
            result = await listing(asked, params.cursor)
            return wire.completed(result, about.meta) if asked.modern else result
        match message.method:
            case "initialize" if not asked.modern:
                return about.initialized(wire.negotiated(params))
            case "ping" if not asked.modern:
                return b"{}"
            case "server/discover" if asked.modern:
                result = about.discovered
            case "prompts/get":
                if params.name is None:
                    raise RpcError(wire.INVALID_PARAMS, "prompts/get needs a name")
                result = await face.get_prompt(asked, params.name, _arguments(params))
            case "completion/complete":
                result = await face.complete(asked, params)
            case _:
                raise wire.method_not_found(str(message.method))
        return wire.completed(result, about.meta) if asked.modern else result

    def _key(self, asked: Asked[C], id_: bytes) -> str:
        """Names a running request across processes; without a session ids of several clients would be mixed up."""
        return f"{self._face.identity(asked.caller)} {asked.session} {id_.decode(errors='replace')}"


def _arguments(params: Params) -> bytes:
    if params.arguments is msgspec.UNSET:
        return b"{}"
    arguments = bytes(params.arguments)
    return b"{}" if arguments == b"null" else arguments
