"""The record of tool calls: one row for every call, whatever became of it; append-only until its retention ends."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from toolcrib.core.auth import Actor
from toolcrib.core.db import ReadTx, Tx
from toolcrib.core.paging import Page
from toolcrib.errors import Invalid

Outcome = Literal["ok", "tool_error", "upstream_error", "refused", "cancelled"]
OUTCOMES = ("ok", "tool_error", "upstream_error", "refused", "cancelled")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool. `arguments` have secrets hidden; `duration_ms` runs from request to result."""

    id: int
    tool_name: str
    tool_id: str | None
    tool_set_id: str | None
    principal_id: str
    principal_name: str | None
    api_key_id: str | None
    door: str
    outcome: Outcome
    error_code: str | None
    arguments: Any
    result_bytes: int
    duration_ms: float
    request_id: str
    called_at: datetime


async def list_tool_calls(
    tx: ReadTx,
    actor: Actor,
    *,
    tool_name: str | None = None,
    tool_set_id: str | None = None,
    outcome: str | None = None,
    limit: int = 50,
    offset: int = 0,
) -> Page[ToolCall]:
    """Tool calls of the actor's workspace, newest first.

    Raises:
        Invalid: an outcome that does not exist.
        Forbidden: the actor lacks `audit:read`.
    """
    actor.must("audit:read")
    if outcome is not None and outcome not in OUTCOMES:
        raise Invalid("audit.outcome_unknown", f"outcome is one of {', '.join(OUTCOMES)}.", field="outcome")
    where = (
        " WHERE c.workspace_id = $1 AND ($2::text IS NULL OR c.tool_name = $2)"
        " AND ($3::text IS NULL OR c.tool_set_id = $3) AND ($4::text IS NULL OR c.outcome = $4)"
    )
    args = (actor.workspace_id, tool_name, tool_set_id, outcome)
    rows = await tx.fetch(
        "SELECT c.*, p.name AS principal_name FROM tool_call c LEFT JOIN principal p ON p.id = c.principal_id"
        + where
        + " ORDER BY c.id DESC LIMIT $5 OFFSET $6",
        *args,
        limit,
        offset,
    )
    total = await tx.fetchval("SELECT count(*) FROM tool_call c" + where, *args)
    same = [name for name in ToolCall.__dataclass_fields__ if name != "duration_ms"]
    items = [ToolCall(**{name: row[name] for name in same}, duration_ms=row["duration_us"] / 1000) for row in rows]
    return Page(items, total)


async def prune_tool_calls(tx: Tx, *, older_than_days: int, batch: int = 10_000) -> int:
    """Delete up to `batch` calls past their retention; returns how many."""
    return await tx.execute(
        "DELETE FROM tool_call WHERE id IN (SELECT id FROM tool_call"
        " WHERE called_at < now() - make_interval(days => $1) ORDER BY id LIMIT $2)",
        older_than_days,
        batch,
    )
