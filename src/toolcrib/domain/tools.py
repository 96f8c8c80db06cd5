"""Tools: what an agent can call, made by hand or found by a sync.

A tool's `status` and `requires_approval` are what holds now. For a synced tool they follow the filters of its tool set,
unless somebody set them by hand: that choice is pinned and outlasts every sync. A tool that vanished upstream is
archived, keeps its names, and comes back under them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import orjson

from toolcrib.core.auth import Actor
from toolcrib.core.db import ReadTx, Row, Tx
from toolcrib.core.ids import new_id
from toolcrib.core.json_schema import compile_schema
from toolcrib.core.paging import Order, Page
from toolcrib.core.template import BodyTemplate, PathTemplate, QueryTemplate, TemplateError
from toolcrib.domain.adapters import McpAdapter, SyncedAdapter, check_header_value, check_headers
from toolcrib.domain.names import call_name, local_name
from toolcrib.domain.tool_filters import needs_approval, offered
from toolcrib.domain.tool_sets import (
    CATALOG_NEWS,
    Identity,
    add_event,
    check_identity,
    fetch_page,
    identity_of,
    lock_names,
    tool_set_row,
)
from toolcrib.errors import Conflict, Invalid, NotFound

Status = Literal["available", "filtered", "archived"]
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
WITH_BODY = ("POST", "PUT", "PATCH")
_MAX_TEXT = 20_000
_MAX_SCHEMA_BYTES = 256 * 1024
_LEVELS_AROUND = 16  # JSON levels that answers put around a schema; the writer takes 254 in all


class HttpConfig(msgspec.Struct, frozen=True, omit_defaults=True, tag="http", tag_field="type"):
    """How an HTTP tool makes its request; templates are explained in `core/template.py`.

    Without `query` and `body`, arguments that the path does not use go into the query (GET, DELETE) or a JSON body.
    """

    method: Method
    path: str | None = None
    query: str | None = None
    headers: dict[str, str] = {}
    body: str | None = None
    content_type: str | None = None
    operation: str | None = None


class McpConfig(msgspec.Struct, frozen=True, omit_defaults=True, tag="mcp", tag_field="type"):
    """Which tool of the MCP server this is; title and description are the server's."""

    tool_name: str | None = None
    title: str | None = None
    description: str | None = None


class CapabilityConfig(msgspec.Struct, frozen=True, omit_defaults=True, tag="capability", tag_field="type"):
    """Which tool of the capability file this is; title and description are the file's."""

    tool_name: str | None = None
    title: str | None = None
    description: str | None = None


ToolConfig = HttpConfig | McpConfig | CapabilityConfig


