"""What time does to jobs that nobody holds: schedules fire, due jobs become ready, expired leases end, history goes.

Any number of keepers may run; each step is safe to do twice at once. That a schedule fires once is the unique key of
`schedule_firing`, written in the transaction that adds the job. A keeper that dies costs time only, because the next
one finds the same work. It runs no jobs: that is `worker.py`.
"""

import asyncio
import contextlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from cronsim import CronSim, CronSimError

from toolcrib.core.db import Database
from toolcrib.queue import queue

_DAY_S = 86_400.0
_LONGEST_PAUSE_S = 10.0  # after rounds that failed

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A job to add again and again, at times of `cron` (UTC) or at every multiple of `every_s` since 1970.

    At most one job of a schedule waits: a firing while the last one's job has not started adds none.

    Attributes:
        id: its name in the database; a schedule that is renamed is a new one.
        cron: five fields as in Debian's cron, or six with seconds first.
        every_s: whole seconds.

    Raises:
        ValueError: not exactly one of `cron` and `every_s`, or one that means nothing.
    """

    id: str
    kind: str
    cron: str | None = None
    every_s: int | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)
    queue: str = "default"
    priority: int = 0

    def __post_init__(self) -> None:
        if (self.cron is None) == (self.every_s is None):
            raise ValueError(f"schedule {self.id}: exactly one of cron and every_s")
        if self.every_s is not None and self.every_s < 1:
            raise ValueError(f"schedule {self.id}: every_s is at least 1")
        try:
            self.latest_due(datetime.now(UTC))
        except (CronSimError, StopIteration) as error:
            raise ValueError(f"schedule {self.id}: {self.cron!r} is no cron text: {error}") from error

    def latest_due(self, now: datetime) -> datetime:
        """The last time at or before `now` at which it is due."""
        if self.cron is None:
            interval = self.every_s or 1
            return datetime.fromtimestamp(now.timestamp() // interval * interval, UTC)
        start = now.astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)  # the search excludes its start
        return next(CronSim(self.cron, start, reverse=True))


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did: leases ended, jobs made ready, schedules fired, jobs deleted."""

    expired: int
    promoted: int
    fired: int
    pruned: int


