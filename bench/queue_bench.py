"""The lease queue against raw SQL on the same table: jobs per second to enqueue, and to claim and finish.

`python bench/queue_bench.py` starts an embedded server of its own (real durability settings) and prints a table; a
runner imports `measure`. Ours and raw take turns, and each number is the median of the rounds. Raw is what one would
write by hand over asyncpg: one queue, no kinds, no expired leases, no statement that is prepared for a lost lease.
"""

import asyncio
import json
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from rich.console import Console
from rich.table import Table

from toolcrib.core.db import Database
from toolcrib.core.migrate import migrate
from toolcrib.core.postgres import EmbeddedPostgres
from toolcrib.queue import queue
from toolcrib.queue.jobs import ClaimedJob, Jobs
from toolcrib.queue.worker import Worker

ROUNDS = 3
CELL_S = 1.0
BATCH = 8  # a claim takes a power of two
ENQUEUE_BATCH = 100
PAYLOAD = {"tool_set_id": "toolset_01J9Z0000000000000000000", "reason": "schedule", "n": 1}

RAW_ENQUEUE = "INSERT INTO job (kind, payload) VALUES ('bench.do', $1) RETURNING id"
RAW_ENQUEUE_BATCH = "INSERT INTO job (kind, payload) SELECT 'bench.do', unnest($1::json[]) RETURNING id"
RAW_CLAIM = (
    "UPDATE job SET state = 'running', attempt = attempt + 1, max_attempts = 5, started_at = now(), worker = 'raw',"
    " lease_token = gen_random_uuid(), lease_until = now() + interval '30 s'"
    " WHERE id IN (SELECT id FROM job WHERE state = 'ready' AND queue = 'default' ORDER BY priority DESC, id LIMIT {n}"
    " FOR UPDATE SKIP LOCKED) RETURNING id, lease_token, payload"
)
RAW_FINISH = (
    "UPDATE job SET state = 'done', lease_token = NULL, lease_until = NULL, finished_at = now(), result = $3"
    " WHERE id = $1 AND lease_token = $2"
)
RAW_FINISH_BATCH = (
    "UPDATE job SET state = 'done', lease_token = NULL, lease_until = NULL, finished_at = now(), result = r.result"
    " FROM unnest($1::bigint[], $2::uuid[], $3::json[]) AS r (id, token, result)"
    " WHERE job.id = r.id AND job.lease_token = r.token"
)

Step = Callable[[], Awaitable[int]]  # does a little work; returns how many jobs that were


@dataclass(frozen=True)
class Case:
    """One line of the table: the same work, ours and raw, done by some workers at a time."""

    name: str
    workers: int
    ready_jobs: int
    ours: Callable[[Database], Step]
    raw: Callable[[asyncpg.Connection], Step]


def enqueue_one(database: Database) -> Step:
    async def step() -> int:
        async with database.tx() as tx:
            await queue.enqueue(tx, "bench.do", PAYLOAD)
        return 1

    return step


def enqueue_batch(database: Database) -> Step:
    async def step() -> int:
        async with database.tx() as tx:
            await queue.enqueue_many(tx, "bench.do", [PAYLOAD] * ENQUEUE_BATCH)
        return ENQUEUE_BATCH

    return step


def raw_enqueue_one(conn: asyncpg.Connection) -> Step:
    async def step() -> int:
        async with conn.transaction():
            await conn.fetchval(RAW_ENQUEUE, json.dumps(PAYLOAD))
            await conn.execute("SELECT pg_notify('raw', 'default')")
        return 1

    return step


def raw_enqueue_batch(conn: asyncpg.Connection) -> Step:
    async def step() -> int:
        async with conn.transaction():
            await conn.fetch(RAW_ENQUEUE_BATCH, [json.dumps(PAYLOAD)] * ENQUEUE_BATCH)
            await conn.execute("SELECT pg_notify('raw', 'default')")
        return ENQUEUE_BATCH

    return step


def claim_and_finish(limit: int) -> Callable[[Database], Step]:
    def bind(database: Database) -> Step:
        async def step() -> int:
            jobs = await queue.claim(
                database.pool, queues={"default": 0}, kinds={"bench.do": 5}, worker="bench", limit=limit
            )
            if limit == 1:
                for job in jobs:
                    await queue.finish(database.pool, job.lease, {"ok": True})
            else:
                await queue.finish_many(database.pool, [(job.lease, {"ok": True}) for job in jobs])
            return len(jobs)

        return step

    return bind


def raw_claim_and_finish(limit: int) -> Callable[[asyncpg.Connection], Step]:
    claim = RAW_CLAIM.format(n=limit)

    def bind(conn: asyncpg.Connection) -> Step:
        async def step() -> int:
            rows = await conn.fetch(claim)
            if limit == 1:
                for row in rows:
                    await conn.execute(RAW_FINISH, row["id"], row["lease_token"], '{"ok": true}')
            else:
                ids, tokens = [row["id"] for row in rows], [row["lease_token"] for row in rows]
                await conn.execute(RAW_FINISH_BATCH, ids, tokens, ['{"ok": true}'] * len(rows))
            return len(rows)

        return step

    return bind


def claim_case(workers: int, at_a_time: int, ready_jobs: int) -> Case:
    """Claim and finish, ours and raw."""
    name = f"claim + finish, {at_a_time} at a time, {workers} worker{'s' if workers > 1 else ''}"
    return Case(name, workers, ready_jobs, claim_and_finish(at_a_time), raw_claim_and_finish(at_a_time))


