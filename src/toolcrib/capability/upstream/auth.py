"""Credentials of calls to an upstream: what an `authentication` block becomes.

A secret that has no value, is empty, or holds a control character refuses the call before anything is sent. What the
authenticator sets wins over what a caller sent under the same name. Digest and OAuth2, which talk to the upstream or to
an authorization server, have modules of their own.
"""

import base64
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import quote

from toolcrib.capability.spec import Auth
from toolcrib.capability.upstream.credentials import Authorized, Secret, checked
from toolcrib.capability.upstream.digest import Digest
from toolcrib.capability.upstream.oauth1 import OAuth1
from toolcrib.capability.upstream.oauth2 import ClientCredentials, Grant
from toolcrib.capability.upstream.request import encode_parameter, set_parameter
from toolcrib.core.http import Headers, OutboundClient
from toolcrib.errors import Unavailable

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_COOKIE_SAFE: Final = "!#$%&'()*+-./:<=>?@[]^_`{|}~"
Compile = Callable[[str], Secret]


class Authenticator(Protocol):
    """Adds credentials to requests, and learns from the answers."""

    @property
    def names(self) -> frozenset[str]:
        """The headers, in lower case, that nobody else may set."""

    async def authorize(self, method: str, url: str, body: bytes | None) -> Authorized:
        """The credentials of one request.

        Raises:
            Unavailable: a secret cannot be used.
            Upstream: `upstream.token_failed`.
        """

    def repeat(self, used: Authorized, status: int, headers: Headers) -> bool:
        """Whether to send again with new credentials, after an answer to a request that carried `used`."""