@dataclass(frozen=True, slots=True)
class ToolDraft:
    """What a caller decides about a tool; `callable_as` asks for a callable name other than the display name's."""

    name: str
    description: str
    parameters: dict[str, Any]
    config: ToolConfig | None
    status: Status = "available"
    requires_approval: bool = False
    external_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    callable_as: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as stored; `call_name` is its name in the workspace, `local_name` in its tool set."""

    identity: Identity
    tool_set: Identity
    draft: ToolDraft
    title: str | None
    local_name: str
    call_name: str


@dataclass(frozen=True, slots=True)
class UpstreamTool:
    """A tool as an MCP server describes it."""

    name: str
    title: str | None
    description: str
    parameters: dict[str, Any]
    output_schema: dict[str, Any] | None
    annotations: dict[str, Any] | None
    meta: dict[str, Any] | None

    @classmethod
    def of(cls, raw: dict[str, Any]) -> "UpstreamTool":
        """From a member of a tools/list result; members of a wrong type, or nested too deep, are left out."""

        def maybe(value: Any, kind: type) -> Any:
            if isinstance(value, str):
                value = value.replace("\0", "\ufffd")  # PostgreSQL keeps no NUL
            try:
                return value if isinstance(value, kind) and _size_of(value) else None
            except ValueError:
                return None

        annotations = maybe(raw.get("annotations"), dict)
        return cls(
            raw["name"],
            maybe(raw.get("title"), str) or maybe((annotations or {}).get("title"), str),
            maybe(raw.get("description"), str) or "",
            maybe(raw.get("inputSchema"), dict) or {"type": "object"},
            maybe(raw.get("outputSchema"), dict),
            annotations,
            maybe(raw.get("_meta"), dict),
        )


def _size_of(value: Any) -> int:
    """Bytes of `value` as JSON. Raises ValueError when it is nested so deep that no answer could carry it."""
    try:
        return len(orjson.dumps(functools.reduce(lambda inner, _: [inner], range(_LEVELS_AROUND), value)))
    except orjson.JSONEncodeError as error:
        raise ValueError(f"nested too deep: {error}") from None


def _check_draft(draft: ToolDraft) -> None:
    check_identity(draft.name, draft.external_id, draft.labels)
    if len(draft.description) > _MAX_TEXT:
        raise Invalid("description.too_long", f"At most {_MAX_TEXT} characters.", field="spec.description")
    if draft.parameters.get("type", "object") != "object":
        raise Invalid("parameters.not_object", "The parameters of a tool are an object.", field="spec.parameters.type")
    try:
        compile_schema(draft.parameters)
        size = _size_of(draft.parameters)
    except (ValueError, RecursionError) as error:
        raise Invalid("parameters.invalid", f"Not a JSON Schema: {error}", field="spec.parameters") from None
    if size > _MAX_SCHEMA_BYTES:
        raise Invalid("parameters.too_long", f"At most {_MAX_SCHEMA_BYTES} bytes of schema.", field="spec.parameters")
    if isinstance(draft.config, HttpConfig):
        _check_http(draft.config)


def _check_http(config: HttpConfig) -> None:
    at = "spec.config.http"
    check_headers(config.headers, f"{at}.headers")
    if config.body is not None and config.method not in WITH_BODY:
        raise Invalid(
            "http.body_method", f"A {config.method} request has no body template.", field=f"{at}.requestBodyTemplate"
        )
    if config.content_type is not None:
        check_header_value(config.content_type, f"{at}.requestBodyContentType")
    for name, compiles in (
        ("path", lambda: PathTemplate.compile(config.path or "")),
        ("query", lambda: QueryTemplate.compile(config.query or "")),
        (
            "requestBodyTemplate",
            lambda: config.body and BodyTemplate.compile(config.body, config.content_type or "application/json"),
        ),
    ):
        try:
            compiles()
        except TemplateError as error:
            raise Invalid("http.template_invalid", f"{error}.".capitalize(), field=f"{at}.{name}") from None


_FROM = (
    " FROM tool t JOIN principal p ON p.id = t.created_by"
    " CROSS JOIN LATERAL (SELECT p.id AS p_id, p.account_id AS p_account, p.kind AS p_kind, p.name AS p_name,"
    " p.email AS p_email) AS maker"
)


async def create_tool(tx: Tx, actor: Actor, *, tool_set_id: str, draft: ToolDraft) -> Tool:
    """Make a tool in a tool set.

    Raises:
        NotFound: the workspace has no such tool set.
        Invalid: the draft breaks a rule, or its adapter is not that of the tool set.
        Conflict: another tool of the set has this external id.
    """
    actor.must("tool_sets:write")
    _check_draft(draft)
    tool_set = await tool_set_row(tx, actor, tool_set_id, lock=True)
    _check_kind(draft, tool_set)
    await lock_names(tx, actor)
    await _check_external_id(tx, tool_set["id"], draft.external_id)
    names = await _Names.load(tx, actor, tool_set)
    local, call = names.give(draft.callable_as or draft.name)
    tool_id = new_id("tool")
    await tx.execute(
        "INSERT INTO tool (id, workspace_id, tool_set_id, created_by, origin, name, local_name, call_name, external_id,"
        " labels, description, parameters, config, status, requires_approval)"
        " VALUES ($1, $2, $3, $4, 'api', $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        tool_id,
        actor.workspace_id,
        tool_set["id"],
        actor.principal_id,
        draft.name.strip(),
        local,
        call,
        draft.external_id,
        dict(draft.labels),
        draft.description,
        draft.parameters,
        msgspec.to_builtins(draft.config) if draft.config else {},
        draft.status,
        draft.requires_approval,
    )
    await tx.publish(CATALOG_NEWS, actor.workspace_id)
    return await get_tool(tx, actor, tool_set_id=tool_set["id"], tool_id=tool_id)


async def get_tool(tx: ReadTx, actor: Actor, *, tool_set_id: str, tool_id: str) -> Tool:
    """One tool; ids may be `external_id:<value>`.

    Raises:
        NotFound: there is no such tool set, or no such tool in it.
    """
    actor.must("tool_sets:read")
    tool_set = await tool_set_row(tx, actor, tool_set_id)
    return _tool(await _row(tx, tool_set["id"], tool_id), tool_set, actor)


async def list_tools(
    tx: ReadTx,
    actor: Actor,
    *,
    tool_set_id: str,
    cursor: str | None = None,
    limit: int | None = None,
    prefix: str | None = None,
    query: str | None = None,
    names: Sequence[str] = (),
    statuses: Sequence[Status] = (),
    requires_approval: bool | None = None,
    labels: Mapping[str, str] | None = None,
    order: Order = "asc",
) -> Page[Tool]:
    """A page of a tool set's tools by creation time, archived ones included.

    Raises:
        NotFound: the workspace has no such tool set.
    """
    actor.must("tool_sets:read")
    tool_set = await tool_set_row(tx, actor, tool_set_id)
    where = (
        " WHERE t.tool_set_id = $1 AND ($2::text IS NULL OR starts_with(lower(t.name), lower($2)))"
        " AND ($3::text IS NULL OR strpos(lower(t.name || ' ' || t.description), lower($3)) > 0)"
        " AND (cardinality($4::text[]) = 0 OR t.name = ANY($4)) AND (cardinality($5::text[]) = 0 OR t.status = ANY($5))"
        " AND ($6::bool IS NULL OR t.requires_approval = $6) AND t.labels @> $7"
    )
    args = (tool_set["id"], prefix, query, list(names), list(statuses), requires_approval, dict(labels or {}))
    return await fetch_page(
        tx,
        select=f"SELECT t.*, maker.*{_FROM}{where}",
        count="SELECT count(*) FROM tool t" + where,
        args=args,
        cursor=cursor,
        limit=limit,
        order=order,
        make=lambda row: _tool(row, tool_set, actor),
    )


async def update_tool(
    tx: Tx, actor: Actor, *, tool_set_id: str, tool_id: str, change: Callable[[ToolDraft], ToolDraft]
) -> Tool:
    """Apply `change` to what is stored, under a lock. Status and approval set here outlast syncs.

    Raises:
        NotFound, Invalid, Conflict: as `create_tool`.
    """
    actor.must("tool_sets:write")
    tool_set = await tool_set_row(tx, actor, tool_set_id, lock=True)
    row = await _row(tx, tool_set["id"], tool_id, lock=True)
    before = _tool(row, tool_set, actor).draft
    after = change(before)
    if after == before:
        return _tool(row, tool_set, actor)
    _check_draft(after)
    if after.config != before.config:
        _check_kind(after, tool_set)
        if row["origin"] == "sync" and _upstream_name(after.config) != _upstream_name(before.config):
            raise Invalid(
                "tool.synced", "A synced tool stays the tool of its server.", field="spec.config.mcp.toolName"
            )
    local, call = row["local_name"], row["call_name"]
    renamed = after.callable_as if after.callable_as != before.callable_as else None
    if renamed is None and after.name != before.name:
        renamed = after.name
    if after.external_id != before.external_id:
        await _check_external_id(tx, tool_set["id"], after.external_id)
    if renamed is not None:
        await lock_names(tx, actor)
        names = await _Names.load(tx, actor, tool_set, without=row["id"])
        local, call = names.give(renamed)
    await tx.execute(
        "UPDATE tool SET name = $2, local_name = $3, call_name = $4, external_id = $5, labels = $6, description = $7,"
        " parameters = $8, config = $9, status = $10, pinned_status = CASE WHEN $11 THEN $10 ELSE pinned_status END,"
        " requires_approval = $12, pinned_approval = CASE WHEN $13 THEN $12 ELSE pinned_approval END,"
        " updated_at = now() WHERE id = $1",
        row["id"],
        after.name.strip(),
        local,
        call,
        after.external_id,
        dict(after.labels),
        after.description,
        after.parameters,
        msgspec.to_builtins(after.config) if after.config else {},
        after.status,
        after.status != before.status,
        after.requires_approval,
        after.requires_approval != before.requires_approval,
    )
    await tx.publish(CATALOG_NEWS, actor.workspace_id)
    return await get_tool(tx, actor, tool_set_id=tool_set["id"], tool_id=row["id"])


async def delete_tool(tx: Tx, actor: Actor, *, tool_set_id: str, tool_id: str) -> None:
    """Delete a tool; a synced one comes back with the next sync unless a filter keeps it out.

    Raises:
        NotFound: there is no such tool set, or no such tool in it.
    """
    actor.must("tool_sets:write")
    tool_set = await tool_set_row(tx, actor, tool_set_id)
    row = await _row(tx, tool_set["id"], tool_id, lock=True)
    await tx.execute("DELETE FROM tool WHERE id = $1", row["id"])
    await tx.publish(CATALOG_NEWS, actor.workspace_id)


async def store_synced_tools(
    tx: Tx,
    actor: Actor,
    *,
    tool_set_id: str,
    revision: int,
    adapter: SyncedAdapter,
    tools: list[UpstreamTool],
    problems: Sequence[str] = (),
) -> bool:
    """Bring a tool set's tools in line with what its server listed, and record that the sync completed.

    Returns False, and changes nothing, when the tool set was deleted or its adapter changed since `revision`.
    """
    try:
        tool_set = await tool_set_row(tx, actor, tool_set_id, lock=True)
    except NotFound:
        return False
    if tool_set["revision"] != revision:
        return False
    await lock_names(tx, actor)
    names = await _Names.load(tx, actor, tool_set)
    rows = await tx.fetch("SELECT * FROM tool WHERE tool_set_id = $1 AND origin = 'sync'", tool_set_id)
    known = {row["config"]["tool_name"]: row for row in rows}  # `update_tool` keeps it
    inserts: list[tuple[object, ...]] = []
    updates: list[tuple[object, ...]] = []
    offered_count = 0
    for tool in tools:
        row = known.pop(tool.name, None)
        values = _synced_values(tool, adapter, row)
        offered_count += values[-2] == "available"
        if row is None:
            inserts.append((new_id("tool"), *names.give(tool.name), *values))
        elif any(row[column] != value for column, value in zip(_SYNCED, values, strict=True)):
            updates.append((row["id"], *values))
    await _write_synced(tx, actor, tool_set_id, inserts, updates)
    gone = [row["id"] for row in known.values() if row["status"] != "archived"]
    await tx.execute("UPDATE tool SET status = 'archived', updated_at = now() WHERE id = ANY($1)", gone)
    await tx.execute("UPDATE tool_set SET last_sync_at = now() WHERE id = $1", tool_set_id)
    filtered = len(tools) - offered_count
    message = (
        f"{len(tools)} tools: {len(inserts)} new, {len(updates)} changed, {filtered} not offered, {len(gone)} gone"
    )
    if problems:
        message += f"; left out: {' '.join(problems[:5])}"
    payload = {"message": message, "tools_synced": len(tools)}
    await add_event(tx, actor, tool_set_id=tool_set_id, kind="sync_completed", payload=payload)
    if inserts or updates or gone:
        await tx.publish(CATALOG_NEWS, actor.workspace_id)
    return True


def _synced_values(tool: UpstreamTool, adapter: SyncedAdapter, row: Row | None) -> tuple[Any, ...]:
    """The columns `_SYNCED` of a tool as its server describes it, with what somebody pinned by hand."""
    facts = {"name": tool.name, "title": tool.title or "", "description": tool.description}
    status = "available" if offered(adapter.include, adapter.exclude, **facts) else "filtered"
    approval = needs_approval(adapter.approvals, **facts)
    if row is not None:
        status = row["pinned_status"] or status
        approval = approval if row["pinned_approval"] is None else row["pinned_approval"]
    kind = McpConfig if isinstance(adapter, McpAdapter) else CapabilityConfig
    config = msgspec.to_builtins(kind(tool.name, tool.title, tool.description or None))
    schemas = (tool.parameters, tool.output_schema, tool.annotations, tool.meta)
    return (tool.name, tool.title, tool.description, *schemas, config, status, approval)


async def _write_synced(
    tx: Tx, actor: Actor, tool_set_id: str, inserts: list[tuple[object, ...]], updates: list[tuple[object, ...]]
) -> None:
    same = (actor.workspace_id, tool_set_id, actor.principal_id)
    columns = ", ".join(_SYNCED)
    await tx.executemany(
        f"INSERT INTO tool (workspace_id, tool_set_id, created_by, origin, id, local_name, call_name, {columns})"
        f" VALUES ($1, $2, $3, 'sync', {', '.join(f'${i}' for i in range(4, 7 + len(_SYNCED)))})",
        [(*same, *values) for values in inserts],
    )
    await tx.executemany(
        f"UPDATE tool SET {', '.join(f'{c} = ${i}' for i, c in enumerate(_SYNCED, 2))}, updated_at = now()"
        " WHERE id = $1",
        updates,
    )


_SYNCED = (
    "name",
    "title",
    "description",
    "parameters",
    "output_schema",
    "annotations",
    "meta",
    "config",
    "status",
    "requires_approval",
)


class _Names:
    """The callable names taken in a workspace and a tool set, and the next free ones; only under `lock_names`."""

    def __init__(self, slug: str, local: set[str], call: set[str]) -> None:
        self._slug, self._local, self._call = slug, local, call

    @classmethod
    async def load(cls, tx: ReadTx, actor: Actor, tool_set: Row, *, without: str = "") -> "_Names":
        rows = await tx.fetch(
            "SELECT tool_set_id, local_name, call_name FROM tool WHERE workspace_id = $1 AND id <> $2",
            actor.workspace_id,
            without,
        )
        local = {row["local_name"] for row in rows if row["tool_set_id"] == tool_set["id"]}
        return cls(tool_set["slug"], local, {row["call_name"] for row in rows})

    def give(self, name: str) -> tuple[str, str]:
        local = local_name(name, self._local)
        call = call_name(self._slug, local, self._call)
        self._local.add(local)
        self._call.add(call)
        return local, call


_KINDS: dict[type, str] = {HttpConfig: "http", McpConfig: "mcp", CapabilityConfig: "capability"}


def _check_kind(draft: ToolDraft, tool_set: Row) -> None:
    wanted = _KINDS[type(draft.config)] if draft.config else None
    if wanted is not None and wanted != tool_set["kind"]:
        raise Invalid(
            "tool.adapter_mismatch",
            f"The adapter of the tool set is {tool_set['kind'] or 'missing'}, not {wanted}.",
            field=f"spec.config.{wanted}",
        )


def _upstream_name(config: ToolConfig | None) -> str | None:
    """What ties a synced tool to the one that its server lists."""
    return None if config is None or isinstance(config, HttpConfig) else config.tool_name


async def _check_external_id(tx: ReadTx, tool_set_id: str, external_id: str | None) -> None:
    if external_id is not None and await tx.fetchval(
        "SELECT 1 FROM tool WHERE tool_set_id = $1 AND external_id = $2", tool_set_id, external_id
    ):
        raise Conflict("external_id.taken", "Another tool of the set has this externalId.", field="metadata.externalId")


async def _row(tx: ReadTx, tool_set_id: str, tool_id: str, *, lock: bool = False) -> Row:
    column, value = "id", tool_id
    if tool_id.startswith("external_id:"):
        column, value = "external_id", tool_id.removeprefix("external_id:")
    row = await tx.fetchrow(
        f"SELECT t.*, maker.*{_FROM} WHERE t.tool_set_id = $1 AND t.{column} = $2"
        + (" FOR UPDATE OF t" if lock else ""),
        tool_set_id,
        value,
    )
    if row is None:
        raise NotFound("tool.unknown", "There is no such tool in this tool set.")
    return row


def _tool(row: Row, tool_set: Row, actor: Actor) -> Tool:
    draft = ToolDraft(
        name=row["name"],
        description=row["description"],
        parameters=row["parameters"],
        config=msgspec.convert(row["config"], ToolConfig) if row["config"] else None,
        status=row["status"],
        requires_approval=row["requires_approval"],
        external_id=row["external_id"],
        labels=row["labels"],
        callable_as=row["local_name"],
    )
    return Tool(
        identity_of(row, actor),
        identity_of(tool_set, actor),
        draft,
        row["title"],
        row["local_name"],
        row["call_name"],
    )
