"""The lease queue: the states of a row of `job`, and who may change them.

A job is inserted in the transaction that makes it necessary. `claim` gives it to one worker for a while: the lease, a
token that is new with every claim. Each write about a running job names its token, so a worker that lost its lease
(it was slow, paused, or cut off) changes nothing and learns so: `LostLease`. Time is the database's; `now` replaces it
in tests. What runs a job is `worker.py`; what time does to jobs nobody holds is `keeper.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol
from uuid import UUID

import asyncpg

from toolcrib.core.db import ReadTx, Row, Tx
from toolcrib.errors import Conflict

State = Literal["ready", "scheduled", "running", "done", "failed", "cancelled"]
READY_TOPIC = "job"  # news: the queue in which a job became ready
CANCELLED_TOPIC = "job_cancelled"  # news: the id of a job that was running when it was cancelled
CLAIM_LIMIT = 64  # most jobs that one claim takes
_ERROR_LIMIT = 2000  # characters

# What a statement raises when the database is away, restarting or overloaded. Its subclass `asyncpg.DataError` is none
# of these: it says that a value cannot be stored.
DATABASE_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.ObjectNotInPrerequisiteStateError,
)

_NOW = "coalesce($1::timestamptz, now())"
_COLUMNS = (
    "id, workspace_id, queue, kind, payload, priority, attempt, max_attempts, run_at, created_at, lease_token,"
    " lease_until"
)


class LostLease(Conflict):
    """The lease is gone: another attempt owns the job, or it was cancelled. Stop, write nothing."""

    def __init__(self, job_id: int) -> None:
        super().__init__("job.lease_lost", f"The lease on job {job_id} is lost.")


class Statements(Protocol):
    """Where a single statement can run: a `Tx`, or a pool when nothing else belongs to the same transaction."""

    async def fetch(self, sql: str, /, *args: object) -> list[Row]:
        """All rows."""


class Lease(NamedTuple):
    """The proof of holding a job."""

    job_id: int
    token: UUID


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job.

    Attributes:
        attempt: which attempt this is, from 1.
        max_attempts: after this many the job has failed.
        lease_until: when others may take the job, unless the lease is renewed.
    """

    id: int
    workspace_id: str | None
    queue: str
    kind: str
    payload: dict[str, Any]
    priority: int
    attempt: int
    max_attempts: int
    run_at: datetime
    created_at: datetime
    lease_token: UUID
    lease_until: datetime

    @property
    def lease(self) -> Lease:
        """The proof that every write about this attempt carries."""
        return Lease(self.id, self.lease_token)


@dataclass(frozen=True, slots=True)
class QueueCount:
    """How many jobs of a queue are in a state."""

    queue: str
    state: State
    count: int


async def enqueue(
    tx: Tx,
    kind: str,
    payload: Mapping[str, Any],
    *,
    queue: str = "default",
    workspace_id: str | None = None,
    priority: int = 0,
    run_at: datetime | None = None,
    max_attempts: int | None = None,
    dedupe_key: str | None = None,
) -> int:
    """Add a job in the caller's transaction; returns its id. Workers hear of it when that commits.

    A higher `priority` runs first; `run_at` is the earliest start; `max_attempts` replaces the limit that the kind was
    registered with. With a `dedupe_key`: if a job of this workspace and kind carries the key and has never started, its
    id is returned instead. It takes the earlier time and the higher priority of the two, and cannot start before this
    transaction ends, so that it will see what this transaction wrote.
    """
    rows = await tx.fetch(
        "INSERT INTO job (kind, payload, queue, workspace_id, priority, run_at, max_attempts, dedupe_key, state)"
        " VALUES ($1, $2, $3, $4, $5, coalesce($6, now()), $7, $8,"
        " CASE WHEN $6 > clock_timestamp() THEN 'scheduled' ELSE 'ready' END)"
        " ON CONFLICT (workspace_id, kind, dedupe_key)"
        " WHERE dedupe_key IS NOT NULL AND started_at IS NULL AND finished_at IS NULL"
        " DO UPDATE SET run_at = least(job.run_at, excluded.run_at),"
        " priority = greatest(job.priority, excluded.priority),"
        " state = CASE WHEN 'ready' IN (job.state, excluded.state) THEN 'ready' ELSE 'scheduled' END"
        " RETURNING id, queue, state",
        kind, dict(payload), queue, workspace_id, priority, run_at, max_attempts, dedupe_key,
    )  # fmt: skip
    row = rows[0]
    if row["state"] == "ready":
        await tx.publish(READY_TOPIC, row["queue"])
    job_id: int = row["id"]
    return job_id


