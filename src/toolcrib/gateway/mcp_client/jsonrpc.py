"""JSON-RPC 2.0 messages: written by hand, read by msgspec, with `params` and `result` left as raw bytes.

Nothing here knows MCP methods or transports. Reading raises `NotJsonRpc` for anything that is not one message.
"""

import re

import msgspec
from msgspec import UNSET, Raw, UnsetType

METHOD_NOT_FOUND = -32601

_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class RpcError(msgspec.Struct, frozen=True):
    """The `error` member."""

    code: int
    message: str | None = None
    data: Raw | UnsetType = UNSET


class Message(msgspec.Struct, frozen=True):
    """A request (method and id), a notification (method alone) or a response (result or error)."""

    id: int | str | UnsetType | None = UNSET
    method: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: RpcError | UnsetType | None = UNSET


class NotJsonRpc(ValueError):
    """The bytes are not a JSON-RPC message."""


_message = msgspec.json.Decoder(Message)
_batch = msgspec.json.Decoder(list[Message])


def read_message(data: bytes) -> Message:
    """One message; raises NotJsonRpc."""
    try:
        return _message.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        # JavaScript cuts strings in the middle of a surrogate pair and sends the half as an escape.
        if _SURROGATE.search(data) and (mended := _without_lone_surrogates(data)) != data:
            return read_message(mended)
        raise NotJsonRpc(str(exc)) from exc


def read_messages(data: bytes) -> list[Message]:
    """One message, or the several of a batch (2025-03-26 allowed them); raises NotJsonRpc."""
    if data.lstrip()[:1] != b"[":
        return [read_message(data)]
    try:
        return _batch.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise NotJsonRpc(str(exc)) from exc


def _without_lone_surrogates(data: bytes) -> bytes:
    return _ESCAPE.sub(lambda found: b"\\ufffd" if found[1] else found[0], data)


def answers(message: Message, request_id: int) -> bool:
    """Whether the message is the response to this request; some servers send the id back as text."""
    return message.method is UNSET and (message.id == request_id or message.id == str(request_id))


def request_bytes(request_id: int, method: bytes, params: bytes) -> bytes:
    """A request; `params` is one JSON object."""
    return b'{"jsonrpc":"2.0","id":%d,"method":"%b","params":%b}' % (request_id, method, params)


def notification_bytes(method: bytes, params: bytes) -> bytes:
    """A notification; `params` is one JSON object."""
    return b'{"jsonrpc":"2.0","method":"%b","params":%b}' % (method, params)


def reply_bytes(message: Message) -> bytes:
    """Our answer to a server's request: `ping` is answered, everything else is something we never offered."""
    request_id = msgspec.json.encode(message.id)
    if message.method == "ping":
        return b'{"jsonrpc":"2.0","id":%b,"result":{}}' % request_id
    return b'{"jsonrpc":"2.0","id":%b,"error":{"code":-32601,"message":"Method not found"}}' % request_id
