"""News between processes: one PostgreSQL LISTEN connection, topics, and local dispatch.

A transaction publishes `(topic, payload)`; after commit every process hears it: the publishing one at once (so that a
caller reads its own writes), the others by NOTIFY. News is a hint that something changed, never the change itself.
While the connection is down `connected` is False and caches must not be trusted; on reconnection every topic's
subscribers are called with `RESYNC` because news may have been missed.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable

import asyncpg
import structlog

CHANNEL = "toolcrib"
RESYNC = "*"
Subscriber = Callable[[str], None]

_log = structlog.get_logger(__name__)


class Bus:
    """Subscriptions of this process and the LISTEN connection that feeds them."""

    def __init__(self, dsn: str, *, quiet_s: float = 15.0, answer_s: float = 5.0) -> None:
        """After `quiet_s` the connection is asked whether it still works, and has `answer_s` to say so."""
        self._dsn = dsn
        self._quiet_s = quiet_s
        self._answer_s = answer_s
        self._subscribers: dict[str, list[Subscriber]] = defaultdict(list)
        self._task: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        self.connected = False

    def subscribe(self, topic: str, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber(payload)` for each piece of news on `topic`; returns the way to stop that.

        Subscribers run on the event loop and must not block; `RESYNC` as payload means "anything may have changed".
        """
        self._subscribers[topic].append(subscriber)

        def unsubscribe() -> None:
            with contextlib.suppress(ValueError):
                self._subscribers[topic].remove(subscriber)

        return unsubscribe

    def dispatch(self, topic: str, payload: str) -> None:
        """Tell this process's subscribers; one that fails does not keep the news from the others."""
        for subscriber in list(self._subscribers.get(topic, ())):
            try:
                subscriber(payload)
            except Exception:  # noqa: BLE001 - one subscriber must not keep the news from the others
                _log.exception("bus.subscriber_failed", topic=topic)

    async def start(self) -> None:
        """Connect and listen; returns when the first LISTEN stands."""
        self._task = asyncio.create_task(self._listen(), name="bus")
        first = asyncio.create_task(self._first.wait())
        await asyncio.wait({self._task, first}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        first.cancel()

    async def stop(self) -> None:
        """Close the connection."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _listen(self) -> None:
        delay = 0.05
        while True:
            gone = asyncio.Event()
            try:
                conn = await asyncpg.connect(self._dsn, timeout=5, server_settings={"application_name": "toolcrib bus"})
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                await asyncio.sleep(delay)
                delay = min(delay * 2, 2.0)
                continue
            try:
                conn.add_termination_listener(lambda _conn, gone=gone: gone.set())
                await conn.add_listener(CHANNEL, self._heard)
                self.connected, delay = True, 0.05
                for topic in list(self._subscribers):  # at the first time as well, should it have come late
                    self.dispatch(topic, RESYNC)
                self._first.set()
                await self._until_gone(conn, gone)
                _log.warning("bus.disconnected")
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(delay)
            finally:
                self.connected = False
                conn.terminate()

    def _heard(self, _conn: object, _pid: int, _channel: str, message: object) -> None:
        topic, _, payload = str(message).partition(" ")
        self.dispatch(topic, payload)

    async def _until_gone(self, conn: asyncpg.Connection, gone: asyncio.Event) -> None:
        """Return when the connection has ended; raises when it only looks open.

        A connection on which nothing is said may be dropped on the way without either end being told.
        """
        while not gone.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gone.wait(), self._quiet_s)
                return
            await conn.execute("SELECT 1", timeout=self._answer_s)
