"""What the queue's tests share: a table that handlers write to, and short ways to say what a job is in."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from toolcrib.core.db import Database
from toolcrib.core.log import configure_logging
from toolcrib.queue import queue
from toolcrib.queue.queue import Job
from toolcrib.queue.worker import Worker

Eventually = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]
Working = Callable[..., AbstractAsyncContextManager[asyncio.Event]]
ClaimOne = Callable[..., Awaitable[Job | None]]
JobRow = Callable[[int], Awaitable[dict[str, Any]]]


@pytest.fixture(autouse=True, scope="session")
def plain_logs() -> None:
    """Log as the product does: structlog's own tracebacks show variables, and take a second each."""
    configure_logging("warning", "json")


@pytest.fixture
async def effects(database: Database) -> Database:
    """The database with a table `effect (job_id, attempt)`: what handlers did."""
    await database.pool.execute("CREATE TABLE effect (job_id bigint NOT NULL, attempt integer NOT NULL)")
    return database


@pytest.fixture
def job_row(database: Database) -> JobRow:
    """All columns of a job."""

    async def read(job_id: int) -> dict[str, Any]:
        return dict(await database.pool.fetchrow("SELECT * FROM job WHERE id = $1", job_id))

    return read


@pytest.fixture
def add(database: Database) -> Callable[..., Awaitable[int]]:
    """Enqueue one job of the kind `thing.do` in a transaction of its own."""

    async def enqueue(kind: str = "thing.do", **options: Any) -> int:
        async with database.tx() as tx:
            return await queue.enqueue(tx, kind, options.pop("payload", {}), **options)

    return enqueue


@pytest.fixture
def claim_one(database: Database) -> ClaimOne:
    """Claim one job of the kind `thing.do`, or None."""

    async def claim(**options: Any) -> Job | None:
        options = {"queues": {"default": 0}, "kinds": {"thing.do": 5}, "worker": "test"} | options
        jobs = await queue.claim(database.pool, **options)
        return jobs[0] if jobs else None

    return claim


@pytest.fixture
def eventually() -> Eventually:
    """Wait until a question to the database is answered with something true; fail after 20 seconds."""

    async def wait(ask: Callable[[], Awaitable[object]]) -> None:
        deadline = time.monotonic() + 20
        while not await ask():
            assert time.monotonic() < deadline, "it never came true"
            await asyncio.sleep(0.01)

    return wait


@pytest.fixture
def working() -> Working:
    """Run workers while a block lasts; yields the event that stops them, and waits for them at the end."""

    @asynccontextmanager
    async def run(*workers: Worker[Any]) -> AsyncIterator[asyncio.Event]:
        stop = asyncio.Event()
        tasks = [asyncio.create_task(worker.run(stop)) for worker in workers]
        try:
            yield stop
        finally:
            stop.set()
            async with asyncio.timeout(30):
                await asyncio.gather(*tasks)

    return run
