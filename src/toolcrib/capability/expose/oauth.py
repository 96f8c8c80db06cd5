"""Access tokens of an authorization server, judged by its published keys (RFC 6750, 7519, 8414, 9068, 9728).

Only signatures that a public key verifies count; `none` and shared secrets are refused whatever the key set holds. Keys
are fetched when first needed, kept for five minutes, fetched again for an unknown key id (not more often than every
half minute), by one request at a time, and used a while longer when the server does not answer.
"""

import asyncio
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

import orjson
import structlog
from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey, import_key
from joserfc.jws import JWSRegistry
from starlette.types import Scope

from toolcrib.capability.authorization_server import metadata_urls
from toolcrib.capability.expose.problem import header_of
from toolcrib.core.http import OutboundClient, OutboundResponse
from toolcrib.errors import AppError, Unavailable

_log = structlog.get_logger(__name__)

_PublicKey = RSAKey | ECKey | OKPKey
WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"
_REALM: Final = "naftiko"
_ALGORITHMS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    **dict.fromkeys(("EdDSA", "Ed25519"), "OKP"),
}
_REGISTRY: Final = JWSRegistry(algorithms=list(_ALGORITHMS))
_TYPES: Final = frozenset({"", "jwt", "at+jwt", "application/jwt", "application/at+jwt"})
_LEEWAY_S: Final = 30  # how far the clocks of two machines may be apart
_KEYS_FRESH_S: Final = 300
_KEYS_STALE_S: Final = 3600  # how long old keys serve while the server does not answer
_REFETCH_S: Final = 30
_FAILED_S: Final = 5  # how long a failure is remembered while there are no keys at all
_FETCH_S: Final = 10.0
_PATIENCE_S: Final = 2.0  # how long a token waits for new keys while the old ones would do
_FETCH_BYTES: Final = 1_000_000
_TOKEN_LIMIT: Final = 16_384  # characters
_KEYS_TRIED: Final = 16  # of one kind, for a token that does not say which key signed it
_RSA_BITS: Final = 2048


