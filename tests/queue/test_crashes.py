"""Workers that die, stand still, or lose the database: no job is lost, and none has two results."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from toolcrib.core.db import Database
from toolcrib.core.migrate import migrate
from toolcrib.core.postgres import EmbeddedPostgres
from toolcrib.queue import queue
from toolcrib.queue.jobs import ClaimedJob, Jobs
from toolcrib.queue.keeper import Keeper
from toolcrib.queue.queue import Job
from toolcrib.queue.worker import Worker

Add = Callable[..., Awaitable[int]]
ClaimOne = Callable[..., Awaitable[Job | None]]
Eventually = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]
JobRow = Callable[[int], Awaitable[dict[str, Any]]]
Process = asyncio.subprocess.Process
Working = Callable[..., AbstractAsyncContextManager[asyncio.Event]]

PROGRAM = Path(__file__).with_name("worker_process.py")
SOURCE = Path(queue.__file__).parents[2]
ALL_DONE = "SELECT count(*) = 0 FROM job WHERE state <> 'done'"


@pytest.fixture
async def start(effects: Database) -> AsyncIterator[Callable[[str], Awaitable[Process]]]:
    """Start `worker_process.py` in a mode."""
    processes: list[Process] = []

    async def spawn(mode: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, PROGRAM, effects.dsn, mode,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
        processes.append(process)
        return process

    yield spawn
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def line(process: Process) -> str:
    return (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()


async def tell(process: Process) -> None:
    process.stdin.write(b"go\n")
    await process.stdin.drain()


async def effects_of(database: Database) -> list[tuple[int, int]]:
    return [tuple(row) for row in await database.pool.fetch("SELECT job_id, attempt FROM effect ORDER BY 1, 2")]


async def test_the_jobs_of_a_killed_process_are_done_by_another(
    effects: Database, start: Callable[[str], Awaitable[Process]], eventually: Eventually
) -> None:
    async with effects.tx() as tx:
        (hanging,) = await queue.enqueue_many(tx, "thing.do", [{"hang": True}])
        ids = [hanging, *await queue.enqueue_many(tx, "thing.do", [{"n": n} for n in range(150)])]
    victim = await start("run")
    started = await line(victim)
    while started != f"started {hanging}":
        started = await line(victim)
    others = [await start("run"), await start("run")]
    assert [await line(process) for process in others] == ["ready", "ready"]
    victim.kill()
    await eventually(lambda: effects.pool.fetchval(ALL_DONE))
    assert [job_id for job_id, _ in await effects_of(effects)] == ids
    assert (hanging, 2) in await effects_of(effects)


async def test_a_process_that_stood_still_past_its_lease_cannot_finish(
    effects: Database, start: Callable[[str], Awaitable[Process]], add: Add, claim_one: ClaimOne, eventually: Eventually
) -> None:
    job_id = await add()
    process = await start("claim")
    assert await line(process) == f"started {job_id}"
    process.send_signal(signal.SIGSTOP)
    taken: list[Job] = []

    async def take() -> bool:
        job = await claim_one()
        taken.extend([job] if job else [])
        return job is not None

    await eventually(take)
    process.send_signal(signal.SIGCONT)
    await tell(process)
    assert await line(process) == "lost"
    assert await effects_of(effects) == []
    async with ClaimedJob(effects, taken[0], lease_s=30).tx() as tx:
        await queue.finish(tx, taken[0].lease, "second")
    assert await effects.pool.fetchval("SELECT result FROM job") == "second"


async def test_a_process_that_stood_still_in_its_transaction_is_cut_off_and_its_writes_are_gone(
    effects: Database, start: Callable[[str], Awaitable[Process]], add: Add, claim_one: ClaimOne, eventually: Eventually
) -> None:
    job_id = await add()
    process = await start("write")
    assert [await line(process), await line(process)] == [f"started {job_id}", "inside"]
    process.send_signal(signal.SIGSTOP)
    await eventually(claim_one)
    process.send_signal(signal.SIGCONT)
    await tell(process)
    assert await line(process) == "cut off"
    assert await effects_of(effects) == []


def _writing(jobs: Jobs[None], started: asyncio.Event, go_on: asyncio.Event) -> None:
    @jobs.job("thing.do", max_attempts=9)
    async def handle(context: None, claimed: ClaimedJob) -> None:
        started.set()
        await go_on.wait()
        async with claimed.tx() as tx:
            await tx.execute("INSERT INTO effect VALUES ($1, $2)", claimed.job.id, claimed.job.attempt)
            await claimed.finish(tx)


@asynccontextmanager
async def _keeping(database: Database) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(Keeper(database=database, tick_s=0.02).run(stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def test_a_worker_goes_on_when_its_connections_are_cut(
    effects: Database, working: Working, eventually: Eventually
) -> None:
    jobs, started, go_on = Jobs[None](), asyncio.Event(), asyncio.Event()
    _writing(jobs, started, go_on)
    async with effects.tx() as tx:
        ids = await queue.enqueue_many(tx, "thing.do", [{}] * 30)
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"
    name = await effects.pool.fetchval("SELECT current_database()")
    async with working(Worker(database=effects, jobs=jobs, context=None, poll_s=0.1)), _keeping(effects):
        await asyncio.wait_for(started.wait(), 10)
        await effects.pool.execute(cut, name)
        go_on.set()
        await eventually(lambda: _when_reachable(effects, ALL_DONE))
    assert [job_id for job_id, _ in await effects_of(effects)] == ids


@pytest.fixture
async def server(data_dir: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A server that a test may stop and start."""
    server = EmbeddedPostgres(data_dir)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def mortal(server: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A database on that server, with the table of effects."""
    await migrate(server.dsn)
    database = Database(server.dsn)
    await database.open()
    await database.pool.execute("CREATE TABLE effect (job_id bigint, attempt integer)")
    yield database
    await database.close()


async def test_a_worker_goes_on_when_the_server_was_restarted(
    server: EmbeddedPostgres, mortal: Database, working: Working, eventually: Eventually
) -> None:
    jobs, started, go_on = Jobs[None](), asyncio.Event(), asyncio.Event()
    _writing(jobs, started, go_on)
    async with mortal.tx() as tx:
        ids = await queue.enqueue_many(tx, "thing.do", [{}] * 20)
    async with working(Worker(database=mortal, jobs=jobs, context=None, poll_s=0.1)), _keeping(mortal):
        await asyncio.wait_for(started.wait(), 10)
        await server.stop()
        go_on.set()  # ten handlers try to write now
        assert not await _when_reachable(mortal, "SELECT true")
        await server.start()
        await eventually(lambda: _when_reachable(mortal, ALL_DONE))
    assert [job_id for job_id, _ in await effects_of(mortal)] == ids


async def test_a_handler_is_cancelled_when_its_lease_may_have_expired_and_its_job_is_given_back(
    server: EmbeddedPostgres, mortal: Database, working: Working, eventually: Eventually
) -> None:
    jobs, started, cancelled = Jobs[None](), asyncio.Event(), asyncio.Event()

    @jobs.job("thing.do", max_attempts=1)
    async def handle(context: None, claimed: ClaimedJob) -> None:
        started.set()
        if not cancelled.is_set():
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    async with working(Worker(database=mortal, jobs=jobs, context=None, lease_s=0.5, poll_s=0.1)):
        async with mortal.tx() as tx:
            await queue.enqueue(tx, "thing.do", {})
        await asyncio.wait_for(started.wait(), 10)
        await server.stop()
        await asyncio.wait_for(cancelled.wait(), 10)
        await server.start()
        await eventually(lambda: _when_reachable(mortal, ALL_DONE))
    assert await mortal.pool.fetchval("SELECT attempt FROM job") == 1


async def _when_reachable(database: Database, sql: str) -> bool:
    try:
        return bool(await database.pool.fetchval(sql))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