async def enqueue_many(
    tx: Tx,
    kind: str,
    payloads: Sequence[Mapping[str, Any]],
    *,
    queue: str = "default",
    workspace_id: str | None = None,
    priority: int = 0,
) -> list[int]:
    """Add jobs of one kind, ready at once, in one statement; returns their ids in order."""
    rows = await tx.fetch(
        "INSERT INTO job (kind, payload, queue, workspace_id, priority)"
        " SELECT $1, payload, $3, $4, $5 FROM unnest($2::json[]) WITH ORDINALITY AS new (payload, place) ORDER BY place"
        " RETURNING id",
        kind, [dict(p) for p in payloads], queue, workspace_id, priority,
    )  # fmt: skip
    if rows:
        await tx.publish(READY_TOPIC, queue)
    return sorted(row["id"] for row in rows)


def claim_size(limit: int) -> int:
    """How many jobs a claim with this limit asks for: a power of two, at most `CLAIM_LIMIT`.

    The number stands in the SQL, because PostgreSQL plans a LIMIT it does not know for a tenth of the table, and then
    plans again at every execution: that doubles the cost of a claim.
    """
    return 1 << (max(1, min(limit, CLAIM_LIMIT)).bit_length() - 1)


def _claim_sql(size: int) -> str:
    take = f"LIMIT {size} FOR UPDATE SKIP LOCKED"
    return (
        f"UPDATE job SET state = 'running', attempt = attempt + 1, worker = $5, started_at = {_NOW},"
        f" lease_token = gen_random_uuid(), lease_until = {_NOW} + make_interval(secs => $2),"
        " max_attempts = coalesce(max_attempts, ($4::integer[])[array_position($3::text[], kind)])"
        # An array is computed once; with IN, PostgreSQL may join, run the sub-select again, and claim too many.
        " WHERE id = ANY (ARRAY(SELECT id FROM ("
        "SELECT ready.id FROM unnest($6::text[], $7::bigint[]) AS wanted (queue, above_id),"
        " LATERAL (SELECT id FROM job WHERE state = 'ready' AND queue = wanted.queue AND id > wanted.above_id"
        f" AND kind = ANY ($3) ORDER BY priority DESC, id {take}) AS ready"
        " UNION ALL SELECT expired.id FROM unnest($6::text[]) AS wanted (queue),"
        " LATERAL (SELECT id FROM job WHERE state = 'running' AND queue = wanted.queue"
        f" AND lease_until <= {_NOW} AND attempt < max_attempts AND kind = ANY ($3) {take}) AS expired"
        f") AS claimable LIMIT {size}))"
        f" RETURNING {_COLUMNS}"
    )


_CLAIM_SQL = {size: _claim_sql(size) for size in (1 << n for n in range(CLAIM_LIMIT.bit_length()))}


async def claim(
    on: Statements,
    *,
    queues: Mapping[str, int],
    kinds: Mapping[str, int],
    worker: str,
    limit: int = 1,
    lease_s: float = 30.0,
    now: datetime | None = None,
) -> list[Job]:
    """Take up to `claim_size(limit)` jobs, highest priority first and oldest first within it.

    When fewer are ready, jobs whose lease has expired and that have attempts left are taken too.

    `queues` says where to look, in this order, and per queue an id at or below which ready jobs are not looked for (0
    finds all; `worker.py` tells why one would want more). `kinds` says what the worker can run, and how many attempts a
    job of the kind gets that does not say itself. `worker` is a name for people who look at the table. After `lease_s`
    seconds others may take the jobs, unless the leases are renewed.
    """
    rows = await on.fetch(
        _CLAIM_SQL[claim_size(limit)],
        now, lease_s, list(kinds), list(kinds.values()), worker, list(queues), list(queues.values()),
    )  # fmt: skip
    return sorted((Job(**row) for row in rows), key=lambda job: (-job.priority, job.id))


