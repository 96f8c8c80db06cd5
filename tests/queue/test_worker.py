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
    effects: Database, jobs: Jobs[str], worker: Callable[..., Worker[str]], working: Working, eventually: Eventually
) -> None:
    @jobs.job("thing.do")
    async def handle(context: str, claimed: ClaimedJob) -> None:
        if claimed.job.payload["n"] % 10 == 0 and claimed.job.attempt == 1:
            raise Snooze(0)
        async with claimed.tx() as tx:
            await tx.execute("INSERT INTO effect VALUES ($1, $2)", claimed.job.id, claimed.job.attempt)
            if claimed.job.payload["n"] % 2:
                await claimed.finish(tx)

    async with effects.tx() as tx:
        ids = await queue.enqueue_many(tx, "thing.do", [{"n": n} for n in range(300)])
    await effects.pool.execute("UPDATE job SET attempt = 1 WHERE id % 10 = 5")  # some are on their second attempt
    keeper, stop = Keeper(database=effects, tick_s=0.01), asyncio.Event()
    keeping = asyncio.create_task(keeper.run(stop))
    async with working(*(worker(concurrency=4) for _ in range(4))):
        await effects.pool.execute("UPDATE job SET attempt = 1 WHERE state = 'scheduled'")
        await effects.pool.execute("SELECT pg_sleep(0)")
        await eventually(lambda: _all_ended(effects))
    stop.set()
    await keeping
    assert [r["job_id"] for r in await effects.pool.fetch("SELECT job_id FROM effect ORDER BY 1")] == ids
    assert await effects.pool.fetchval("SELECT count(*) FROM job WHERE state = 'done'") == 300


async def _all_ended(database: Database) -> bool:
    await database.pool.execute("UPDATE job SET attempt = 1 WHERE state = 'scheduled' AND attempt = 0")
    return not await database.pool.fetchval("SELECT count(*) FROM job WHERE finished_at IS NULL")
