"""The answers of one upstream that may be used again, bounded in number and size, least recently used first out.

The key holds every header of the request that could tell callers apart, so an answer made for one is never given to
another. Concurrent misses send one request. A write to a URL drops what is kept of it, whatever the query, and keeps
reads that were under way from being stored. What may be kept and for how long is decided in `freshness.py`.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final

from toolcrib.capability.upstream.freshness import (
    Directives,
    Freshness,
    directives,
    freshness,
    seconds,
    validators,
    vary_of,
)
from toolcrib.capability.upstream.policy import Cache
from toolcrib.capability.upstream.request import HeaderList, UpstreamRequest, header
from toolcrib.core.http import Headers, OutboundResponse
from toolcrib.errors import AppError, Unavailable, Upstream

Send = Callable[[UpstreamRequest], Awaitable[OutboundResponse]]
_Key = tuple[str, str, str, bytes]  # operation, method, URL without fragment, digest of the headers that matter

_READ: Final = frozenset({"GET", "HEAD"})
_VARIANTS: Final = 8  # answers kept per key, which differ in what they vary by
_OVERHEAD: Final = 512  # bytes an entry costs beside its body and headers
# Headers that say nothing about who asks; where one of them changes the answer, the answer says so with Vary.
_ANONYMOUS: Final = frozenset(
    {
        *("accept", "accept-charset", "accept-encoding", "accept-language", "cache-control", "content-type", "pragma"),
        *("user-agent", "traceparent", "tracestate", "x-request-id", "x-correlation-id"),
    }
)
# With these the caller runs a cache of its own, or wants a part: the answer means something to this request only.
_OWN: Final = frozenset({"if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range", "range"})
# Headers of a 304 that describe the 304 itself and not what is kept.
_NOT_UPDATED: Final = frozenset({"content-length", "content-encoding", "content-range", "transfer-encoding"})


@dataclass(frozen=True, slots=True)
class _Entry:
    """An answer that is kept."""

    response: OutboundResponse
    varying: frozenset[tuple[str, str | None]]
    freshness: Freshness
    arrived_at: float
    size: int

    def age_s(self, now: float) -> float:
        return self.freshness.age_s + now - self.arrived_at

    def matches(self, headers: HeaderList) -> bool:
        return all(header(headers, name) == value for name, value in self.varying)

    def is_fresh(self, now: float, asked: Directives) -> bool:
        age_s = self.age_s(now)
        newest_s = seconds(asked, "max-age")
        if self.freshness.always_revalidate or "no-cache" in asked or (newest_s is not None and age_s > newest_s):
            return False
        return age_s < self.freshness.lifetime_s

    def stands_in(self, now: float, default_s: float | None) -> bool:
        """Whether it may be given instead of a failure."""
        state = self.freshness
        beyond_s = state.stale_if_error_s if state.stale_if_error_s is not None else default_s
        return not state.stale_forbidden and self.age_s(now) - state.lifetime_s < (beyond_s or 0.0)

    def answer(self, now: float) -> OutboundResponse:
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.response.headers.items()]
        kept = [pair for pair in raw if pair[0] != b"age"]
        kept.append((b"age", str(int(self.age_s(now))).encode()))
        return OutboundResponse(self.response.status, Headers(kept), self.response.body)


@dataclass(slots=True)
class _Flight:
    """A request under way that others wait for."""

    done: asyncio.Event = field(default_factory=asyncio.Event)
    error: AppError | None = None
    abandoned: bool = False  # its caller went away: another must go
    overtaken: bool = False  # a write came in between: what it brings must not be kept


class ResponseCache:
    """The answers kept for one upstream; lives in memory, used from one event loop."""

    def __init__(
        self, max_entries: int, max_bytes: int, *, clock: Callable[[], float], wall_clock: Callable[[], float]
    ) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._wall_clock = wall_clock
        self._kept: OrderedDict[_Key, list[_Entry]] = OrderedDict()
        self._by_place: dict[str, set[_Key]] = {}
        self._flights: dict[_Key, list[_Flight]] = {}
        self._entries = self._bytes = 0

    async def fetch(self, request: UpstreamRequest, settings: Cache, send: Send) -> OutboundResponse:
        """The kept answer if it may be used, otherwise what `send` brings; raises what `send` raises."""
        asked = directives(header(request.headers, "cache-control") or header(request.headers, "pragma"))
        names = {name.lower() for name, _ in request.headers}
        if request.method not in _READ or request.body or "no-store" in asked or not names.isdisjoint(_OWN):
            return await send(request)
        key = _key_of(request)
        waited = False
        while True:
            entry = self._find(key, request.headers)
            if entry is not None and entry.is_fresh(self._clock(), asked):
                return entry.answer(self._clock())
            flights = self._flights.get(key)
            if not flights or waited:
                return await self._fly(key, entry, request, settings, send)
            flight = flights[-1]
            await flight.done.wait()
            if flight.error is not None:
                # A copy: an exception raised in many tasks would collect the tracebacks of all.
                error = flight.error
                raise type(error)(error.code, error.message, field=error.field, **error.details)
            # What was kept may not be for this request (it varies, it must be revalidated): then it goes itself.
            waited = not flight.abandoned

    def invalidate(self, url: str) -> None:
        """Forget what is kept of a URL that was written to, whatever its query."""
        place = _place_of(url)
        for key in list(self._by_place.get(place, ())):
            self._drop(key)
        for key in [key for key in self._flights if _place_of(key[2]) == place]:
            for flight in self._flights.pop(key):
                flight.overtaken = True

    async def _fly(
        self, key: _Key, entry: _Entry | None, request: UpstreamRequest, settings: Cache, send: Send
    ) -> OutboundResponse:
        flight = _Flight()
        self._flights.setdefault(key, []).append(flight)
        try:
            return await self._refresh(key, entry, request, settings, send, flight)
        except AppError as error:
            flight.error = error
            raise
        except BaseException:
            flight.abandoned = True
            raise
        finally:
            flights = self._flights.get(key, [])
            if flight in flights:
                flights.remove(flight)
                if not flights:
                    del self._flights[key]
            flight.done.set()

    async def _refresh(
        self,
        key: _Key,
        entry: _Entry | None,
        request: UpstreamRequest,
        settings: Cache,
        send: Send,
        flight: _Flight,
    ) -> OutboundResponse:
        """Ask the upstream, with the validators of a kept answer if there is one."""
        asked = validators(entry.response.headers) if entry is not None else []
        sent_at = self._clock()
        try:
            response = await send(replace(request, headers=[*request.headers, *asked]) if asked else request)
        except (Upstream, Unavailable):
            if entry is not None and entry.stands_in(self._clock(), settings.stale_if_error_s):
                return entry.answer(self._clock())
            raise
        now = self._clock()
        if entry is not None and response.status >= 500 and entry.stands_in(now, settings.stale_if_error_s):
            return entry.answer(now)
        revalidated = entry is not None and asked and response.status == 304
        if entry is not None and revalidated:
            response = _updated(entry.response, response.headers)
        if not flight.overtaken:
            self._keep(key, request.headers, response, settings, now - sent_at)
        return response

    def _keep(self, key: _Key, asked: HeaderList, response: OutboundResponse, settings: Cache, delay_s: float) -> None:
        """Put an answer in place of the one for the same request, or just take that away if it may not be kept."""
        state = freshness(
            response.status,
            response.headers,
            wall_now=self._wall_clock(),
            delay_s=delay_s,
            default_ttl_s=settings.default_ttl_s,
        )
        others = [entry for entry in self._kept.get(key, ()) if not entry.matches(asked)]
        if state is None and response.status >= 500:
            return  # a failure says nothing about what is kept
        self._drop(key)
        if state is not None:
            varying = frozenset((name, header(asked, name)) for name in vary_of(response.headers) or ())
            size = _OVERHEAD + len(response.body) + sum(len(n) + len(v) for n, v in response.headers.items())
            if size <= self._max_bytes:
                others.append(_Entry(response, varying, state, self._clock(), size))
        if others:
            self._put(key, others[-_VARIANTS:])

    def _find(self, key: _Key, headers: HeaderList) -> _Entry | None:
        for entry in reversed(self._kept.get(key, ())):
            if entry.matches(headers):
                self._kept.move_to_end(key)
                return entry
        return None

    def _put(self, key: _Key, entries: list[_Entry]) -> None:
        self._kept[key] = entries
        self._by_place.setdefault(_place_of(key[2]), set()).add(key)
        self._entries += len(entries)
        self._bytes += sum(entry.size for entry in entries)
        while self._entries > self._max_entries or self._bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: _Key) -> None:
        entries = self._kept.pop(key, None)
        if entries is None:
            return
        self._entries -= len(entries)
        self._bytes -= sum(entry.size for entry in entries)
        place = _place_of(key[2])
        keys = self._by_place[place]
        keys.discard(key)
        if not keys:
            del self._by_place[place]


def _key_of(request: UpstreamRequest) -> _Key:
    telling = [(n.lower(), v) for n, v in request.headers if n.lower() not in _ANONYMOUS]
    digest = hashlib.sha256(repr(telling).encode("utf-8", "surrogatepass")).digest() if telling else b""
    return request.operation, request.method, request.url.partition("#")[0], digest


def _place_of(url: str) -> str:
    return url.partition("#")[0].partition("?")[0]


def _updated(kept: OutboundResponse, news: Headers) -> OutboundResponse:
    """The kept answer with the headers of a 304."""
    fresh = [(name, value) for name, value in news.items() if name not in _NOT_UPDATED]
    renewed = {name for name, _ in fresh} | {"age"}
    pairs = [(name, value) for name, value in kept.headers.items() if name not in renewed] + fresh
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
    return OutboundResponse(kept.status, Headers(raw), kept.body)
