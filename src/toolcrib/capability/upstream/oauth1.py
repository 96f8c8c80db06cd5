"""OAuth 1 (RFC 5849), the client's half: requests signed with the key of an application, and of a user if there is one.

RSA-SHA256 with a private key in PEM (`signingKey`), else HMAC-SHA1 with `consumerSecret`. The body goes into the
signature as `oauth_body_hash`, as services ask for whose bodies are JSON; forms are covered by it too.
"""

import base64
import hashlib
import hmac
import secrets as random_source
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl, quote, urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from toolcrib.capability.upstream.credentials import Authorized, Secret, checked
from toolcrib.core.http import Headers
from toolcrib.errors import Unavailable

_USUAL_PORTS: Final = {"http": 80, "https": 443}


class OAuth1:
    """Signs requests; `signing_key` is tried before `consumer_secret`.

    Args:
        consumer_key: names the application.
        signing_key: its RSA key in PEM; line breaks may be written as backslash and n.
        consumer_secret: its shared secret.
        token: names the user.
        token_secret: the user's half of the shared secret.
        clock: seconds since the epoch.
        nonce: a text that never comes twice.
    """

    names = frozenset({"authorization"})

    def __init__(
        self,
        consumer_key: Secret,
        *,
        signing_key: Secret | None = None,
        consumer_secret: Secret | None = None,
        token: Secret | None = None,
        token_secret: Secret | None = None,
        clock: Callable[[], float] = time.time,
        nonce: Callable[[], str] = lambda: random_source.token_hex(16),
    ) -> None:
        if signing_key is None and consumer_secret is None:
            raise ValueError("authentication.signingKey is missing, and so is consumerSecret")
        self._consumer_key = consumer_key
        self._signing_key = signing_key
        self._consumer_secret = consumer_secret
        self._token = token
        self._token_secret = token_secret
        self._clock = clock
        self._nonce = nonce
        self._key: RSAPrivateKey | None = None

    async def authorize(self, method: str, url: str, body: bytes | None) -> Authorized:
        """The signature of one request; raises Unavailable when a secret cannot be used."""
        rsa = self._signing_key is not None
        digest = hashlib.sha256(body or b"") if rsa else hashlib.sha1(body or b"", usedforsecurity=False)
        fields = {
            "oauth_consumer_key": checked("consumerKey", self._consumer_key),
            "oauth_nonce": self._nonce(),
            "oauth_timestamp": str(int(self._clock())),
            "oauth_signature_method": "RSA-SHA256" if rsa else "HMAC-SHA1",
            "oauth_version": "1.0",
            "oauth_body_hash": base64.b64encode(digest.digest()).decode(),
        }
        if self._token is not None:
            fields["oauth_token"] = checked("token", self._token)
        base = signature_base(method, url, fields)
        fields["oauth_signature"] = base64.b64encode(self._sign(base.encode())).decode()
        written = ", ".join(f'{name}="{_escaped(value)}"' for name, value in sorted(fields.items()))
        return Authorized(url, (("Authorization", f"OAuth {written}"),))

    def repeat(self, used: Authorized, status: int, headers: Headers) -> bool:  # noqa: ARG002
        """Never: a signature is not refused for its age."""
        return False

    def _sign(self, base: bytes) -> bytes:
        if self._signing_key is not None:
            return self._rsa(self._signing_key).sign(base, PKCS1v15(), SHA256())
        consumer = checked("consumerSecret", self._consumer_secret) if self._consumer_secret is not None else ""
        token = checked("tokenSecret", self._token_secret) if self._token_secret is not None else ""
        return hmac.new(f"{_escaped(consumer)}&{_escaped(token)}".encode(), base, "sha1").digest()

    def _rsa(self, secret: Secret) -> RSAPrivateKey:
        if self._key is None:
            try:
                found = load_pem_private_key(secret().replace("\\n", "\n").strip().encode(), None)
            except (ValueError, TypeError, UnsupportedAlgorithm):
                found = None  # the error might show the key
            if not isinstance(found, RSAPrivateKey):
                raise Unavailable(
                    "upstream.credential_invalid", "The credential 'signingKey' is no RSA key in PEM without password."
                )
            self._key = found
        return self._key


def signature_base(method: str, url: str, fields: dict[str, str]) -> str:
    """What is signed: method, address and all parameters in order (RFC 5849, 3.4.1)."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    if parts.port not in {None, _USUAL_PORTS.get(parts.scheme.lower())}:
        host = f"{host}:{parts.port}"
    pairs = [*parse_qsl(parts.query, keep_blank_values=True), *fields.items()]
    encoded = sorted((_escaped(name), _escaped(value)) for name, value in pairs)
    parameters = "&".join(f"{name}={value}" for name, value in encoded)
    address = f"{parts.scheme.lower()}://{host}{parts.path or '/'}"
    return "&".join(map(_escaped, (method.upper(), address, parameters)))


def _escaped(text: str) -> str:
    return quote(text, safe="-._~")
