"""Tool sets: where tools come from (an HTTP API, an MCP server, a capability file, or nothing), and their sync events.

Each change of an adapter raises `revision`; work begun for an older revision is void.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

import msgspec

from toolcrib.core.auth import Actor
from toolcrib.core.db import ReadTx, Row, Tx
from toolcrib.core.ids import new_id
from toolcrib.core.paging import Order, Page, decode_cursor, encode_cursor, page_size
from toolcrib.core.vault import Vault
from toolcrib.domain.adapters import SYNCED_KINDS, Adapter, check_adapter, open_adapter, split_secrets, unmask
from toolcrib.domain.names import slug_of
from toolcrib.errors import Conflict, Invalid, NotFound
from toolcrib.queue.queue import enqueue

T = TypeVar("T")

CATALOG_NEWS = "catalog"
SYNC_JOB = "tool_set.sync"


_MAX_NAME = 255
_MAX_TEXT = 20_000
_MAX_LABELS = 64
_MAX_SYNCS_A_MINUTE = 6  # of those that the server itself asks for


@dataclass(frozen=True, slots=True)
class ToolSetDraft:
    """What a caller decides about a tool set."""

    name: str
    external_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    description: str | None = None
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """A principal as others see it."""

    id: str
    account_id: str
    kind: Literal["user", "api_key", "system"]
    name: str
    email: str | None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who and what a stored thing is, whatever its kind."""

    id: str
    workspace_id: str
    account_id: str
    name: str
    external_id: str | None
    labels: Mapping[str, str]
    created_by: Profile
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ToolCounts:
    """How many tools a tool set has: those offered and those filtered out (archived ones are not counted)."""

    available: int
    filtered: int


@dataclass(frozen=True, slots=True)
class ToolSet:
    """A tool set as stored; `counts` only where they were asked for."""

    identity: Identity
    slug: str
    draft: ToolSetDraft
    last_sync_at: datetime | None
    revision: int
    counts: ToolCounts | None = None


@dataclass(frozen=True, slots=True)
class ToolSetEvent:
    """Something that happened to a tool set; the payload of a failure has `error_type` and `message`."""

    id: str
    tool_set: ToolSet
    kind: Literal["sync_started", "sync_completed", "sync_failed"]
    payload: dict[str, Any]
    created_by: Profile
    created_at: datetime


# ---- rules ---------------------------------------------------------------------------------------------------------


def check_name(name: str, field: str) -> str:
    """A display name without outer blanks: 1 to 255 characters, none of them control characters."""
    name = name.strip()
    if not name or len(name) > _MAX_NAME or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise Invalid("name.invalid", f"A name has 1 to {_MAX_NAME} printable characters.", field=field)
    return name


def check_identity(name: str, external_id: str | None, labels: Mapping[str, str]) -> None:
    """Raise Invalid for a name, external id or labels that cannot be stored."""
    check_name(name, "metadata.name")
    if external_id is not None and not 1 <= len(external_id) <= _MAX_NAME:
        raise Invalid(
            "external_id.invalid", f"An externalId has 1 to {_MAX_NAME} characters.", field="metadata.externalId"
        )
    if len(labels) > _MAX_LABELS:
        raise Invalid("labels.too_many", f"At most {_MAX_LABELS} labels.", field="metadata.labels")
    for key, value in labels.items():
        if not key or len(key) > _MAX_NAME or len(value) > _MAX_NAME:
            raise Invalid(
                "labels.invalid", f"Label keys and values have at most {_MAX_NAME} characters.", field="metadata.labels"
            )


def _check_draft(actor: Actor, draft: ToolSetDraft, *, commands: bool) -> None:
    check_identity(draft.name, draft.external_id, draft.labels)
    if draft.description is not None and len(draft.description) > _MAX_TEXT:
        raise Invalid("description.too_long", f"At most {_MAX_TEXT} characters.", field="spec.description")
    check_adapter(actor, draft.adapter, commands=commands)


# ---- verbs ---------------------------------------------------------------------------------------------------------

_PROFILE = "p.id AS p_id, p.account_id AS p_account, p.kind AS p_kind, p.name AS p_name, p.email AS p_email"
_COUNTS = (
    ", (SELECT count(*) FROM tool x WHERE x.tool_set_id = t.id AND x.status = 'available') AS available"
    ", (SELECT count(*) FROM tool x WHERE x.tool_set_id = t.id AND x.status = 'filtered') AS filtered"
)
_FROM = " FROM tool_set t JOIN principal p ON p.id = t.created_by"


