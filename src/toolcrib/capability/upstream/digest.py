"""Digest authentication (RFC 7616), the client's half: SHA-256, SHA-512-256 and MD5, plain and `-sess`, qop `auth`.

The first request to an origin goes without credentials and is repeated once with the answer to its challenge; later
ones reuse the nonce and count up, until the upstream gives another. The password never leaves in any form but hashed.
"""

import hashlib
import re
import secrets as random_source
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from toolcrib.capability.upstream.credentials import Authorized, Secret, checked
from toolcrib.capability.upstream.request import origin_of, target_of
from toolcrib.core.http import Headers
from toolcrib.errors import Invalid

_HASHES: Final[dict[str, str]] = {"SHA-512-256": "sha512_256", "SHA-256": "sha256", "MD5": "md5"}  # strongest first
_PREFERENCE: Final = [
    f"{name}{suffix}"
    for name, known in _HASHES.items()
    if known in hashlib.algorithms_available
    for suffix in ("", "-SESS")
]
_ORIGINS: Final = 64  # origins whose nonce is remembered
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER: Final = re.compile(rf'[\s,]*({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))\s*(?:,|$)')
_SCHEME: Final = re.compile(rf"[\s,]*({_WORD})(?:\s+|$)")
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*\s*(?:,|$)")
_ESCAPED: Final = re.compile(r"\\(.)")
_NOT_QUOTABLE: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(slots=True)
class Challenge:
    """A nonce that an upstream gave, and how often it was used.

    `algorithm` is in upper case, `algorithm_shown` as the upstream wrote it (None if it did not); `qop` says whether
    the upstream takes `auth`, otherwise the older form without counting is used.
    """

    realm: str
    nonce: str
    algorithm: str
    algorithm_shown: str | None
    opaque: str | None
    qop: bool
    userhash: bool
    cnonce: str
    count: int = 0


class Digest:
    """Digest credentials for one user."""

    names = frozenset({"authorization"})

    def __init__(
        self, username: Secret, password: Secret, *, cnonce: Callable[[], str] = lambda: random_source.token_hex(16)
    ) -> None:
        self._username = username
        self._password = password
        self._cnonce = cnonce
        self._challenges: OrderedDict[tuple[str, str, int], Challenge] = OrderedDict()

    async def authorize(self, method: str, url: str, body: bytes | None) -> Authorized:  # noqa: ARG002
        """Answer the challenge that the origin gave last; nothing before the first."""
        username, password = checked("username", self._username), checked("password", self._password, empty=True)
        try:
            origin = origin_of(url)
        except ValueError:
            raise Invalid("outbound.url_invalid", "the URL must be http:// or https://, a host, and a path") from None
        challenge = self._challenges.get(origin)
        if challenge is None:
            return Authorized(url, (), (origin, None))
        challenge.count += 1
        value = answer(challenge, username, password, method, target_of(url))
        return Authorized(url, (("Authorization", value),), (origin, challenge.nonce))

    def repeat(self, used: Authorized, status: int, headers: Headers) -> bool:
        """Learn the nonce of a challenge, or the next one of a success; repeat when a challenge brought a new one."""
        if not isinstance(used.used, tuple):
            return False
        origin, nonce = used.used
        known = self._challenges.get(origin)
        if status != 401:
            following = headers.get("authentication-info")
            next_nonce = _parameters(following)[0].get("nextnonce") if following else None
            if known is not None and next_nonce and next_nonce != known.nonce:
                known.nonce, known.count = next_nonce, 0
            return False
        found = best_challenge([value for name, value in headers.items() if name == "www-authenticate"], self._cnonce())
        if found is None or found.nonce == nonce:
            return False  # the nonce was good, so the name or the password is not
        if known is None or known.nonce != found.nonce:
            self._challenges.pop(origin, None)
            self._challenges[origin] = found
            while len(self._challenges) > _ORIGINS:
                self._challenges.popitem(last=False)
        return True


