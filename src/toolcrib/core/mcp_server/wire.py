"""MCP on the wire, as far as a server needs it: messages, versions, era rules, error codes.

Parameters and results stay raw JSON and pass through untouched. Sources: the MCP specification, revisions 2024-11-05 to
2026-07-28; the official SDK is the oracle in the tests.
"""

from typing import Any

import msgspec
import orjson

from toolcrib.errors import AppError, Kind

HANDSHAKE_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
LATEST_HANDSHAKE = HANDSHAKE_VERSIONS[-1]
ASSUMED_VERSION = "2025-03-26"  # what a request without a version header speaks, says the specification
MODERN = "2026-07-28"

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
CANCELLED = -32800
REFUSED = -32003
UNAVAILABLE = -32004
HEADER_MISMATCH = -32020
UNSUPPORTED_VERSION = -32022

META = "io.modelcontextprotocol/"
_MODERN_STATUS = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    INVALID_PARAMS: 400,
    HEADER_MISMATCH: 400,
    UNSUPPORTED_VERSION: 400,
    METHOD_NOT_FOUND: 404,
}
_MAX_ID_BYTES = 256
_RESULT_TYPE = b'"resultType":"complete"'


class Message(msgspec.Struct):
    """A JSON-RPC message; what is absent is `UNSET`."""

    jsonrpc: str = ""
    method: str | msgspec.UnsetType = msgspec.UNSET
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Meta(msgspec.Struct):
    """The members of `params._meta` that matter here."""

    progress_token: msgspec.Raw | msgspec.UnsetType = msgspec.field(name="progressToken", default=msgspec.UNSET)
    version: Any = msgspec.field(name=META + "protocolVersion", default=msgspec.UNSET)
    capabilities: Any = msgspec.field(name=META + "clientCapabilities", default=msgspec.UNSET)


class Params(msgspec.Struct):
    """The parameters of every method served here, each using what it knows."""

    name: str | None = None
    uri: str | None = None
    arguments: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    cursor: str | None = None
    ref: Any = None
    argument: Any = None
    meta: Meta | None = msgspec.field(name="_meta", default=None)
    protocol_version: Any = msgspec.field(name="protocolVersion", default=None)
    request_id: msgspec.Raw | msgspec.UnsetType = msgspec.field(name="requestId", default=msgspec.UNSET)
    notifications: dict[str, Any] | None = None


class _ResultHead(msgspec.Struct):
    result_type: Any = msgspec.field(name="resultType", default=msgspec.UNSET)
    meta: Any = msgspec.field(name="_meta", default=msgspec.UNSET)


decode_message = msgspec.json.Decoder(Message).decode
decode_batch = msgspec.json.Decoder(list[msgspec.Raw]).decode
decode_params = msgspec.json.Decoder(Params).decode
_decode_head = msgspec.json.Decoder(_ResultHead).decode


