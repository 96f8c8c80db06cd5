"""The server's side of HTTP Digest (RFC 7616): nonces that prove themselves, and no answer accepted twice.

A nonce carries its time and a keyed hash, so that unanswered challenges take no memory. Once a nonce was used with the
right password, the counts seen with it are remembered until it expires. Quality of protection is `auth`; the body is
not covered. Nothing here decides what the password is.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import unquote

_NONCE_S: Final = 300  # how long a nonce serves
_NONCES: Final = 10_000  # how many used nonces are remembered
_WINDOW: Final = 64  # counts may arrive in another order within this many
_PARAMETER: Final = re.compile(r'\s*([A-Za-z0-9*]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))\s*(?:,|$)')
_COUNT: Final = re.compile(r"[0-9a-fA-F]{8}")
_HASHES: Final[Mapping[str, Callable[[bytes], str]]] = {
    "SHA-256": lambda data: hashlib.sha256(data).hexdigest(),
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),  # what older clients know
}


class DigestDoor:
    """Judges `Authorization: Digest`; one per face.

    Args:
        realm: what the client shows to its user, and part of the hash.
        clock: seconds since the epoch.
    """

    def __init__(self, realm: str, clock: Callable[[], float]) -> None:
        self._realm = realm
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._opaque = secrets.token_hex(8)
        self._used: dict[str, list[int]] = {}  # nonce -> highest count, and a bit for each of the counts below it
        self._forgotten_until = 0  # nonces up to this time may have been used already

    def challenges(self, *, stale: bool) -> list[str]:
        """A challenge per algorithm, the stronger first; `stale` says that only the nonce was too old."""
        nonce = self._new_nonce()
        again = ", stale=true" if stale else ""
        return [
            f'Digest realm="{self._realm}", qop="auth", algorithm={algorithm}, nonce="{nonce}", '
            f'opaque="{self._opaque}", charset=UTF-8{again}'
            for algorithm in _HASHES
        ]

    def judge(self, credentials: str, method: str, target: str, username: str, password: str) -> str:
        """`ok`, `stale` (right, but with a nonce that no longer serves) or `wrong`.

        Args:
            credentials: what follows the word `Digest`.
            method: of the request.
            target: path and query of the request as sent.
            username: the one that is accepted.
            password: the one that is accepted.
        """
        given = _parameters(credentials)
        if given is None or not self._well_formed(given, target):
            return "wrong"
        digest = _HASHES[given.get("algorithm", "MD5").upper()]
        user = given.get("username", "")
        first = digest(f"{username}:{self._realm}:{password}".encode())
        second = digest(f"{method}:{given['uri']}".encode())
        middle = f"{given['nonce']}:{given['nc']}:{given['cnonce']}:{given['qop']}"
        expected = digest(f"{first}:{middle}:{second}".encode())
        right = hmac.compare_digest(expected.encode(), given["response"].lower().encode())
        known = hmac.compare_digest(user.encode(), username.encode())
        issued = self._issued(given["nonce"])
        if not (right and known) or issued is None:
            return "wrong"
        if not 0 <= self._clock() - issued < _NONCE_S or issued <= self._forgotten_until:
            return "stale"
        return "ok" if self._first_use(given["nonce"], issued, int(given["nc"], 16)) else "stale"

    def _well_formed(self, given: Mapping[str, str], target: str) -> bool:
        if not {"realm", "nonce", "uri", "response", "nc", "cnonce", "qop"}.issubset(given):
            return False
        uri = given["uri"]
        if uri.startswith(("http://", "https://")):
            rest = uri.partition("://")[2]
            uri = "/" + rest.partition("/")[2]
        return (
            given["realm"] == self._realm
            and given["qop"].lower() == "auth"
            and given.get("algorithm", "MD5").upper() in _HASHES
            and given.get("opaque", self._opaque) == self._opaque
            and _COUNT.fullmatch(given["nc"]) is not None
            and uri == target
        )

    def _new_nonce(self) -> str:
        body = f"{int(self._clock()):x}.{secrets.token_hex(8)}"
        return f"{body}.{self._seal(body)}"

    def _seal(self, body: str) -> str:
        return hmac.new(self._key, body.encode(), hashlib.sha256).hexdigest()[:32]

    def _issued(self, nonce: str) -> int | None:
        """When we made this nonce; None if we did not."""
        body, _, seal = nonce.rpartition(".")
        if not hmac.compare_digest(self._seal(body).encode(), seal.encode()):
            return None
        return int(body.partition(".")[0], 16)

    def _first_use(self, nonce: str, issued: int, count: int) -> bool:
        """Remember a count of a nonce; whether it is new."""
        seen = self._used.get(nonce)
        if seen is None:
            self._make_room()
            self._used[nonce] = [count, 1]
            return issued > self._forgotten_until
        ahead = count - seen[0]
        if ahead > 0:
            seen[0] = count
            seen[1] = ((seen[1] << min(ahead, _WINDOW)) | 1) & ((1 << _WINDOW) - 1)
            return True
        bit = 1 << -ahead
        if -ahead >= _WINDOW or seen[1] & bit:
            return False
        seen[1] |= bit
        return True

    def _make_room(self) -> None:
        """Drop expired nonces, and the oldest if that is not enough; what is dropped is never accepted again."""
        if len(self._used) < _NONCES:
            return
        by_age = sorted(self._used, key=lambda nonce: self._issued(nonce) or 0)
        for nonce in by_age[: _NONCES // 4]:
            self._forgotten_until = max(self._forgotten_until, self._issued(nonce) or 0)
            del self._used[nonce]


def _parameters(text: str) -> dict[str, str] | None:
    """The parameters of a credential by lower-case name; None when it does not parse or names one twice."""
    found: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _PARAMETER.match(text, position)
        if match is None:
            return None
        name = match[1].lower()
        value = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
        if name == "username*":
            name, value = "username", unquote(value.rpartition("'")[2])
        if name in found:
            return None
        found[name] = value
        position = match.end()
    return found
