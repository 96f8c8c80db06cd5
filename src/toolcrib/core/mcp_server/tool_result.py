"""An HTTP response as an MCP tool result, in bytes; the body of a JSON object is passed on as it is, never rebuilt."""

import base64
import codecs
import functools
from collections.abc import Callable
from typing import Any

import msgspec
import orjson

_NOT_CHARSETS = frozenset({"punycode", "idna", "unicode_escape", "raw_unicode_escape"})  # Python's own; some quadratic
_check_json = msgspec.json.Decoder(msgspec.Raw).decode  # looks at every byte and builds nothing


def tool_result(status: int, content_type: str, body: bytes, structured: bytes = b"") -> tuple[bytes, bool]:
    """The result, and whether it is an error (a status of 400 or above, which the text then tells).

    Images and audio become such content, other binary bodies an embedded resource, all else text. The structured
    content of a success is `structured`, a JSON object in bytes, or without it the body if that is one.
    """
    is_error = status >= 400
    media, charset = media_type(content_type)
    if not body:
        blocks = b"" if not is_error else text_block(f"HTTP {status}")
    elif media.startswith(("image/", "audio/")) and not is_error:
        data = base64.b64encode(body)
        blocks = b'{"type":"%b","data":"%b","mimeType":%b}' % (media.split("/")[0].encode(), data, orjson.dumps(media))
    elif (text := as_text(body, charset)) is None:
        blob = base64.b64encode(body)
        mime = orjson.dumps(media or "application/octet-stream")
        blocks = b'{"type":"resource","resource":{"uri":"response:body","mimeType":%b,"blob":"%b"}}' % (mime, blob)
    else:
        blocks = text_block(f"HTTP {status}: {text}" if is_error else text)
        if not (is_error or structured) and body.lstrip()[:1] == b"{":
            structured = json_object(body if charset == "utf-8" else text.encode())
    member = b',"structuredContent":' + structured if structured and not is_error else b""
    return b'{"content":[%b]%b,"isError":%b}' % (blocks, member, b"true" if is_error else b"false"), is_error


def shaped_result(
    status: int, content_type: str, body: bytes, shape: Callable[[Any], Any] | None, *, promised: bool
) -> tuple[bytes, bool]:
    """As `tool_result`, the structured content of a success made by `shape` of the parsed body.

    `shape` gets None where there is nothing to parse; what it makes is left out unless it is an object. `promised` says
    that the tool has an output schema, so that every success must have structured content.
    """
    structured = b""
    if status < 400 and shape is not None:
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            value = None
        made = shape(value)
        if isinstance(made, dict):
            structured = body if made is value else orjson.dumps(made)
    if status < 400 and promised and not structured:
        text = as_text(body, media_type(content_type)[1])
        structured = (json_object(text.encode()) if text else b"") or b"{}"
    return tool_result(status, content_type, body, structured)


def failure(message: str) -> bytes:
    """A tool result that tells of a failure."""
    return b'{"content":[%b],"isError":true}' % text_block(message)


def text_block(text: str) -> bytes:
    """A block of text content."""
    return b'{"type":"text","text":' + orjson.dumps(text) + b"}"


@functools.lru_cache(256)
def media_type(content_type: str) -> tuple[str, str | None]:
    """The media type, and the name of the charset; None for a charset that no text has."""
    text = content_type.lower()
    _, found, charset = text.partition("charset=")
    charset = charset.partition(";")[0].strip('" ') if found else "utf-8"
    try:
        name = codecs.lookup(charset).name
    except LookupError:
        name = ""
    media = text.partition(";")[0].strip()
    return media, None if not name or name.replace("-", "_") in _NOT_CHARSETS else name


def as_text(body: bytes, charset: str | None) -> str | None:
    """The body as text, or None when it is binary."""
    if charset is None:
        return None
    try:
        text = body.decode(charset)
        if charset != "utf-8":
            text.encode()  # lone surrogates of odd codecs
    except (UnicodeError, LookupError):
        return None
    return None if "\0" in text else text


def json_object(body: bytes) -> bytes:
    """The body (text in UTF-8) itself if it is one valid JSON object, else nothing."""
    body = body.strip()
    try:
        _check_json(body)
    except (msgspec.DecodeError, RecursionError):
        return b""
    return body if body[:1] == b"{" else b""
