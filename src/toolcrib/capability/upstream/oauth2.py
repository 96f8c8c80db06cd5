"""OAuth2 client credentials (RFC 6749 section 4.4): one token for all calls to an upstream.

The token is renewed before it expires while calls go on with the old one; however many calls need one, one request is
made. A token that the upstream refuses is renewed and the call repeated once. The token endpoint is given, or found
from the authorization server's metadata (RFC 8414, else OpenID Connect discovery), whose issuer must be the one asked.
"""

import asyncio
import base64
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

import orjson

from toolcrib.capability.authorization_server import metadata_urls
from toolcrib.capability.upstream.credentials import Authorized, Secret, checked
from toolcrib.capability.upstream.request import host_of, origin_of
from toolcrib.core.http import Headers, OutboundClient, OutboundError, OutboundResponse
from toolcrib.errors import AppError, Invalid, Upstream

_TIMEOUT_S: Final = 10.0
_MAX_BYTES: Final = 2**20
_METADATA_S: Final = 3600.0  # how long discovered metadata serves
_EARLY_S: Final = 60.0  # a token is renewed this long before it expires, or in the last tenth of its life
_HOLD_S: Final = 1.0  # after a failure no token is asked for, so that a broken server is not asked by every call
_RENEWAL_S: Final = 5.0  # within this time of a renewal, refusals are believed: a new token would not help
_USABLE: Final = re.compile(r"[\x21-\x7e]+")
_ERROR: Final = re.compile(r"[a-z_]{1,40}")


@dataclass(frozen=True, slots=True)
class Grant:
    """What to ask for and with which credentials; `in_body` None leaves the way of sending them to the metadata."""

    token_endpoint: Secret | None
    authorization_server: Secret | None
    client_id: Secret
    client_secret: Secret
    scopes: tuple[Secret, ...] = ()
    audience: Secret | None = None
    resource: Secret | None = None
    in_body: bool | None = None


@dataclass(frozen=True, slots=True)
class _Token:
    header: tuple[tuple[str, str], ...] = field(repr=False)
    renew_at: float
    expires_at: float


class ClientCredentials:
    """The token of one upstream."""

    names = frozenset({"authorization"})

    def __init__(self, grant: Grant, outbound: OutboundClient, clock: Callable[[], float]) -> None:
        self._grant = grant
        self._outbound = outbound
        self._clock = clock
        self._token: _Token | None = None
        self._request: asyncio.Task[_Token] | None = None
        self._failed: tuple[float, AppError] | None = None  # until when it is held, and what it was
        self._renewed_at: float | None = None
        self._metadata: tuple[float, str, bool] | None = None  # until when, token endpoint, credentials in the body

    async def authorize(self, method: str, url: str, body: bytes | None) -> Authorized:  # noqa: ARG002
        """The token, asking for one if there is none that will last."""
        now = self._clock()
        token = self._token
        if token is None or now >= token.renew_at:
            token = await self._renewed(now)
        return Authorized(url, token.header, token)

    def repeat(self, used: Authorized, status: int, headers: Headers) -> bool:  # noqa: ARG002
        """After a 401: another token may help, if this one was not just made for that reason."""
        if status != 401:
            return False
        if self._token is not used.used:
            return True  # another call renewed it meanwhile
        now = self._clock()
        if self._renewed_at is not None and now - self._renewed_at < _RENEWAL_S:
            return False
        self._token, self._renewed_at = None, now
        return True

    async def _renewed(self, now: float) -> _Token:
        """A token that is good now; a request for the next one is under way when it is about to expire."""
        old = self._token if self._token is not None and now < self._token.expires_at else None
        if self._failed is not None and now < self._failed[0]:
            if old is not None:
                return old
            error = self._failed[1]
            raise type(error)(error.code, error.message, field=error.field, **error.details)
        if self._request is None:
            self._request = asyncio.get_running_loop().create_task(self._ask())
            self._request.add_done_callback(self._asked)
        if old is not None:
            return old
        # Shielded: a caller that goes away must not take the token of the others with it.
        try:
            return await asyncio.shield(self._request)
        except AppError as error:
            raise type(error)(error.code, error.message, field=error.field, **error.details) from None

    def _asked(self, task: asyncio.Task[_Token]) -> None:
        self._request = None
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._token, self._failed = task.result(), None
        elif isinstance(error, AppError):
            self._failed = (self._clock() + _HOLD_S, error)

    async def _ask(self) -> _Token:
        grant = self._grant
        client_id, client_secret = checked("clientId", grant.client_id), checked("clientSecret", grant.client_secret)
        form = {"grant_type": "client_credentials"}
        if grant.scopes:
            form["scope"] = " ".join(checked("scopes", scope) for scope in grant.scopes)
        if grant.audience is not None:
            form["audience"] = checked("audience", grant.audience)
        if grant.resource is not None:
            form["resource"] = checked("resource", grant.resource)
        endpoint, in_body = await self._endpoint()
        headers = [("Content-Type", "application/x-www-form-urlencoded"), ("Accept", "application/json")]
        if in_body:
            form |= {"client_id": client_id, "client_secret": client_secret}
        else:
            pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"  # encoded first, as RFC 6749 2.3.1 says
            headers.append(("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}"))
        answer = await self._call("POST", endpoint, headers, urlencode(form).encode())
        # Counted from now, not from the answer's date: the clocks may differ.
        return _token_of(answer, host_of(endpoint), self._clock())

    async def _endpoint(self) -> tuple[str, bool]:
        """The token endpoint, and whether the client's credentials go into the body."""
        grant = self._grant
        if grant.token_endpoint is not None:
            return checked("tokenEndpoint", grant.token_endpoint), bool(grant.in_body)
        if self._metadata is None or self._clock() >= self._metadata[0]:
            server = checked("authorizationServerUri", grant.authorization_server or (lambda: ""))
            endpoint, in_body = await self._discover(server)
            self._metadata = (self._clock() + _METADATA_S, endpoint, in_body)
        _, endpoint, in_body = self._metadata
        return endpoint, in_body if grant.in_body is None else grant.in_body

    async def _discover(self, server: str) -> tuple[str, bool]:
        issuer = server.rstrip("/")
        try:
            origin_of(issuer)
        except ValueError as error:
            raise _failed(f"authorizationServerUri cannot be used: {error}") from None
        for place in metadata_urls(issuer):
            answer = await self._call("GET", place, [("Accept", "application/json")], None)
            if answer.status == 200:
                return _endpoint_of(_object(answer.body), issuer, host_of(issuer))
        raise _failed(f"{host_of(issuer)} has no authorization server metadata")

    async def _call(
        self, method: str, url: str, headers: list[tuple[str, str]], body: bytes | None
    ) -> OutboundResponse:
        try:
            return await self._outbound.request(
                method, url, headers=headers, body=body, timeout_s=_TIMEOUT_S, max_bytes=_MAX_BYTES
            )
        except (OutboundError, Invalid) as error:
            raise _failed(error.message) from None


