"""What can run: the kinds of jobs, how each is retried, and what a handler gets and may raise.

A `Jobs` is an ordinary object that wiring hands to a `Worker`; a module that has handlers makes one, and wiring joins
them with `include`. A handler runs outside any transaction; what it must write together with the job's end it writes
in `ClaimedJob.tx`.
"""

import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from toolcrib.core.db import Database, Tx
from toolcrib.queue import queue
from toolcrib.queue.queue import Job

C = TypeVar("C")  # what wiring passes to every handler
_NAME = re.compile(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*")


class Snooze(Exception):
    """Raised by a handler: run this job again in `for_s` seconds; this attempt does not count."""

    def __init__(self, for_s: float) -> None:
        super().__init__(f"again in {for_s} s")
        self.for_s = for_s


class GiveUp(Exception):
    """Raised by a handler: the job has failed and trying again is useless. The reason is stored: no secrets."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential back-off.

    Attributes:
        first_s: the pause after the first failed attempt, in seconds.
        factor: how much longer each next pause is.
        cap_s: no pause is longer, save for the jitter.
        jitter: the part of the pause by which it varies, up or down; 0.2 is a fifth.
    """

    first_s: float = 2.0
    factor: float = 4.0
    cap_s: float = 3600.0
    jitter: float = 0.2

    def delay_s(self, attempt: int, *, chance: float | None = None) -> float:
        """The pause after failed attempt number `attempt`, in seconds; `chance` in [0, 1] replaces the dice."""
        if chance is None:
            chance = random.random()  # noqa: S311 - spreads load, guards nothing
        exponent = min(attempt - 1, 64)  # beyond that any factor has met the cap, and floats end
        return min(self.first_s * self.factor**exponent, self.cap_s) * (1 + self.jitter * (2 * chance - 1))


class ClaimedJob:
    """A job as its handler sees it.

    Attributes:
        job: the facts.
        finishing: the handler itself has ended the job, or is about to: its transaction has not rolled back.
    """

    def __init__(self, database: Database, job: Job, *, lease_s: float) -> None:
        self.job = job
        self.finishing = False
        self._database = database
        self._lease_s = lease_s

    @asynccontextmanager
    async def tx(self) -> AsyncIterator[Tx]:
        """A transaction in which nobody can take the job away; it commits only what the holder of the lease wrote.

        Raises:
            LostLease: the job is not this worker's any more; nothing was written.
        """
        before = self.finishing
        try:
            async with self._database.tx() as tx:
                await queue.renew(tx, self.job.lease, lease_s=self._lease_s)
                yield tx
        except BaseException:
            self.finishing = before  # a `finish` in here was rolled back
            raise

    async def finish(self, tx: Tx, result: Any = None) -> None:
        """The job is done when `tx` commits; what the handler returns afterwards is not stored."""
        await queue.finish(tx, self.job.lease, result)
        self.finishing = True


Handler = Callable[[C, ClaimedJob], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class JobKind(Generic[C]):
    """How jobs of one kind are run.

    Attributes:
        max_attempts: for jobs that do not say themselves.
        timeout_s: how long one attempt may take, in seconds.
    """

    name: str
    handler: Handler[C]
    max_attempts: int
    timeout_s: float
    retry: Retry


class Jobs(Generic[C]):
    """The kinds of jobs that a worker can run."""

    def __init__(self) -> None:
        self.kinds: dict[str, JobKind[C]] = {}

    def job(
        self, name: str, *, max_attempts: int = 5, timeout_s: float = 300.0, retry: Retry | None = None
    ) -> Callable[[Handler[C]], Handler[C]]:
        """Register the decorated handler for jobs of the kind `noun.verb`. Its return value is the job's result (JSON).

        Raises:
            ValueError: the name has another form, or is taken.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"a job is called noun.verb, not {name!r}")

        def register(handler: Handler[C]) -> Handler[C]:
            self._add(JobKind(name, handler, max_attempts, timeout_s, retry or Retry()))
            return handler

        return register

    def include(self, other: "Jobs[C]") -> None:
        """Take over all kinds of another registry.

        Raises:
            ValueError: both have the same kind.
        """
        for kind in other.kinds.values():
            self._add(kind)

    def _add(self, kind: JobKind[C]) -> None:
        if kind.name in self.kinds:
            raise ValueError(f"two handlers for the job {kind.name!r}")
        self.kinds[kind.name] = kind