class RpcError(Exception):
    """A JSON-RPC error to answer."""

    def __init__(
        self, code: int, message: str, data: Any = None, *, status: int | None = None, challenge: str | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.data = code, message, data
        self.headers = [(b"www-authenticate", challenge.encode())] if challenge else []
        self._status = status

    def status(self, *, modern: bool) -> int:
        """The HTTP status: the handshake era answers 200 unless the request itself was broken."""
        if self._status is not None:
            return self._status
        if modern:
            return _MODERN_STATUS.get(self.code, 200)
        return 400 if self.code in {PARSE_ERROR, INVALID_REQUEST} else 200

    def body(self, message_id: bytes) -> bytes:
        """The whole answer."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.data is not None:
            error["data"] = self.data
        return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (message_id, orjson.dumps(error))


def method_not_found(method: str) -> RpcError:
    """The answer to a method that is not served."""
    return RpcError(METHOD_NOT_FOUND, f"Method not found: {method[:100]}")


def rpc_error(error: AppError, realm: str) -> RpcError:
    """A refusal as a JSON-RPC error; `realm` names the server in the challenge to sign in."""
    data = {"code": error.code, **({"field": error.field} if error.field else {})}
    match error.kind:
        case Kind.INVALID | Kind.NOT_FOUND | Kind.CONFLICT:
            return RpcError(INVALID_PARAMS, error.message, data)
        case Kind.UNAUTHENTICATED:
            return RpcError(REFUSED, error.message, data, status=401, challenge=f'Bearer realm="{realm}"')
        case Kind.FORBIDDEN if error.code == "scope.missing":
            challenge = f'Bearer error="insufficient_scope", scope="{error.details["scope"]}"'
            return RpcError(REFUSED, error.message, data, status=403, challenge=challenge)
        case Kind.FORBIDDEN:
            return RpcError(REFUSED, error.message, data)
        case Kind.INSUFFICIENT_CREDITS | Kind.PLAN_REQUIRED | Kind.RATE_LIMITED:
            return RpcError(REFUSED, error.message, data)
        case Kind.UPSTREAM | Kind.UNAVAILABLE:
            return RpcError(UNAVAILABLE, error.message, data)


def message_id(message: Message) -> bytes | None:
    """The raw id of a request, None for a notification.

    Raises:
        RpcError: the id is neither a string nor an integer.
    """
    if message.id is msgspec.UNSET:
        return None
    raw = bytes(message.id)
    if not (raw[:1] == b'"' or raw.lstrip(b"-").isdigit()) or len(raw) > _MAX_ID_BYTES:
        raise RpcError(INVALID_REQUEST, "A request id is a string or an integer of at most 256 bytes")
    return raw


def parse_params(message: Message) -> Params:
    """The parameters.

    Raises:
        RpcError: they are no object, or a member has a wrong type.
    """
    if message.params is msgspec.UNSET:
        return Params()
    try:
        return decode_params(message.params)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RpcError(INVALID_PARAMS, f"Invalid parameters: {error}") from None


def negotiated(params: Params) -> str:
    """The version of a handshake: what the client asked for if we know it, else our latest."""
    asked = params.protocol_version
    return asked if asked in HANDSHAKE_VERSIONS else LATEST_HANDSHAKE


class Headers(msgspec.Struct, frozen=True, gc=False):
    """The routing headers of a modern request; `doubled` names one that came twice."""

    version: str | None
    method: str | None
    name: str | None
    doubled: str | None = None


def check_modern(message: Message, params: Params, headers: Headers | None) -> None:
    """The rules of 2026-07-28: the envelope is complete, and the headers, where there are any, say what the body says.

    Raises:
        RpcError: the first rule broken.
    """
    if headers is not None and headers.doubled:
        raise RpcError(HEADER_MISMATCH, f"{headers.doubled} header appears more than once")
    meta = params.meta
    if meta is None or meta.version is msgspec.UNSET or meta.capabilities is msgspec.UNSET:
        raise RpcError(INVALID_PARAMS, f"params._meta must carry {META}protocolVersion and {META}clientCapabilities")
    if headers is not None:
        _check_routing(message, params, meta, headers)
    if meta.version != MODERN:
        raise RpcError(
            UNSUPPORTED_VERSION, "Unsupported protocol version", {"supported": [MODERN], "requested": str(meta.version)}
        )


def _check_routing(message: Message, params: Params, meta: Meta, headers: Headers) -> None:
    if headers.version != meta.version:
        raise RpcError(HEADER_MISMATCH, "mcp-protocol-version header does not match the request envelope")
    if headers.method != message.method:
        raise RpcError(HEADER_MISMATCH, "mcp-method header does not match the request body's method")
    named = params.name if message.method in {"tools/call", "prompts/get"} else None
    named = params.uri if message.method == "resources/read" else named
    if named is not None and headers.name != named:
        raise RpcError(HEADER_MISMATCH, "mcp-name header does not match the request body")


def completed(result: bytes, server_meta: bytes) -> bytes:
    """A result that we made ourselves with what 2026-07-28 asks for."""
    return b"{%b,%b%b%b" % (_RESULT_TYPE, server_meta, b"" if result[1:2] == b"}" else b",", result[1:])


def modern_result(result: bytes, server_meta: bytes) -> bytes:
    """A result with what 2026-07-28 asks for; one that an upstream of that era gave has it already."""
    head = _decode_head(result)
    extra = []
    if head.result_type is msgspec.UNSET:
        extra.append(_RESULT_TYPE)
    if head.meta is msgspec.UNSET:
        extra.append(server_meta)
    if not extra:
        return result
    rest = result.lstrip()[1:].lstrip()
    return b"{" + b",".join(extra) + (b"" if rest.startswith(b"}") else b",") + rest


def handshake_result(result: bytes, version: str) -> bytes:
    """A tool result without kinds of content that the client's version does not know (they become text)."""
    if version >= "2025-06-18":
        return result
    unknown = {"resource_link"}
    if version < "2025-03-26":
        unknown.add("audio")
    if not any(b'"' + kind.encode() + b'"' in result for kind in unknown):
        return result
    value = orjson.loads(result)
    for i, block in enumerate(value.get("content") or ()):
        if isinstance(block, dict) and block.get("type") in unknown:
            text = block.get("uri") or f"[{block['type']} {block.get('mimeType', '')}]"
            value["content"][i] = {"type": "text", "text": str(text)}
    return orjson.dumps(value)


def one_line(body: bytes) -> bytes:
    """JSON without line breaks, as an event stream needs it."""
    return msgspec.json.format(body, indent=-1) if b"\n" in body or b"\r" in body else body


def event(body: bytes) -> bytes:
    """A message as a server-sent event."""
    return b"event: message\ndata: " + one_line(body) + b"\n\n"


def notification(method: str, params: dict[str, Any]) -> bytes:
    """A notification of ours; `method` without the word in front."""
    return orjson.dumps({"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params})


def progress(params: bytes, token: bytes) -> bytes:
    """Somebody else's progress under the client's own token."""
    values = msgspec.json.decode(params, type=dict[str, msgspec.Raw])
    values["progressToken"] = msgspec.Raw(token)
    return b'{"jsonrpc":"2.0","method":"notifications/progress","params":%b}' % msgspec.json.encode(values)
