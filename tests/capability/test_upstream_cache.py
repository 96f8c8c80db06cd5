"""What the response cache keeps, for how long, and for whom, against a real server."""

import asyncio
from email.utils import formatdate
from typing import Any

import pytest

from toolcrib.capability.upstream import Upstream, UpstreamRequest, compile_policy
from toolcrib.core.http import OutboundError
from upstream_app import App, Asked, Time, Told, app


def up(served: App, time: Time, *, cache: Any = True, **extension: Any) -> Upstream:
    policy = compile_policy({"cache": cache, **extension})
    return Upstream(served.outbound, "crm", policy=policy, clock=time.clock, wall_clock=time.wall, sleep=time.sleep)


def get(served: App, target: str = "/x", headers: dict[str, str] | None = None, method: str = "GET") -> UpstreamRequest:
    return UpstreamRequest(method, served.url + target, list((headers or {}).items()))


class Counter:
    """Answers with a number that counts up, and these headers; `at` in a date is seconds from the start."""

    def __init__(self, *headers: str, status: int = 200) -> None:
        self.headers = [tuple(header.split(": ", 1)) for header in headers]
        self.status = status
        self.count = 0

    def __call__(self, _asked: Asked) -> Told:
        self.count += 1
        return Told(str(self.count).encode(), self.status, self.headers)  # type: ignore[arg-type]


def date(seconds: float) -> str:
    return formatdate(Time().wall() + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "fresh_s"),
    [
        (["Cache-Control: max-age=60"], 60),
        (["Cache-Control: public, MAX-AGE=60"], 60),
        (['Cache-Control: max-age="60"'], 60),
        (["Cache-Control: max-age=60, s-maxage=30"], 30),
        (["Cache-Control: max-age=60", "Cache-Control: s-maxage=30"], 30),
        (["Cache-Control: private, max-age=60"], 60),
        (["Cache-Control: max-age=60", "Age: 20"], 40),
        (["Cache-Control: max-age=60", f"Date: {date(-20)}"], 40),
        (["Cache-Control: max-age=60", f"Expires: {date(900)}"], 60),
        ([f"Expires: {date(60)}"], 60),
        ([f"Expires: {date(60)}", f"Date: {date(0)}"], 60),
        ([f"Date: {date(-10)}", f"Expires: {date(60)}"], 60),
        (["Cache-Control: max-age=60, must-revalidate"], 60),
        (["Cache-Control: max-age=60", "Vary: Accept-Encoding"], 60),
        (["Cache-Control: max-age=99999999999999999999"], 86400),
        (["Cache-Control: max-age=60", 'X: "no-store"'], 60),
        # and what is not kept, or not used without asking
        ([], 0),
        (["Cache-Control: public"], 0),
        (["Cache-Control: no-store, max-age=60"], 0),
        (["Cache-Control: max-age=60", "Cache-Control: no-store"], 0),
        (["Cache-Control: no-cache, max-age=60"], 0),
        (['Cache-Control: no-cache="Set-Cookie", max-age=60'], 0),
        (["Cache-Control: max-age=0"], 0),
        (["Cache-Control: max-age=-5"], 0),
        (["Cache-Control: max-age=soon"], 0),
        (["Cache-Control: max-age=0, max-age=60"], 0),
        (["Cache-Control: max-age=60", "Age: 60"], 0),
        (["Expires: 0"], 0),
        ([f"Expires: {date(-5)}"], 0),
        (["Cache-Control: max-age=60", "Vary: *"], 0),
        (["Pragma: no-cache", f"Expires: {date(60)}"], 0),
    ],
)
async def test_freshness_is_what_the_answer_says(headers, fresh_s):
    time, counter = Time(), Counter(*headers)
    async with app(counter) as served:
        calls = up(served, time)
        await calls.send(get(served))
        time.now += max(0, fresh_s - 1.5)
        assert (await calls.send(get(served))).body == (b"1" if fresh_s else b"2")
        if 0 < fresh_s < 86400:
            time.now += 2
            assert (await calls.send(get(served))).body == b"2"


@pytest.mark.parametrize("status", [200, 203, 300, 301, 404, 410])
async def test_answers_of_these_statuses_are_kept(status):
    counter = Counter("Cache-Control: max-age=60", status=status)
    async with app(counter) as served:
        calls = up(served, Time())
        answers = [await calls.send(get(served)) for _ in range(2)]
    assert [answer.status for answer in answers] == [status] * 2
    assert counter.count == 1


