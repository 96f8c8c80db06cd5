"""What an `x-toolcrib` block says about calls to an upstream, read and checked once.

Everything but time-outs is off unless configured. Durations are numbers of seconds, or texts with a unit (`250ms`,
`30s`, `5m`, `1h`). An operation's block overrides that of its consumes entry field by field; what all operations share
(circuit breaker, rate limit, concurrency, connecting, the size of the cache) can only stand at the entry.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST_S: Final = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed request is sent again.

    Attributes:
        attempts: how often it is sent at most, the first time included.
        statuses: answers that count as failed.
        backoff_s: upper bound of the first pause; doubles each time. Pauses are random below it.
        max_backoff_s: longest pause; a `Retry-After` above it ends the attempts.
        budget: retries per request, over all calls of the upstream, beyond a reserve of ten.
        attempt_timeout_s: for one attempt; None leaves an attempt all the time that the call has.
    """

    attempts: int = 3
    statuses: frozenset[int] = frozenset({429, 502, 503, 504})
    backoff_s: float = 0.2
    max_backoff_s: float = 5.0
    budget: float = 0.2
    attempt_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """After `failures` within `window_s` seconds nothing is sent for `cooldown_s` seconds; then one call probes."""

    failures: int = 5
    window_s: float = 30.0
    cooldown_s: float = 30.0


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`requests` per `per_s` seconds, `burst` of them at once; a call waits `wait_s` seconds at most for its turn."""

    requests: int
    per_s: float = 1.0
    burst: int | None = None
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Cache:
    """Which answers are kept.

    Attributes:
        max_entries: answers kept at most.
        max_bytes: size of all of them.
        default_ttl_s: freshness of a successful answer that does not say; None keeps such answers to revalidate.
        stale_if_error_s: how long after its freshness an answer stands in for a failure, unless the answer says.
    """

    max_entries: int = 1000
    max_bytes: int = 16 * 2**20
    default_ttl_s: float | None = None
    stale_if_error_s: float | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """How an upstream is called.

    Attributes:
        connect_timeout_s: for a new connection; None for the outbound client's.
        timeout_s: for a whole call: waiting, every attempt, and the pauses between them.
        max_response_bytes: size of a decoded body; None for the outbound client's limit.
        idempotent: whether a request may be sent twice; None lets the method decide.
    """

    connect_timeout_s: float | None = None
    timeout_s: float = 30.0
    max_response_bytes: int | None = None
    idempotent: bool | None = None
    retry: Retry | None = None
    circuit_breaker: CircuitBreaker | None = None
    rate_limit: RateLimit | None = None
    concurrency: int | None = None
    cache: Cache | None = None


def _refuse(key: str, reason: str) -> ValueError:
    return ValueError(f"{key} {reason}")


def _duration(low: float, high: float = _LONGEST_S) -> Callable[[str, Any], float]:
    def read(key: str, value: Any) -> float:
        found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
        seconds = float(found[1]) * _UNITS[found[2]] if found else value
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
            raise _refuse(key, "must be a number of seconds, or a text such as 250ms, 30s, 5m or 1h")
        if not low <= seconds <= high:
            raise _refuse(key, f"must be from {low:g} to {high:g} seconds")
        return float(seconds)

    return read


def _count(low: int, high: int) -> Callable[[str, Any], int]:
    def read(key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _refuse(key, f"must be a whole number from {low} to {high}")
        return value

    return read


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refuse(key, "must be true or false")
    return value


def _share(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _refuse(key, "must be a number from 0 to 1: the share of requests that may be retries")
    return float(value)


def _statuses(key: str, value: Any) -> frozenset[int]:
    read = _count(400, 599)
    if not isinstance(value, list | tuple) or not value:
        raise _refuse(key, "must be a list of statuses")
    return frozenset(read(f"{key}[{index}]", status) for index, status in enumerate(value))


_Field = tuple[str, Callable[[str, Any], Any]]
_PAUSE: Final = _duration(0.001, 3600.0)
_SIZE: Final = _count(1, 2**40)
_SCALARS: Final[Mapping[str, _Field]] = {
    "connectTimeout": ("connect_timeout_s", _duration(0.001, 3600.0)),
    "timeout": ("timeout_s", _duration(0.001, 86400.0)),
    "maxResponseBytes": ("max_response_bytes", _SIZE),
    "idempotent": ("idempotent", _flag),
    "concurrency": ("concurrency", _count(1, 100_000)),
}
_RETRY: Final[Mapping[str, _Field]] = {
    "attempts": ("attempts", _count(1, 10)),
    "statuses": ("statuses", _statuses),
    "backoff": ("backoff_s", _PAUSE),
    "maxBackoff": ("max_backoff_s", _PAUSE),
    "budget": ("budget", _share),
    "attemptTimeout": ("attempt_timeout_s", _PAUSE),
}
_BREAKER: Final[Mapping[str, _Field]] = {
    "failures": ("failures", _count(1, 10_000)),
    "window": ("window_s", _duration(0.001)),
    "cooldown": ("cooldown_s", _duration(0.001)),
}
_RATE: Final[Mapping[str, _Field]] = {
    "requests": ("requests", _count(1, 1_000_000)),
    "per": ("per_s", _duration(0.001)),
    "burst": ("burst", _count(1, 1_000_000)),
    "wait": ("wait_s", _duration(0.0, 3600.0)),
}
_CACHE: Final[Mapping[str, _Field]] = {
    "maxEntries": ("max_entries", _count(1, 10_000_000)),
    "maxBytes": ("max_bytes", _SIZE),
    "defaultTtl": ("default_ttl_s", _duration(0.0)),
    "staleIfError": ("stale_if_error_s", _duration(0.0)),
}
_SECTIONS: Final = frozenset({"retry", "circuitBreaker", "rateLimit", "cache"})
_SHARED: Final = frozenset({"connectTimeout", "circuitBreaker", "rateLimit", "concurrency"})
_SHARED_CACHE: Final = frozenset({"maxEntries", "maxBytes"})

POLICY_KEYS: Final = _SECTIONS | frozenset(_SCALARS)


def compile_policy(extension: Mapping[str, Any], within: Policy | None = None) -> Policy:
    """The policy of an `x-toolcrib` block; keys outside `POLICY_KEYS` are someone else's.

    Args:
        extension: the block of a consumes entry, or of an operation.
        within: the policy of the consumes entry, when the block is an operation's.

    Raises:
        ValueError: a value is wrong; the message starts with the key, dotted.
    """
    policy = Policy() if within is None else within
    for key in extension if within is not None else ():
        if key in _SHARED:
            raise _refuse(key, "is shared by all operations: write it at the consumes entry")
    given = {field: read(key, extension[key]) for key, (field, read) in _SCALARS.items() if key in extension}
    for key in _SECTIONS & extension.keys():
        section = _section(key, extension[key])
        match key:
            case "retry":
                given["retry"] = _retry(section, policy.retry)
            case "circuitBreaker":
                fields = _fields(key, section, _BREAKER)
                given["circuit_breaker"] = None if fields is None else CircuitBreaker(**fields)
            case "rateLimit":
                given["rate_limit"] = _rate_limit(section)
            case _:
                given["cache"] = _cache(section, policy.cache, shared=within is None)
    return replace(policy, **given)


def _section(key: str, value: Any) -> Mapping[str, Any] | None:
    """The fields of a section; None when it is switched off, by `false` or `enabled: false`."""
    if value is None or value is False:
        return None
    if value is True:
        return {}
    if not isinstance(value, Mapping):
        raise _refuse(key, "must be a map")
    fields = dict(value)
    return fields if _flag(f"{key}.enabled", fields.pop("enabled", True)) else None


def _fields(key: str, section: Mapping[str, Any] | None, known: Mapping[str, _Field]) -> dict[str, Any] | None:
    if section is None:
        return None
    for name in section:
        if name not in known:
            raise _refuse(f"{key}.{name}", f"is unknown; known are {', '.join(known)}")
    return {field: read(f"{key}.{name}", section[name]) for name, (field, read) in known.items() if name in section}


def _retry(section: Mapping[str, Any] | None, within: Retry | None) -> Retry | None:
    fields = _fields("retry", section, _RETRY)
    if fields is None:
        return None
    retry = replace(within or Retry(), **fields)
    if retry.backoff_s > retry.max_backoff_s:
        raise _refuse("retry.backoff", "must not be above retry.maxBackoff")
    return retry if retry.attempts > 1 else None


def _rate_limit(section: Mapping[str, Any] | None) -> RateLimit | None:
    fields = _fields("rateLimit", section, _RATE)
    if fields is None:
        return None
    if "requests" not in fields:
        raise _refuse("rateLimit.requests", "is missing: how many requests may be sent in the time of rateLimit.per")
    return RateLimit(**fields)


def _cache(section: Mapping[str, Any] | None, within: Cache | None, *, shared: bool) -> Cache | None:
    for name in section or ():
        if not shared and name in _SHARED_CACHE:
            raise _refuse(f"cache.{name}", "is shared by all operations: write it at the consumes entry")
    fields = _fields("cache", section, _CACHE)
    return None if fields is None else replace(within or Cache(), **fields)