def _failed(reason: str) -> Upstream:
    return Upstream("upstream.token_failed", f"No access token for the upstream: {reason}")


def _object(body: bytes) -> dict[str, Any]:
    try:
        loaded = orjson.loads(body)
    except ValueError:
        loaded = None
    return loaded if isinstance(loaded, dict) else {}


def _endpoint_of(metadata: dict[str, Any], issuer: str, shown: str) -> tuple[str, bool]:
    """The token endpoint of metadata, and whether it takes credentials in the body only."""
    # Metadata of another issuer is how a mix-up attack gets hold of credentials.
    if str(metadata.get("issuer", "")).rstrip("/") != issuer:
        raise _failed(f"the metadata at {shown} is that of another issuer")
    endpoint = metadata.get("token_endpoint")
    if not isinstance(endpoint, str):
        raise _failed(f"the metadata at {shown} names no token endpoint")
    if issuer.startswith("https:") and not endpoint.startswith("https:"):
        raise _failed(f"the metadata at {shown} names a token endpoint without TLS")
    methods = metadata.get("token_endpoint_auth_methods_supported")
    known = methods if isinstance(methods, list) else ["client_secret_basic"]
    return endpoint, "client_secret_basic" not in known and "client_secret_post" in known


def _token_of(answer: OutboundResponse, shown: str, now: float) -> _Token:
    told = _object(answer.body)
    if answer.status != 200:
        error = told.get("error")
        reason = f" {error}" if isinstance(error, str) and _ERROR.fullmatch(error) else ""
        raise _failed(f"{shown} answered {answer.status}{reason}")
    token, kind = told.get("access_token"), told.get("token_type", "Bearer")
    if not isinstance(token, str) or not _USABLE.fullmatch(token):
        raise _failed(f"{shown} answered without a usable access_token")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise _failed(f"{shown} gave a token that is not of type Bearer")
    try:
        lasts_s = float(told.get("expires_in", "inf"))  # texts occur; absent means until it is refused
    except (TypeError, ValueError):
        lasts_s = float("inf")
    if not lasts_s > 0:
        raise _failed(f"{shown} gave a token that has expired")
    early_s = min(_EARLY_S, lasts_s / 10)
    return _Token((("Authorization", f"Bearer {token}"),), now + lasts_s - early_s, now + lasts_s)