@pytest.mark.parametrize("status", [201, 202, 206, 302, 307, 400, 401, 403, 429, 500, 503])
async def test_answers_of_other_statuses_are_not(status):
    counter = Counter("Cache-Control: max-age=60", status=status)
    async with app(counter) as served:
        calls = up(served, Time())
        for _ in range(2):
            await calls.send(get(served))
    assert counter.count == 2


@pytest.mark.parametrize(
    ("headers", "status", "kept"),
    [([], 200, True), ([], 404, False), (["Set-Cookie: a=b"], 200, False), (["Cache-Control: no-store"], 200, False)],
)
async def test_a_default_serves_successes_that_do_not_say(headers, status, kept):
    counter = Counter(*headers, status=status)
    async with app(counter) as served:
        calls = up(served, Time(), cache={"defaultTtl": 10})
        for _ in range(2):
            await calls.send(get(served))
    assert counter.count == (1 if kept else 2)


async def test_an_answer_from_the_cache_tells_its_age_and_is_the_same_otherwise():
    time = Time()
    async with app(Counter("Cache-Control: max-age=60", "Age: 5", "X-A: 1", "X-A: 2")) as served:
        calls = up(served, time)
        first = await calls.send(get(served))
        time.now += 7.9
        second = await calls.send(get(served))
    assert (second.status, second.body) == (first.status, first.body)
    assert second.headers.get("age") == "12"
    assert [value for name, value in second.headers.items() if name == "x-a"] == ["1", "2"]


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ({"Authorization": "Bearer a"}, {"Authorization": "Bearer b"}, False),
        ({"Authorization": "Bearer a"}, {}, False),
        ({"Authorization": "Bearer a"}, {"authorization": "Bearer a"}, True),
        ({"Cookie": "s=1"}, {"Cookie": "s=2"}, False),
        ({"X-Auth-Token": "1"}, {"X-Auth-Token": "2"}, False),
        ({"X-Anything": "1"}, {}, False),
        ({"Accept": "text/html", "User-Agent": "a", "traceparent": "1"}, {"Accept": "text/plain"}, True),
    ],
)
async def test_two_callers_never_share_an_answer_made_for_one(first, second, shared):
    counter = Counter("Cache-Control: private, max-age=60")
    async with app(counter) as served:
        calls = up(served, Time())
        await calls.send(get(served, headers=first))
        await calls.send(get(served, headers=second))
        await calls.send(get(served, headers=first))
    assert counter.count == (1 if shared else 2)


@pytest.mark.parametrize(
    ("first", "second"), [("/x?a=1", "/x?a=2"), ("/x", "/y"), ("/x", "/X"), ("/x?a=1&b=2", "/x?b=2&a=1")]
)
async def test_another_url_is_another_answer(first, second):
    counter = Counter("Cache-Control: max-age=60")
    async with app(counter) as served:
        calls = up(served, Time())
        for target in (first, second, f"{first}#part"):
            await calls.send(get(served, target))
    assert counter.count == 2


async def test_vary_keeps_an_answer_for_each_value():
    counter = Counter("Cache-Control: max-age=60", "Vary: Accept, Accept-Language")
    async with app(counter) as served:
        calls = up(served, Time())
        bodies = []
        for accept in ("a", "b", "a", "b", None):
            headers = {"Accept": accept} if accept else {}
            bodies.append((await calls.send(get(served, headers=headers))).body)
    assert bodies == [b"1", b"2", b"1", b"2", b"3"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Cache-Control": "no-store"},
        {"Cache-Control": "no-cache"},
        {"Cache-Control": "max-age=0"},
        {"Pragma": "no-cache"},
        {"Range": "bytes=0-1"},
        {"If-None-Match": '"x"'},
    ],
)
async def test_a_caller_may_insist_on_the_upstream(headers):
    time, counter = Time(), Counter("Cache-Control: max-age=60")
    async with app(counter) as served:
        calls = up(served, time)
        await calls.send(get(served))
        time.now += 1
        assert (await calls.send(get(served, headers=headers))).body == b"2"


async def test_other_methods_and_reads_with_a_body_are_not_kept():
    counter = Counter("Cache-Control: max-age=60")
    async with app(counter) as served:
        calls = up(served, Time())
        for _ in range(2):
            await calls.send(get(served, method="OPTIONS"))
            await calls.send(UpstreamRequest("GET", f"{served.url}/x", [], b"{}"))
            await calls.send(get(served, method="HEAD"))
    assert counter.count == 5  # HEAD once


# -- revalidation -----------------------------------------------------------------------------------------------------


