"""A request to an upstream as a plan makes it, and edits of its URL that leave everything else as it was.

Credentials are not part of it: the authenticator adds them when it is sent, so nothing here can leak them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote_plus, urlsplit

from toolcrib.capability.upstream.policy import Policy

HeaderList = Sequence[tuple[str, str]]

_PRINTABLE: Final = "".join(map(chr, range(0x21, 0x7F)))
_AUTHORITY: Final = re.compile(r"[A-Za-z]+://([^/?#]*)")
_TARGET: Final = re.compile(r"[A-Za-z]+://[^/?#]*([^#]*)")
_USUAL_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One call.

    Attributes:
        method: in upper case.
        url: absolute; a fragment is not sent.
        headers: what the file and the caller give; the authenticator's win over them.
        body: what follows, or None.
        operation: name of the consumed operation.
        replay_safe: whether it may be sent twice; None lets the policy and then the method decide.
        policy: the operation's own (see `compile_policy`), None for that of the upstream.
    """

    method: str
    url: str
    headers: HeaderList = field(default=(), repr=False)  # may hold values of binds
    body: bytes | None = None
    operation: str = ""
    replay_safe: bool | None = None
    policy: Policy | None = None


def header(headers: HeaderList, name: str) -> str | None:
    """The values under a lower-case name, joined by commas; None without any."""
    values = [value for known, value in headers if known.lower() == name]
    return ", ".join(values) if values else None


def without(headers: HeaderList, names: frozenset[str]) -> list[tuple[str, str]]:
    """The headers other than those of the lower-case names."""
    return [pair for pair in headers if pair[0].lower() not in names]


def host_of(url: str) -> str:
    """Host and port as written, for metrics."""
    found = _AUTHORITY.match(url)
    return found[1].rpartition("@")[2].lower() if found else ""


def target_of(url: str) -> str:
    """Path and query as the outbound client sends them."""
    found = _TARGET.match(url)
    target = quote(found[1] if found else "", safe=_PRINTABLE)
    return target if target.startswith("/") else f"/{target}"


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port; raises ValueError when the URL is not http or https."""
    parts = urlsplit(url)
    if parts.scheme not in _USUAL_PORTS or not parts.hostname:
        raise ValueError("it is not an http or https URL")
    return parts.scheme, parts.hostname, parts.port or _USUAL_PORTS[parts.scheme]


def encode_parameter(name: str, value: str) -> str:
    """A query pair, percent-encoded."""
    return f"{quote(name, safe='')}={quote(value, safe='')}"


def set_parameter(url: str, name: str, pair: str) -> str:
    """The URL with an encoded pair in its query, in place of those of the same name."""
    head, mark, fragment = url.partition("#")
    path, _, query = head.partition("?")
    kept = [part for part in query.split("&") if part and unquote_plus(part.partition("=")[0]) != name]
    return f"{path}?{'&'.join([*kept, pair])}{mark}{fragment}"
