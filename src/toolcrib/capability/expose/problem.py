"""Answers of the faces that are not a relayed reply: whole bodies, and failures as RFC 9457 problems.

The one place of the capability engine where a kind of failure becomes an HTTP status. A client that asks for plain
text gets the detail as text. Nothing here knows what failed: what it is given is safe to show.
"""

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import orjson
from starlette.types import Scope, Send

from toolcrib.core.http import AddressRefused
from toolcrib.errors import AppError, Invalid, Kind

Header = tuple[str, str]

_STATUS: Final[Mapping[Kind, int]] = {
    Kind.INVALID: 400,
    Kind.UNAUTHENTICATED: 401,
    Kind.INSUFFICIENT_CREDITS: 402,
    Kind.PLAN_REQUIRED: 402,
    Kind.FORBIDDEN: 403,
    Kind.NOT_FOUND: 404,
    Kind.CONFLICT: 409,
    Kind.RATE_LIMITED: 429,
    Kind.UPSTREAM: 502,
    Kind.UNAVAILABLE: 503,
}
# What the file exposes and cannot do, however often somebody asks: not the same as being unable to do it now.
_NEVER: Final = frozenset({"call.unresolved", "ref.unresolved", "action.invalid", "action.missing", "input.invalid"})
_RETRY_S: Final = 1  # what a refused caller is told to wait when nobody knows better


def status_of(error: AppError) -> int:
    """The HTTP status of a failure.

    What fails while a request to an upstream is composed (its URL, its address) is no fault of the caller: 502.
    """
    if isinstance(error, AddressRefused) or (isinstance(error, Invalid) and error.code.startswith("outbound.")):
        return 502
    if error.kind is Kind.UPSTREAM and error.code.endswith(".timeout"):
        return 504
    if error.kind is Kind.INVALID and error.code.endswith(".too_large"):
        return 413
    return 501 if error.code in _NEVER and error.kind is Kind.UNAVAILABLE else _STATUS[error.kind]


def title_of(status: int) -> str:
    """The usual name of a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def retry_headers(error: AppError) -> tuple[Header, ...]:
    """`Retry-After`, in whole seconds from the detail `retry_after_s`, for what may be tried again."""
    after_s = error.details.get("retry_after_s")
    if isinstance(after_s, int | float) and math.isfinite(after_s):
        return (("retry-after", str(max(1, math.ceil(after_s)))),)
    return (("retry-after", str(_RETRY_S)),) if error.kind is Kind.RATE_LIMITED else ()


async def respond(send: Send, status: int, body: bytes, media: str | None, headers: Sequence[Header] = ()) -> None:
    """Answer with a whole body; `media` is left out of an empty one."""
    head = [] if status in {204, 304} else [(b"content-length", str(len(body)).encode())]
    if media is not None and body:
        head.append((b"content-type", media.encode("latin-1")))
    head += [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def respond_json(send: Send, value: Any, status: int = 200, headers: Sequence[Header] = ()) -> None:
    """Answer with a JSON document."""
    await respond(send, status, orjson.dumps(value, default=str), "application/json", headers)


async def problem(
    send: Send,
    status: int,
    title: str,
    detail: str,
    *,
    headers: Sequence[Header] = (),
    accept: str = "",
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Answer with a problem; `extra` holds further members (RFC 9457, section 3.2), which text leaves out."""
    if prefers_text(accept):
        await respond(send, status, detail.encode(), "text/plain; charset=utf-8", headers)
        return
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail, **(extra or {})}
    await respond(send, status, orjson.dumps(document, default=str), "application/problem+json", headers)


async def refuse(send: Send, error: AppError, *, accept: str = "", headers: Sequence[Header] = ()) -> None:
    """Answer with the problem that an error is: its status, code and field."""
    status = status_of(error)
    extra: dict[str, Any] = {"code": error.code}
    if error.field is not None:
        extra["field"] = error.field
    head = (*retry_headers(error), *headers)
    await problem(send, status, title_of(status), error.message, headers=head, accept=accept, extra=extra)


async def method_not_allowed(send: Send, allowed: Sequence[str], *, accept: str = "") -> None:
    """405 with `Allow`."""
    allow = ", ".join(allowed)
    detail = f"this resource answers {allow}"
    await problem(send, 405, "Method Not Allowed", detail, headers=(("allow", allow),), accept=accept)


def header_of(scope: Scope, name: bytes) -> str:
    """The first value of a request header (its name in lower case), or an empty text."""
    for known, value in scope["headers"]:
        if known == name:
            return str(value.decode("latin-1"))
    return ""


def request_target(scope: Scope) -> str:
    """Path and query as the client sent them."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    query: bytes = scope.get("query_string", b"")
    target = raw.partition(b"?")[0] + (b"?" + query if query else b"")
    return target.decode("latin-1")


def prefers_text(accept: str) -> bool:
    """Whether an `Accept` header asks for plain text rather than for a problem document."""
    if "text/" not in accept:
        return False
    text = _quality(accept, ("text/plain", "text/*"))
    document = _quality(accept, ("application/problem+json", "application/json", "application/*", "*/*"))
    return text > document


def _quality(accept: str, ranges: tuple[str, ...]) -> float:
    best = 0.0
    for entry in accept.split(","):
        media, _, parameters = entry.partition(";")
        if media.strip().lower() not in ranges:
            continue
        weight = 1.0
        for parameter in parameters.split(";"):
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        best = max(best, weight)
    return best