class Validated:
    """An answer with validators; 304 when they match."""

    def __init__(self, control: str | None, *validators: tuple[str, str]) -> None:
        self.validators = list(validators)
        self.control = control
        self.changes = self.full = self.unchanged = 0
        self.failing = False

    def __call__(self, asked: Asked) -> Told:
        if self.failing:
            return Told(status=503)
        control = [("Cache-Control", self.control)] if self.control else []
        known = asked.get("if-none-match") or asked.get("if-modified-since")
        if known in {value for _, value in self.validators}:
            self.unchanged += 1
            return Told(b"", 304, [*control, ("X-Checked", str(self.unchanged)), *self.validators])
        self.full += 1
        return Told(f"full {self.full}".encode(), 200, [*control, ("X-Checked", "0"), *self.validators])


@pytest.mark.parametrize("control", ["max-age=10", "no-cache", "max-age=10, must-revalidate", None])
@pytest.mark.parametrize("validator", [("ETag", 'W/"v1"'), ("Last-Modified", date(-999))])
async def test_a_stale_answer_is_asked_about_and_kept_on(control, validator):
    time, server = Time(), Validated(control, validator)
    async with app(server) as served:
        calls = up(served, time)
        await calls.send(get(served))
        time.now += 11
        answer = await calls.send(get(served))
        assert (answer.status, answer.body, answer.headers.get("x-checked")) == (200, b"full 1", "1")
        assert answer.headers.get("content-length") == "6"
        if control and control.startswith("max-age"):
            time.now += 9
            assert (await calls.send(get(served))).headers.get("x-checked") == "1"
            assert (server.full, server.unchanged) == (1, 1)
        server.validators = [(validator[0], '"v2"')]
        time.now += 11
        assert (await calls.send(get(served))).body == b"full 2"


@pytest.mark.parametrize(
    ("control", "setting", "after_s", "stands_in"),
    [
        ("max-age=10, stale-if-error=60", None, 69, True),
        ("max-age=10, stale-if-error=60", None, 71, False),
        ("max-age=10, stale-if-error=0", 60, 20, False),
        ("max-age=10", 60, 69, True),
        ("max-age=10", None, 20, False),
        ("max-age=10, must-revalidate", 60, 20, False),
        ("s-maxage=10", 60, 20, False),
        ("no-cache", 60, 20, False),
    ],
)
@pytest.mark.parametrize("how", ["status", "connection", "breaker"])
async def test_a_stale_answer_stands_in_for_a_failure_where_that_is_allowed(control, setting, after_s, stands_in, how):
    time, server = Time(), Validated(control, ("ETag", '"v1"'))
    async with app(server) as served:
        cache = True if setting is None else {"staleIfError": setting}
        calls = up(served, time, cache=cache, circuitBreaker={"failures": 1, "cooldown": 500})
        await calls.send(get(served))
        server.failing = True
        time.now += after_s
        if how == "breaker":
            await calls.send(get(served, "/other"))
        if how == "connection":
            await served.outbound.close()
        if stands_in:
            answer = await calls.send(get(served))
            assert (answer.status, answer.body, answer.headers.get("age")) == (200, b"full 1", str(after_s))
        elif how == "status":
            assert (await calls.send(get(served))).status == 503
        else:
            with pytest.raises(Exception, match=r"closed|left alone"):
                await calls.send(get(served))


# -- writes, concurrency, bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "status", "forgets"),
    [("POST", 201, True), ("PUT", 200, True), ("DELETE", 204, True), ("PATCH", 500, True), ("POST", 409, False)],
)
async def test_a_write_makes_the_reads_of_its_url_go_to_the_upstream(method, status, forgets):
    def answer(asked: Asked) -> Told:
        return Told(headers={"Cache-Control": "max-age=60"}, status=200 if asked.method == "GET" else status)

    async with app(answer) as served:
        calls = up(served, Time())
        for target in ("/x", "/x?page=2", "/y"):
            await calls.send(get(served, target))
        await calls.send(get(served, method=method))
        del served.asked[:]
        for target in ("/x", "/x?page=2", "/y"):
            await calls.send(get(served, target))
        assert [asked.target for asked in served.asked] == (["/x", "/x?page=2"] if forgets else [])


async def test_a_write_through_a_stream_counts_too():
    async with app(Counter("Cache-Control: max-age=60")) as served:
        calls = up(served, Time())
        await calls.send(get(served))
        async with calls.stream(get(served, method="PUT")) as stream:
            await stream.read(10)
        assert (await calls.send(get(served))).body == b"3"