async def create_tool_set(tx: Tx, actor: Actor, *, vault: Vault, draft: ToolSetDraft, commands: bool = True) -> ToolSet:
    """Make a tool set; one with an MCP or a capability adapter is synced by a job.

    Raises:
        Invalid: the draft breaks a rule; `commands` False refuses adapters that run one.
        Forbidden: the actor lacks `tool_sets:write`, or `commands:write` for a command.
        Conflict: another tool set of the workspace has this external id.
    """
    actor.must("tool_sets:write")
    _check_draft(actor, draft, commands=commands)
    draft = replace(draft, name=draft.name.strip(), adapter=unmask(draft.adapter, None))
    await lock_names(tx, actor)
    await _check_external_id(tx, actor, draft.external_id)
    taken = {r["slug"] for r in await tx.fetch("SELECT slug FROM tool_set WHERE workspace_id = $1", actor.workspace_id)}
    tool_set_id = new_id("toolset")
    kind, config, secrets = split_secrets(draft.adapter)
    await tx.execute(
        "INSERT INTO tool_set (id, workspace_id, created_by, name, slug, external_id, labels, description, kind,"
        " config, sealed) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        tool_set_id,
        actor.workspace_id,
        actor.principal_id,
        draft.name,
        slug_of(draft.name, taken),
        draft.external_id,
        dict(draft.labels),
        draft.description,
        kind,
        config,
        vault.seal(msgspec.json.encode(secrets), tool_set_id) if secrets.headers or secrets.env else None,
    )
    await _changed(tx, actor, tool_set_id, sync=kind in SYNCED_KINDS)
    return await get_tool_set(tx, actor, vault=vault, tool_set_id=tool_set_id)


async def get_tool_set(tx: ReadTx, actor: Actor, *, vault: Vault, tool_set_id: str) -> ToolSet:
    """One tool set with its counts; `tool_set_id` may be `external_id:<value>`.

    Raises:
        NotFound: the workspace has no such tool set.
    """
    actor.must("tool_sets:read")
    return _tool_set(await _row(tx, actor, tool_set_id), actor, vault)


async def list_tool_sets(
    tx: ReadTx,
    actor: Actor,
    *,
    vault: Vault,
    cursor: str | None = None,
    limit: int | None = None,
    prefix: str | None = None,
    query: str | None = None,
    labels: Mapping[str, str] | None = None,
    order: Order = "asc",
    counts: bool = False,
) -> Page[ToolSet]:
    """A page of tool sets by creation time; `prefix` and `query` look at the name, without regard to case."""
    actor.must("tool_sets:read")
    where = (
        " WHERE t.workspace_id = $1 AND ($2::text IS NULL OR starts_with(lower(t.name), lower($2)))"
        " AND ($3::text IS NULL OR strpos(lower(t.name), lower($3)) > 0) AND t.labels @> $4"
    )
    args = (actor.workspace_id, prefix, query, dict(labels or {}))
    return await fetch_page(
        tx,
        select=f"SELECT t.*, {_PROFILE}" + (_COUNTS if counts else "") + _FROM + where,
        count="SELECT count(*) FROM tool_set t" + where,
        args=args,
        cursor=cursor,
        limit=limit,
        order=order,
        make=lambda row: _tool_set(row, actor, vault),
    )


async def update_tool_set(
    tx: Tx,
    actor: Actor,
    *,
    vault: Vault,
    tool_set_id: str,
    change: Callable[[ToolSetDraft], ToolSetDraft],
    commands: bool = True,
) -> ToolSet:
    """Apply `change` to what is stored, under a lock, so that two changes of different fields both last.

    A changed adapter is a new revision: its tools are listed again, and those synced from a former one archived.

    Raises:
        NotFound, Invalid, Forbidden, Conflict: as `create_tool_set`.
    """
    actor.must("tool_sets:write")
    row = await _row(tx, actor, tool_set_id, lock=True)
    before = _tool_set(row, actor, vault).draft
    after = change(before)
    if after == before:
        return _tool_set(row, actor, vault)
    adapter_changed = after.adapter != before.adapter
    # a command that stands already may stay when only the name changes, even for those who may not set one
    _check_draft(actor, after if adapter_changed else replace(after, adapter=None), commands=commands)
    after = replace(
        after, name=after.name.strip(), adapter=unmask(after.adapter, open_adapter(row, vault, reveal=True))
    )
    if after.external_id != before.external_id:
        await lock_names(tx, actor)
        await _check_external_id(tx, actor, after.external_id)
    kind, config, secrets = split_secrets(after.adapter)
    await tx.execute(
        "UPDATE tool_set SET name = $2, external_id = $3, labels = $4, description = $5, kind = $6, config = $7,"
        " sealed = $8, revision = revision + $9, updated_at = now() WHERE id = $1",
        row["id"],
        after.name,
        after.external_id,
        dict(after.labels),
        after.description,
        kind,
        config,
        vault.seal(msgspec.json.encode(secrets), row["id"]) if secrets.headers or secrets.env else None,
        int(adapter_changed),
    )
    if adapter_changed and kind not in SYNCED_KINDS:
        await tx.execute("UPDATE tool SET status = 'archived' WHERE tool_set_id = $1 AND origin = 'sync'", row["id"])
    await _changed(tx, actor, row["id"], sync=adapter_changed and kind in SYNCED_KINDS)
    return await get_tool_set(tx, actor, vault=vault, tool_set_id=row["id"])


