"""Writes the audit of tool calls in batches: one commit for all calls that end while the one before is under way.

A call is answered only after its row is committed, so no acknowledged call is ever missing; batching costs nothing when
calls come one at a time and saves a commit each when many end together. The writer keeps one connection of the pool:
taking and returning one for each batch would cost more than the batch.
"""

import asyncio
import functools
import itertools
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson
import structlog

from toolcrib.core.db import Database
from toolcrib.core.log import HIDDEN, redact

_log = structlog.get_logger(__name__)
_MAX_ARGUMENT_BYTES = 8192
_MAX_BATCH = 64  # each size is a statement that PostgreSQL prepares once
_COLUMNS = (
    *("workspace_id", "principal_id", "api_key_id", "tool_set_id", "tool_id", "tool_name", "door", "outcome"),
    *("error_code", "arguments", "result_bytes", "duration_us", "request_id", "called_at"),
)

AuditRow = tuple[
    str, str, str | None, str | None, str | None, str, str, str, str | None, str | None, int, int, str, datetime
]


def shown_arguments(arguments: bytes) -> str:
    """Arguments as they may be kept: secrets hidden, a long document reduced to its size."""
    if len(arguments) > _MAX_ARGUMENT_BYTES:
        return orjson.dumps({"truncated": True, "bytes": len(arguments)}).decode()
    try:
        value: Any = [
            [[[[[[[redact(orjson.loads(arguments))]]]]]]]
        ]  # leaves room for what a list of calls puts around it
        text = orjson.dumps(value)[8:-8].decode()
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):  # no JSON, or nested too deep
        return orjson.dumps({"unreadable": HIDDEN}).decode()
    return text.replace("\\u0000", "\\ufffd")  # PostgreSQL keeps no NUL


class AuditWriter:
    """Collects rows and commits them; `write` returns when the row is durable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[AuditRow, asyncio.Future[None]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._conn: Any = None

    async def write(self, row: AuditRow) -> None:
        """Store one row; raises what the database raises. A caller that is cancelled stops waiting, its row stays."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, future))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush(), name="audit")
        await future

    async def close(self) -> None:
        """Wait for the rows that are under way, and give the connection back."""
        if self._flusher is not None:
            _, late = await asyncio.wait({self._flusher}, timeout=10)
            if late:
                return
        await self._release()

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_MAX_BATCH], self._waiting[_MAX_BATCH:]
            try:
                await self._insert([row for row, _ in batch])
            except Exception as error:  # noqa: BLE001 - told to every caller that waits
                _log.exception("audit.write_failed", rows=len(batch))
                failed: Exception | None = error
            else:
                failed = None
            for _, future in batch:
                if future.done():
                    continue
                if failed is None:
                    future.set_result(None)
                else:
                    future.set_exception(failed)

    async def _insert(self, rows: list[AuditRow]) -> None:
        if self._conn is None or _is_cut(self._conn):
            await self._release()
            self._conn = await self._database.pool.acquire()
        try:
            await self._conn.execute(_insert(len(rows)), *itertools.chain.from_iterable(rows))
        except BaseException:
            await self._release()  # the pool knows whether it is still of use
            raise

    async def _release(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            await self._database.pool.release(conn)


@functools.cache
def _insert(rows: int) -> str:
    """The statement for so many rows: half the work of arrays or of one execution per row, for us and PostgreSQL."""
    numbers = itertools.count(1)
    row = ", ".join("${}::text::json" if column == "arguments" else "${}" for column in _COLUMNS)
    values = ", ".join(f"({row.format(*itertools.islice(numbers, len(_COLUMNS)))})" for _ in range(rows))
    return f"INSERT INTO tool_call ({', '.join(_COLUMNS)}) VALUES {values}"


def _is_cut(conn: Any) -> bool:
    try:
        return bool(conn.is_closed())
    except asyncpg.InterfaceError:  # it was cut, and the pool has already taken it back
        return True


def now() -> datetime:
    """The moment a call came in."""
    return datetime.now(UTC)
