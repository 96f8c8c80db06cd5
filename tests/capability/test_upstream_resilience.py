"""Time-outs, retries with their budget, circuit breaker, rate limit and concurrency, against real servers."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from toolcrib.capability.upstream import Upstream, UpstreamRequest, compile_policy
from toolcrib.core.http import AddressPolicy, OutboundClient, OutboundError
from toolcrib.errors import RateLimited, Unavailable
from toolcrib.errors import Upstream as UpstreamFailure
from upstream_app import App, Asked, Time, Told, app


def up(served: App, time: Time, chance: float = 1.0, **extension: Any) -> Upstream:
    return Upstream(
        served.outbound,
        "crm",
        policy=compile_policy(extension),
        clock=time.clock,
        wall_clock=time.wall,
        sleep=time.sleep,
        chance=lambda: chance,
    )


class Script:
    """Answers these statuses one after the other, then the last one for ever."""

    def __init__(self, *statuses: int, **headers: str) -> None:
        self.left: Iterator[int] = iter(statuses[:-1])
        self.last = statuses[-1]
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def __call__(self, _asked: Asked) -> Told:
        status = next(self.left, self.last)
        return Told(str(status).encode(), status, self.headers if status >= 400 else {})


def get(served: App, method: str = "GET", **more: Any) -> UpstreamRequest:
    return UpstreamRequest(method, served.url, **more)


# -- retries ----------------------------------------------------------------------------------------------------------


async def test_a_failed_read_is_sent_again_with_pauses_that_double():
    time = Time()
    async with app(Script(503, 502, 200)) as served:
        answer = await up(served, time, retry={"attempts": 4, "backoff": 0.5}).send(get(served))
    assert answer.status == 200
    assert time.slept == [0.5, 1.0]


async def test_pauses_are_random_below_their_bound_and_bounded():
    time = Time()
    async with app(Script(503)) as served:
        await up(served, time, 0.5, retry={"attempts": 5, "backoff": 1, "maxBackoff": "3s"}).send(get(served))
    assert time.slept == [0.5, 1.0, 1.5, 1.5]


async def test_after_the_last_attempt_the_answer_stands():
    time = Time()
    async with app(Script(503)) as served:
        assert (await up(served, time, retry=True).send(get(served))).body == b"503"
    assert len(served.asked) == 3


@pytest.mark.parametrize(
    ("method", "replay_safe", "idempotent", "sent"),
    [
        ("GET", None, None, 3),
        ("HEAD", None, None, 3),
        ("PUT", None, None, 3),
        ("DELETE", None, None, 3),
        ("POST", None, None, 1),
        ("PATCH", None, None, 1),
        ("POST", True, None, 3),
        ("POST", None, True, 3),
        ("GET", False, None, 1),
        ("POST", False, True, 1),
    ],
)
async def test_only_what_may_be_sent_twice_is(method, replay_safe, idempotent, sent):
    extension = {"retry": True} if idempotent is None else {"retry": True, "idempotent": idempotent}
    async with app(Script(503)) as served:
        await up(served, Time(), **extension).send(get(served, method, replay_safe=replay_safe))
        assert len(served.asked) == sent


@pytest.mark.parametrize("status", [200, 400, 404, 500, 501])
async def test_other_answers_are_not_sent_again(status):
    async with app(Script(status)) as served:
        await up(served, Time(), retry=True).send(get(served))
        assert len(served.asked) == 1


@pytest.mark.parametrize(
    ("value", "slept"),
    [
        ("2", [2.0]),
        ("6", []),  # longer than maxBackoff: the caller is told instead
        ("Tue, 14 Nov 2023 22:30:03 GMT", [3.0]),
        ("Tue, 14 Nov 2023 22:00:00 GMT", [0.2]),
        ("soon", [0.2]),
        ("-1", [0.2]),
        ("9" * 400, []),
    ],
)
async def test_retry_after_is_honoured_up_to_the_longest_pause(value, slept):
    time = Time()  # the wall clock shows 22:30:00
    async with app(Script(429, 200, Retry_After=value)) as served:
        answer = await up(served, time, retry=True).send(get(served))
    assert time.slept == slept
    assert answer.status == (200 if slept else 429)


async def test_a_connection_that_fails_is_tried_again_and_its_error_stands_in_the_end():
    time = Time()
    async with app(Script(200)) as gone:
        url = gone.url
    async with app(Script(200)) as served:
        with pytest.raises(OutboundError) as caught:
            await up(served, time, retry=True).send(UpstreamRequest("GET", url))
    assert caught.value.code == "outbound.connect_failed"
    assert len(time.slept) == 2


async def test_an_answer_that_is_too_large_is_not_asked_for_again():
    async with app(lambda _: Told(b"x" * 100)) as served:
        with pytest.raises(OutboundError) as caught:
            await up(served, Time(), retry=True, maxResponseBytes=99).send(get(served))
        assert len(served.asked) == 1
    assert caught.value.code == "outbound.too_large"


async def test_a_dying_upstream_gets_only_its_share_of_retries():
    async with app(Script(503)) as served:
        calls = up(served, Time(), retry={"attempts": 3, "budget": 0.1})
        for _ in range(500):
            await calls.send(get(served))
        retries = len(served.asked) - 500
    assert 50 <= retries <= 60  # a tenth, and the reserve of ten


async def test_a_budget_of_nothing_means_no_retries():
    async with app(Script(503)) as served:
        await up(served, Time(), retry={"budget": 0}).send(get(served))
        assert len(served.asked) == 1


# -- time-outs --------------------------------------------------------------------------------------------------------


async def hanging(_asked: Asked) -> Told:
    await asyncio.Event().wait()
    return Told()


async def test_a_call_has_a_time_out():
    async with app(hanging) as served:
        with pytest.raises(OutboundError, match=r"did not answer within 0\.05 s") as caught:
            await up(served, Time(), timeout="50ms").send(get(served))
    assert caught.value.code == "outbound.timeout"


async def test_connecting_has_a_time_out_of_its_own():
    async def never(_host: str) -> list[str]:
        await asyncio.Event().wait()
        return []

    outbound = OutboundClient(AddressPolicy.parse(["loopback"]), resolver=never)
    calls = Upstream(outbound, "crm", policy=compile_policy({"connectTimeout": "50ms"}))
    request = UpstreamRequest("GET", "http://slow.test/")
    with pytest.raises(OutboundError, match=r"could not connect to slow\.test within 0\.05 s"):
        await calls.send(request)
    with pytest.raises(OutboundError, match=r"within 0\.05 s"):
        async with calls.stream(request):
            pass
    await outbound.close()


async def test_pauses_that_would_outlast_the_call_are_not_begun():
    time = Time()
    async with app(Script(503)) as served:
        await up(served, time, timeout=1, retry={"attempts": 9, "backoff": 0.4, "budget": 1}).send(get(served))
    assert time.slept == [0.4]


async def test_an_attempt_may_have_less_time_than_the_call():
    seen = 0

    async def slow_once(_asked: Asked) -> Told:
        nonlocal seen
        seen += 1
        return Told() if seen > 1 else await hanging(_asked)

    async with app(slow_once) as served:
        answer = await up(served, Time(), retry={"attemptTimeout": 0.05}).send(get(served))
    assert (answer.status, seen) == (200, 2)


# -- circuit breaker --------------------------------------------------------------------------------------------------

BREAKER = {"failures": 3, "window": 10, "cooldown": 30}


async def refused(calls: Upstream, request: UpstreamRequest) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        await calls.send(request)
    assert caught.value.code == "upstream.circuit_open"
    return caught.value


async def test_the_breaker_opens_probes_and_closes():
    time = Time()
    async with app(Script(500, 500, 500, 503, 200)) as served:
        calls, request = up(served, time, circuitBreaker=BREAKER), get(served)
        for _ in range(3):
            assert (await calls.send(request)).status == 500
        assert "crm" in (await refused(calls, request)).message
        time.now += 29.5
        error = await refused(calls, request)
        assert error.details == {"retry_after_s": 1}
        assert "in 1 s" in error.message
        time.now += 0.5
        assert (await calls.send(request)).status == 503  # the probe fails: open again
        await refused(calls, request)
        time.now += 30
        assert (await calls.send(request)).status == 200
        assert (await calls.send(request)).status == 200
        assert len(served.asked) == 6


async def test_failures_that_lie_apart_do_not_open_it():
    time = Time()
    async with app(Script(500)) as served:
        calls = up(served, time, circuitBreaker=BREAKER)
        for _ in range(10):
            await calls.send(get(served))
            time.now += 5.1


async def test_refusals_by_the_upstream_are_no_failures():
    async with app(Script(404)) as served:
        calls = up(served, Time(), circuitBreaker=BREAKER)
        for _ in range(10):
            await calls.send(get(served))


async def test_connections_that_fail_open_it():
    async with app(Script(200)) as gone:
        url = gone.url
    async with app(Script(200)) as served:
        calls = up(served, Time(), circuitBreaker=BREAKER)
        for _ in range(3):
            with pytest.raises(OutboundError):
                await calls.send(UpstreamRequest("GET", url))
        await refused(calls, get(served))
        with pytest.raises(Unavailable):
            async with calls.stream(get(served)):
                pass
        assert served.asked == []


async def test_one_probe_goes_and_a_probe_whose_caller_leaves_makes_room_for_the_next():
    time, gate, arrived = Time(), asyncio.Event(), asyncio.Event()
    statuses = iter([500, 500, 500])

    async def answer(_asked: Asked) -> Told:
        status = next(statuses, None)
        if status is None:
            arrived.set()
            await gate.wait()
        return Told(status=status or 200)

    async with app(answer) as served:
        calls, request = up(served, time, circuitBreaker=BREAKER), get(served)
        for _ in range(3):
            await calls.send(request)
        time.now += 30
        for leaves in (True, False):
            arrived.clear()
            probe = asyncio.create_task(calls.send(request))
            await arrived.wait()
            await refused(calls, request)
            if leaves:
                probe.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await probe
        gate.set()
        assert (await probe).status == 200
        assert (await calls.send(request)).status == 200


async def test_a_call_from_before_it_opened_that_fails_late_does_not_keep_it_open():
    time, gate, arrived = Time(), asyncio.Event(), asyncio.Event()

    async def answer(asked: Asked) -> Told:
        if asked.path == "/late":
            arrived.set()
            await gate.wait()
        return Told(status=200 if asked.path == "/good" else 500)

    async with app(answer) as served:
        calls = up(served, time, circuitBreaker=BREAKER | {"failures": 1})
        late = asyncio.create_task(calls.send(UpstreamRequest("GET", f"{served.url}/late")))
        await arrived.wait()
        await calls.send(get(served))
        time.now += 20
        gate.set()
        await late
        time.now += 10
        assert (await calls.send(UpstreamRequest("GET", f"{served.url}/good"))).status == 200


async def test_a_breaker_that_opens_ends_the_retries_with_the_last_answer():
    async with app(Script(503)) as served:
        calls = up(served, Time(), circuitBreaker=BREAKER | {"failures": 2}, retry={"attempts": 5})
        assert (await calls.send(get(served))).status == 503
        assert len(served.asked) == 2


# -- rate limit and concurrency ---------------------------------------------------------------------------------------


async def test_a_burst_goes_and_then_calls_are_refused_until_there_is_a_token():
    time = Time()
    async with app(Script(200)) as served:
        calls = up(served, time, rateLimit={"requests": 2, "per": "1m", "burst": 3})
        for _ in range(3):
            await calls.send(get(served))
        with pytest.raises(RateLimited, match="crm is called 2 times per 60 s") as caught:
            await calls.send(get(served))
        assert (caught.value.code, caught.value.details) == ("upstream.rate_limited", {"retry_after_s": 30})
        time.now += 30
        await calls.send(get(served))
        with pytest.raises(RateLimited):
            await calls.send(get(served))
        assert len(served.asked) == 4


async def test_calls_wait_for_their_turn_within_limits():
    time = Time()
    async with app(Script(200)) as served:
        calls = up(served, time, rateLimit={"requests": 10, "per": 1, "burst": 1, "wait": 0.25})
        results = await asyncio.gather(*(calls.send(get(served)) for _ in range(5)), return_exceptions=True)
    assert [isinstance(result, RateLimited) for result in results].count(True) <= 2
    assert sum(time.slept) <= 0.25 * 4
    assert time.slept[0] == pytest.approx(0.1)


async def test_a_wait_longer_than_the_call_may_take_is_not_begun_and_costs_no_turn():
    time = Time()
    async with app(Script(200)) as served:
        calls = up(served, time, timeout=5, rateLimit={"requests": 1, "per": 10, "wait": 60})
        await calls.send(get(served))
        for _ in range(3):
            with pytest.raises(UpstreamFailure) as caught:
                await calls.send(get(served))
            assert caught.value.code == "upstream.timeout"
        time.now += 10
        await calls.send(get(served))
    assert time.slept == []


async def test_no_more_than_the_maximum_are_in_flight():
    flying = most = 0

    async def answer(_asked: Asked) -> Told:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        for _ in range(20):
            await asyncio.sleep(0)
        flying -= 1
        return Told()

    async with app(answer) as served:
        calls = up(served, Time(), concurrency=3)
        answers = await asyncio.gather(*(calls.send(get(served)) for _ in range(30)))
    assert {answer.status for answer in answers} == {200}
    assert most == 3


async def test_who_finds_no_place_in_time_is_told_so_and_a_stream_holds_its_place_to_the_end():
    async with app(Script(200)) as served:
        calls = up(served, Time(), concurrency=1, timeout=0.05)
        async with calls.stream(get(served)) as stream:
            with pytest.raises(Unavailable) as caught:
                await calls.send(get(served))
            assert caught.value.code == "upstream.busy"
            await stream.read(10)
        assert (await calls.send(get(served))).status == 200


async def test_a_stream_is_neither_retried_nor_limited_unless_told():
    async with app(lambda _: Told(b"x" * 1000, 503)) as served:
        async with up(served, Time(), retry=True).stream(get(served)) as stream:
            assert (stream.status, len(b"".join([c async for c in stream.chunks()]))) == (503, 1000)
        assert len(served.asked) == 1
        async with up(served, Time(), maxResponseBytes=999).stream(get(served, "HEAD")) as stream:
            assert stream.status == 503
        with pytest.raises(OutboundError):
            async with up(served, Time(), maxResponseBytes=999).stream(get(served)) as stream:
                await stream.read(5000)


async def test_an_operations_policy_overrides_what_is_its_own():
    within = compile_policy({"timeout": 1, "retry": {"attempts": 2, "backoff": 0.1}})
    async with app(Script(503)) as served:
        calls = Upstream(served.outbound, "crm", policy=within, sleep=Time().sleep)
        await calls.send(get(served, policy=compile_policy({"retry": False}, within)))
        assert len(served.asked) == 1
        await calls.send(get(served, policy=compile_policy({"retry": {"attempts": 4}}, within)))
        assert len(served.asked) == 5


# -- the settings -----------------------------------------------------------------------------------------------------


def test_nothing_is_on_but_the_time_out():
    policy = compile_policy({"pagination": {"type": "link"}, "somethingElse": 1})
    assert (policy.timeout_s, policy.retry, policy.cache, policy.rate_limit) == (30.0, None, None, None)
    assert (policy.circuit_breaker, policy.concurrency, policy.max_response_bytes) == (None, None, None)


def test_settings_are_read_with_their_units():
    policy = compile_policy(
        {
            "timeout": "1.5m",
            "connectTimeout": "250ms",
            "concurrency": 4,
            "retry": {"statuses": [500]},
            "cache": {"enabled": True, "defaultTtl": "1h"},
            "circuitBreaker": False,
            "rateLimit": {"enabled": False},
        }
    )
    assert (policy.timeout_s, policy.connect_timeout_s, policy.concurrency) == (90.0, 0.25, 4)
    assert policy.retry is not None
    assert policy.retry.statuses == {500}
    assert policy.cache is not None
    assert policy.cache.default_ttl_s == 3600.0
    assert policy.circuit_breaker is policy.rate_limit is None


def test_an_operation_overrides_field_by_field():
    within = compile_policy({"retry": {"attempts": 5, "backoff": 1}, "cache": {"maxEntries": 7}, "concurrency": 2})
    policy = compile_policy({"retry": {"attempts": 2}, "cache": {"defaultTtl": 5}, "timeout": 2}, within)
    assert policy.retry is not None
    assert (policy.retry.attempts, policy.retry.backoff_s) == (2, 1.0)
    assert policy.cache is not None
    assert (policy.cache.max_entries, policy.cache.default_ttl_s) == (7, 5.0)
    assert (policy.concurrency, policy.timeout_s) == (2, 2.0)


@pytest.mark.parametrize(
    ("extension", "message"),
    [
        ({"timeout": "soon"}, "^timeout must be a number of seconds"),
        ({"timeout": 0}, "^timeout must be from"),
        ({"timeout": True}, "^timeout must be a number"),
        ({"timeout": float("nan")}, "^timeout must be a number"),
        ({"retry": 3}, "^retry must be a map"),
        ({"retry": {"attempts": "3"}}, "^retry.attempts must be a whole number from 1 to 10"),
        ({"retry": {"attempt": 3}}, "^retry.attempt is unknown; known are attempts"),
        ({"retry": {"statuses": []}}, "^retry.statuses must be a list"),
        ({"retry": {"statuses": [503, 200]}}, r"^retry.statuses\[1\] must be a whole number from 400"),
        ({"retry": {"backoff": 9}}, "^retry.backoff must not be above retry.maxBackoff"),
        ({"retry": {"budget": 2}}, "^retry.budget must be a number from 0 to 1"),
        ({"retry": {"enabled": "no"}}, "^retry.enabled must be true or false"),
        ({"rateLimit": {"per": 1}}, "^rateLimit.requests is missing"),
        ({"rateLimit": True}, "^rateLimit.requests is missing"),
        ({"circuitBreaker": {"failures": 0}}, "^circuitBreaker.failures must be"),
        ({"cache": {"maxBytes": -1}}, "^cache.maxBytes must be"),
        ({"concurrency": 1.5}, "^concurrency must be a whole number"),
        ({"idempotent": "yes"}, "^idempotent must be true or false"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_key(extension, message):
    with pytest.raises(ValueError, match=message):
        compile_policy(extension)


@pytest.mark.parametrize(
    "extension",
    [
        {"circuitBreaker": True},
        {"rateLimit": {"requests": 1}},
        {"concurrency": 1},
        {"connectTimeout": 1},
        {"cache": {"maxEntries": 1}},
    ],
)
def test_what_all_operations_share_cannot_stand_at_one(extension):
    with pytest.raises(ValueError, match="is shared by all operations"):
        compile_policy(extension, compile_policy({}))