async def test_a_read_that_a_write_overtook_is_not_kept():
    gate, arrived, count = asyncio.Event(), asyncio.Event(), 0

    async def answer(asked: Asked) -> Told:
        nonlocal count
        count += 1
        body = str(count).encode()
        if count == 1:
            arrived.set()
            await gate.wait()
        return Told(body, headers={"Cache-Control": "max-age=60"})

    async with app(answer) as served:
        calls = up(served, Time())
        early = asyncio.create_task(calls.send(get(served)))
        await arrived.wait()
        await calls.send(get(served, method="POST"))
        assert (await calls.send(get(served))).body == b"3"  # does not wait for the one that began before the write
        gate.set()
        assert (await early).body == b"1"
        assert (await calls.send(get(served))).body == b"3"


class Gated(Counter):
    """A counter whose first answer waits."""

    def __init__(self, *headers: str, status: int = 200) -> None:
        super().__init__(*headers, status=status)
        self.gate, self.arrived = asyncio.Event(), asyncio.Event()

    async def __call__(self, asked: Asked) -> Told:  # type: ignore[override]
        told = super().__call__(asked)
        if self.count == 1:
            self.arrived.set()
            await self.gate.wait()
        return told


async def test_concurrent_misses_send_one_request():
    gated = Gated("Cache-Control: max-age=60")
    async with app(gated) as served:
        calls = up(served, Time())
        waiting = [asyncio.create_task(calls.send(get(served))) for _ in range(200)]
        await gated.arrived.wait()
        gated.gate.set()
        assert {answer.body for answer in await asyncio.gather(*waiting)} == {b"1"}
    assert gated.count == 1


async def test_misses_whose_answer_is_not_kept_go_themselves():
    gated = Gated("Cache-Control: no-store")
    async with app(gated) as served:
        calls = up(served, Time())
        waiting = [asyncio.create_task(calls.send(get(served))) for _ in range(5)]
        await gated.arrived.wait()
        gated.gate.set()
        assert sorted(answer.body for answer in await asyncio.gather(*waiting)) == [b"1", b"2", b"3", b"4", b"5"]


async def test_when_the_one_that_went_is_cancelled_another_goes():
    gated = Gated("Cache-Control: max-age=60")
    async with app(gated) as served:
        calls = up(served, Time())
        waiting = [asyncio.create_task(calls.send(get(served))) for _ in range(5)]
        await gated.arrived.wait()
        waiting[0].cancel()
        assert {answer.body for answer in await asyncio.gather(*waiting[1:])} == {b"2"}
        gated.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]


async def test_when_the_one_that_went_fails_all_fail():
    gated = Gated("Cache-Control: max-age=60")
    async with app(gated) as served:
        calls = up(served, Time())
        waiting = [asyncio.create_task(calls.send(get(served))) for _ in range(5)]
        await gated.arrived.wait()
        await served.outbound.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(result, OutboundError) for result in results] == [True] * 5
        assert len({id(result) for result in results}) == 5
    assert gated.count == 1


async def test_the_least_recently_used_goes_first_when_there_are_too_many():
    async with app(Counter("Cache-Control: max-age=60")) as served:
        calls = up(served, Time(), cache={"maxEntries": 2})
        bodies = [(await calls.send(get(served, target))).body for target in ("/a", "/b", "/a", "/c", "/a", "/b")]
    assert bodies == [b"1", b"2", b"1", b"3", b"1", b"4"]


async def test_the_cache_is_bounded_in_bytes_and_leaves_nothing_behind():
    def answer(asked: Asked) -> Told:
        return Told(b"x" * int(asked.path[1:]), headers={"Cache-Control": "max-age=60"})

    async with app(answer) as served:
        calls = up(served, Time(), cache={"maxBytes": 10_000})
        for size in (4000, 3000, 20_000, 5000):
            await calls.send(get(served, f"/{size}"))
        del served.asked[:]
        for size in (5000, 3000, 20_000, 4000):
            await calls.send(get(served, f"/{size}"))
        assert [asked.target for asked in served.asked] == ["/20000", "/4000"]
        for size in (5000, 3000, 4000):
            await calls.send(get(served, f"/{size}", method="DELETE"))
        cache = calls._cache
        assert (cache._entries, cache._bytes, cache._kept, cache._by_place, cache._flights) == (0, 0, {}, {}, {})


async def test_an_answer_from_the_cache_needs_no_token_and_no_closed_breaker():
    async with app(Counter("Cache-Control: max-age=60")) as served:
        calls = up(served, Time(), rateLimit={"requests": 1, "per": 60})
        assert [(await calls.send(get(served))).body for _ in range(5)] == [b"1"] * 5
