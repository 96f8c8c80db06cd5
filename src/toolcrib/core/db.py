"""The connection pool, and transactions opened at the edge.

A transaction is opened by whoever received the work (a request, a job, a command), is short, and never spans a network
call. `ReadTx` cannot write: PostgreSQL refuses, and the type says so.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import orjson

from toolcrib.core.bus import CHANNEL, Bus

Row = asyncpg.Record


class ReadTx:
    """A read-only transaction."""

    __slots__ = ("conn",)

    def __init__(self, conn: Any) -> None:
        self.conn = conn

    async def fetch(self, sql: str, *args: object) -> list[Row]:
        """All rows."""
        rows: list[Row] = await self.conn.fetch(sql, *args)
        return rows

    async def fetchrow(self, sql: str, *args: object) -> Row | None:
        """The first row, or None."""
        row: Row | None = await self.conn.fetchrow(sql, *args)
        return row

    async def fetchval(self, sql: str, *args: object) -> Any:
        """The first column of the first row, or None."""
        return await self.conn.fetchval(sql, *args)


class Tx(ReadTx):
    """A transaction that may write; committed by the edge that opened it."""

    __slots__ = ("news",)

    def __init__(self, conn: Any) -> None:
        super().__init__(conn)
        self.news: list[tuple[str, str]] = []

    async def execute(self, sql: str, *args: object) -> int:
        """Run a statement; returns the number of rows it touched."""
        status: str = await self.conn.execute(sql, *args)
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """Run a statement once per row, in one round trip."""
        await self.conn.executemany(sql, rows)

    async def publish(self, topic: str, payload: str) -> None:
        """Tell every process `(topic, payload)` after commit; nothing is told when the transaction rolls back."""
        if (topic, payload) not in self.news:
            self.news.append((topic, payload))
            await self.conn.execute("SELECT pg_notify($1, $2)", CHANNEL, f"{topic} {payload}")


class Database:
    """A pool of connections to one PostgreSQL database, and the bus of news that goes with it."""

    def __init__(self, dsn: str, *, pool_size: int = 10) -> None:
        self.dsn = dsn
        self.bus = Bus(dsn)
        self._pool_size = pool_size
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Connect; raises OSError or asyncpg.PostgresError when the server cannot be reached."""
        self._pool = await asyncpg.create_pool(
            self.dsn,
            min_size=1,
            max_size=self._pool_size,
            max_inactive_connection_lifetime=60,
            timeout=10,
            command_timeout=60,
            init=_prepare,
            reset=_keep,
            server_settings={
                "application_name": "toolcrib",
                "timezone": "UTC",
                "statement_timeout": "30s",
                "lock_timeout": "10s",
                "idle_in_transaction_session_timeout": "30s",
            },
        )
        await self.bus.start()

    async def close(self) -> None:
        """Give the connections back; a transaction in flight is cut after five seconds."""
        await self.bus.stop()
        if self._pool is not None:
            pool, self._pool = self._pool, None
            try:
                await asyncio.wait_for(pool.close(), 5)
            except TimeoutError:
                pool.terminate()

    @property
    def pool(self) -> asyncpg.Pool:
        """The pool itself, for the queue and the audit writer, which run single statements."""
        if self._pool is None:
            raise RuntimeError("the database is not open")
        return self._pool

    @asynccontextmanager
    async def tx(self) -> AsyncIterator[Tx]:
        """A transaction: commits when the block ends, rolls back when it raises, then tells the news."""
        async with self.pool.acquire() as conn:
            async with conn.transaction():
                tx = Tx(conn)
                yield tx
            for topic, payload in tx.news:
                self.bus.dispatch(topic, payload)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[ReadTx]:
        """A read-only transaction with one view of the data."""
        async with self.pool.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            yield ReadTx(conn)


async def _prepare(conn: asyncpg.Connection) -> None:
    for name in ("json", "jsonb"):
        await conn.set_type_codec(
            name, schema="pg_catalog", encoder=lambda value: orjson.dumps(value).decode(), decoder=orjson.loads
        )


async def _keep(conn: asyncpg.Connection) -> None:
    """Nothing to reset: no code of ours leaves session state behind, so the round trip is saved."""