def best_challenge(values: list[str], cnonce: str) -> Challenge | None:
    """The strongest usable Digest challenge in the values of WWW-Authenticate."""
    usable: dict[str, Challenge] = {}
    for value in values:
        for scheme, parameters in _challenges(value):
            algorithm = parameters.get("algorithm", "MD5").upper()
            offers = [offer.strip().lower() for offer in parameters.get("qop", "").split(",")]
            if scheme != "digest" or algorithm not in _PREFERENCE or not parameters.get("nonce"):
                continue
            if "qop" in parameters and "auth" not in offers:
                continue  # auth-int alone
            usable.setdefault(
                algorithm,
                Challenge(
                    realm=parameters.get("realm", ""),
                    nonce=parameters["nonce"],
                    algorithm=algorithm,
                    algorithm_shown=parameters.get("algorithm"),
                    opaque=parameters.get("opaque"),
                    qop="qop" in parameters,
                    userhash=parameters.get("userhash", "").lower() == "true",
                    cnonce=cnonce,
                ),
            )
    return next((usable[name] for name in _PREFERENCE if name in usable), None)


def answer(challenge: Challenge, username: str, password: str, method: str, target: str) -> str:
    """The value of Authorization for a request; `challenge.count` counts this use of the nonce."""
    name = challenge.algorithm.removesuffix("-SESS")
    is_session = name != challenge.algorithm

    def hashed(text: str) -> str:
        return hashlib.new(_HASHES[name], text.encode(), usedforsecurity=False).hexdigest()

    first = hashed(f"{username}:{challenge.realm}:{password}")
    if is_session:
        first = hashed(f"{first}:{challenge.nonce}:{challenge.cnonce}")
    second = hashed(f"{method}:{target}")
    count = f"{challenge.count:08x}"
    between = f"{challenge.nonce}:{count}:{challenge.cnonce}:auth" if challenge.qop else challenge.nonce
    parts = [*_user(challenge, username, hashed), f'realm="{_quotable(challenge.realm)}"', f'uri="{target}"']
    if challenge.algorithm_shown is not None:
        parts.append(f"algorithm={challenge.algorithm_shown}")
    parts.append(f'nonce="{_quotable(challenge.nonce)}"')
    if challenge.qop:
        parts += [f"nc={count}", f'cnonce="{challenge.cnonce}"', "qop=auth"]
    elif is_session:
        parts.append(f'cnonce="{challenge.cnonce}"')
    parts.append(f'response="{hashed(f"{first}:{between}:{second}")}"')
    if challenge.opaque is not None:
        parts.append(f'opaque="{_quotable(challenge.opaque)}"')
    return f"Digest {', '.join(parts)}"


def _user(challenge: Challenge, username: str, hashed: Callable[[str], str]) -> list[str]:
    if challenge.userhash:
        return [f'username="{hashed(f"{username}:{challenge.realm}")}"', "userhash=true"]
    if username.isascii():
        return [f'username="{_quotable(username)}"']
    return [f"username*=UTF-8''{quote(username, safe='')}"]


def _quotable(text: str) -> str:
    return _NOT_QUOTABLE.sub("", text).replace("\\", "\\\\").replace('"', '\\"')


def _parameters(text: str, start: int = 0) -> tuple[dict[str, str], int]:
    """The parameters from `start` on, names in lower case, and where they end."""
    parameters: dict[str, str] = {}
    while found := _PARAMETER.match(text, start):
        name, quoted, plain = found.groups()
        parameters.setdefault(name.lower(), _ESCAPED.sub(r"\1", quoted) if quoted is not None else plain)
        start = found.end()
    return parameters, start


def _challenges(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The challenges in a header value: scheme in lower case, parameters."""
    start = 0
    while scheme := _SCHEME.match(text, start):
        parameters, start = _parameters(text, scheme.end())
        if not parameters and (lone := _TOKEN68.match(text, start)):
            start = lone.end()
        yield scheme[1].lower(), parameters