CASES = (
    Case("enqueue, 1 at a time, 1 connection", 1, 0, enqueue_one, raw_enqueue_one),
    Case(f"enqueue, {ENQUEUE_BATCH} at a time, 1 connection", 1, 0, enqueue_batch, raw_enqueue_batch),
    claim_case(workers=1, at_a_time=1, ready_jobs=10_000),
    claim_case(workers=8, at_a_time=1, ready_jobs=20_000),
    claim_case(workers=1, at_a_time=BATCH, ready_jobs=40_000),
    claim_case(workers=8, at_a_time=BATCH, ready_jobs=80_000),
)


async def prepare(conn: asyncpg.Connection, ready_jobs: int) -> None:
    """An empty queue with so many ready jobs, and statistics that know of them."""
    await conn.execute("TRUNCATE job")
    await conn.execute(
        "INSERT INTO job (kind, payload) SELECT 'bench.do', $1::json FROM generate_series(1, $2)",
        json.dumps(PAYLOAD), ready_jobs,
    )  # fmt: skip
    await conn.execute("VACUUM (ANALYZE) job")
    await conn.execute("CHECKPOINT")


async def jobs_per_s(steps: list[Step], cell_s: float) -> float:
    """Each step in a loop of its own, all at once."""
    done, start = 0, time.perf_counter()

    async def repeat(step: Step) -> None:
        nonlocal done
        while time.perf_counter() - start < cell_s and (count := await step()):
            done += count

    await asyncio.gather(*map(repeat, steps))
    return done / (time.perf_counter() - start)


async def measure_worker(database: Database, conn: asyncpg.Connection) -> list[dict[str, Any]]:
    """A whole `Worker` with handlers that do nothing; and how long a job waits for an idle one."""
    jobs: Jobs[None] = Jobs()
    count, waits, waiting = 3000, [], [asyncio.get_running_loop().create_future()]
    left = count

    @jobs.job("bench.do")
    async def handle(_context: None, _claimed: ClaimedJob) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            waiting[0].set_result(time.perf_counter())

    await prepare(conn, count)
    stop, start = asyncio.Event(), time.perf_counter()
    running = asyncio.create_task(Worker(database=database, jobs=jobs, context=None, poll_s=60).run(stop))
    rate = count / (await waiting[0] - start)
    for _ in range(200):
        waiting[0] = asyncio.get_running_loop().create_future()
        async with database.tx() as tx:
            await queue.enqueue(tx, "bench.do", PAYLOAD)
            committing_at = time.perf_counter()
        waits.append(await waiting[0] - committing_at)
    stop.set()
    await running
    wait_ms = statistics.median(waits) * 1e3
    return [
        {"case": "whole worker, 10 at a time, handlers that do nothing", "ours": rate, "raw": None, "unit": "jobs/s"},
        {"case": "commit to start, idle worker, p50", "ours": wait_ms, "raw": None, "unit": "ms"},
    ]


async def measure(dsn: str, *, rounds: int = ROUNDS, cell_s: float = CELL_S) -> list[dict[str, Any]]:
    """All numbers, as `{case, ours, raw, unit}`; uses a database of its own on the server of `dsn`."""
    name = f"queue_bench_{secrets.token_hex(4)}"
    admin = await asyncpg.connect(dsn)
    await admin.execute(f"CREATE DATABASE {name}")
    own_dsn = urlsplit(dsn)._replace(path=f"/{name}").geturl()
    await migrate(own_dsn)
    database = Database(own_dsn, pool_size=12)
    await database.open()
    conns = [await asyncpg.connect(own_dsn) for _ in range(8)]
    try:
        rows = []
        for case in CASES:
            ours, raw = [], []
            for _ in range(rounds):
                await prepare(conns[0], case.ready_jobs)
                ours.append(await jobs_per_s([case.ours(database)] * case.workers, cell_s))
                await prepare(conns[0], case.ready_jobs)
                raw.append(await jobs_per_s([case.raw(conn) for conn in conns[: case.workers]], cell_s))
            rows.append(
                {"case": case.name, "ours": statistics.median(ours), "raw": statistics.median(raw), "unit": "jobs/s"}
            )
        return [*rows, *await measure_worker(database, conns[0])]
    finally:
        for conn in conns:
            await conn.close()
        await database.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The numbers for people."""
    table = Table("case", "ours", "raw SQL", "ours / raw", "unit", title="Lease queue")
    for row in rows:
        digits = 0 if row["unit"] == "jobs/s" else 2
        raw = f"{row['raw']:,.{digits}f}" if row["raw"] else ""
        ratio = f"{row['ours'] / row['raw']:.2f}" if row["raw"] else ""
        table.add_row(row["case"], f"{row['ours']:,.{digits}f}", raw, ratio, row["unit"])
    return table


async def measure_here(folder: Path, *, rounds: int = ROUNDS, cell_s: float = CELL_S) -> list[dict[str, Any]]:
    """All numbers, on a server of our own in an empty folder."""
    server = EmbeddedPostgres(folder)
    try:
        return await measure(await server.start(), rounds=rounds, cell_s=cell_s)
    finally:
        await server.stop()


def main() -> None:
    """Measure on a fresh server; `--json` prints data instead of a table."""
    with tempfile.TemporaryDirectory(prefix="toolcrib-bench-") as folder:
        Path(folder).chmod(0o711)  # the server may run under another account
        rows = asyncio.run(measure_here(Path(folder)))
    if "--json" in sys.argv:
        print(json.dumps(rows))
    else:
        Console().print(table_of(rows))


if __name__ == "__main__":
    main()
