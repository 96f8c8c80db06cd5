"""Who may call a face: basic, digest, bearer, API key, or OAuth 2 with tokens of an authorization server.

Guards every path of the face except the metadata that RFC 9728 wants public. Fails closed: a secret that is not there
refuses every call (503) and is never compared with anything. What is wrong with a setting is said when the face is
built. Credentials are compared in constant time, and an API key does not travel further than here.
"""

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus

from starlette.types import ASGIApp, Receive, Scope, Send

from toolcrib.capability import spec
from toolcrib.capability.expose.digest import DigestDoor
from toolcrib.capability.expose.oauth import BearerRefused, TokenJudge
from toolcrib.capability.expose.problem import (
    Header,
    header_of,
    method_not_allowed,
    problem,
    refuse,
    request_target,
    respond,
    title_of,
)
from toolcrib.core.http import OutboundClient
from toolcrib.errors import AppError, Unavailable

REALM: Final = "naftiko"
Secret = Callable[[], str]  # raises Unavailable, naming the variable, while there is no value
_Judge = Callable[[Scope], Awaitable[Scope]]  # the scope to go on with; raises _Refused or AppError


class _Refused(Exception):
    """The caller is not let in; `headers` are the challenges."""

    def __init__(self, status: int, detail: str, headers: list[Header]) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


def guard(
    app: ASGIApp,
    auth: spec.Auth | None,
    secret: Callable[[str], Secret],
    *,
    outbound: OutboundClient,
    resource_path: str = "",
    clock: Callable[[], float] = time.time,
) -> ASGIApp:
    """The face, open to those alone who authenticate as `auth` says; the face itself without `auth`.

    Args:
        app: the face; gets requests that passed, without the API key they carried.
        auth: the `authentication` block.
        secret: makes a lazily resolved value of a text of the file, for example of `{{TOKEN}}`.
        outbound: fetches the keys of an authorization server.
        resource_path: path of the face at its origin, for the metadata of OAuth 2.
        clock: seconds since the epoch.

    Raises:
        ValueError: the block lacks a field, or asks for what does not exist.
    """
    if auth is None:
        return app
    if auth.type == "oauth2":
        return _guarded_by_tokens(app, TokenJudge(auth.fields, secret, outbound, resource_path, clock))
    return _guarded(app, _judge(auth, secret, clock))


def _judge(auth: spec.Auth, secret: Callable[[str], Secret], clock: Callable[[], float]) -> _Judge:
    match auth.type:
        case "basic":
            return _basic(_field(auth, "username", secret), _field(auth, "password", secret))
        case "digest":
            username, password = _field(auth, "username", secret), _field(auth, "password", secret)
            return _digest(DigestDoor(REALM, clock), username, password)
        case "bearer":
            return _bearer(_field(auth, "token", secret))
        case "apikey":
            placement = str(auth.fields.get("placement") or "header").lower()
            if placement not in {"header", "query"}:
                raise ValueError(f"authentication: placement is header or query, not {placement!r}")
            return _apikey(_field(auth, "key", secret), _field(auth, "value", secret), in_query=placement == "query")
        case _:
            raise ValueError(f"authentication: {auth.type!r} is not one of basic, digest, bearer, apikey, oauth2")


def _field(auth: spec.Auth, name: str, secret: Callable[[str], Secret]) -> Secret:
    """The value of a field at the time of a request, never empty."""
    written = auth.fields.get(name)
    if written is None or isinstance(written, bool | list | Mapping) or not str(written).strip():
        raise ValueError(f"authentication: {auth.type} needs a text in {name}")
    resolve = secret(str(written))

    def value() -> str:
        text = resolve()
        if not text:
            raise Unavailable("authentication.secret_empty", f"{name} of the authentication has no value")
        return text

    return value


def _guarded(app: ASGIApp, judge: _Judge) -> ASGIApp:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope = await judge(scope)
            except _Refused as refusal:
                accept = header_of(scope, b"accept")
                title = title_of(refusal.status)
                await problem(send, refusal.status, title, refusal.detail, headers=refusal.headers, accept=accept)
                return
            except AppError as error:
                await refuse(send, error, accept=header_of(scope, b"accept"))
                return
        elif scope["type"] != "lifespan":
            await send({"type": "websocket.close", "code": 1008})
            return
        await app(scope, receive, send)

    return serve


