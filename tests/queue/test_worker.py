"""What a worker does with handlers that end in every way there is. Handlers say when they are where; nothing sleeps."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from toolcrib.core.db import Database
from toolcrib.errors import Upstream
from toolcrib.queue import queue
from toolcrib.queue.jobs import ClaimedJob, GiveUp, Jobs, Retry, Snooze
from toolcrib.queue.keeper import Keeper
from toolcrib.queue.worker import Worker

Add = Callable[..., Awaitable[int]]
ClaimOne = Callable[..., Awaitable[Any]]
Eventually = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]
JobRow = Callable[[int], Awaitable[dict[str, Any]]]
Working = Callable[..., AbstractAsyncContextManager[asyncio.Event]]

LONG_S = 3600.0  # a poll interval that never comes round in a test
NO_PAUSE = Retry(first_s=0, jitter=0)


class Ended:
    """Tells when a job has reached one of the states in which nobody runs it."""

    def __init__(self, eventually: Eventually, job_row: JobRow) -> None:
        self._eventually = eventually
        self._job_row = job_row

    async def __call__(self, job_id: int) -> dict[str, Any]:
        row: dict[str, Any] = {}

        async def ask() -> bool:
            row.update(await self._job_row(job_id))
            return row["state"] != "running" and row["started_at"] is not None

        await self._eventually(ask)
        return row


@pytest.fixture
def ended(eventually: Eventually, job_row: JobRow) -> Ended:
    """Wait until nobody runs a job that has started; returns its row."""
    return Ended(eventually, job_row)


@pytest.fixture
def jobs() -> Jobs[str]:
    """An empty registry; handlers get the context "context"."""
    return Jobs()


@pytest.fixture
def worker(database: Database, jobs: Jobs[str]) -> Callable[..., Worker[str]]:
    """Make a worker."""

    def make(**options: Any) -> Worker[str]:
        return Worker(**{"database": database, "jobs": jobs, "context": "context", "poll_s": LONG_S} | options)

    return make


@pytest.fixture
async def keeping(database: Database) -> AsyncIterator[None]:
    """A keeper that looks all the time."""
    stop = asyncio.Event()
    task = asyncio.create_task(Keeper(database=database, tick_s=0.01).run(stop))
    yield
    stop.set()
    await task


async def test_a_job_is_run_with_the_context_and_its_answer_is_kept(
    jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, working: Working, ended: Ended
) -> None:
    @jobs.job("thing.do")
    async def handle(context: str, claimed: ClaimedJob) -> dict[str, Any]:
        return {"context": context, "payload": claimed.job.payload}

    async with working(worker(name="me")):
        row = await ended(await add(payload={"a": 1}))
    assert (row["state"], row["worker"]) == ("done", "me")
    assert row["result"] == {"context": "context", "payload": {"a": 1}}


async def test_news_of_another_process_wakes_a_worker_that_would_not_look_for_an_hour(
    database: Database, jobs: Jobs[str], worker: Callable[..., Worker[str]], working: Working, ended: Ended
) -> None:
    idle = asyncio.Event()

    @jobs.job("thing.do")
    async def handle(context: str, claimed: ClaimedJob) -> None:
        idle.set()

    elsewhere = Database(database.dsn, pool_size=1)
    await elsewhere.open()
    try:
        async with working(worker()):
            for _ in range(3):  # the second and third meet a worker that is certainly idle
                async with elsewhere.tx() as tx:
                    job_id = await queue.enqueue(tx, "thing.do", {})
                assert (await ended(job_id))["state"] == "done"
                await asyncio.wait_for(idle.wait(), 10)
                idle.clear()
    finally:
        await elsewhere.close()


async def test_a_worker_looks_without_having_heard_of_anything(
    database: Database, jobs: Jobs[str], worker: Callable[..., Worker[str]], working: Working, ended: Ended
) -> None:
    @jobs.job("thing.do")
    async def handle(context: str, claimed: ClaimedJob) -> None:
        pass

    async with working(worker(poll_s=0.02)):
        job_id = await database.pool.fetchval("INSERT INTO job (kind) VALUES ('thing.do') RETURNING id")
        assert (await ended(job_id))["state"] == "done"


async def test_the_end_of_a_job_makes_room_for_the_next(
    database: Database, jobs: Jobs[str], worker: Callable[..., Worker[str]], working: Working, eventually: Eventually
) -> None:
    running, most = 0, 0

    @jobs.job("thing.do")
    async def handle(context: str, claimed: ClaimedJob) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        async with database.read() as tx:
            await tx.fetchval("SELECT 1")
        running -= 1

    async with database.tx() as tx:
        await queue.enqueue_many(tx, "thing.do", [{}] * 50)
    async with working(worker(concurrency=3)):
        await eventually(lambda: database.pool.fetchval("SELECT count(*) = 50 FROM job WHERE state = 'done'"))
    assert most == 3


async def test_many_workers_finish_every_job_exactly_once(
    effects: Database,
    jobs: Jobs[str],
    worker: Callable[..., Worker[str]],
    working: Working,
    eventually: Eventually,
    keeping: None,
) -> None:
    put_off: set[int] = set()

    @jobs.job("thing.do", retry=NO_PAUSE)
    async def handle(context: str, claimed: ClaimedJob) -> None:
        n = claimed.job.payload["n"]
        if n % 10 == 0 and n not in put_off:
            put_off.add(n)
            raise Snooze(0)
        async with claimed.tx() as tx:
            await tx.execute("INSERT INTO effect VALUES ($1, $2)", claimed.job.id, claimed.job.attempt)
            if n % 10 == 1 and claimed.job.attempt == 1:
                raise RuntimeError("what was written goes, and the job runs again")
            await claimed.finish(tx)

    async with effects.tx() as tx:
        ids = await queue.enqueue_many(tx, "thing.do", [{"n": n} for n in range(200)])
    async with working(*(worker(concurrency=4) for _ in range(4))):
        await eventually(lambda: effects.pool.fetchval("SELECT count(*) = 200 FROM job WHERE state = 'done'"))
    assert [r["job_id"] for r in await effects.pool.fetch("SELECT job_id FROM effect ORDER BY 1")] == ids


async def test_a_job_of_a_kind_nobody_knows_here_waits_for_a_worker_that_knows_it(
    jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, working: Working, ended: Ended, job_row: JobRow
) -> None:
    @jobs.job("thing.do")
    async def handle(context: str, claimed: ClaimedJob) -> None:
        pass

    unknown, known = await add("other.kind"), await add()
    async with working(worker()):
        await ended(known)
    assert (await job_row(unknown))["state"] == "ready"


async def test_a_failed_attempt_is_repeated_until_one_succeeds(
    jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, working: Working, eventually: Eventually,
    job_row: JobRow, keeping: None,
) -> None:  # fmt: skip
    errors: list[str | None] = []

    @jobs.job("thing.do", max_attempts=3, retry=NO_PAUSE)
    async def handle(context: str, claimed: ClaimedJob) -> str:
        errors.append((await job_row(claimed.job.id))["error"])
        if claimed.job.attempt == 1:
            raise Upstream("thing.away", "The thing does not answer.")
        if claimed.job.attempt == 2:
            raise RuntimeError("password is hunter2")
        return "third time lucky"

    async with working(worker()):
        job_id = await add()
        await eventually(lambda: _is(job_row, job_id, "done"))
    row = await job_row(job_id)
    assert (row["attempt"], row["result"], row["error"]) == (3, "third time lucky", None)
    assert errors == [None, "thing.away: The thing does not answer.", "internal error (RuntimeError)"]


async def _is(job_row: JobRow, job_id: int, state: str) -> bool:
    return bool((await job_row(job_id))["state"] == state)


async def test_the_pause_before_the_next_attempt_is_that_of_the_kind(
    jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, working: Working, ended: Ended
) -> None:
    @jobs.job("thing.do", retry=Retry(first_s=1000, factor=3, jitter=0))
    async def handle(context: str, claimed: ClaimedJob) -> None:
        raise RuntimeError("no")

    async with working(worker()):
        before = datetime.now(UTC)
        row = await ended(await add())
    assert row["state"] == "scheduled"
    assert timedelta(0) <= row["run_at"] - before - timedelta(seconds=1000) < timedelta(seconds=20)


async def test_the_last_attempt_is_the_last(
    jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, working: Working, ended: Ended
) -> None:
    @jobs.job("thing.do", max_attempts=1)
    async def handle(context: str, claimed: ClaimedJob) -> None:
        raise RuntimeError("no")

    async with working(worker()):
        assert (await ended(await add()))["state"] == "failed"


async def test_a_handler_can_give_up(
    jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, working: Working, ended: Ended
) -> None:
    @jobs.job("thing.do")
    async def handle(context: str, claimed: ClaimedJob) -> None:
        raise GiveUp("the thing is gone")

    async with working(worker()):
        row = await ended(await add())
    assert (row["state"], row["attempt"], row["error"]) == ("failed", 1, "the thing is gone")


async def test_a_handler_can_put_its_job_off(
    jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, working: Working, ended: Ended
) -> None:
    @jobs.job("thing.do", max_attempts=1)
    async def handle(context: str, claimed: ClaimedJob) -> None:
        raise Snooze(500)

    async with working(worker()):
        row = await ended(await add())
    assert (row["state"], row["attempt"]) == ("scheduled", 0)
    assert row["run_at"] > datetime.now(UTC) + timedelta(seconds=400)


async def test_an_answer_that_is_no_json_fails_the_attempt(
    jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, working: Working, ended: Ended
) -> None:
    @jobs.job("thing.do", max_attempts=1)
    async def handle(context: str, claimed: ClaimedJob) -> object:
        return object()

    async with working(worker()):
        row = await ended(await add())
    assert (row["state"], row["error"]) == ("failed", "internal error (TypeError)")


async def test_a_handler_that_takes_too_long_is_cancelled_and_repeated(
    jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, working: Working, ended: Ended
) -> None:
    cancelled = asyncio.Event()

    @jobs.job("thing.do", timeout_s=0.05)
    async def handle(context: str, claimed: ClaimedJob) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with working(worker()):
        row = await ended(await add())
    assert cancelled.is_set()
    assert (row["state"], row["attempt"], row["error"]) == ("scheduled", 1, "timed out after 0.05 s")


async def test_a_handler_that_ignores_its_cancellation_does_not_keep_the_worker_from_others(
    jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, working: Working, ended: Ended
) -> None:
    release, stubborn_ended = asyncio.Event(), asyncio.Event()

    @jobs.job("thing.do", timeout_s=0.05, max_attempts=1)
    async def stubborn(context: str, claimed: ClaimedJob) -> None:
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()
        stubborn_ended.set()

    @jobs.job("thing.other")
    async def other(context: str, claimed: ClaimedJob) -> None:
        pass

    async with working(worker(concurrency=1, unwind_s=0.05)):
        first = await add()
        second = await add("thing.other")
        assert (await ended(second))["state"] == "done"
        assert (await ended(first))["error"] == "timed out after 0.05 s"
    release.set()
    await asyncio.wait_for(stubborn_ended.wait(), 5)


async def test_cancelling_a_running_job_cancels_its_handler(
    database: Database, jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, working: Working,
    job_row: JobRow,
) -> None:  # fmt: skip
    started, cancelled = asyncio.Event(), asyncio.Event()

    @jobs.job("thing.do")
    async def handle(context: str, claimed: ClaimedJob) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    elsewhere = Database(database.dsn, pool_size=1)
    await elsewhere.open()
    try:
        async with working(worker()):
            job_id = await add()
            await asyncio.wait_for(started.wait(), 10)
            async with elsewhere.tx() as tx:
                assert await queue.cancel(tx, job_id)
            await asyncio.wait_for(cancelled.wait(), 10)
    finally:
        await elsewhere.close()
    assert (await job_row(job_id))["state"] == "cancelled"


async def test_a_handler_is_cancelled_when_its_lease_is_found_lost(
    database: Database, jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, working: Working,
    claim_one: ClaimOne, job_row: JobRow,
) -> None:  # fmt: skip
    started, cancelled = asyncio.Event(), asyncio.Event()

    @jobs.job("thing.do")
    async def handle(context: str, claimed: ClaimedJob) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with working(worker(lease_s=0.3)):
        job_id = await add()
        await asyncio.wait_for(started.wait(), 10)
        thief = await claim_one(now=datetime.now(UTC) + timedelta(hours=1), worker="thief")
        assert thief.id == job_id
        await asyncio.wait_for(cancelled.wait(), 10)
    row = await job_row(job_id)
    assert (row["state"], row["worker"], row["attempt"]) == ("running", "thief", 2)


async def test_a_job_that_runs_longer_than_a_lease_keeps_it(
    database: Database, jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, working: Working,
    eventually: Eventually, ended: Ended, keeping: None,
) -> None:  # fmt: skip
    go_on = asyncio.Event()

    @jobs.job("thing.do")
    async def handle(context: str, claimed: ClaimedJob) -> None:
        await go_on.wait()

    async with working(worker(lease_s=0.2), worker(lease_s=0.2, poll_s=0.02)):
        job_id = await add()
        await eventually(
            lambda: database.pool.fetchval(
                "SELECT count(*) FROM job WHERE lease_until > started_at + interval '0.8 s' AND attempt = 1"
            )
        )
        go_on.set()
        row = await ended(job_id)
    assert (row["state"], row["attempt"]) == ("done", 1)


async def test_a_stopping_worker_lets_running_jobs_end_and_takes_no_more(
    jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, job_row: JobRow
) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    @jobs.job("thing.do")
    async def handle(context: str, claimed: ClaimedJob) -> None:
        started.set()
        await go_on.wait()

    stop = asyncio.Event()
    running = asyncio.create_task(worker().run(stop))
    first = await add()
    await asyncio.wait_for(started.wait(), 10)
    stop.set()
    second = await add()
    go_on.set()
    await asyncio.wait_for(running, 10)
    assert [(await job_row(n))["state"] for n in (first, second)] == ["done", "ready"]


async def test_a_stopping_worker_gives_back_what_does_not_end_in_time(
    jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, job_row: JobRow
) -> None:
    started = asyncio.Event()

    @jobs.job("thing.do")
    async def handle(context: str, claimed: ClaimedJob) -> None:
        started.set()
        await asyncio.Event().wait()

    stop = asyncio.Event()
    running = asyncio.create_task(worker(grace_s=0.01).run(stop))
    job_id = await add(max_attempts=1)
    await asyncio.wait_for(started.wait(), 10)
    stop.set()
    await asyncio.wait_for(running, 10)
    row = await job_row(job_id)
    assert (row["state"], row["attempt"], row["error"]) == ("ready", 0, None)


async def test_a_worker_whose_task_is_cancelled_ends_its_handlers_and_lets_the_leases_expire(
    jobs: Jobs[str], worker: Callable[..., Worker[str]], add: Add, job_row: JobRow
) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    @jobs.job("thing.do")
    async def handle(context: str, claimed: ClaimedJob) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    running = asyncio.create_task(worker().run(asyncio.Event()))
    job_id = await add()
    await asyncio.wait_for(started.wait(), 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cancelled.is_set()
    assert (await job_row(job_id))["state"] == "running"


async def test_queues_take_turns(
    database: Database, jobs: Jobs[str], worker: Callable[..., Worker[str]], working: Working, eventually: Eventually
) -> None:
    order: list[str] = []

    @jobs.job("thing.do")
    async def handle(context: str, claimed: ClaimedJob) -> None:
        order.append(claimed.job.queue)

    async with database.tx() as tx:
        for name in ("a", "b"):
            await queue.enqueue_many(tx, "thing.do", [{}] * 20, queue=name)
    async with working(worker(queues=("a", "b"), concurrency=1)):
        await eventually(lambda: database.pool.fetchval("SELECT count(*) = 40 FROM job WHERE state = 'done'"))
    assert 3 <= order[:10].count("a") <= 7
