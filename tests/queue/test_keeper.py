"""What time does to jobs that nobody holds. Time is a parameter."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from toolcrib.core.db import Database
from toolcrib.queue import queue
from toolcrib.queue.keeper import Keeper, Round, Schedule
from toolcrib.queue.queue import Job

Add = Callable[..., Awaitable[int]]
ClaimOne = Callable[..., Awaitable[Job | None]]
Eventually = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]
JobRow = Callable[[int], Awaitable[dict[str, Any]]]

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def hourly(database: Database, **options: Any) -> Keeper:
    schedule = Schedule(id="hourly", kind="thing.do", every_s=3600, payload={"a": 1}, queue="mail", priority=2)
    return Keeper(database=database, schedules=[schedule], **options)


@pytest.mark.parametrize(
    ("text", "now", "due"),
    [
        ("*/15 * * * *", NOON, NOON),
        ("*/15 * * * *", NOON + timedelta(minutes=14, seconds=59.9), NOON),
        ("0 3 * * *", NOON, NOON - 9 * HOUR),
        ("0 12 * * *", NOON - timedelta(microseconds=1), NOON - DAY),
        ("30 0 12 * * *", NOON + MINUTE, NOON + timedelta(seconds=30)),
        ("0 0 1 1 *", NOON, datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_cron_text_is_due_at_the_latest_time_it_names(text: str, now: datetime, due: datetime) -> None:
    schedule = Schedule(id="s", kind="thing.do", cron=text)
    assert schedule.latest_due(now) == due
    elsewhere = now.astimezone(datetime.fromisoformat("2026-01-01T00:00+05:30").tzinfo)
    assert schedule.latest_due(elsewhere) == due


def test_an_interval_is_due_at_its_multiples() -> None:
    schedule = Schedule(id="s", kind="thing.do", every_s=90)
    due = schedule.latest_due(NOON + timedelta(seconds=89.5))
    assert due == NOON
    assert schedule.latest_due(NOON + timedelta(seconds=90)) == NOON + timedelta(seconds=90)


@pytest.mark.parametrize(
    "when", [{}, {"cron": "* * * * *", "every_s": 5}, {"every_s": 0}, {"cron": "nonsense"}, {"cron": "0 0 31 2 *"}]
)
def test_a_schedule_says_when_in_one_way_that_means_something(when: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="schedule s"):
        Schedule(id="s", kind="thing.do", **when)


def test_schedules_have_different_ids(database: Database) -> None:
    schedule = Schedule(id="s", kind="thing.do", every_s=1)
    with pytest.raises(ValueError, match="same id"):
        Keeper(database=database, schedules=[schedule, schedule])


async def test_a_new_schedule_fires_at_its_next_due_time_and_then_at_each(
    database: Database, claim_one: ClaimOne, job_row: JobRow
) -> None:
    keeper = hourly(database)
    fired = []
    for minutes in (1, 59, 60, 61, 119, 120, 121):
        fired.append((await keeper.tick(NOON + minutes * MINUTE)).fired)
        while job := await claim_one(queues={"mail": 0}):
            assert (job.kind, job.payload, job.priority) == ("thing.do", {"a": 1}, 2)
            await queue.finish(database.pool, job.lease)
    assert fired == [0, 0, 1, 0, 0, 1, 0]
    firings = await database.pool.fetch("SELECT due_at, job_id FROM schedule_firing ORDER BY due_at")
    assert [row["due_at"] for row in firings] == [NOON, NOON + HOUR, NOON + 2 * HOUR]
    assert [row["job_id"] and (await job_row(row["job_id"]))["state"] for row in firings] == [None, "done", "done"]


async def test_after_a_pause_only_the_latest_due_time_fires(database: Database) -> None:
    await hourly(database).tick(NOON)
    later = hourly(database)  # the process was started again
    assert [(await later.tick(NOON + 30.5 * HOUR)).fired for _ in range(2)] == [1, 0]
    due = await database.pool.fetchval("SELECT max(due_at) FROM schedule_firing")
    assert due == NOON + 30 * HOUR


async def test_two_keepers_fire_once(database: Database) -> None:
    keepers = [hourly(database) for _ in range(6)]
    await keepers[0].tick(NOON)
    for hour in range(1, 9):
        rounds = await asyncio.gather(*(keeper.tick(NOON + hour * HOUR) for keeper in keepers))
        assert sum(r.fired for r in rounds) == 1
        await database.pool.execute("UPDATE job SET state = 'done', finished_at = now() WHERE finished_at IS NULL")
    assert await database.pool.fetchval("SELECT count(*) FROM job") == 8


async def test_a_keeper_whose_clock_is_behind_does_not_fire_again(database: Database) -> None:
    await hourly(database).tick(NOON)
    await hourly(database).tick(NOON + 2 * HOUR)
    assert (await hourly(database).tick(NOON + HOUR)).fired == 0


async def test_firings_do_not_pile_up_while_nobody_runs_the_job(database: Database) -> None:
    keeper = hourly(database)
    for hour in range(5):
        await keeper.tick(NOON + hour * HOUR)
    assert await database.pool.fetchval("SELECT count(*) FROM job") == 1
    assert await database.pool.fetchval("SELECT count(DISTINCT job_id) FROM schedule_firing") == 1


async def test_old_firings_are_deleted_but_never_the_latest(database: Database) -> None:
    keeper = hourly(database, keep_s=3600)
    for hour in range(10):
        await keeper.tick(NOON + hour * HOUR)
    kept = await database.pool.fetch("SELECT due_at FROM schedule_firing ORDER BY due_at")
    assert [row["due_at"] for row in kept] == [NOON + 8 * HOUR, NOON + 9 * HOUR]
    assert (await hourly(database, keep_s=1).tick(NOON + 9.5 * HOUR)).fired == 0


async def test_an_expired_lease_ends_and_its_holder_is_told(
    database: Database, add: Add, claim_one: ClaimOne, job_row: JobRow
) -> None:
    job_id, moment = await add(max_attempts=2), datetime.now(UTC)
    first = await claim_one(lease_s=30, now=moment)
    keeper = Keeper(database=database)
    assert (await keeper.tick(moment + timedelta(seconds=29))).expired == 0
    assert (await keeper.tick(moment + timedelta(seconds=30))).expired == 1
    row = await job_row(job_id)
    assert (row["state"], row["attempt"], row["error"]) == ("ready", 1, "lease expired")
    with pytest.raises(queue.LostLease):
        await queue.finish(database.pool, first.lease)
    assert (await claim_one(lease_s=30, now=moment)).attempt == 2


async def test_a_job_whose_last_lease_expires_has_failed(
    database: Database, add: Add, claim_one: ClaimOne, job_row: JobRow
) -> None:
    job_id, moment = await add(max_attempts=1), datetime.now(UTC)
    await claim_one(lease_s=30, now=moment)
    await Keeper(database=database).tick(moment + timedelta(seconds=30))
    row = await job_row(job_id)
    assert (row["state"], row["error"], row["lease_token"]) == ("failed", "lease expired", None)
    assert row["finished_at"] == moment + timedelta(seconds=30)


async def test_due_jobs_and_ended_leases_are_news_for_the_workers(
    database: Database, add: Add, claim_one: ClaimOne
) -> None:
    heard: list[str] = []
    moment = datetime.now(UTC)
    await add(queue="expired")
    await claim_one(queues={"expired": 0}, lease_s=30, now=moment)
    await add(queue="due", run_at=moment + timedelta(seconds=10))
    await add(queue="later", run_at=moment + HOUR)
    unsubscribe = database.bus.subscribe(queue.READY_TOPIC, heard.append)
    await Keeper(database=database).tick(moment + MINUTE)
    unsubscribe()
    assert set(heard) == {"expired", "due"}


async def test_finished_jobs_are_deleted_after_a_time_in_batches(
    database: Database, add: Add, claim_one: ClaimOne
) -> None:
    async with database.tx() as tx:
        await queue.enqueue_many(tx, "thing.do", [{}] * 25)
    moment = datetime.now(UTC)
    for _ in range(23):
        await queue.finish(database.pool, (await claim_one()).lease)
    keeper = Keeper(database=database, keep_s=60, batch=10)
    assert (await keeper.tick(moment + timedelta(seconds=59))).pruned == 0
    assert (await keeper.tick(moment + HOUR)).pruned == 23
    assert await database.pool.fetchval("SELECT count(*) FROM job") == 2


async def test_a_burst_of_jobs_is_seen_in_the_statistics_at_once(database: Database) -> None:
    async with database.tx() as tx:
        await queue.enqueue_many(tx, "thing.do", [{"text": "x" * 500}] * 5000)
    await Keeper(database=database).tick()
    assert await database.pool.fetchval("SELECT reltuples FROM pg_class WHERE relname = 'job'") == 5000


async def test_a_round_without_work_does_nothing(database: Database, add: Add) -> None:
    await add()
    await add(run_at=datetime.now(UTC) + HOUR)
    assert await Keeper(database=database).tick() == Round(expired=0, promoted=0, fired=0, pruned=0)


async def test_a_keeper_goes_on_after_a_round_that_failed(
    database: Database, add: Add, claim_one: ClaimOne, eventually: Eventually
) -> None:
    stop = asyncio.Event()
    async with database.tx() as tx:
        job_id = await queue.enqueue(tx, "thing.do", {}, run_at=datetime.now(UTC) + HOUR)
    await database.pool.execute("ALTER TABLE job RENAME TO hidden")
    running = asyncio.create_task(Keeper(database=database, tick_s=0.01).run(stop))
    errors = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    before = await database.pool.fetchval(errors)
    await eventually(lambda: _more_than(database, errors, before))
    await database.pool.execute("ALTER TABLE hidden RENAME TO job")
    await database.pool.execute("UPDATE job SET run_at = now() WHERE id = $1", job_id)
    await eventually(lambda: database.pool.fetchval("SELECT state = 'ready' FROM job"))
    stop.set()
    await asyncio.wait_for(running, 10)


async def _more_than(database: Database, sql: str, before: int) -> bool:
    return bool(await database.pool.fetchval(sql) > before)
