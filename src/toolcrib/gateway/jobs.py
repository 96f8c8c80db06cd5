"""What the gateway does later, as jobs: read MCP servers' lists of tools, and forget old audit rows."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from toolcrib.core import telemetry
from toolcrib.core.auth import Actor
from toolcrib.core.db import Database
from toolcrib.core.vault import SealBroken, Vault
from toolcrib.domain import audit, tool_sets
from toolcrib.domain.access import find_system_actor
from toolcrib.domain.adapters import (
    SYNCED_KINDS,
    CapabilityAdapter,
    McpAdapter,
    SyncedAdapter,
    open_adapter,
    without_secrets,
)
from toolcrib.domain.tools import UpstreamTool, store_synced_tools
from toolcrib.errors import AppError, NotFound, Upstream
from toolcrib.gateway.catalog import NO_COMMANDS, endpoint_of
from toolcrib.gateway.mcp_client.contract import McpEndpoint
from toolcrib.gateway.mcp_client.upstreams import McpUpstreams
from toolcrib.gateway.providers.capability import Capabilities
from toolcrib.queue.jobs import ClaimedJob, GiveUp, Jobs, Retry
from toolcrib.queue.keeper import Schedule

_log = structlog.get_logger(__name__)

# an upstream that answers like this will not do better in a minute
_HOPELESS = {"mcp.unauthorized", "mcp.protocol_error", "mcp.too_large", "outbound.address_refused", "tool_set.broken"}
_HOPELESS |= {"capability.invalid", "capability.too_large"}


@dataclass(frozen=True, slots=True)
class WorkContext:
    """What job handlers use."""

    database: Database
    vault: Vault
    upstreams: McpUpstreams
    capabilities: Capabilities
    sync_timeout_s: float
    audit_retention_days: int
    commands: bool  # whether tool sets may run one


jobs: Jobs[WorkContext] = Jobs()


def schedules(*, sync_interval_s: int) -> list[Schedule]:
    """What the keeper starts by the clock."""
    found = [Schedule(id="audit.prune", kind="audit.prune", every_s=3600)]
    if sync_interval_s:
        found.append(Schedule(id="tool_set.sync_all", kind="tool_set.sync_all", every_s=sync_interval_s))
    return found


@jobs.job(tool_sets.SYNC_JOB, max_attempts=4, timeout_s=600, retry=Retry(first_s=5, factor=4))
async def sync_tool_set(context: WorkContext, claimed: ClaimedJob) -> dict[str, Any]:
    """Read the list of tools of an MCP server or a capability and store what changed; events tell how it went."""
    payload = claimed.job.payload
    tool_set_id: str = payload["tool_set_id"]
    async with claimed.tx() as tx:
        actor = await find_system_actor(tx, workspace_id=payload["workspace_id"])
        row = None
        if actor is not None:
            try:
                row = await tool_sets.tool_set_row(tx, actor, tool_set_id)
            except NotFound:
                row = None
        if actor is None or row is None or row["kind"] not in SYNCED_KINDS:
            await claimed.finish(tx, {"skipped": "the tool set is gone or its tools are its own"})
            return {}
        await tool_sets.add_event(
            tx, actor, tool_set_id=tool_set_id, kind="sync_started", payload={"message": "Reading its tools."}
        )
    try:
        return await _sync(context, claimed, actor, row)
    except AppError as error:
        telemetry.SYNCS.labels("failed").inc()
        await _failed(claimed, actor, tool_set_id, error)
        if error.code in _HOPELESS:
            raise GiveUp(error.message) from None
        raise
    except Exception:
        telemetry.SYNCS.labels("failed").inc()
        internal = Upstream("sync.internal", "The tools could not be stored: internal error; the log has it.")
        await _failed(claimed, actor, tool_set_id, internal)
        raise


async def _sync(context: WorkContext, claimed: ClaimedJob, actor: Actor, row: Any) -> dict[str, Any]:
    try:
        adapter = open_adapter(row, context.vault, reveal=True)
    except SealBroken as error:
        raise Upstream("tool_set.broken", f"The secrets of this tool set cannot be opened: {error}.") from None
    if not isinstance(adapter, McpAdapter | CapabilityAdapter):
        raise Upstream("tool_set.broken", "The tools of this tool set are its own.")
    listed, problems = await _list(context, row, adapter)
    tools = [UpstreamTool.of(raw) for raw in listed if "\0" not in raw["name"]]
    unnamed = ["a tool whose name has a NUL"] * (len(tools) < len(listed))
    async with claimed.tx() as tx:
        stored = await store_synced_tools(
            tx,
            actor,
            tool_set_id=row["id"],
            revision=row["revision"],
            adapter=adapter,
            tools=tools,
            problems=[*unnamed, *problems],
        )
        result = {"tools": len(tools), "stored": stored}
        await claimed.finish(tx, result)
    telemetry.SYNCS.labels("completed" if stored else "void").inc()
    return result


async def _list(context: WorkContext, row: Any, adapter: SyncedAdapter) -> tuple[list[dict[str, Any]], Sequence[str]]:
    """The tools as MCP lists them, and what was left out."""
    if isinstance(adapter, CapabilityAdapter):
        return await context.capabilities.list_tools(adapter)
    if adapter.command is not None and not context.commands:
        raise Upstream("tool_set.broken", f"The tool set cannot be synced: {NO_COMMANDS}.")
    endpoint: McpEndpoint = endpoint_of(row["id"], row["revision"], adapter)
    try:
        listed = await context.upstreams.list_tools(endpoint, timeout_s=context.sync_timeout_s)
    except Upstream as error:
        raise Upstream(error.code, without_secrets(error.message, adapter)) from None
    return listed.tools, listed.problems


async def _failed(claimed: ClaimedJob, actor: Actor, tool_set_id: str, error: AppError) -> None:
    async with claimed.tx() as tx:
        try:
            await tool_sets.tool_set_row(tx, actor, tool_set_id)
        except NotFound:  # deleted meanwhile: nobody is left to tell
            return
        await tool_sets.add_event(
            tx,
            actor,
            tool_set_id=tool_set_id,
            kind="sync_failed",
            payload={"message": error.message, "error_type": error.code},
        )


@jobs.job("tool_set.sync_all", max_attempts=3, timeout_s=60)
async def sync_all(_context: WorkContext, claimed: ClaimedJob) -> None:
    """Ask for a sync of every MCP tool set."""
    async with claimed.tx() as tx:
        await claimed.finish(tx, {"asked": await tool_sets.enqueue_all_syncs(tx)})


@jobs.job("audit.prune", max_attempts=3, timeout_s=300)
async def prune_audit(context: WorkContext, claimed: ClaimedJob) -> dict[str, int]:
    """Forget tool calls, and events of tool sets, past their retention, a batch at a time."""
    total = 0
    while True:
        async with claimed.tx() as tx:
            deleted = await audit.prune_tool_calls(tx, older_than_days=context.audit_retention_days)
            deleted += await tool_sets.prune_events(tx, older_than_days=context.audit_retention_days)
        total += deleted
        if deleted == 0:
            return {"deleted": total}


def resync_later(database: Database) -> Callable[[str], None]:
    """What to do when an upstream says that its tools changed: ask for a sync. Takes an endpoint's key."""
    running: set[asyncio.Task[None]] = set()

    async def ask(tool_set_id: str) -> None:
        try:
            async with database.tx() as tx:
                await tool_sets.enqueue_sync_of(tx, tool_set_id=tool_set_id)
        except Exception:  # noqa: BLE001 - the next sync by the clock comes anyway
            _log.exception("tool_set.resync_failed", tool_set_id=tool_set_id)

    def changed(key: str) -> None:
        task = asyncio.create_task(ask(key.partition(":")[0]))
        running.add(task)
        task.add_done_callback(running.discard)

    return changed