async def renew(on: Statements, lease: Lease, *, lease_s: float, now: datetime | None = None) -> datetime:
    """Hold the job for `lease_s` from now; returns until when. Inside a transaction nobody can take it until that ends.

    Raises:
        LostLease: the job is not held with this token.
    """
    rows = await on.fetch(
        f"UPDATE job SET lease_until = {_NOW} + make_interval(secs => $4) WHERE id = $2 AND lease_token = $3"
        " RETURNING lease_until",
        now, lease.job_id, lease.token, lease_s,
    )  # fmt: skip
    if not rows:
        raise LostLease(lease.job_id)
    until: datetime = rows[0]["lease_until"]
    return until


async def renew_many(
    on: Statements, leases: Sequence[Lease], *, lease_s: float, now: datetime | None = None
) -> set[Lease]:
    """Renew many leases in one statement; returns those still held.

    Never waits: a row that is locked belongs to a `ClaimedJob.tx` of its own holder, which has renewed it.
    """
    rows = await on.fetch(
        "WITH free AS (SELECT id FROM job WHERE id = ANY ($2::bigint[]) AND lease_token = ANY ($3::uuid[])"
        " FOR NO KEY UPDATE SKIP LOCKED),"
        f" renewed AS (UPDATE job SET lease_until = {_NOW} + make_interval(secs => $4)"
        " WHERE id = ANY (ARRAY(SELECT id FROM free)))"
        " SELECT id, lease_token FROM job WHERE id = ANY ($2) AND lease_token = ANY ($3)",
        now, [lease.job_id for lease in leases], [lease.token for lease in leases], lease_s,
    )  # fmt: skip
    return {Lease(row["id"], row["lease_token"]) for row in rows}


async def finish(on: Statements, lease: Lease, result: Any = None, *, now: datetime | None = None) -> None:
    """The job is done; `result` is JSON to keep with it.

    Raises:
        LostLease: the job is not held with this token; nothing was written.
    """
    rows = await on.fetch(
        "UPDATE job SET state = 'done', result = $4, error = NULL, lease_token = NULL, lease_until = NULL,"
        f" finished_at = {_NOW} WHERE id = $2 AND lease_token = $3 RETURNING id",
        now, lease.job_id, lease.token, result,
    )  # fmt: skip
    if not rows:
        raise LostLease(lease.job_id)


async def finish_many(
    on: Statements, results: Iterable[tuple[Lease, Any]], *, now: datetime | None = None
) -> set[Lease]:
    """Finish jobs in one statement; returns those finished. The others' leases are lost."""
    done = list(results)
    rows = await on.fetch(
        "UPDATE job SET state = 'done', result = mine.result, error = NULL, lease_token = NULL, lease_until = NULL,"
        f" finished_at = {_NOW} FROM unnest($2::bigint[], $3::uuid[], $4::json[]) AS mine (id, token, result)"
        " WHERE job.id = mine.id AND job.lease_token = mine.token RETURNING mine.id, mine.token",
        now, [lease.job_id for lease, _ in done], [lease.token for lease, _ in done], [result for _, result in done],
    )  # fmt: skip
    return {Lease(row["id"], row["token"]) for row in rows}


