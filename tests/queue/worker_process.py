"""A worker in a process of its own, for tests that kill or stop it: `worker_process.py DSN MODE`.

It says what it does in lines on standard output, and waits for a line on standard input where the test has to act.

run    works as a `Worker`; each job writes an effect and finishes. A job whose payload says `hang` never ends.
claim  claims one job, waits for a line, then writes an effect and finishes.
write  the same, but waits inside the transaction, after it wrote.
"""

import asyncio
import sys

import asyncpg

from toolcrib.core.db import Database
from toolcrib.core.log import configure_logging
from toolcrib.queue import queue
from toolcrib.queue.jobs import ClaimedJob, Jobs
from toolcrib.queue.queue import LostLease
from toolcrib.queue.worker import Worker

LEASE_S = 0.5


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the test reads it


async def until_told() -> None:
    await asyncio.to_thread(sys.stdin.readline)


async def write_effect_and_finish(claimed: ClaimedJob, *, wait_inside: bool = False) -> None:
    async with claimed.tx() as tx:
        await tx.execute("INSERT INTO effect VALUES ($1, $2)", claimed.job.id, claimed.job.attempt)
        if wait_inside:
            await tx.execute("SET LOCAL idle_in_transaction_session_timeout = '300ms'")
            say("inside")
            await until_told()
        await claimed.finish(tx)


async def run(database: Database) -> None:
    jobs: Jobs[None] = Jobs()

    @jobs.job("thing.do", max_attempts=9)
    async def handle(context: None, claimed: ClaimedJob) -> None:
        say(f"started {claimed.job.id}")
        if claimed.job.payload.get("hang") and claimed.job.attempt == 1:
            await asyncio.Event().wait()
        await write_effect_and_finish(claimed)

    say("ready")
    await Worker(database=database, jobs=jobs, context=None, lease_s=LEASE_S, poll_s=0.2).run(asyncio.Event())


async def claim(database: Database, *, wait_inside: bool) -> None:
    (job,) = await queue.claim(
        database.pool, queues={"default": 0}, kinds={"thing.do": 9}, worker="stopped", lease_s=LEASE_S
    )
    say(f"started {job.id}")
    try:
        if not wait_inside:
            await until_told()
        await write_effect_and_finish(ClaimedJob(database, job, lease_s=LEASE_S), wait_inside=wait_inside)
    except LostLease:
        say("lost")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        say("cut off")
    else:
        say("finished")


async def main() -> None:
    configure_logging()
    dsn, mode = sys.argv[1:]
    database = Database(dsn)
    await database.open()
    if mode == "run":
        await run(database)
    else:
        await claim(database, wait_inside=mode == "write")
    await database.close()


if __name__ == "__main__":
    asyncio.run(main())