async def delete_tool_set(tx: Tx, actor: Actor, *, tool_set_id: str) -> None:
    """Delete a tool set with its tools and events; its calls stay in the audit.

    Raises:
        NotFound: the workspace has no such tool set.
    """
    actor.must("tool_sets:write")
    row = await _row(tx, actor, tool_set_id, lock=True)
    await tx.execute("DELETE FROM tool_set WHERE id = $1", row["id"])
    await _changed(tx, actor, row["id"], sync=False)


async def request_sync(tx: Tx, actor: Actor, *, vault: Vault, tool_set_id: str) -> ToolSet:
    """Sync an MCP or a capability tool set soon. Asking again before the job starts adds nothing.

    Raises:
        NotFound: the workspace has no such tool set.
        Invalid: nobody lists its tools.
    """
    actor.must("tool_sets:write")
    row = await _row(tx, actor, tool_set_id)
    if row["kind"] not in SYNCED_KINDS:
        message = "Only tool sets with an MCP or a capability adapter are synced."
        raise Invalid("tool_set.not_synced", message, field="spec.adapter")
    await _enqueue_sync(tx, actor.workspace_id, row["id"])
    return _tool_set(row, actor, vault)


async def enqueue_all_syncs(tx: Tx) -> int:
    """A sync job for every MCP tool set of every workspace; returns how many were asked for."""
    rows = await tx.fetch("SELECT id, workspace_id FROM tool_set WHERE kind = 'mcp' ORDER BY id")
    for row in rows:
        await _enqueue_sync(tx, row["workspace_id"], row["id"])
    return len(rows)


async def enqueue_sync_of(tx: Tx, *, tool_set_id: str) -> None:
    """A sync because the server itself said that its tools changed; nothing if the tool set is gone.

    A server that says so all the time, perhaps after each listing, is heard a few times a minute.
    """
    row = await tx.fetchrow(
        "SELECT workspace_id, (SELECT count(*) FROM tool_set_event e WHERE e.tool_set_id = t.id"
        " AND e.kind = 'sync_started' AND e.created_at > now() - interval '1 minute') AS lately"
        " FROM tool_set t WHERE id = $1 AND kind = 'mcp'",
        tool_set_id,
    )
    if row is not None:
        run_at = datetime.now(UTC) + timedelta(minutes=1) if row["lately"] >= _MAX_SYNCS_A_MINUTE else None
        await _enqueue_sync(tx, row["workspace_id"], tool_set_id, run_at)


async def list_tool_set_events(
    tx: ReadTx,
    actor: Actor,
    *,
    vault: Vault,
    tool_set_id: str,
    cursor: str | None = None,
    limit: int | None = None,
    order: Order = "asc",
) -> Page[ToolSetEvent]:
    """A page of a tool set's events by time.

    Raises:
        NotFound: the workspace has no such tool set.
    """
    tool_set = await get_tool_set(tx, actor, vault=vault, tool_set_id=tool_set_id)
    where = " WHERE t.tool_set_id = $1"
    return await fetch_page(
        tx,
        select=f"SELECT t.*, {_PROFILE} FROM tool_set_event t JOIN principal p ON p.id = t.created_by{where}",
        count="SELECT count(*) FROM tool_set_event t" + where,
        args=(tool_set.identity.id,),
        cursor=cursor,
        limit=limit,
        order=order,
        make=lambda row: ToolSetEvent(
            row["id"], tool_set, row["kind"], row["payload"], profile_of(row), row["created_at"]
        ),
    )


async def add_event(tx: Tx, actor: Actor, *, tool_set_id: str, kind: str, payload: dict[str, Any]) -> None:
    """Record what happened to a tool set."""
    await tx.execute(
        "INSERT INTO tool_set_event (id, workspace_id, tool_set_id, created_by, kind, payload)"
        " VALUES ($1, $2, $3, $4, $5, $6)",
        new_id("toolsetevent"),
        actor.workspace_id,
        tool_set_id,
        actor.principal_id,
        kind,
        payload,
    )


async def prune_events(tx: Tx, *, older_than_days: int, batch: int = 10_000) -> int:
    """Delete up to `batch` events past their retention; returns how many."""
    return await tx.execute(
        "DELETE FROM tool_set_event WHERE id IN (SELECT id FROM tool_set_event"
        " WHERE created_at < now() - make_interval(days => $1) LIMIT $2)",
        older_than_days,
        batch,
    )


