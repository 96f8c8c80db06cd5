"""The catalogue: every tool that a workspace offers, compiled for calling, kept in memory and reloaded on news.

A view is one read of one workspace and never changes; news of a change makes the next caller load another. While the
bus is down no view is trusted. Secrets of adapters are open inside a view and leave it only towards their upstream.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jsonschema_rs
import msgspec
import orjson
import structlog

from toolcrib.core.bus import RESYNC
from toolcrib.core.db import Database, Row
from toolcrib.core.json_schema import compile_schema
from toolcrib.core.vault import SealBroken, Vault
from toolcrib.domain.adapters import Adapter, CapabilityAdapter, McpAdapter, open_adapter
from toolcrib.domain.tool_sets import CATALOG_NEWS
from toolcrib.domain.tools import ToolConfig
from toolcrib.gateway.mcp_client.contract import McpEndpoint

_log = structlog.get_logger(__name__)
_RELOAD_S = 0.5
NO_COMMANDS = "this server runs no commands (TOOLCRIB_STDIO)"
_ANY_OBJECT = {"type": "object"}


@dataclass(slots=True)
class OfferedToolSet:
    """A tool set as callers reach it; `broken` says why none of its tools can be called now."""

    id: str
    slug: str
    name: str
    description: str | None
    adapter: Adapter | None
    key: str  # another adapter has another one
    endpoint: McpEndpoint | None
    broken: str | None = None
    tools: "list[OfferedTool]" = field(default_factory=list)
    by_name: "dict[str, OfferedTool]" = field(default_factory=dict)
    by_id: "dict[str, OfferedTool]" = field(default_factory=dict)  # `external_id:<value>` as well


@dataclass(slots=True)
class OfferedTool:
    """A tool that can be called; what is costly to make is made at first use and kept."""

    id: str
    tool_set: OfferedToolSet
    name: str
    local_name: str
    call_name: str
    requires_approval: bool
    config: ToolConfig | None
    schema_text: str
    rest: bytes  # members of its MCP form that follow the name, without braces
    _validator: jsonschema_rs.Validator | None = None
    plan: Any = None  # the provider's compiled request

    def wire(self, name: str) -> bytes:
        """The tool as a member of an MCP tools/list result."""
        return b'{"name":"' + name.encode() + b'"' + self.rest + b"}"

    def validator(self) -> jsonschema_rs.Validator:
        """Checks arguments; an upstream's schema that is no JSON Schema lets everything pass (the upstream decides)."""
        if self._validator is None:
            try:
                self._validator = compile_schema(orjson.loads(self.schema_text))
            except (ValueError, RecursionError):
                _log.warning("tool.schema_unusable", tool_id=self.id)
                self._validator = compile_schema(_ANY_OBJECT)
        return self._validator


@dataclass(frozen=True, slots=True)
class CatalogView:
    """The tools of one workspace at one moment, sorted by call name."""

    tools: list[OfferedTool]
    by_name: dict[str, OfferedTool]
    tool_sets: dict[str, OfferedToolSet]  # by slug, id, and `external_id:<value>`

    def find(self, name: str) -> OfferedTool | None:
        """A tool by call name, or by `{tool set}__{tool}`."""
        if tool := self.by_name.get(name):
            return tool
        slug, separator, local = name.partition("__")
        tool_set = self.tool_sets.get(slug) if separator else None
        return tool_set.by_name.get(local) if tool_set else None


