"""A worker: claims jobs, runs their handlers, keeps the leases alive, and writes down how each ended.

News of ready jobs wakes it, polling guarantees that nothing is missed. A handler is cancelled when its lease is lost,
when its job is cancelled, when it takes too long, and when the worker stops and its grace is over. The database may go
away: the worker waits for it and goes on. Nothing a handler does or raises ends the worker.
"""

import asyncio
import contextlib
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Generic

import asyncpg
import structlog

from toolcrib.core.bus import RESYNC
from toolcrib.core.db import Database
from toolcrib.errors import AppError
from toolcrib.queue import queue
from toolcrib.queue.jobs import C, ClaimedJob, GiveUp, JobKind, Jobs, Snooze
from toolcrib.queue.queue import Job, Lease, LostLease

_LOOK_AGAIN_S = 1.0  # how long ready jobs with low ids may be passed over, see `_claim`
_LONGEST_PAUSE_S = 5.0  # between two attempts to reach the database

_log = structlog.get_logger(__name__)


class _Stop(Enum):
    """Why the worker ended a handler before it was done."""

    LOST = auto()  # the lease is gone: another attempt owns the job, or it was cancelled
    LAPSED = auto()  # the lease could not be renewed in time: others may have the job by now
    TIMED_OUT = auto()
    STOPPING = auto()


class _TimedOut(Exception):
    """One attempt took too long."""


@dataclass(eq=False, slots=True)
class _Run:
    """A claimed job that this worker is busy with."""

    claimed: ClaimedJob
    held_until: float  # monotonic time up to which nobody else can have claimed the job
    stopped: asyncio.Future[_Stop]
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)  # the supervisor, then the handler

    @property
    def lease(self) -> Lease:
        return self.claimed.job.lease

    def stop(self, why: _Stop) -> None:
        """The handler is to end; the first reason counts."""
        if not self.stopped.done():
            self.stopped.set_result(why)


def _worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


