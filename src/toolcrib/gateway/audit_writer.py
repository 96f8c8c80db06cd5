"""Writes the audit of tool calls in batches: one commit for all calls that end while the one before is under way.

A call is answered only after its row is committed, so no acknowledged call is ever missing; batching costs nothing when
calls come one at a time and saves a commit each when many end together. The writer keeps one connection of the pool:
taking and returning one for each batch would cost more than the batch.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog

from toolcrib.core.db import Database
from toolcrib.core.log import HIDDEN, redact

_log = structlog.get_logger(__name__)
_MAX_ARGUMENT_BYTES = 8192
_MAX_BATCH = 500

_INSERT = (
    "INSERT INTO tool_call (workspace_id, principal_id, api_key_id, tool_set_id, tool_id, tool_name, door, outcome,"
    " error_code, arguments, result_bytes, duration_us, request_id, called_at)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::json, $11, $12, $13, $14)"
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
        if self._conn is None or self._conn.is_closed():
            await self._release()
            self._conn = await self._database.pool.acquire()
        await self._conn.executemany(_INSERT, rows)  # one transaction, one round trip

    async def _release(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            await self._database.pool.release(conn)


def now() -> datetime:
    """The moment a call came in."""
    return datetime.now(UTC)