class BearerRefused(Exception):
    """A token that does not open this face; `error` is the code of RFC 6750, None without a token."""

    def __init__(self, status: int, error: str | None, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.error = error
        self.detail = detail


@dataclass(frozen=True, slots=True)
class _Rules:
    """The settings, resolved."""

    issuer: str  # without a slash at its end
    audience: str
    resource: str | None
    scopes: tuple[str, ...]
    metadata_url: str | None


class TokenJudge:
    """Judges bearer tokens for one face, and describes the face to those who have none.

    Args:
        fields: authorizationServerUri, resource, audience, scopes, tokenValidation; texts may be templates.
        secret: makes a lazily resolved value of a text.
        outbound: fetches metadata and keys.
        resource_path: path of the face at its origin.
        clock: seconds since the epoch.

    Raises:
        ValueError: a field is missing or not understood.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        secret: Callable[[str], Callable[[], str]],
        outbound: OutboundClient,
        resource_path: str,
        clock: Callable[[], float],
    ) -> None:
        validation = str(fields.get("tokenValidation") or "jwks").lower()
        if validation == "introspection":
            raise ValueError("authentication: token introspection is not supported; write tokenValidation: jwks")
        if validation != "jwks":
            raise ValueError(f"authentication: tokenValidation is jwks, not {validation!r}")
        self._resolve = _resolver(fields, secret)
        self._path = resource_path.rstrip("/")
        self._paths = {WELL_KNOWN, WELL_KNOWN + self._path}
        self._clock = clock
        self._keys = _KeySource(outbound, clock)
        self._known: _Rules | None = None
        try:
            self._learn()
        except Unavailable:
            _log.warning("authentication.not_ready", reason="a variable of the authentication has no value")

    def _rules(self) -> _Rules:
        if self._known is None:
            try:
                self._learn()
            except ValueError as error:  # only now does a variable have its value, and it is a bad one
                raise Unavailable("authentication.invalid", str(error)) from None
        return cast("_Rules", self._known)

    def _learn(self) -> None:
        if self._known is None:
            rules = self._resolve()
            if rules.metadata_url is not None:
                self._paths.add(urlsplit(rules.metadata_url).path)
            self._known = rules

    async def judge(self, token: str | None) -> Mapping[str, Any]:
        """The claims of a token that opens this face.

        Raises:
            BearerRefused: it does not.
            Unavailable: that cannot be told now: a variable or the keys of the authorization server are missing.
        """
        rules = self._rules()
        if token is None:
            raise BearerRefused(401, None, "Unauthorized")
        claims = await self._verified(token, rules)
        _check_times(claims, self._clock())
        issuer = claims.get("iss")
        if not isinstance(issuer, str) or issuer.rstrip("/") != rules.issuer:
            raise _invalid("the token is from another issuer")
        audience = claims.get("aud")
        if rules.audience not in (audience if isinstance(audience, list) else [audience]):
            raise _invalid("the token is for another audience")
        granted = _scopes_of(claims)
        missing = [scope for scope in rules.scopes if scope not in granted]
        if missing:
            raise BearerRefused(403, "insufficient_scope", f"the token lacks the scope {missing[0]}")
        return claims

    def challenge(self, refusal: BearerRefused, scope: Scope) -> str:
        """The `WWW-Authenticate` value of a refusal."""
        rules = self._rules()
        parts = [f'realm="{_REALM}"']
        if refusal.error is not None:
            parts += [f'error="{refusal.error}"', f'error_description="{_quotable(refusal.detail)}"']
        if rules.scopes:
            parts.append(f'scope="{_quotable(" ".join(rules.scopes))}"')
        url = rules.metadata_url or _origin(scope) + WELL_KNOWN + self._path
        return "Bearer " + ", ".join([*parts, f'resource_metadata="{_quotable(url)}"'])

    def is_metadata(self, path: str) -> bool:
        """Whether this path holds the public metadata."""
        return path in self._paths

    def metadata(self, scope: Scope) -> bytes:
        """The metadata of the protected resource as JSON; raises Unavailable while a variable has no value."""
        rules = self._rules()
        document: dict[str, Any] = {
            "resource": rules.resource or _origin(scope) + self._path,
            "authorization_servers": [rules.issuer],
            "bearer_methods_supported": ["header"],
        }
        if rules.scopes:
            document["scopes_supported"] = list(rules.scopes)
        return orjson.dumps(document)

    async def _verified(self, token: str, rules: _Rules) -> Mapping[str, Any]:
        """The claims of a token whose signature is right."""
        head = _head(token)
        candidates = await self._keys.find(rules.issuer, head)
        if not candidates:
            raise _invalid("no key of the authorization server fits the token")
        for key in candidates:
            try:
                payload = _payload(token, key)
            except (JoseError, ValueError):
                continue
            try:
                claims = orjson.loads(payload)
            except orjson.JSONDecodeError:
                break
            if isinstance(claims, dict):
                return claims
            break
        raise _invalid("the signature of the token is wrong")


class _KeySource:
    """The public keys of an authorization server."""

    def __init__(self, outbound: OutboundClient, clock: Callable[[], float]) -> None:
        self._outbound = outbound
        self._clock = clock
        self._keys: tuple[_PublicKey, ...] = ()
        self._fetched_at = -math.inf
        self._tried_at = -math.inf
        self._fetch: asyncio.Task[None] | None = None

    async def find(self, issuer: str, head: Mapping[str, Any]) -> Sequence[_PublicKey]:
        """The keys that may have signed a token with this header."""
        now = self._clock()
        age_s = now - self._fetched_at
        if age_s >= _KEYS_FRESH_S and now - self._tried_at >= (_REFETCH_S if self._keys else _FAILED_S):
            is_served = age_s < _KEYS_STALE_S and bool(self._keys and self._fitting(head))
            # whom the old keys serve does not wait long for a server that hardly answers
            await asyncio.wait({self._refresh(issuer)}, timeout=_PATIENCE_S if is_served else None)
        if not self._keys or self._clock() - self._fetched_at >= _KEYS_STALE_S:
            raise Unavailable(
                "authentication.keys_unavailable",
                "the keys of the authorization server cannot be fetched",
                retry_after_s=_FAILED_S,
            )
        found = self._fitting(head)
        if not found and self._clock() - self._tried_at >= _REFETCH_S:
            await asyncio.wait({self._refresh(issuer)})
            found = self._fitting(head)
        return found

    def _fitting(self, head: Mapping[str, Any]) -> Sequence[_PublicKey]:
        algorithm, kid = head["alg"], head.get("kid")
        kind = _ALGORITHMS[algorithm]
        keys = [key for key in self._keys if key.key_type == kind and key.get("alg") in {None, *_names(algorithm)}]
        if kid is not None:
            return [key for key in keys if key.kid == kid][:1]
        return keys[:_KEYS_TRIED]

    def _refresh(self, issuer: str) -> "asyncio.Task[None]":
        """Fetch the keys; who comes while that is under way waits for the same request."""
        if self._fetch is None or self._fetch.done():
            self._fetch = asyncio.create_task(self._fetch_keys(issuer))
        return self._fetch

    async def _fetch_keys(self, issuer: str) -> None:
        try:
            keys = await self._published(issuer)
        except AppError as error:
            _log.warning("authentication.keys_failed", issuer=issuer, reason=error.message)
        else:
            self._keys, self._fetched_at = keys, self._clock()
        finally:
            self._tried_at = self._clock()

    async def _published(self, issuer: str) -> tuple[_PublicKey, ...]:
        for url in metadata_urls(issuer):
            document = _json_object(await self._get(url))
            if document is None:
                continue
            stated, keys_url = document.get("issuer"), document.get("jwks_uri")
            if not isinstance(stated, str) or stated.rstrip("/") != issuer or not isinstance(keys_url, str):
                _log.warning("authentication.metadata_refused", url=url, stated=str(stated)[:200])
                continue
            if issuer.startswith("https:") and not keys_url.startswith("https:"):
                raise Unavailable("authentication.keys_insecure", "the keys would be fetched without TLS")
            document = _json_object(await self._get(keys_url))
            entries = None if document is None else document.get("keys")
            if not isinstance(entries, list):
                raise Unavailable("authentication.keys_invalid", "what stands at jwks_uri is no key set")
            return tuple(key for key in map(_public_key, entries) if key is not None)
        raise Unavailable("authentication.metadata_missing", "the authorization server publishes no metadata")

    async def _get(self, url: str) -> OutboundResponse:
        accept = [("Accept", "application/json")]
        return await self._outbound.request("GET", url, headers=accept, timeout_s=_FETCH_S, max_bytes=_FETCH_BYTES)


def _resolver(fields: Mapping[str, Any], secret: Callable[[str], Callable[[], str]]) -> Callable[[], _Rules]:
    """What makes the rules of the fields, once their variables have values."""
    server = fields.get("authorizationServerUri")
    if not isinstance(server, str) or not server.strip():
        raise ValueError("authentication: oauth2 needs authorizationServerUri")
    resource, audience = fields.get("resource"), fields.get("audience")
    if not resource and not audience:
        raise ValueError(
            "authentication: oauth2 needs resource or audience; without one any token of the server passes"
        )
    scopes = fields.get("scopes") or ()
    if not isinstance(scopes, str | list | tuple):
        raise ValueError("authentication: scopes is a list of texts")  # noqa: TRY004 - the file is wrong
    named = scopes.split() if isinstance(scopes, str) else list(scopes)
    texts = {name: secret(str(text)) for name, text in fields.items() if name in {"resource", "audience"} and text}
    issuer = secret(server)
    wanted = [secret(str(scope)) for scope in named]

    def rules() -> _Rules:
        values = {name: resolve() for name, resolve in texts.items()}
        address = values.get("resource")
        return _Rules(
            issuer=_absolute("authorizationServerUri", issuer()).rstrip("/"),
            audience=values.get("audience") or values["resource"],
            resource=address,
            scopes=tuple(resolve() for resolve in wanted),
            metadata_url=None if address is None else _metadata_url(address),
        )

    return rules


def _absolute(name: str, url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"authentication: {name} is an absolute URL without query, not {url!r}")
    return url


def _metadata_url(resource: str) -> str | None:
    """Where RFC 9728 puts the metadata of a resource; None for a resource that is no URL."""
    parts = urlsplit(resource)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        return None
    return f"{parts.scheme}://{parts.netloc}{WELL_KNOWN}{parts.path.rstrip('/')}"


def _json_object(response: OutboundResponse) -> dict[str, Any] | None:
    if response.status != 200:
        return None
    try:
        document = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def _public_key(entry: Any) -> _PublicKey | None:
    """The key of an entry; None for shared secrets, encryption keys, weak keys and what is not understood."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    public = {name: value for name, value in entry.items() if name not in {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)  # of weak keys, which are left out below
            key = import_key(public)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    if not isinstance(key, RSAKey | ECKey | OKPKey):
        return None
    if isinstance(key, OKPKey) and public.get("crv") != "Ed25519":
        return None
    return None if isinstance(key, RSAKey) and key.raw_value.key_size < _RSA_BITS else key


def _names(algorithm: str) -> tuple[str, ...]:
    """An algorithm under all its names."""
    return ("EdDSA", "Ed25519") if algorithm in {"EdDSA", "Ed25519"} else (algorithm,)


def _payload(token: str, key: _PublicKey) -> bytes:
    """What a token says, if this key signed it."""
    if key.key_type != "OKP":
        return jws.deserialize_compact(token, key, registry=_REGISTRY).payload
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # `EdDSA` is an old name of what is sound
        return jws.deserialize_compact(token, key, registry=_REGISTRY).payload


def _head(token: str) -> Mapping[str, Any]:
    """The header of a token whose algorithm and type may be accepted at all."""
    if len(token) > _TOKEN_LIMIT or token.count(".") != 2:
        raise _invalid("the token is not a signed JWT")
    try:
        head = jws.extract_compact(token.encode(), registry=_REGISTRY).headers()
    except (JoseError, ValueError):
        raise _invalid("the token is not a signed JWT") from None
    if not isinstance(head.get("alg"), str) or head["alg"] not in _ALGORITHMS:
        raise _invalid("the algorithm of the token is not accepted")
    if str(head.get("typ") or "").lower() not in _TYPES or "crit" in head:
        raise _invalid("the token is not an access token")
    return head


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    expires_at, begins_at = claims.get("exp"), claims.get("nbf")
    if not isinstance(expires_at, int | float) or isinstance(expires_at, bool):
        raise _invalid("the token does not say when it expires")
    if now >= expires_at + _LEEWAY_S:
        raise _invalid("the token has expired")
    if begins_at is not None and not (isinstance(begins_at, int | float) and now >= begins_at - _LEEWAY_S):
        raise _invalid("the token is not valid yet")


def _scopes_of(claims: Mapping[str, Any]) -> frozenset[str]:
    """What a token grants: `scope` (RFC 9068), or `scp` as some servers call it; a text or a list."""
    granted: set[str] = set()
    for name in ("scope", "scp"):
        value = claims.get(name)
        granted.update(value.split() if isinstance(value, str) else map(str, value) if isinstance(value, list) else ())
    return frozenset(granted)


def _invalid(detail: str) -> BearerRefused:
    return BearerRefused(401, "invalid_token", detail)


def _origin(scope: Scope) -> str:
    return f"{scope.get('scheme', 'http')}://{header_of(scope, b'host')}"


def _quotable(text: str) -> str:
    """A text as it may stand between quotes in a header."""
    return "".join(character for character in text if " " <= character <= "~" and character not in '"\\')