@dataclass(eq=False, kw_only=True)
class Worker(Generic[C]):
    """Runs jobs until told to stop. One event loop may have several.

    Attributes:
        context: passed to every handler.
        queues: where to look for jobs; they take turns in coming first.
        concurrency: how many jobs run at a time.
        lease_s: how long a job is held without a sign of life; renewed at a third of it.
        poll_s: how often to look for jobs without having heard of one; varies by a third.
        grace_s: how long running jobs may go on after the worker was told to stop.
        unwind_s: how long a cancelled handler may take to clean up before the worker goes on without it.
        name: written into the jobs it runs.
    """

    database: Database
    jobs: Jobs[C]
    context: C
    queues: Sequence[str] = ("default",)
    concurrency: int = 10
    lease_s: float = 30.0
    poll_s: float = 1.5
    grace_s: float = 20.0
    unwind_s: float = 5.0
    name: str = field(default_factory=_worker_name)

    def __post_init__(self) -> None:
        self._runs: dict[Lease, _Run] = {}
        self._turn = list(self.queues)
        self._wake = asyncio.Event()
        self._renew_now = asyncio.Event()
        self._backlog = False  # more jobs may be ready than there was room for
        self._above: dict[str, int] = {}
        self._look_again_at = 0.0
        self._stray: set[asyncio.Task[Any]] = set()  # handlers that ignore cancellation

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then let running jobs end, and give back those that do not within `grace_s`."""
        bus = self.database.bus
        deafen = [
            bus.subscribe(queue.READY_TOPIC, self._on_ready),
            bus.subscribe(queue.CANCELLED_TOPIC, self._on_cancelled),
        ]
        sides = [asyncio.create_task(self._keep_leases()), asyncio.create_task(self._wake_on(stop))]
        try:
            await self._claim_until(stop)
            await self._drain()
        finally:
            for unsubscribe in deafen:
                unsubscribe()
            tasks = {*sides, *(task for run in self._runs.values() for task in run.tasks)}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=self.unwind_s)

    # ---- claiming

    def _on_ready(self, queue_name: str) -> None:
        if queue_name in self.queues or queue_name == RESYNC:
            self._wake.set()

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    async def _claim_until(self, stop: asyncio.Event) -> None:
        failures = 0
        while not stop.is_set():
            self._wake.clear()
            pause_s: float | None = self.poll_s * random.uniform(2 / 3, 4 / 3)  # noqa: S311 - spreads load
            free = self.concurrency - len(self._runs)
            if free <= 0:
                self._backlog, pause_s = True, None  # the end of a run wakes us
            else:
                try:
                    asked_at = time.monotonic()
                    for job in await self._claim(free):
                        self._start(job, asked_at + self.lease_s)
                    failures = 0
                except Exception as error:  # noqa: BLE001 - whatever it is, the only cure is to try again
                    failures += 1
                    pause_s = _pause_s(failures)
                    _log.warning("queue.claim_failed", error=type(error).__name__, next_try_in_s=round(pause_s, 2))
                else:
                    if self._backlog and len(self._runs) < self.concurrency:
                        continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def _claim(self, free: int) -> list[Job]:
        """Jobs to run now; sets `_backlog`.

        While some transaction keeps an old view of the database (a backup), the index of ready jobs keeps an entry for
        each job that was ready since, and a claim reads them all to find the first that still is. So a busy worker
        looks above the ids it has found already, and looks again from the start when it finds too little, and once a
        second: a job with a low id that becomes ready again waits that long at most.
        """
        now = time.monotonic()
        if now >= self._look_again_at:
            self._above.clear()
            self._look_again_at = now + _LOOK_AGAIN_S
        self._turn.append(self._turn.pop(0))
        size = queue.claim_size(free)
        jobs = await queue.claim(
            self.database.pool,
            queues={name: self._above.get(name, 0) for name in self._turn},
            kinds={kind.name: kind.max_attempts for kind in self.jobs.kinds.values()},
            worker=self.name,
            limit=size,
            lease_s=self.lease_s,
        )
        if len(jobs) < size:
            self._backlog = bool(self._above)  # all there is, if it looked everywhere
            self._above.clear()
        else:
            self._backlog = True
            for name in {job.queue for job in jobs}:
                self._above[name] = min(job.id for job in jobs if job.queue == name)
        return jobs

    # ---- running

    def _start(self, job: Job, held_until: float) -> None:
        claimed = ClaimedJob(self.database, job, lease_s=self.lease_s)
        run = _Run(claimed, held_until, asyncio.get_running_loop().create_future())
        self._runs[job.lease] = run
        run.tasks.append(asyncio.create_task(self._supervise(run), name=f"job {job.id}"))

    async def _supervise(self, run: _Run) -> None:
        job, kind = run.claimed.job, self.jobs.kinds[run.claimed.job.kind]
        try:
            with structlog.contextvars.bound_contextvars(job_id=job.id, job_kind=job.kind, attempt=job.attempt):
                handler = asyncio.create_task(self._handle(run, kind), name=f"handler of job {job.id}")
                run.tasks.append(handler)
                why = await self._watch(run, handler, kind.timeout_s)
                await self._end(run, kind, handler, why)
        except Exception:  # noqa: BLE001 - one job's trouble is not another's; the lease will expire
            _log.exception("job.end_not_written", job_id=job.id)
        finally:
            del self._runs[run.lease]
            if self._backlog:
                self._wake.set()

    async def _handle(self, run: _Run, kind: JobKind[C]) -> Any:
        return await kind.handler(self.context, run.claimed)

    async def _watch(self, run: _Run, handler: asyncio.Task[Any], timeout_s: float) -> _Stop | None:
        """Wait for the handler to end, or end it; returns why if the worker did."""
        await asyncio.wait({handler, run.stopped}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not handler.done():
            run.stop(_Stop.TIMED_OUT)
            handler.cancel()
            await asyncio.wait({handler}, timeout=self.unwind_s)
            if not handler.done():
                _log.error("job.ignores_cancellation")
                self._stray.add(handler)
                handler.add_done_callback(self._forget)
        return run.stopped.result() if run.stopped.done() else None

    def _forget(self, handler: asyncio.Task[Any]) -> None:
        self._stray.discard(handler)
        if not handler.cancelled() and (error := handler.exception()):
            _log.error("job.failed_after_all", exc_info=error)

    # ---- ending

    async def _end(self, run: _Run, kind: JobKind[C], handler: asyncio.Task[Any], why: _Stop | None) -> None:
        """Write down what became of the attempt."""
        error = None
        if handler.done():
            error = asyncio.CancelledError() if handler.cancelled() else handler.exception()
        if run.claimed.finishing:
            if error is not None:
                _log.error("job.failed_after_finishing", exc_info=error)
        elif handler.done() and error is None:
            await self._finish(run, kind, handler.result())
        elif why is _Stop.STOPPING or why is _Stop.LAPSED:
            if handler.done():  # else it may still be at work: the lease has to expire first
                _log.info("job.given_back", reason=why.name.lower())
                await self._write(lambda: self._release(run.lease))
        elif why is _Stop.LOST or isinstance(error, LostLease):
            _log.warning("job.lease_lost")
        elif isinstance(error, Snooze):
            await self._write(lambda: queue.snooze(self.database.pool, run.lease, error.for_s))
        else:
            late = _TimedOut(f"timed out after {kind.timeout_s:g} s")
            await self._fail(run, kind, late if error is None or why is _Stop.TIMED_OUT else error)

    async def _finish(self, run: _Run, kind: JobKind[C], result: Any) -> None:
        try:
            await self._write(lambda: queue.finish(self.database.pool, run.lease, result))
        except asyncpg.DataError:  # its text repeats the result
            await self._fail(run, kind, TypeError("what the handler returned is not JSON"))

    async def _fail(self, run: _Run, kind: JobKind[C], error: BaseException) -> None:
        job = run.claimed.job
        retry_in_s = None if isinstance(error, GiveUp) else kind.retry.delay_s(job.attempt)
        last = retry_in_s is None or job.attempt >= job.max_attempts
        ours = isinstance(error, AppError | GiveUp | _TimedOut)
        _log.log(
            logging.ERROR if last else logging.WARNING,
            "job.failed" if last else "job.will_retry",
            error=_describe(error),
            exc_info=None if ours else error,
            retry_in_s=None if last else round(retry_in_s or 0, 1),
        )
        await self._write(lambda: queue.fail(self.database.pool, run.lease, _describe(error), retry_in_s=retry_in_s))

    async def _release(self, lease: Lease) -> None:
        async with self.database.tx() as tx:
            await queue.release(tx, lease)

    async def _write(self, statement: Callable[[], Awaitable[object]]) -> None:
        """Write an end, as soon as the database can be reached. Safe to repeat: the first to succeed ends the lease."""
        failures = 0
        while True:
            try:
                await statement()
                return
            except LostLease:
                _log.warning("job.lease_lost", may_have_been_written=failures > 0)
                return
            except queue.DATABASE_AWAY as error:
                if isinstance(error, asyncpg.DataError):
                    raise
                failures += 1
                _log.warning("job.end_delayed", error=type(error).__name__)
                await asyncio.sleep(_pause_s(failures))

    # ---- leases

    def _on_cancelled(self, job_id: str) -> None:
        if job_id == RESYNC:
            self._renew_now.set()
        for run in self._runs.values():
            if str(run.lease.job_id) == job_id:
                run.stop(_Stop.LOST)

    async def _keep_leases(self) -> None:
        pause_s = self.lease_s / 3
        while True:
            self._renew_now.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._renew_now.wait()
            pause_s = await self._renew()

    async def _renew(self) -> float:
        """Renew all leases; returns how long until the next time, in seconds."""
        runs, asked_at = list(self._runs.values()), time.monotonic()
        if not runs:
            return self.lease_s / 3
        try:
            async with asyncio.timeout(self.lease_s / 3):
                leases = [run.lease for run in runs]
                held = await queue.renew_many(self.database.pool, leases, lease_s=self.lease_s)
        except Exception as error:  # noqa: BLE001 - whatever it is, the only cure is to try again
            _log.warning("queue.renewal_failed", error=type(error).__name__, jobs=len(runs))
            for run in runs:
                if time.monotonic() >= run.held_until:
                    run.stop(_Stop.LAPSED)
            return min(1.0, self.lease_s / 10)
        for run in runs:
            if run.lease in held:
                run.held_until = asked_at + self.lease_s
            elif not run.claimed.finishing:
                run.stop(_Stop.LOST)
        return self.lease_s / 3

    # ---- stopping

    async def _drain(self) -> None:
        """Let running jobs end; give back those that take too long."""
        if tasks := self._supervisors():
            await asyncio.wait(tasks, timeout=self.grace_s)
        for run in self._runs.values():
            run.stop(_Stop.STOPPING)
        if tasks := self._supervisors():
            await asyncio.wait(tasks, timeout=2 * self.unwind_s)

    def _supervisors(self) -> list[asyncio.Task[Any]]:
        return [run.tasks[0] for run in self._runs.values()]


def _describe(error: BaseException) -> str:
    """What may be stored and shown: our own messages, and of anything else the type: its text may hold data."""
    match error:
        case AppError():
            return f"{error.code}: {error.message}"
        case GiveUp() | _TimedOut():
            return str(error)
        case _:
            return f"internal error ({type(error).__name__})"


def _pause_s(failures: int) -> float:
    longest: float = min(0.05 * 2.0 ** min(failures, 16), _LONGEST_PAUSE_S)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
