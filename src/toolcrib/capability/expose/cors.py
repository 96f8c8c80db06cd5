"""CORS for one face: answers preflights and says to browsers which origins may read the rest.

Stands outside of authentication, because a browser sends no credentials with a preflight. Without a `cors` setting
there is no wrapper and browsers of other origins are kept out. Refuses at plan time what would open a face by mistake.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolcrib.capability.expose.problem import header_of, problem, respond
from toolcrib.core.mcp_server.http import PERMITTED_ORIGIN

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_KEYS: Final = frozenset({"origins", "methods", "headers", "exposeHeaders", "credentials", "maxAge"})
_MAX_AGE_S: Final = 600
_TOKEN_CHARACTERS: Final = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True, slots=True)
class CorsRules:
    """Who may read what: `origins` None means any; `headers` None means any that a preflight asks for."""

    origins: frozenset[str] | None
    methods: tuple[str, ...]
    headers: tuple[str, ...] | None
    expose_headers: tuple[str, ...]
    credentials: bool
    max_age_s: int

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> "CorsRules":
        """Read `{origins, methods, headers, exposeHeaders, credentials, maxAge}`; `maxAge` in seconds.

        Raises:
            ValueError: a key or a value that is not understood, or any origin together with credentials.
        """
        if unknown := [key for key in settings if key not in _KEYS]:
            raise ValueError(f"cors: {unknown[0]!r} is not one of {', '.join(sorted(_KEYS))}")
        origins = _texts(settings, "origins", ())
        if not origins:
            raise ValueError('cors: origins is missing; list origins such as https://app.example.org, or "*"')
        methods = _tokens(settings, "methods", _METHODS)
        headers = _tokens(settings, "headers", ("*",))
        credentials = settings.get("credentials", False)
        max_age_s = settings.get("maxAge", _MAX_AGE_S)
        if not isinstance(credentials, bool):
            raise ValueError("cors: credentials is true or false")  # noqa: TRY004 - the file is wrong, not the program
        if isinstance(max_age_s, bool) or not isinstance(max_age_s, int) or max_age_s < 0:
            raise ValueError("cors: maxAge is a number of seconds")
        if "*" in origins and credentials:
            raise ValueError('cors: origins "*" with credentials would let every web site act as its visitor')
        for origin in origins:
            if origin != "*" and (not origin.startswith(("http://", "https://")) or origin.count("/") != 2):
                raise ValueError(f"cors: {origin!r} is no origin; write scheme://host[:port] without a path")
        return cls(
            origins=None if "*" in origins else frozenset(origin.lower() for origin in origins),
            methods=_METHODS if "*" in methods else tuple(method.upper() for method in methods),
            headers=None if "*" in headers else headers,
            expose_headers=_tokens(settings, "exposeHeaders", ()),
            credentials=credentials,
            max_age_s=max_age_s,
        )

    def permits(self, origin: str) -> bool:
        """Whether a page of this origin may read answers."""
        return self.origins is None or origin.lower() in self.origins


def with_cors(app: ASGIApp, rules: CorsRules) -> ASGIApp:
    """The app, readable by pages of the permitted origins."""
    fixed = _fixed_headers(rules)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        origin = header_of(scope, b"origin") if scope["type"] == "http" else ""
        if not origin:
            await app(scope, receive, send if rules.origins is None else _varying(send))
        elif scope["method"] == "OPTIONS" and header_of(scope, b"access-control-request-method"):
            await _preflight(rules, scope, send, origin)
        elif not rules.permits(origin):
            await app(scope, receive, _varying(send))
        else:
            named = [] if rules.origins is None else [(b"access-control-allow-origin", origin.encode("latin-1"))]
            await app({**scope, PERMITTED_ORIGIN: origin}, receive, _adding(send, [*fixed, *named]))

    return serve


def _fixed_headers(rules: CorsRules) -> list[tuple[bytes, bytes]]:
    headers = [(b"access-control-allow-origin", b"*")] if rules.origins is None else [(b"vary", b"Origin")]
    if rules.credentials:
        headers.append((b"access-control-allow-credentials", b"true"))
    if rules.expose_headers:
        headers.append((b"access-control-expose-headers", ", ".join(rules.expose_headers).encode("latin-1")))
    return headers


def _adding(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            # What an upstream said about its own origins is not true of this face.
            kept = [pair for pair in message.get("headers", ()) if not pair[0].startswith(b"access-control-")]
            message = {**message, "headers": [*kept, *headers]}
        await send(message)

    return send_with


def _varying(send: Send) -> Send:
    return _adding(send, [(b"vary", b"Origin")])


async def _preflight(rules: CorsRules, scope: Scope, send: Send, origin: str) -> None:
    if not rules.permits(origin):
        vary = (("vary", "Origin"),)
        await problem(send, 403, "Forbidden", "this origin may not call this server", headers=vary)
        return
    asked = header_of(scope, b"access-control-request-headers")
    headers = [
        ("access-control-allow-origin", "*" if rules.origins is None else origin),
        ("access-control-allow-methods", ", ".join(rules.methods)),
        ("access-control-max-age", str(rules.max_age_s)),
        ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    ]
    if rules.headers is not None:
        headers.append(("access-control-allow-headers", ", ".join(rules.headers)))
    elif asked and all(_is_token(name.strip()) for name in asked.split(",")):
        headers.append(("access-control-allow-headers", asked))
    if rules.credentials:
        headers.append(("access-control-allow-credentials", "true"))
    await respond(send, 204, b"", None, headers)


def _is_token(text: str) -> bool:
    return bool(text) and _TOKEN_CHARACTERS.issuperset(text)


def _texts(settings: Mapping[str, Any], key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    value = settings.get(key, default)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(text, str) and text for text in values):
        raise ValueError(f"cors: {key} is a list of texts")
    return tuple(values)


def _tokens(settings: Mapping[str, Any], key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    values = _texts(settings, key, default)
    for value in values:
        if not _is_token(value):
            raise ValueError(f"cors: {value!r} cannot stand in {key}")
    return values
