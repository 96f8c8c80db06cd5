"""The rules of the lease queue, statement by statement. Time is a parameter."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from toolcrib.core.db import Database, Tx
from toolcrib.errors import Conflict
from toolcrib.queue import queue
from toolcrib.queue.jobs import ClaimedJob
from toolcrib.queue.keeper import Keeper
from toolcrib.queue.queue import Job, Lease, LostLease, Statements

Add = Callable[..., Awaitable[int]]
ClaimOne = Callable[..., Awaitable[Job | None]]
JobRow = Callable[[int], Awaitable[dict[str, Any]]]

HOUR = timedelta(hours=1)
WRITES: dict[str, Callable[[Tx, Lease], Awaitable[object]]] = {
    "renew": lambda tx, lease: queue.renew(tx, lease, lease_s=30),
    "finish": lambda tx, lease: queue.finish(tx, lease, {}),
    "fail": lambda tx, lease: queue.fail(tx, lease, "no", retry_in_s=1),
    "snooze": lambda tx, lease: queue.snooze(tx, lease, 5),
    "release": queue.release,
}
WRITES_OF_MANY: dict[str, Callable[[Statements, Lease], Awaitable[set[Lease]]]] = {
    "finish_many": lambda on, lease: queue.finish_many(on, [(lease, {})]),
    "renew_many": lambda on, lease: queue.renew_many(on, [lease], lease_s=30),
}


def now() -> datetime:
    return datetime.now(UTC)


async def claim_many(database: Database, limit: int = 64, **options: Any) -> list[Job]:
    options = {"queues": {"default": 0}, "kinds": {"thing.do": 5}, "worker": "test"} | options
    return await queue.claim(database.pool, limit=limit, **options)


async def test_a_job_exists_only_if_the_transaction_that_adds_it_commits(
    database: Database, claim_one: ClaimOne
) -> None:
    async def add_in_vain() -> None:
        async with database.tx() as tx:
            await queue.enqueue(tx, "thing.do", {})
            raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError, match="changed my mind"):
        await add_in_vain()
    assert await claim_one() is None


async def test_a_claim_tells_all_about_the_job_and_leases_it(
    database: Database, add: Add, claim_one: ClaimOne, job_row: JobRow
) -> None:
    payload = {"b": 1, "a": [None, "\0 and ü"]}
    job_id = await add(payload=payload, workspace_id="workspace_1", priority=3, max_attempts=2)
    moment = now()
    job = await claim_one(lease_s=30, now=moment)
    assert job is not None
    assert (job.id, job.kind, job.payload, list(job.payload)) == (job_id, "thing.do", payload, ["b", "a"])
    assert (job.workspace_id, job.priority, job.attempt, job.max_attempts) == ("workspace_1", 3, 1, 2)
    assert job.lease_until == moment + timedelta(seconds=30)
    row = await job_row(job_id)
    assert (row["state"], row["worker"], row["started_at"]) == ("running", "test", moment)


async def test_a_running_job_is_not_claimed_again_until_its_lease_expires(add: Add, claim_one: ClaimOne) -> None:
    await add()
    moment = now()
    first = await claim_one(lease_s=30, now=moment)
    assert await claim_one(now=moment + timedelta(seconds=29)) is None
    second = await claim_one(now=moment + timedelta(seconds=30))
    assert first is not None
    assert second is not None
    assert (second.id, second.attempt) == (first.id, 2)
    assert second.lease_token != first.lease_token


async def test_jobs_are_claimed_by_priority_and_then_by_age(database: Database, add: Add) -> None:
    low, high, usual, high_too = [await add(priority=p) for p in (-1, 5, 0, 5)]
    assert [job.id for job in await claim_many(database)] == [high, high_too, usual, low]


async def test_a_claim_takes_no_more_than_a_power_of_two_within_its_limit(database: Database) -> None:
    async with database.tx() as tx:
        await queue.enqueue_many(tx, "thing.do", [{"n": n} for n in range(100)])
    assert [queue.claim_size(n) for n in (0, 1, 3, 10, 64, 1000)] == [1, 1, 2, 8, 64, 64]
    assert [len(await claim_many(database, n)) for n in (1, 3, 10, 1000, 1000)] == [1, 2, 8, 64, 25]


async def test_jobs_added_together_keep_their_order(database: Database) -> None:
    async with database.tx() as tx:
        ids = await queue.enqueue_many(tx, "thing.do", [{"n": n} for n in range(20)])
    jobs = await claim_many(database)
    assert [job.payload["n"] for job in jobs] == list(range(20))
    assert [job.id for job in jobs] == ids


async def test_a_claim_looks_only_for_kinds_and_in_queues_it_was_told(database: Database, add: Add) -> None:
    other_kind, mail = await add("other.kind"), await add(queue="mail")
    wanted = await add()
    assert [job.id for job in await claim_many(database)] == [wanted]
    jobs = await claim_many(database, queues={"mail": 0, "default": 0}, kinds={"thing.do": 5, "other.kind": 5})
    assert [job.id for job in jobs] == [other_kind, mail]


async def test_queues_are_searched_in_the_order_given(add: Add, claim_one: ClaimOne) -> None:
    in_default, in_mail = await add(priority=9), await add(queue="mail")
    first = await claim_one(queues={"mail": 0, "default": 0})
    second = await claim_one(queues={"mail": 0, "default": 0})
    assert [job and job.id for job in (first, second)] == [in_mail, in_default]


async def test_ready_jobs_at_or_below_a_mark_are_passed_over_and_expired_ones_are_not(
    add: Add, claim_one: ClaimOne
) -> None:
    expired, ready, above = [await add() for _ in range(3)]
    assert await claim_one(lease_s=30)
    later = now() + HOUR
    ids = [job and job.id for job in [await claim_one(queues={"default": ready}, now=later) for _ in range(3)]]
    assert ids == [above, expired, None]
    assert (await claim_one(now=later)).id == ready


async def test_concurrent_claims_never_share_a_job(database: Database) -> None:
    async with database.tx() as tx:
        ids = await queue.enqueue_many(tx, "thing.do", [{}] * 200)
    taken = await asyncio.gather(*(claim_many(database, 8) for _ in range(40)))
    assert sorted(job.id for jobs in taken for job in jobs) == ids


async def test_finishing_keeps_the_result_and_ends_the_lease(
    database: Database, add: Add, claim_one: ClaimOne, job_row: JobRow
) -> None:
    job_id = await add()
    job = await claim_one()
    await queue.finish(database.pool, job.lease, {"answer": 42})
    row = await job_row(job_id)
    assert (row["state"], row["result"], row["lease_token"]) == ("done", {"answer": 42}, None)
    assert row["finished_at"] is not None
    assert await claim_one(now=now() + HOUR) is None


@pytest.mark.parametrize("how", ["stolen", "cancelled", "finished"])
@pytest.mark.parametrize("verb", [*WRITES, *WRITES_OF_MANY])
async def test_whoever_lost_the_lease_can_change_nothing(
    database: Database, add: Add, claim_one: ClaimOne, job_row: JobRow, how: str, verb: str
) -> None:
    job_id = await add()
    old = await claim_one(lease_s=30)
    if how == "stolen":
        assert await claim_one(now=now() + HOUR)
    elif how == "cancelled":
        async with database.tx() as tx:
            assert await queue.cancel(tx, job_id)
    else:
        await queue.finish(database.pool, old.lease, {"first": True})
    before = await job_row(job_id)
    if verb in WRITES_OF_MANY:
        assert await WRITES_OF_MANY[verb](database.pool, old.lease) == set()
    else:
        async with database.tx() as tx:
            with pytest.raises(LostLease) as lost:
                await WRITES[verb](tx, old.lease)
        assert isinstance(lost.value, Conflict)
    assert await job_row(job_id) == before


async def test_a_renewed_lease_holds_longer(database: Database, add: Add, claim_one: ClaimOne) -> None:
    await add()
    moment = now()
    job = await claim_one(lease_s=30, now=moment)
    until = await queue.renew(database.pool, job.lease, lease_s=30, now=moment + timedelta(seconds=20))
    assert until == moment + timedelta(seconds=50)
    assert await claim_one(now=moment + timedelta(seconds=49)) is None
    held = await queue.renew_many(database.pool, [job.lease], lease_s=30, now=moment + timedelta(seconds=40))
    assert held == {job.lease}
    assert await claim_one(now=moment + timedelta(seconds=69)) is None
    assert await claim_one(now=moment + timedelta(seconds=70)) is not None


async def test_renewing_many_leases_does_not_wait_for_one_whose_holder_is_writing(
    database: Database, add: Add, claim_one: ClaimOne
) -> None:
    first, second = await add(), await add()
    jobs = [await claim_one(), await claim_one()]
    async with ClaimedJob(database, jobs[0], lease_s=30).tx(), asyncio.timeout(5):
        held = await queue.renew_many(database.pool, [job.lease for job in jobs], lease_s=30)
    assert {lease.job_id for lease in held} == {first, second}


async def test_many_jobs_are_finished_in_one_statement(database: Database) -> None:
    async with database.tx() as tx:
        await queue.enqueue_many(tx, "thing.do", [{}] * 4)
    jobs = await claim_many(database, 4)
    await queue.finish(database.pool, jobs[0].lease)
    finished = await queue.finish_many(database.pool, [(job.lease, {"id": job.id}) for job in jobs])
    assert finished == {job.lease for job in jobs[1:]}
    rows = await database.pool.fetch("SELECT id, result FROM job WHERE state = 'done' ORDER BY id")
    assert [row["result"] for row in rows] == [None, *({"id": job.id} for job in jobs[1:])]


async def test_a_failed_attempt_is_followed_by_another_after_the_pause(
    database: Database, add: Add, claim_one: ClaimOne, job_row: JobRow
) -> None:
    job_id = await add(max_attempts=2)
    moment, keeper = now(), Keeper(database=database)
    job = await claim_one(now=moment)
    assert await queue.fail(database.pool, job.lease, "first", retry_in_s=60, now=moment) == "scheduled"
    assert (await job_row(job_id))["run_at"] == moment + timedelta(seconds=60)
    assert (await keeper.tick(moment + timedelta(seconds=59))).promoted == 0
    assert (await keeper.tick(moment + timedelta(seconds=60))).promoted == 1
    job = await claim_one()
    assert job.attempt == 2
    assert await queue.fail(database.pool, job.lease, "second\0 \ud800" + "x" * 9000, retry_in_s=60) == "failed"
    row = await job_row(job_id)
    assert row["finished_at"] is not None
    assert row["error"].startswith("second ?x")
    assert len(row["error"]) == 2000


async def test_failing_without_a_pause_is_final(database: Database, add: Add, claim_one: ClaimOne) -> None:
    await add(max_attempts=9)
    job = await claim_one()
    assert await queue.fail(database.pool, job.lease, "useless") == "failed"


async def test_snoozing_and_releasing_do_not_count_as_attempts(
    database: Database, add: Add, claim_one: ClaimOne, job_row: JobRow
) -> None:
    job_id = await add(max_attempts=1)
    moment = now()
    job = await claim_one(now=moment)
    await queue.snooze(database.pool, job.lease, 90, now=moment)
    row = await job_row(job_id)
    assert (row["state"], row["attempt"], row["run_at"]) == ("scheduled", 0, moment + timedelta(seconds=90))
    await Keeper(database=database).tick(moment + timedelta(seconds=90))
    job = await claim_one()
    async with database.tx() as tx:
        await queue.release(tx, job.lease)
    job = await claim_one()
    assert (job.id, job.attempt) == (job_id, 1)


async def test_the_limit_of_attempts_is_the_jobs_own_or_that_of_its_kind(add: Add, claim_one: ClaimOne) -> None:
    await add()
    await add(max_attempts=7)
    kinds = {"other.kind": 1, "thing.do": 4}
    assert [(await claim_one(kinds=kinds)).max_attempts for _ in range(2)] == [4, 7]


async def test_a_job_without_attempts_left_is_not_claimed_when_its_lease_expires(add: Add, claim_one: ClaimOne) -> None:
    await add(max_attempts=1)
    assert await claim_one(lease_s=30)
    assert await claim_one(now=now() + HOUR) is None


async def test_a_job_for_later_waits(database: Database, add: Add, claim_one: ClaimOne) -> None:
    at = now() + HOUR
    job_id = await add(run_at=at)
    past = await add(run_at=now() - HOUR)
    assert (await claim_one(lease_s=86400)).id == past
    assert await claim_one(now=at + HOUR) is None
    await Keeper(database=database).tick(at)
    assert (await claim_one()).id == job_id


async def test_cancelling_ends_what_has_not_finished(database: Database, add: Add, claim_one: ClaimOne) -> None:
    running, done, ready = await add(), await add(), await add()
    scheduled = await add(run_at=now() + HOUR)
    await claim_one()
    await queue.finish(database.pool, (await claim_one()).lease)
    async with database.tx() as tx:
        results = [await queue.cancel(tx, job_id) for job_id in (running, done, ready, scheduled, 10**9)]
        assert results == [True, False, True, True, False]
        assert [await queue.cancel(tx, job_id) for job_id in (running, ready)] == [False, False]
        assert tx.news == [(queue.CANCELLED_TOPIC, str(running))]
    assert await claim_one(now=now() + 2 * HOUR) is None


async def test_one_waiting_job_carries_a_dedupe_key(database: Database, add: Add, claim_one: ClaimOne) -> None:
    first = await add(dedupe_key="k")
    assert await add(dedupe_key="k") == first
    others = [await add("other.kind", dedupe_key="k"), await add(workspace_id="w", dedupe_key="k")]
    assert len({first, *others}) == 3
    job = await claim_one()
    assert job.id == first
    second = await add(dedupe_key="k")
    assert second != first  # the first one runs: it may have missed what the second is about
    assert await queue.fail(database.pool, job.lease, "again", retry_in_s=0) == "scheduled"  # and both may wait
    assert await add(dedupe_key="k") == second
    async with database.tx() as tx:
        await queue.cancel(tx, second)
    assert await add(dedupe_key="k") not in {first, second}


async def test_a_waiting_job_takes_the_earlier_time_and_the_higher_priority(add: Add, job_row: JobRow) -> None:
    later = now() + 2 * HOUR
    job_id = await add(dedupe_key="k", run_at=later)
    assert await add(dedupe_key="k", run_at=later - HOUR, priority=4) == job_id
    row = await job_row(job_id)
    assert (row["state"], row["run_at"], row["priority"]) == ("scheduled", later - HOUR, 4)
    assert await add(dedupe_key="k") == job_id
    row = await job_row(job_id)
    assert (row["state"], row["priority"]) == ("ready", 4)
    assert await add(dedupe_key="k", run_at=later) == job_id
    assert (await job_row(job_id))["state"] == "ready"


async def test_a_job_found_by_its_key_cannot_start_before_the_finder_commits(
    database: Database, add: Add, claim_one: ClaimOne
) -> None:
    job_id = await add(dedupe_key="k")
    async with database.tx() as tx:
        assert await queue.enqueue(tx, "thing.do", {}, dedupe_key="k") == job_id
        assert await claim_one() is None
    assert (await claim_one()).id == job_id


async def test_two_transactions_that_add_the_same_key_at_once_make_one_job(database: Database) -> None:
    async def add_slowly() -> int:
        async with database.tx() as tx:
            job_id = await queue.enqueue(tx, "thing.do", {}, dedupe_key="k")
            await tx.fetchval("SELECT count(*) FROM job")
            return job_id

    assert len(set(await asyncio.gather(*(add_slowly() for _ in range(8))))) == 1


async def test_nobody_can_take_a_job_while_its_holder_writes_even_past_the_lease(
    database: Database, add: Add, claim_one: ClaimOne
) -> None:
    await add()
    claimed = ClaimedJob(database, await claim_one(lease_s=30), lease_s=30)
    later = now() + HOUR
    async with claimed.tx() as tx:
        assert await claim_one(now=later) is None
        assert (await Keeper(database=database).tick(later)).expired == 0
        await claimed.finish(tx, {"done": True})
    assert await claim_one(now=later) is None


async def test_what_a_handler_writes_and_the_end_of_its_job_happen_together_or_not_at_all(
    effects: Database, add: Add, claim_one: ClaimOne, job_row: JobRow
) -> None:
    job_id = await add()
    claimed = ClaimedJob(effects, await claim_one(), lease_s=30)

    async def write(*, trouble: bool) -> None:
        async with claimed.tx() as tx:
            await tx.execute("INSERT INTO effect VALUES ($1, 1)", job_id)
            await claimed.finish(tx)
            if trouble:
                raise RuntimeError("late")

    with pytest.raises(RuntimeError, match="late"):
        await write(trouble=True)
    assert not claimed.finishing
    assert (await job_row(job_id))["state"] == "running"
    assert await effects.pool.fetchval("SELECT count(*) FROM effect") == 0
    await write(trouble=False)
    assert claimed.finishing
    assert (await job_row(job_id))["state"] == "done"
    with pytest.raises(LostLease):
        await write(trouble=False)
    assert await effects.pool.fetchval("SELECT count(*) FROM effect") == 1
    assert claimed.finishing


async def test_stats_count_unfinished_jobs_and_recent_ends_per_queue(
    database: Database, add: Add, claim_one: ClaimOne
) -> None:
    for _ in range(3):
        await add()
    await add(queue="mail", run_at=now() + HOUR)
    await queue.finish(database.pool, (await claim_one()).lease)
    await queue.fail(database.pool, (await claim_one()).lease, "no", now=now() - 2 * HOUR)
    await add()
    await claim_one()
    async with database.read() as tx:
        counts = {(c.queue, c.state): c.count for c in await queue.stats(tx)}
    assert counts == {
        ("default", "ready"): 1,
        ("default", "running"): 1,
        ("default", "done"): 1,
        ("mail", "scheduled"): 1,
    }