async def fail(
    on: Statements, lease: Lease, error: str, *, retry_in_s: float | None = None, now: datetime | None = None
) -> State:
    """This attempt failed; returns the new state. Runs again in `retry_in_s` seconds if attempts are left.

    Without `retry_in_s` the job has failed for good. `error` is a sentence for people and must not contain a secret.

    Raises:
        LostLease: the job is not held with this token; nothing was written.
    """
    retries = "$5::double precision IS NOT NULL AND attempt < max_attempts"
    rows = await on.fetch(
        "UPDATE job SET error = $4, lease_token = NULL, lease_until = NULL,"
        f" state = CASE WHEN {retries} THEN 'scheduled' ELSE 'failed' END,"
        f" run_at = CASE WHEN {retries} THEN {_NOW} + make_interval(secs => $5) ELSE run_at END,"
        f" finished_at = CASE WHEN {retries} THEN NULL ELSE {_NOW} END"
        " WHERE id = $2 AND lease_token = $3 RETURNING state",
        now, lease.job_id, lease.token, _storable(error), retry_in_s,
    )  # fmt: skip
    if not rows:
        raise LostLease(lease.job_id)
    state: State = rows[0]["state"]
    return state


async def snooze(on: Statements, lease: Lease, for_s: float, *, now: datetime | None = None) -> None:
    """Put the job off; this attempt does not count.

    Raises:
        LostLease: the job is not held with this token; nothing was written.
    """
    rows = await on.fetch(
        "UPDATE job SET state = 'scheduled', attempt = attempt - 1, lease_token = NULL, lease_until = NULL,"
        f" run_at = {_NOW} + make_interval(secs => $4) WHERE id = $2 AND lease_token = $3 RETURNING id",
        now, lease.job_id, lease.token, for_s,
    )  # fmt: skip
    if not rows:
        raise LostLease(lease.job_id)


async def release(tx: Tx, lease: Lease) -> None:
    """Give the job back unfinished, to be taken by another worker at once; this attempt does not count.

    Raises:
        LostLease: the job is not held with this token; nothing was written.
    """
    rows = await tx.fetch(
        "UPDATE job SET state = 'ready', attempt = attempt - 1, lease_token = NULL, lease_until = NULL"
        " WHERE id = $1 AND lease_token = $2 RETURNING queue",
        *lease,
    )
    if not rows:
        raise LostLease(lease.job_id)
    await tx.publish(READY_TOPIC, rows[0]["queue"])


async def cancel(tx: Tx, job_id: int, *, now: datetime | None = None) -> bool:
    """End a job that has not finished; returns False when it has, or does not exist.

    A running job's lease is taken away, so that whatever its worker still does about it changes nothing; the worker
    hears of it and stops.
    """
    rows = await tx.fetch(
        "UPDATE job SET state = 'cancelled', lease_token = NULL, lease_until = NULL,"
        f" finished_at = {_NOW} FROM (SELECT id AS asked_id, state AS was FROM job WHERE id = $2 FOR UPDATE) AS asked"
        " WHERE id = asked_id AND state IN ('ready', 'scheduled', 'running') RETURNING was",
        now, job_id,
    )  # fmt: skip
    if rows and rows[0]["was"] == "running":
        await tx.publish(CANCELLED_TOPIC, str(job_id))
    return bool(rows)


async def stats(tx: ReadTx, *, finished_within_s: float = 3600.0) -> list[QueueCount]:
    """Jobs per queue and state: all that are unfinished, and those that finished in the last `finished_within_s`.

    Reads the partial indexes and no more, so that a long history costs nothing.
    """
    rows = await tx.fetch(
        "SELECT queue, state, count(*) FROM job WHERE state = 'ready' GROUP BY queue, state"
        " UNION ALL SELECT queue, state, count(*) FROM job WHERE state = 'scheduled' GROUP BY queue, state"
        " UNION ALL SELECT queue, state, count(*) FROM job WHERE state = 'running' GROUP BY queue, state"
        " UNION ALL SELECT queue, state, count(*) FROM job WHERE finished_at > now() - make_interval(secs => $1)"
        " GROUP BY queue, state ORDER BY queue, state",
        finished_within_s,
    )
    return [QueueCount(*row) for row in rows]


def _storable(text: str) -> str:
    """Text that PostgreSQL takes: no NUL, no lone surrogates, not endless."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()[:_ERROR_LIMIT]