class Catalog:
    """Views by workspace, loaded once however many callers ask, dropped on news."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        *,
        commands: bool,
        retire: Callable[[str], None] = lambda _key: None,
        max_workspaces: int = 1000,
    ) -> None:
        self._database = database
        self._vault = vault
        self._commands = commands  # whether tool sets may run one
        self._retire = retire  # told the key of every tool set whose upstream or capability is in use no more
        self._max = max_workspaces
        self._endpoints: dict[str, set[str]] = {}
        self._reloads: dict[str, asyncio.TimerHandle] = {}
        self._views: dict[str, asyncio.Task[CatalogView]] = {}
        self._listeners: dict[str, set[Callable[[], None]]] = {}
        database.bus.subscribe(CATALOG_NEWS, self._news)

    async def view(self, workspace_id: str) -> CatalogView:
        """The current view of a workspace."""
        task = self._views.get(workspace_id)
        if task is None or not self._database.bus.connected:
            task = asyncio.create_task(self._load(workspace_id), name=f"catalog {workspace_id}")
            if len(self._views) >= self._max:
                self._views.pop(next(iter(self._views)))
            self._views[workspace_id] = task
            task.add_done_callback(lambda done: self._forget_failed(workspace_id, done))
        if task.done():
            return task.result()
        return await asyncio.shield(task)

    def on_change(self, workspace_id: str, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener()` whenever the workspace's tools may have changed; returns the way to stop that."""
        self._listeners.setdefault(workspace_id, set()).add(listener)

        def stop() -> None:
            listeners = self._listeners.get(workspace_id, set())
            listeners.discard(listener)
            if not listeners:
                self._listeners.pop(workspace_id, None)

        return stop

    def _news(self, workspace_id: str) -> None:
        if workspace_id == RESYNC:
            self._views.clear()
            changed = list(self._listeners)
        else:
            self._views.pop(workspace_id, None)
            changed = [workspace_id]
        for workspace in changed:
            if (
                self._endpoints.get(workspace) and workspace not in self._reloads
            ):  # to retire endpoints without a caller
                loop = asyncio.get_running_loop()
                self._reloads[workspace] = loop.call_later(_RELOAD_S, self._reload, workspace)
            for listener in list(self._listeners.get(workspace, ())):
                listener()

    def _reload(self, workspace_id: str) -> None:
        self._reloads.pop(workspace_id, None)
        if workspace_id not in self._views:
            self._views[workspace_id] = task = asyncio.create_task(self._load(workspace_id))
            task.add_done_callback(lambda done: self._forget_failed(workspace_id, done))

    def close(self) -> None:
        """Load nothing more by itself."""
        for timer in self._reloads.values():
            timer.cancel()

    def _forget_failed(self, workspace_id: str, task: asyncio.Task[CatalogView]) -> None:
        if (task.cancelled() or task.exception() is not None) and self._views.get(workspace_id) is task:
            del self._views[workspace_id]

    async def _load(self, workspace_id: str) -> CatalogView:
        async with self._database.read() as tx:
            set_rows = await tx.fetch("SELECT * FROM tool_set WHERE workspace_id = $1 ORDER BY slug", workspace_id)
            rows = await tx.fetch(
                "SELECT id, tool_set_id, name, local_name, call_name, external_id, title, description,"
                " parameters::text AS parameters,"
                " output_schema::text AS output_schema, annotations::text AS annotations, meta::text AS meta,"
                " config, requires_approval FROM tool WHERE workspace_id = $1 AND status = 'available'"
                ' ORDER BY call_name COLLATE "C"',
                workspace_id,
            )
        tool_sets = {row["id"]: self._tool_set(row) for row in set_rows}
        tools = []
        for i, row in enumerate(rows):
            if i % 500 == 499:
                await asyncio.sleep(0)  # thousands of tools must not hold up other requests
            tool_set = tool_sets[row["tool_set_id"]]
            tool = _tool(row, tool_set)
            tool_set.tools.append(tool)
            tool_set.by_name[tool.local_name] = tool
            tool_set.by_id[tool.id] = tool
            if row["external_id"] is not None:
                tool_set.by_id[f"external_id:{row['external_id']}"] = tool
            tools.append(tool)
        names = {tool_set.slug: tool_set for tool_set in tool_sets.values()} | tool_sets
        for row in set_rows:
            if row["external_id"] is not None:
                names[f"external_id:{row['external_id']}"] = tool_sets[row["id"]]
        endpoints = {s.key for s in tool_sets.values() if isinstance(s.adapter, McpAdapter | CapabilityAdapter)}
        if self._views.get(workspace_id) is asyncio.current_task():  # no news since: this is how things are
            for key in self._endpoints.get(workspace_id, set()) - endpoints:
                self._retire(key)
            self._endpoints[workspace_id] = endpoints
        return CatalogView(tools, {t.call_name: t for t in tools}, names)

    def _tool_set(self, row: Row) -> OfferedToolSet:
        adapter, broken = None, None
        try:
            adapter = open_adapter(row, self._vault, reveal=True)
        except SealBroken as error:
            broken = f"its secrets cannot be opened: {error}"
            _log.error("tool_set.seal_broken", tool_set_id=row["id"])
        if isinstance(adapter, McpAdapter) and adapter.command is not None and not self._commands:
            broken = NO_COMMANDS
        endpoint = endpoint_of(row["id"], row["revision"], adapter) if isinstance(adapter, McpAdapter) else None
        key = f"{row['id']}:{row['revision']}"
        return OfferedToolSet(row["id"], row["slug"], row["name"], row["description"], adapter, key, endpoint, broken)


def endpoint_of(tool_set_id: str, revision: int, adapter: McpAdapter) -> McpEndpoint:
    """Where an MCP adapter connects to; another revision is another endpoint, so that no old session is used for it."""
    return McpEndpoint(
        key=f"{tool_set_id}:{revision}",
        transport="stdio" if adapter.command is not None else adapter.transport,
        url=adapter.url,
        headers=tuple(adapter.headers.items()),
        command=adapter.command,
        args=adapter.args,
        env=tuple(adapter.env.items()),
        cwd=adapter.cwd,
    )


def _tool(row: Row, tool_set: OfferedToolSet) -> OfferedTool:
    rest = []
    if row["title"]:
        rest.append(b',"title":' + orjson.dumps(row["title"]))
    rest.append(b',"description":' + orjson.dumps(row["description"]))
    rest.append(b',"inputSchema":' + _object_schema(row["parameters"]).encode())
    for member, column in (("outputSchema", "output_schema"), ("annotations", "annotations"), ("_meta", "meta")):
        if row[column] is not None:
            rest.append(f',"{member}":{row[column]}'.encode())
    config = msgspec.convert(row["config"], ToolConfig) if row["config"] else None
    return OfferedTool(
        row["id"],
        tool_set,
        row["name"],
        row["local_name"],
        row["call_name"],
        row["requires_approval"],
        config,
        row["parameters"],
        b"".join(rest),
    )


def _object_schema(text: str) -> str:
    """MCP wants `"type": "object"` in an input schema; one that leaves it out gets it."""
    if '"type"' in text and orjson.loads(text).get("type") == "object":
        return text
    schema = orjson.loads(text)
    return orjson.dumps(
        {"type": "object", **schema, **({} if schema.get("type") == "object" else _ANY_OBJECT)}
    ).decode()