@dataclass(eq=False, kw_only=True)
class Keeper:
    """Does its rounds until told to stop.

    Attributes:
        schedules: what fires; each `Schedule.id` once.
        keep_s: how long finished jobs and firings are kept.
        tick_s: the pause between rounds; varies by a quarter.
        batch: how many jobs one statement changes.
    """

    database: Database
    schedules: Sequence[Schedule] = ()
    keep_s: float = 7 * _DAY_S
    tick_s: float = 1.0
    batch: int = 500

    def __post_init__(self) -> None:
        if len({schedule.id for schedule in self.schedules}) < len(self.schedules):
            raise ValueError("two schedules have the same id")
        self._fired: dict[str, datetime] = {}  # the latest firing of each schedule that we know is recorded

    async def run(self, stop: asyncio.Event) -> None:
        """Do rounds until `stop` is set. A round that fails is logged and followed by another, later."""
        failures = 0
        while not stop.is_set():
            pause_s = self.tick_s * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load
            try:
                await self.tick()
                failures = 0
            except Exception as error:  # noqa: BLE001 - whatever it is, the only cure is to try again
                failures += 1
                pause_s = min(pause_s * 2 ** min(failures, 16), _LONGEST_PAUSE_S)
                unexpected = None if isinstance(error, queue.DATABASE_AWAY) else error
                _log.warning(
                    "keeper.round_failed", error=type(error).__name__, exc_info=unexpected, next_in_s=round(pause_s, 1)
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await stop.wait()

    async def tick(self, now: datetime | None = None) -> Round:
        """One round. `now` replaces the database's clock."""
        if now is None:
            now = await self.database.pool.fetchval("SELECT now()")
        expired = await self._end_expired(now)
        promoted = await self._promote_due(now)
        fired = sum([await self._fire(schedule, now) for schedule in self.schedules])
        await self._refresh_statistics()
        return Round(expired, promoted, fired, await self._prune(now))

    async def _end_expired(self, now: datetime) -> int:
        """Jobs whose worker fell silent: ready again, or failed when no attempt is left."""
        return await self._change(
            "UPDATE job SET lease_token = NULL, lease_until = NULL, error = 'lease expired',"
            " state = CASE WHEN attempt < max_attempts THEN 'ready' ELSE 'failed' END,"
            " finished_at = CASE WHEN attempt < max_attempts THEN NULL ELSE $1::timestamptz END"
            " WHERE id = ANY (ARRAY(SELECT id FROM job WHERE state = 'running' AND lease_until <= $1"
            " LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING queue, state",
            now,
        )

    async def _promote_due(self, now: datetime) -> int:
        return await self._change(
            "UPDATE job SET state = 'ready' WHERE id = ANY (ARRAY(SELECT id FROM job"
            " WHERE state = 'scheduled' AND run_at <= $1 ORDER BY run_at LIMIT $2 FOR UPDATE SKIP LOCKED))"
            " RETURNING queue, state",
            now,
        )

    async def _change(self, sql: str, now: datetime) -> int:
        """Run the statement until it changes less than a batch, and tell which queues have ready jobs."""
        total, count = 0, self.batch
        while count == self.batch:
            async with self.database.tx() as tx:
                rows = await tx.fetch(sql, now, self.batch)
                for name in {row["queue"] for row in rows if row["state"] == "ready"}:
                    await tx.publish(queue.READY_TOPIC, name)
            count = len(rows)
            total += count
        return total

    async def _fire(self, schedule: Schedule, now: datetime) -> bool:
        """Add the schedule's job if it is due; returns whether it was.

        After a pause only the latest due time fires. A schedule seen for the first time fires at its next due time.
        """
        due_at = schedule.latest_due(now)
        recorded = self._fired.get(schedule.id)
        if recorded is not None and due_at <= recorded:
            return False
        async with self.database.tx() as tx:
            firing = await tx.fetchrow(
                "WITH last AS (SELECT max(due_at) AS due_at FROM schedule_firing WHERE schedule_id = $1)"
                " INSERT INTO schedule_firing (schedule_id, due_at)"
                " SELECT $1, $2 FROM last WHERE due_at IS NULL OR due_at < $2"
                " ON CONFLICT DO NOTHING RETURNING (SELECT due_at FROM last) IS NULL AS is_first",
                schedule.id, due_at,
            )  # fmt: skip
            fires = firing is not None and not firing["is_first"]
            if fires:
                job_id = await queue.enqueue(
                    tx,
                    schedule.kind,
                    schedule.payload,
                    queue=schedule.queue,
                    priority=schedule.priority,
                    dedupe_key=f"schedule:{schedule.id}",
                )
                await tx.execute(
                    "UPDATE schedule_firing SET job_id = $3 WHERE schedule_id = $1 AND due_at = $2",
                    schedule.id, due_at, job_id,
                )  # fmt: skip
                await tx.execute(  # never the latest: that one keeps the schedule from firing twice
                    "DELETE FROM schedule_firing WHERE schedule_id = $1 AND due_at < $2",
                    schedule.id, due_at - timedelta(seconds=self.keep_s),
                )  # fmt: skip
        self._fired[schedule.id] = due_at
        return fires

    async def _refresh_statistics(self) -> None:
        """Look at the table anew when it has grown fast.

        Connections keep the plans they made while it was small, which read all of it; autovacuum ends that in a minute
        or two. Measured: after a burst of 200,000 jobs, 20 to 60 claims a second until then, 1,200 to 1,400 with this.
        """
        grown = await self.database.pool.fetchval(
            "SELECT pg_relation_size(oid) / current_setting('block_size')::integer > 4 * greatest(relpages, 64)"
            " FROM pg_class WHERE oid = 'job'::regclass"
        )
        if grown:
            await self.database.pool.execute("ANALYZE job")

    async def _prune(self, now: datetime) -> int:
        """Delete jobs that finished long ago; a long backlog is left to later rounds."""
        total = 0
        for _ in range(20):
            rows = await self.database.pool.fetch(
                "DELETE FROM job WHERE id = ANY (ARRAY(SELECT id FROM job WHERE finished_at < $1"
                " ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING id",
                now - timedelta(seconds=self.keep_s), self.batch,
            )  # fmt: skip
            total += len(rows)
            if len(rows) < self.batch:
                break
        return total