def _guarded_by_tokens(app: ASGIApp, tokens: TokenJudge) -> ASGIApp:
    async def judge(scope: Scope) -> Scope:
        try:
            await tokens.judge(_credentials(scope, "bearer"))
        except BearerRefused as refusal:
            challenge = tokens.challenge(refusal, scope)
            raise _Refused(refusal.status, refusal.detail, [("www-authenticate", challenge)]) from None
        return scope

    guarded = _guarded(app, judge)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not tokens.is_metadata(scope["path"]):
            await guarded(scope, receive, send)
        elif scope["method"] in {"GET", "HEAD"}:
            await _metadata(tokens, scope, send)
        elif scope["method"] == "OPTIONS":
            allow = [("access-control-allow-origin", "*"), ("access-control-allow-methods", "GET, HEAD")]
            await respond(send, 204, b"", None, [*allow, ("access-control-allow-headers", "*")])
        else:
            await method_not_allowed(send, ("GET", "HEAD", "OPTIONS"), accept=header_of(scope, b"accept"))

    return serve


async def _metadata(tokens: TokenJudge, scope: Scope, send: Send) -> None:
    try:
        body = tokens.metadata(scope)
    except AppError as error:
        await refuse(send, error, accept=header_of(scope, b"accept"))
        return
    await respond(send, 200, body, "application/json", [("access-control-allow-origin", "*")])


def _basic(username: Secret, password: Secret) -> _Judge:
    challenge = [("www-authenticate", f'Basic realm="{REALM}", charset="UTF-8"')]

    async def judge(scope: Scope) -> Scope:
        expected = username(), password()
        given = _basic_pair(_credentials(scope, "basic"))
        # Both are compared before either decides, so that time does not tell which one was wrong.
        right = [_same(mine, theirs) for mine, theirs in zip(expected, given or ("", ""), strict=True)]
        if given is None or not all(right):
            raise _Refused(401, "Unauthorized", challenge)
        return scope

    return judge


def _basic_pair(credentials: str | None) -> tuple[str, str] | None:
    try:
        name, colon, password = base64.b64decode(credentials or "", validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return (name, password) if colon else None


def _digest(door: DigestDoor, username: Secret, password: Secret) -> _Judge:
    async def judge(scope: Scope) -> Scope:
        name, word = username(), password()
        given = _credentials(scope, "digest")
        verdict = "wrong" if given is None else door.judge(given, scope["method"], request_target(scope), name, word)
        if verdict != "ok":
            challenges = door.challenges(stale=verdict == "stale")
            raise _Refused(401, "Unauthorized", [("www-authenticate", challenge) for challenge in challenges])
        return scope

    return judge


def _bearer(token: Secret) -> _Judge:
    async def judge(scope: Scope) -> Scope:
        expected = token()
        given = _credentials(scope, "bearer")
        if given is None or not _same(expected, given):
            error = "" if given is None else ', error="invalid_token"'
            raise _Refused(401, "Unauthorized", [("www-authenticate", f'Bearer realm="{REALM}"{error}')])
        return scope

    return judge


def _apikey(key: Secret, value: Secret, *, in_query: bool) -> _Judge:
    async def judge(scope: Scope) -> Scope:
        name, expected = key(), value()
        given, rest = _take_from_query(scope, name) if in_query else _take_from_headers(scope, name)
        if len(given) != 1 or not _same(expected, given[0]):
            raise _Refused(401, "Unauthorized", [("www-authenticate", f'ApiKey realm="{REALM}"')])
        return rest

    return judge


def _take_from_headers(scope: Scope, name: str) -> tuple[list[str], dict[str, Any]]:
    wanted = name.lower().encode("latin-1", "replace")
    given = [_text(value) for known, value in scope["headers"] if known == wanted]
    return given, {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != wanted]}


def _take_from_query(scope: Scope, name: str) -> tuple[list[str], dict[str, Any]]:
    query: bytes = scope["query_string"]
    given = [value for known, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True) if known == name]
    parts = [part for part in query.split(b"&") if unquote_plus(part.partition(b"=")[0].decode("latin-1")) != name]
    return given, {**scope, "query_string": b"&".join(parts)}


def _credentials(scope: Scope, scheme: str) -> str | None:
    """What follows the scheme in `Authorization`; None without exactly one such header."""
    given = [value for known, value in scope["headers"] if known == b"authorization"]
    if len(given) != 1:
        return None
    word, _, rest = _text(given[0]).partition(" ")
    return rest.strip() or None if word.lower() == scheme else None


def _text(value: bytes) -> str:
    """A header value; UTF-8 where it is that."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _same(expected: str, given: str) -> bool:
    """Whether two texts are equal, in a time that tells neither where they differ nor how long they are."""
    mine = hashlib.sha256(expected.encode("utf-8", "surrogatepass")).digest()
    return hmac.compare_digest(mine, hashlib.sha256(given.encode("utf-8", "surrogatepass")).digest())