# ---- shared with domain/tools.py -----------------------------------------------------------------------------------


async def lock_names(tx: Tx, actor: Actor) -> None:
    """Names are unique in the workspace: whoever gives one waits for whoever else is giving one."""
    await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"names {actor.workspace_id}")


async def tool_set_row(tx: ReadTx, actor: Actor, tool_set_id: str, *, lock: bool = False) -> Row:
    """The row of a tool set in the actor's workspace, with its counts and maker.

    Raises:
        NotFound: there is none.
    """
    return await _row(tx, actor, tool_set_id, lock=lock)


async def fetch_page(
    tx: ReadTx,
    *,
    select: str,
    count: str,
    args: tuple[object, ...],
    cursor: str | None,
    limit: int | None,
    order: Order,
    make: Callable[[Row], T],
) -> Page[T]:
    """A page of rows `t` by `(created_at, id)`; `select` and `count` end in the same WHERE."""
    size = page_size(limit)
    after, direction = (">", "ASC") if order == "asc" else ("<", "DESC")
    n = len(args)
    where, extra = "", tuple[object, ...]()
    if cursor:
        position = decode_cursor(cursor)
        where, extra = f" AND (t.created_at, t.id) {after} (${n + 1}, ${n + 2})", (position.at, position.id)
    sql = f"{select}{where} ORDER BY t.created_at {direction}, t.id {direction} LIMIT {size + 1}"
    rows = await tx.fetch(sql, *args, *extra)
    total = await tx.fetchval(count, *args)
    last = rows[size - 1] if len(rows) > size else None
    return Page(
        [make(row) for row in rows[:size]], total, encode_cursor(last["created_at"], last["id"]) if last else None
    )


def profile_of(row: Row) -> Profile:
    """The principal joined as `p_...`."""
    return Profile(row["p_id"], row["p_account"], row["p_kind"], row["p_name"], row["p_email"])


def identity_of(row: Row, actor: Actor) -> Identity:
    """The identity in a row of `tool_set` or `tool` with its maker joined as `p_...`."""
    return Identity(
        row["id"],
        row["workspace_id"],
        actor.account_id,
        row["name"],
        row["external_id"],
        row["labels"],
        profile_of(row),
        row["created_at"],
        row["updated_at"],
    )


async def _row(tx: ReadTx, actor: Actor, tool_set_id: str, *, lock: bool = False) -> Row:
    column, value = "id", tool_set_id
    if tool_set_id.startswith("external_id:"):
        column, value = "external_id", tool_set_id.removeprefix("external_id:")
    row = await tx.fetchrow(
        f"SELECT t.*, {_PROFILE}{_COUNTS}{_FROM} WHERE t.workspace_id = $1 AND t.{column} = $2"
        + (" FOR UPDATE OF t" if lock else ""),
        actor.workspace_id,
        value,
    )
    if row is None:
        raise NotFound("tool_set.unknown", "There is no such tool set in this workspace.")
    return row


async def _check_external_id(tx: ReadTx, actor: Actor, external_id: str | None) -> None:
    if external_id is not None and await tx.fetchval(
        "SELECT 1 FROM tool_set WHERE workspace_id = $1 AND external_id = $2", actor.workspace_id, external_id
    ):
        raise Conflict("external_id.taken", "Another tool set has this externalId.", field="metadata.externalId")


async def _changed(tx: Tx, actor: Actor, tool_set_id: str, *, sync: bool) -> None:
    await tx.publish(CATALOG_NEWS, actor.workspace_id)
    if sync:
        await _enqueue_sync(tx, actor.workspace_id, tool_set_id)


async def _enqueue_sync(tx: Tx, workspace_id: str, tool_set_id: str, run_at: datetime | None = None) -> None:
    payload = {"workspace_id": workspace_id, "tool_set_id": tool_set_id}
    await enqueue(
        tx, SYNC_JOB, payload, workspace_id=workspace_id, run_at=run_at, dedupe_key=f"{SYNC_JOB} {tool_set_id}"
    )


def _tool_set(row: Row, actor: Actor, vault: Vault) -> ToolSet:
    draft = ToolSetDraft(
        row["name"],
        row["external_id"],
        row["labels"],
        row["description"],
        open_adapter(
            row,
            vault,
            reveal=actor.can("tool_sets:write"),
            reveal_env=actor.can("tool_sets:write") and actor.can("commands:write"),
        ),
    )
    counts = ToolCounts(row["available"], row["filtered"]) if "available" in row else None
    return ToolSet(identity_of(row, actor), row["slug"], draft, row["last_sync_at"], row["revision"], counts)
