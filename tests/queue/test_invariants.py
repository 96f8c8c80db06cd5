"""Any order of operations, by holders and by those who only think they hold, against a model in a few lines."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from toolcrib.core.db import Database
from toolcrib.queue import queue
from toolcrib.queue.keeper import Keeper
from toolcrib.queue.queue import Job, Lease, LostLease

QUEUES = ("a", "b")
LEASE = timedelta(hours=2)
FINISHED = ("done", "failed", "cancelled")
ENDS = ("finish", "fail", "retry", "snooze", "release", "renew")


@dataclass
class Known:
    """What the model knows of a job."""

    id: int
    queue: str
    priority: int
    key: str | None
    run_at: datetime
    state: str
    limit: int
    attempt: int = 0
    started: bool = False
    token: Lease | None = None
    until: datetime | None = None


pick = st.integers(0, 30)
operations = st.one_of(
    st.tuples(
        st.just("enqueue"),
        st.sampled_from(QUEUES),
        st.integers(0, 2),
        st.sampled_from([None, None, "k1", "k2"]),
        st.sampled_from([0, 0, 0, 1, 2]),  # hours
        st.integers(1, 3),
    ),
    st.tuples(st.just("claim"), st.sampled_from([("a",), QUEUES, QUEUES]), st.integers(1, 4)),
    st.tuples(st.sampled_from(ENDS), pick),
    st.tuples(st.just("cancel"), pick),
    st.tuples(st.just("pass"), st.integers(1, 3)),
    st.tuples(st.just("tick")),
)


class Model:
    """Runs operations on the queue and on itself, and compares."""

    def __init__(self, database: Database, now: datetime) -> None:
        self.database = database
        self.now = now
        self.jobs: dict[int, Known] = {}
        self.leases: list[Lease] = []  # all there ever were

    async def do(self, name: str, *args: Any) -> None:
        if name in ENDS:
            if self.leases:
                await self.end(name, self.leases[args[0] % len(self.leases)])
        else:
            await getattr(self, f"do_{name}")(*args)
        await self.compare()

    async def do_enqueue(self, queue_name: str, priority: int, key: str | None, delay_h: int, limit: int) -> None:
        later = self.now + timedelta(hours=delay_h) if delay_h else None
        async with self.database.tx() as tx:
            real_now = await tx.fetchval("SELECT now()")  # behind the model's clock
            job_id = await queue.enqueue(
                tx, "thing.do", {}, queue=queue_name, priority=priority, dedupe_key=key, run_at=later,
                max_attempts=limit,
            )  # fmt: skip
        run_at, state = (later, "scheduled") if later else (real_now, "ready")
        waiting = [j for j in self.jobs.values() if key and j.key == key and not j.started and j.state not in FINISHED]
        assert len(waiting) <= 1
        if waiting:
            (job,) = waiting
            assert job_id == job.id
            job.run_at, job.priority = min(job.run_at, run_at), max(job.priority, priority)
            job.state = "ready" if "ready" in (job.state, state) else "scheduled"
        else:
            assert job_id not in self.jobs
            self.jobs[job_id] = Known(job_id, queue_name, priority, key, run_at, state, limit)

    def claimable(self, queues: tuple[str, ...]) -> Iterator[Known]:
        for name in queues:
            ready = [j for j in self.jobs.values() if j.queue == name and j.state == "ready"]
            yield from sorted(ready, key=lambda j: (-j.priority, j.id))

    def expired(self, queues: tuple[str, ...]) -> list[Known]:
        running = [j for j in self.jobs.values() if j.state == "running" and j.queue in queues]
        return [j for j in running if j.until <= self.now and j.attempt < j.limit]

    async def do_claim(self, queues: tuple[str, ...], limit: int) -> None:
        size = queue.claim_size(limit)
        taken = await queue.claim(
            self.database.pool, queues=dict.fromkeys(queues, 0), kinds={"thing.do": 9}, worker="w", limit=limit,
            lease_s=LEASE.total_seconds(), now=self.now,
        )  # fmt: skip
        ready, expired = list(self.claimable(queues))[:size], {j.id for j in self.expired(queues)}
        ids = {job.id for job in taken}
        assert {j.id for j in ready} <= ids
        assert ids - {j.id for j in ready} <= expired
        assert len(taken) == min(size, len(ready) + len(expired))
        for job in taken:
            self.hand_out(job)

    def hand_out(self, job: Job) -> None:
        known = self.jobs[job.id]
        known.attempt += 1
        assert (job.attempt, job.max_attempts, job.priority) == (known.attempt, known.limit, known.priority)
        assert job.lease not in self.leases
        self.leases.append(job.lease)
        known.state, known.started, known.token, known.until = "running", True, job.lease, self.now + LEASE

    async def end(self, how: str, lease: Lease) -> None:
        job, held = self.jobs[lease.job_id], True
        try:
            async with self.database.tx() as tx:
                match how:
                    case "finish":
                        await queue.finish(tx, lease, now=self.now)
                    case "fail":
                        await queue.fail(tx, lease, "no", now=self.now)
                    case "retry":
                        await queue.fail(tx, lease, "no", retry_in_s=3600, now=self.now)
                    case "snooze":
                        await queue.snooze(tx, lease, 3600, now=self.now)
                    case "release":
                        await queue.release(tx, lease)
                    case _:
                        await queue.renew(tx, lease, lease_s=LEASE.total_seconds(), now=self.now)
        except LostLease:
            held = False
        assert held == (job.token == lease)
        if not held:
            return
        if how == "renew":
            job.until = self.now + LEASE
            return
        job.token = job.until = None
        later = how == "snooze" or (how == "retry" and job.attempt < job.limit)
        if later:
            job.run_at = self.now + timedelta(hours=1)
        job.state = "scheduled" if later else {"finish": "done", "release": "ready"}.get(how, "failed")
        job.attempt -= how in ("snooze", "release")

    async def do_cancel(self, n: int) -> None:
        if not self.jobs:
            return
        job = list(self.jobs.values())[n % len(self.jobs)]
        async with self.database.tx() as tx:
            assert await queue.cancel(tx, job.id, now=self.now) == (job.state not in FINISHED)
        if job.state not in FINISHED:
            job.state, job.token, job.until = "cancelled", None, None

    async def do_pass(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    async def do_tick(self) -> None:
        done = await Keeper(database=self.database, keep_s=10**9, batch=3).tick(self.now)
        expired = [j for j in self.jobs.values() if j.state == "running" and j.until <= self.now]
        for job in expired:
            job.state = "ready" if job.attempt < job.limit else "failed"
            job.token = job.until = None
        due = [j for j in self.jobs.values() if j.state == "scheduled" and j.run_at <= self.now]
        for job in due:
            job.state = "ready"
        assert (done.expired, done.promoted) == (len(expired), len(due))

    async def compare(self) -> None:
        rows = await self.database.pool.fetch("SELECT id, state, attempt, priority, lease_token, run_at FROM job")
        stored = {r["id"]: (r["state"], r["attempt"], r["priority"], r["lease_token"], r["run_at"]) for r in rows}
        assert stored == {
            j.id: (j.state, j.attempt, j.priority, j.token and j.token.token, j.run_at) for j in self.jobs.values()
        }


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(operations, min_size=5, max_size=40))
async def test_any_order_of_operations_leaves_the_queue_as_its_rules_say(database: Database, steps: list[Any]) -> None:
    await database.pool.execute("TRUNCATE job")
    model = Model(database, datetime.now(UTC).replace(microsecond=0) + timedelta(days=1))
    for step in steps:
        await model.do(*step)
