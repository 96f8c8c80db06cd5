"""What HTTP caching (RFC 9111) says about one answer: whether it may be kept, how long it is fresh, how old it is.

Pure functions of headers and times. A cache here serves one capability and keeps callers apart by its keys, so
`private` does not forbid keeping; nothing is guessed: without explicit freshness an answer is stale at once, unless a
default is configured.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from toolcrib.core.http import Headers

_DIRECTIVE: Final = re.compile(r'([^\s,;="]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)))?')
_KEPT: Final = frozenset({200, 203, 300, 301, 404, 410})
_DEFAULTED: Final = frozenset({200, 203, 300, 301})  # an error is kept only when the upstream says so
_LONGEST_S: Final = 2.0**31  # as RFC 9111 treats larger numbers
# These values are the same in every request, so varying by them is no variation.
_CONSTANT: Final = frozenset({"accept-encoding"})

Directives = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Freshness:
    """How an answer may be used again.

    Attributes:
        age_s: how old it was when it arrived.
        lifetime_s: up to which age it is fresh.
        always_revalidate: it is never used without asking (`no-cache`).
        stale_forbidden: it is never used after its lifetime, not even for a failure.
        stale_if_error_s: for how long after its lifetime it stands in for a failure; None if the answer does not say.
    """

    age_s: float
    lifetime_s: float
    always_revalidate: bool
    stale_forbidden: bool
    stale_if_error_s: float | None


def directives(text: str | None) -> Directives:
    """The directives of a Cache-Control header, names in lower case; of a repeated one the first counts."""
    found: dict[str, str] = {}
    for name, quoted, plain in _DIRECTIVE.findall(text or ""):
        found.setdefault(name.lower(), quoted or plain)
    return found


def seconds(known: Directives, name: str) -> float | None:
    """A directive's seconds; 0 when it is there but not a number, None when it is not there."""
    text = known.get(name)
    if text is None:
        return None
    return min(float(text[:12]), _LONGEST_S) if text.isascii() and text.isdigit() else 0.0


def http_date(text: str | None) -> float | None:
    """A date of HTTP as seconds since 1970, None when it is none."""
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, OverflowError):
        return None


def joined(headers: Headers, name: str) -> str | None:
    """All values under a lower-case name, as one list."""
    values = [value for known, value in headers.items() if known == name]
    return ", ".join(values) if values else None


def vary_of(headers: Headers) -> frozenset[str] | None:
    """The request headers that an answer varies by, in lower case; None when it varies by anything."""
    names = {name.strip().lower() for name in (joined(headers, "vary") or "").split(",")} - {""}
    return None if "*" in names else frozenset(names - _CONSTANT)


def validators(headers: Headers) -> list[tuple[str, str]]:
    """The request headers that ask whether an answer is still good; empty when it cannot be asked."""
    asked = []
    if etag := headers.get("etag"):
        asked.append(("If-None-Match", etag))
    if modified := headers.get("last-modified"):
        asked.append(("If-Modified-Since", modified))
    return asked


def freshness(
    status: int, headers: Headers, *, wall_now: float, delay_s: float, default_ttl_s: float | None
) -> Freshness | None:
    """How an answer may be used again, None if it must not be kept.

    Args:
        status: of the answer.
        headers: of the answer.
        wall_now: when it arrived, in seconds since 1970.
        delay_s: how long it took.
        default_ttl_s: freshness of a success that does not say.
    """
    control = directives(joined(headers, "cache-control"))
    if status not in _KEPT or "no-store" in control or vary_of(headers) is None:
        return None
    lifetime_s = _lifetime(control, headers, wall_now)
    if lifetime_s is None and status in _DEFAULTED and headers.get("set-cookie") is None:
        lifetime_s = default_ttl_s
    no_cache = "no-cache" in control or ("no-cache" in directives(headers.get("pragma")) and not control)
    if not validators(headers) and (no_cache or not lifetime_s):
        return None  # it could never be used
    date = http_date(headers.get("date"))
    apparent_s = 0.0 if date is None else max(0.0, wall_now - date)
    stated_s = seconds({"age": (headers.get("age") or "0").strip()}, "age") or 0.0
    return Freshness(
        age_s=max(apparent_s, stated_s + delay_s),
        lifetime_s=lifetime_s or 0.0,
        always_revalidate=no_cache,
        stale_forbidden=no_cache or not control.keys().isdisjoint({"must-revalidate", "proxy-revalidate", "s-maxage"}),
        stale_if_error_s=seconds(control, "stale-if-error"),
    )


def _lifetime(control: Directives, headers: Headers, wall_now: float) -> float | None:
    """The stated freshness lifetime in seconds, None when there is none."""
    for name in ("s-maxage", "max-age"):
        stated = seconds(control, name)
        if stated is not None:
            return stated
    text = headers.get("expires")
    if text is None:
        return None
    expires = http_date(text)
    date = http_date(headers.get("date"))
    return 0.0 if expires is None else max(0.0, expires - (wall_now if date is None else date))