@dataclass(frozen=True, slots=True)
class _Fixed:
    """The same credentials for every request: headers, and query pairs."""

    headers: tuple[tuple[str, str], ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()  # name, encoded pair


class Constant:
    """Credentials that never change; made when the first call needs them."""

    def __init__(self, make: Callable[[], _Fixed]) -> None:
        self._make = make
        self._made: _Fixed | None = None
        self._names: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """As the protocol says; known once `apply` was called."""
        return self._names

    def apply(self, url: str) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The URL to use and the headers to add; raises Unavailable."""
        fixed = self._made
        if fixed is None:
            fixed = self._made = self._make()
            self._names = frozenset(name.lower() for name, _ in fixed.headers)
        for name, pair in fixed.parameters:
            url = set_parameter(url, name, pair)
        return url, fixed.headers

    async def authorize(self, method: str, url: str, body: bytes | None) -> Authorized:  # noqa: ARG002
        """As the protocol says."""
        return Authorized(*self.apply(url))

    def repeat(self, used: Authorized, status: int, headers: Headers) -> bool:  # noqa: ARG002
        """Never: the same would be sent."""
        return False


def compile_auth(
    auth: Auth | None, secret: Compile, outbound: OutboundClient, *, clock: Callable[[], float] = time.monotonic
) -> Authenticator | None:
    """The authenticator of an `authentication` block, None without one.

    Args:
        auth: the block.
        secret: compiles a text of the file; what it gives returns the value or raises Unavailable.
        outbound: for requests to an authorization server.
        clock: seconds, for the life of tokens.

    Raises:
        ValueError: the block is incomplete or of an unknown type; the message names the field.
    """
    if auth is None:
        return None
    fields = _Fields(auth.fields, secret)
    match auth.type.lower():
        case "bearer":
            token = fields.required("token")
            return Constant(lambda: _authorization(f"Bearer {checked('token', token)}"))
        case "basic":
            username, password = fields.required("username"), fields.required("password")
            return Constant(lambda: _authorization(_basic(username, password)))
        case "apikey":
            return _apikey(fields)
        case "digest":
            return Digest(fields.required("username"), fields.required("password"))
        case "oauth2":
            return ClientCredentials(_grant(fields), outbound, clock)
        case "oauth1":
            return OAuth1(
                fields.required("consumerKey"),
                signing_key=fields.optional("signingKey"),
                consumer_secret=fields.optional("consumerSecret"),
                token=fields.optional("token"),
                token_secret=fields.optional("tokenSecret"),
            )
        case other:
            known = "bearer basic apikey digest oauth1 oauth2"
            raise ValueError(f"authentication.type {other!r} is unknown; known are {known}")


class _Fields:
    """The fields of a block, as secrets."""

    def __init__(self, fields: Mapping[str, Any], secret: Compile) -> None:
        self._fields = fields
        self._secret = secret

    def required(self, name: str) -> Secret:
        found = self.optional(name)
        if found is None:
            raise ValueError(f"authentication.{name} is missing")
        return found

    def optional(self, name: str) -> Secret | None:
        value = self._fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"authentication.{name} must be a text")  # noqa: TRY004
        return self._secret(str(value))

    def choice(self, name: str, *known: str) -> str | None:
        value = self._fields.get(name)
        if value is not None and value not in known:
            raise ValueError(f"authentication.{name} must be one of {', '.join(known)}")
        return value

    def named(self, name: str) -> tuple[tuple[Secret, Secret], ...]:
        """Pairs of a name and a value, of a map."""
        found = self._fields.get(name) or {}
        if not isinstance(found, Mapping) or not all(isinstance(v, str | int | float) for v in found.values()):
            raise ValueError(f"authentication.{name} must be a map of texts")
        return tuple((self._secret(key), self._secret(str(value))) for key, value in found.items())

    def several(self, name: str) -> tuple[Secret, ...]:
        value = self._fields.get(name)
        texts = [] if value is None else value.replace(",", " ").split() if isinstance(value, str) else value
        # A text with a variable may hold spaces inside its braces.
        if isinstance(value, str) and "{{" in value:
            texts = [value]
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"authentication.{name} must be a list of texts")
        return tuple(self._secret(text) for text in texts)


def _authorization(value: str) -> _Fixed:
    return _Fixed((("Authorization", value),))


def _basic(username: Secret, password: Secret) -> str:
    # An empty password is what services with a lone key ask for; both empty would be no credential.
    user, word = checked("username", username, empty=True), checked("password", password, empty=True)
    if ":" in user:
        raise Unavailable("upstream.credential_invalid", "The user name for basic authentication holds a colon.")
    if not user and not word:
        raise Unavailable("upstream.credential_invalid", "The user name and the password are empty.")
    return f"Basic {base64.b64encode(f'{user}:{word}'.encode()).decode()}"


def _apikey(fields: _Fields) -> Constant:
    """One key with its placement, or several in maps of `headers` and `parameters`."""
    headers, parameters = fields.named("headers"), fields.named("parameters")
    if not (headers or parameters):
        placement = fields.choice("placement", "header", "query", "cookie") or "header"
        pair = (fields.required("key"), fields.required("value"))
        if placement == "cookie":
            return Constant(lambda: _cookie(*pair))
        headers, parameters = ((pair,), ()) if placement == "header" else ((), (pair,))

    def make() -> _Fixed:
        return _Fixed(tuple(_key_header(*pair) for pair in headers), tuple(_key_query(*pair) for pair in parameters))

    return Constant(make)


def _key_header(key: Secret, value: Secret) -> tuple[str, str]:
    return _token(key), checked("value", value)


def _key_query(key: Secret, value: Secret) -> tuple[str, str]:
    name = checked("key", key)
    return name, encode_parameter(name, checked("value", value))


def _cookie(key: Secret, value: Secret) -> _Fixed:
    return _Fixed((("Cookie", f"{_token(key)}={quote(checked('value', value), safe=_COOKIE_SAFE)}"),))


def _token(key: Secret) -> str:
    name = checked("key", key)
    if not _TOKEN.fullmatch(name):
        raise Unavailable("upstream.credential_invalid", "The key of the API key is no name for a header.")
    return name


def _grant(fields: _Fields) -> Grant:
    endpoint, server = fields.optional("tokenEndpoint"), fields.optional("authorizationServerUri")
    if endpoint is None and server is None:
        raise ValueError("authentication.tokenEndpoint is missing, and so is authorizationServerUri")
    return Grant(
        token_endpoint=endpoint,
        authorization_server=server,
        client_id=fields.required("clientId"),
        client_secret=fields.required("clientSecret"),
        scopes=fields.several("scopes"),
        audience=fields.optional("audience"),
        resource=fields.optional("resource"),
        in_body={None: None, "basic": False, "post": True}[fields.choice("clientAuthentication", "basic", "post")],
    )
