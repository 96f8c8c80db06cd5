"""Sends requests to one consumed API: credentials, limits, retries and cache around the outbound client.

From the outside in: cache, then attempts, then credentials (with one repetition when the upstream challenges them),
then admission (breaker, rate limit, concurrency), then the wire. Any status is an answer; what raises is a request that
got none. Without a policy and with fixed credentials a call goes straight to the wire.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from opentelemetry import trace

from toolcrib.capability.upstream.auth import Authenticator, Constant
from toolcrib.capability.upstream.cache import ResponseCache
from toolcrib.capability.upstream.credentials import Authorized
from toolcrib.capability.upstream.policy import Cache, Policy, Retry
from toolcrib.capability.upstream.request import HeaderList, UpstreamRequest, host_of, without
from toolcrib.capability.upstream.resilience import Breaker, RetryBudget, TokenBucket, parse_retry_after, pause_s
from toolcrib.core.http import OutboundClient, OutboundError, OutboundResponse, OutboundStream
from toolcrib.errors import AppError, RateLimited, Unavailable
from toolcrib.errors import Upstream as UpstreamFailure

# Told of every exchange: namespace, method, host, status or error code, seconds.
OnExchange = Callable[[str, str, str, int | str, float], None]
TraceHeaders = Callable[[], tuple[tuple[str, str], ...]]

_REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_RETRIED: Final = frozenset(
    {"outbound.dns_failed", "outbound.connect_failed", "outbound.timeout", "outbound.protocol_error"}
)
_FAILURES: Final = frozenset({500, 502, 503, 504})  # answers that count for the breaker
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_TRACE: Final = frozenset({"traceparent", "tracestate", "b3"})


class Upstream:
    """One consumed API; used from one event loop.

    Args:
        outbound: what reaches the network.
        namespace: of the consumed API, for messages and metrics.
        authenticator: what adds credentials.
        policy: of the consumes entry; a request may bring its operation's.
        clock: seconds, monotonic.
        wall_clock: seconds since 1970, for the dates in answers.
        sleep: waits for seconds.
        chance: a number from 0 to 1, for the length of pauses.
        on_exchange: told of every exchange on the wire.
        trace_headers: the headers that tell the upstream which span calls it; by default those of OpenTelemetry's.
    """

    def __init__(
        self,
        outbound: OutboundClient,
        namespace: str,
        *,
        authenticator: Authenticator | None = None,
        policy: Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
        on_exchange: OnExchange | None = None,
        trace_headers: TraceHeaders | None = None,
    ) -> None:
        self.namespace = namespace
        self.policy = policy or Policy()
        self._outbound = outbound
        self._authenticator = authenticator
        self._constant = authenticator if isinstance(authenticator, Constant) else None
        self._clock = clock
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._chance = chance
        self._on_exchange = on_exchange
        self._trace_headers = trace_headers or current_trace
        self._budget = RetryBudget()
        chosen = self.policy
        self._breaker = Breaker(chosen.circuit_breaker, namespace, clock) if chosen.circuit_breaker else None
        self._bucket = TokenBucket(chosen.rate_limit, namespace, clock) if chosen.rate_limit else None
        self._slots = asyncio.Semaphore(chosen.concurrency) if chosen.concurrency else None
        size = chosen.cache or Cache()
        self._cache = ResponseCache(size.max_entries, size.max_bytes, clock=clock, wall_clock=wall_clock)
        self._is_unlimited = self._breaker is None and self._bucket is None and self._slots is None
        self._is_plain = self._is_unlimited and (authenticator is None or self._constant is not None)

    async def send(self, request: UpstreamRequest) -> OutboundResponse:
        """Send a request, or answer it from the cache; any status is an answer.

        Raises:
            OutboundError: it failed.
            Unavailable: `bind.unresolved`, `upstream.credential_invalid`, `upstream.circuit_open`, `upstream.busy`.
            RateLimited: `upstream.rate_limited`.
            Upstream: `upstream.token_failed`, `upstream.timeout`.
            Invalid, AddressRefused: the URL, a header or the address is not allowed.
        """
        if request.method in _SAFE:
            return await self._send(request)
        try:
            response = await self._send(request)
        except BaseException:
            self._cache.invalidate(request.url)  # it may have been carried out all the same
            raise
        if response.status < 400 or response.status >= 500:
            self._cache.invalidate(request.url)
        return response

    @asynccontextmanager
    async def stream(self, request: UpstreamRequest) -> AsyncIterator[OutboundStream]:
        """Send a request and enter when the head of the answer is here; neither cached nor retried.

        Credentials, breaker, rate limit and concurrency apply; `timeout_s` of the policy is for the head, and for each
        silence after it. Raises as `send`.
        """
        policy = request.policy or self.policy
        deadline = self._clock() + policy.timeout_s
        authenticator = self._authenticator
        try:
            async with AsyncExitStack() as stack:
                used = await self._authorize(request, deadline)
                stream = await self._open(stack, request, used, policy, deadline)
                if authenticator is not None and authenticator.repeat(used, stream.status, stream.headers):
                    await stack.aclose()
                    used = await self._authorize(request, deadline)
                    stream = await self._open(stack, request, used, policy, deadline)
                    authenticator.repeat(used, stream.status, stream.headers)
                yield stream
        finally:
            if request.method not in _SAFE:
                self._cache.invalidate(request.url)

    async def _send(self, request: UpstreamRequest) -> OutboundResponse:
        policy = request.policy or self.policy
        if policy.cache is not None:
            return await self._cache.fetch(request, policy.cache, lambda asked: self._attempts(asked, policy))
        if self._is_plain and policy.retry is None:
            url, extra = (request.url, ()) if self._constant is None else self._constant.apply(request.url)
            headers = self._headers(request.headers, extra)
            return await self._exchange(request, url, headers, policy, policy.timeout_s)
        return await self._attempts(request, policy)

    async def _attempts(self, request: UpstreamRequest, policy: Policy) -> OutboundResponse:
        """Send until there is an answer that counts, or no reason or time to go on."""
        deadline = self._clock() + policy.timeout_s
        retry = policy.retry
        repeatable = request.replay_safe if request.replay_safe is not None else policy.idempotent
        if retry is None or not (request.method in _REPEATABLE if repeatable is None else repeatable):
            return await self._challenged(request, policy, deadline)
        self._budget.deposit(retry.budget)
        last: OutboundResponse | OutboundError | None = None
        attempt = 0
        while True:
            attempt += 1
            limit = deadline if retry.attempt_timeout_s is None else self._clock() + retry.attempt_timeout_s
            try:
                last = await self._challenged(request, policy, min(limit, deadline))
                if last.status not in retry.statuses:
                    return last
            except OutboundError as error:
                if error.code not in _RETRIED:
                    raise
                last = error
            except (Unavailable, RateLimited):
                if last is None:
                    raise
                break  # a further attempt is not admitted: what the one before brought stands
            pause = self._pause(retry, attempt, last, deadline)
            if pause is None:
                break
            await self._sleep(pause)
        if isinstance(last, OutboundError):
            raise last
        return last

    def _pause(
        self, retry: Retry, attempt: int, last: OutboundResponse | OutboundError, deadline: float
    ) -> float | None:
        """Seconds until the next attempt; None when there is none."""
        asked_s = None
        if isinstance(last, OutboundResponse):
            asked_s = parse_retry_after(last.headers.get("retry-after"), self._wall_clock())
        seconds = pause_s(retry, attempt, asked_s, self._chance())
        if attempt >= retry.attempts or seconds is None or self._clock() + seconds >= deadline:
            return None
        return seconds if self._budget.withdraw(retry.budget) else None

    async def _challenged(self, request: UpstreamRequest, policy: Policy, deadline: float) -> OutboundResponse:
        """Send with credentials, and once more with new ones if the upstream asks for them."""
        authenticator = self._authenticator
        used = await self._authorize(request, deadline)
        response = await self._admitted(request, used, policy, deadline)
        if authenticator is not None and authenticator.repeat(used, response.status, response.headers):
            used = await self._authorize(request, deadline)
            response = await self._admitted(request, used, policy, deadline)
            authenticator.repeat(used, response.status, response.headers)  # there is something to learn here too
        return response

    async def _authorize(self, request: UpstreamRequest, deadline: float) -> Authorized:
        authenticator = self._authenticator
        if authenticator is None:
            return Authorized(request.url, ())
        if self._constant is not None:
            return Authorized(*self._constant.apply(request.url))
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock())):
                return await authenticator.authorize(request.method, request.url, request.body)
        except TimeoutError:
            raise self._late("waiting for an access token") from None

    async def _admitted(
        self, request: UpstreamRequest, used: Authorized, policy: Policy, deadline: float
    ) -> OutboundResponse:
        headers = self._headers(request.headers, used.headers)
        if self._is_unlimited:
            return await self._exchange(request, used.url, headers, policy, deadline - self._clock())
        async with self._admission(deadline) as settle:
            try:
                response = await self._exchange(request, used.url, headers, policy, deadline - self._clock())
            except OutboundError as error:
                settle(_is_failure(error))
                raise
            settle(response.status in _FAILURES)
            return response

    async def _open(
        self, stack: AsyncExitStack, request: UpstreamRequest, used: Authorized, policy: Policy, deadline: float
    ) -> OutboundStream:
        headers = self._headers(request.headers, used.headers)
        settle = await stack.enter_async_context(self._admission(deadline))
        began = self._clock()
        outcome: int | str = "cancelled"
        try:
            stream = await stack.enter_async_context(
                self._outbound.stream(
                    request.method,
                    used.url,
                    headers=headers,
                    body=request.body,
                    idle_timeout_s=policy.timeout_s,
                    timeout_s=deadline - began,
                    connect_timeout_s=policy.connect_timeout_s,
                    max_bytes=policy.max_response_bytes,
                )
            )
            outcome = stream.status
            settle(stream.status in _FAILURES)
            return stream
        except AppError as error:
            outcome = error.code
            settle(_is_failure(error))
            raise
        finally:
            if self._on_exchange is not None:
                host = host_of(request.url)
                self._on_exchange(self.namespace, request.method, host, outcome, self._clock() - began)

    @asynccontextmanager
    async def _admission(self, deadline: float) -> AsyncIterator[Callable[[bool | None], None]]:
        """The right to send one request; what it gives takes whether the upstream failed."""
        breaker = self._breaker
        if breaker is not None:
            breaker.check()
        if self._bucket is not None:
            await self._turn(self._bucket, deadline)
        async with AsyncExitStack() as stack:
            if self._slots is not None:
                await self._slot(self._slots, deadline)
                stack.callback(self._slots.release)
            if deadline <= self._clock():
                raise self._late("waiting for its turn")
            if breaker is None:
                yield _nothing
                return
            probe: bool | None = breaker.enter()

            def settle(failed: bool | None) -> None:  # noqa: FBT001
                nonlocal probe
                if probe is not None:
                    breaker.leave(probe=probe, failed=failed)
                    probe = None

            stack.callback(settle, None)
            yield settle

    async def _turn(self, bucket: TokenBucket, deadline: float) -> None:
        wait_s = bucket.take()
        if wait_s <= 0:
            return
        try:
            if self._clock() + wait_s >= deadline:
                raise self._late("waiting for its turn")
            await self._sleep(wait_s)
        except BaseException:
            bucket.give_back()
            raise

    async def _slot(self, slots: asyncio.Semaphore, deadline: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock())):
                await slots.acquire()
        except TimeoutError:
            raise Unavailable(
                "upstream.busy",
                f"{self.namespace} is called by {self.policy.concurrency} others, and none of them finished in time",
                retry_after_s=1,
            ) from None

    def _late(self, doing: str) -> UpstreamFailure:
        return UpstreamFailure("upstream.timeout", f"The time for a call to {self.namespace} passed {doing}")

    def _headers(self, given: HeaderList, extra: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
        """The headers of a request: ours win, and an active span is passed on."""
        names = self._authenticator.names if self._authenticator is not None and given else None
        headers = without(given, names) if names else list(given)
        headers.extend(extra)
        if context := self._trace_headers():
            headers = [*without(headers, _TRACE), *context]
        return headers

    async def _exchange(
        self, request: UpstreamRequest, url: str, headers: HeaderList, policy: Policy, timeout_s: float
    ) -> OutboundResponse:
        """One request on the wire."""
        wire = self._outbound.request(
            request.method,
            url,
            headers=headers,
            body=request.body,
            timeout_s=timeout_s,
            connect_timeout_s=policy.connect_timeout_s,
            max_bytes=policy.max_response_bytes,
        )
        if self._on_exchange is None:
            return await wire
        began = self._clock()
        outcome: int | str = "cancelled"
        try:
            response = await wire
            outcome = response.status
            return response
        except AppError as error:
            outcome = error.code
            raise
        finally:
            self._on_exchange(self.namespace, request.method, host_of(url), outcome, self._clock() - began)


def _nothing(_failed: bool | None) -> None:  # noqa: FBT001
    """Where there is no breaker, nobody wants to know."""


def _is_failure(error: AppError) -> bool | None:
    """Whether an error says that the upstream is unwell; None when it says nothing about it."""
    if not isinstance(error, OutboundError) or error.code == "outbound.closed":
        return None
    return error.code != "outbound.too_large"


def current_trace() -> tuple[tuple[str, str], ...]:
    """The W3C trace context of OpenTelemetry's current span; nothing outside of one."""
    span = trace.get_current_span()
    if span is trace.INVALID_SPAN:
        return ()
    context = span.get_span_context()
    if not context.is_valid:
        return ()
    ids = f"{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}"
    parent = ("traceparent", f"00-{ids}-{context.trace_flags:02x}")
    return (parent, ("tracestate", context.trace_state.to_header())) if context.trace_state else (parent,)
