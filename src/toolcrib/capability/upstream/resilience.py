"""What keeps an upstream from being hammered: circuit breaker, rate limit, retry budget and pauses.

State and arithmetic only: time comes in as a clock, and nothing here waits or sends. One of each serves all operations
of an upstream.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from toolcrib.capability.upstream.freshness import http_date
from toolcrib.capability.upstream.policy import CircuitBreaker, RateLimit, Retry
from toolcrib.errors import RateLimited, Unavailable

Clock = Callable[[], float]

_RESERVE: Final = 10.0  # retries that a quiet upstream may use before its share counts
_SAVED_REQUESTS: Final = 100  # how many requests' worth of retries can be saved up


class Breaker:
    """A circuit breaker: closed until enough failures, then open, then one probe decides."""

    def __init__(self, settings: CircuitBreaker, namespace: str, clock: Clock) -> None:
        self._settings = settings
        self._namespace = namespace
        self._clock = clock
        self._failures: deque[float] = deque(maxlen=settings.failures)
        self._open_until: float | None = None  # None while closed
        self._probing = False

    def check(self) -> None:
        """Raise Unavailable (`upstream.circuit_open`) if nothing may be sent now."""
        if self._open_until is not None and (self._probing or self._clock() < self._open_until):
            wait_s = max(1, math.ceil(self._open_until - self._clock()))
            raise Unavailable(
                "upstream.circuit_open",
                f"{self._namespace} failed repeatedly and is left alone; it is tried again in {wait_s} s",
                retry_after_s=wait_s,
            )

    def enter(self) -> bool:
        """Before sending: raises as `check`; whether this one is the probe. Must be followed by `leave`."""
        if self._open_until is None:
            return False
        self.check()
        self._probing = True
        return True

    def leave(self, *, probe: bool, failed: bool | None) -> None:
        """After sending; `failed` is None when nothing was learnt (the caller went away)."""
        if probe:
            self._probing = False
            if failed is False:
                self._open_until = None
            elif failed:
                self._open_until = self._clock() + self._settings.cooldown_s
            return
        if not failed or self._open_until is not None:
            return
        now = self._clock()
        self._failures.append(now)
        if len(self._failures) == self._settings.failures and now - self._failures[0] <= self._settings.window_s:
            self._open_until = now + self._settings.cooldown_s
            self._failures.clear()


class TokenBucket:
    """A rate limit with places in line: who may wait knows at once for how long."""

    def __init__(self, settings: RateLimit, namespace: str, clock: Clock) -> None:
        self._settings = settings
        self._namespace = namespace
        self._clock = clock
        self._interval_s = settings.per_s / settings.requests
        self._ahead_s = ((settings.burst or settings.requests) - 1) * self._interval_s
        self._due = -math.inf  # when the bucket is full again

    def take(self) -> float:
        """Take a token; the seconds to wait before it may be used.

        Raises:
            RateLimited: that would be longer than a call may wait.
        """
        now = self._clock()
        due = max(self._due, now)
        wait_s = due - self._ahead_s - now
        if wait_s > self._settings.wait_s + 1e-9:
            retry_after_s = max(1, math.ceil(wait_s))
            raise RateLimited(
                "upstream.rate_limited",
                f"{self._namespace} is called {self._settings.requests} times per {self._settings.per_s:g} s at most; "
                f"try again in {retry_after_s} s",
                retry_after_s=retry_after_s,
            )
        self._due = due + self._interval_s
        return max(0.0, wait_s)

    def give_back(self) -> None:
        """Undo `take`: the caller went away while it waited."""
        self._due -= self._interval_s


class RetryBudget:
    """Retries as a share of requests."""

    def __init__(self) -> None:
        self._balance = _RESERVE

    def deposit(self, share: float) -> None:
        """A request is sent for the first time."""
        self._balance = min(self._balance + share, max(_RESERVE, _SAVED_REQUESTS * share))

    def withdraw(self, share: float) -> bool:
        """Whether a retry may be sent; a share of 0 allows none."""
        if share <= 0 or self._balance < 1:
            return False
        self._balance -= 1
        return True


def pause_s(retry: Retry, attempt: int, retry_after_s: float | None, chance: float) -> float | None:
    """How long to wait after attempt number `attempt` (from 1), or None when that would be too long.

    Args:
        retry: the settings.
        attempt: which attempt just failed.
        retry_after_s: what the upstream asked for, if it did.
        chance: from 0 to 1, where between nothing and the upper bound the pause lies.
    """
    if retry_after_s is not None and retry_after_s > retry.max_backoff_s:
        return None
    bound_s = min(retry.max_backoff_s, retry.backoff_s * 2.0 ** (attempt - 1))
    return max(bound_s * chance, retry_after_s or 0.0)


def parse_retry_after(text: str | None, wall_now: float) -> float | None:
    """Seconds from a Retry-After header, None without a usable one."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    at = http_date(text)
    return None if at is None else max(0.0, at - wall_now)
