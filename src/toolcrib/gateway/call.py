"""The one way a tool is called: MCP, REST, agent runs and capability tools all end here.

The stages, in this order: resolve the tool, check that the actor may see and call it, check the arguments against the
schema, stop what needs approval, reach the upstream (no transaction, bounded in time and size), record, answer.
A refusal raises `AppError`; an upstream's failure is a *result* with `isError`, because the agent must see it.
Every call leaves one audit row, committed before the answer; a call that never got an answer may have none.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
import orjson
import structlog

from toolcrib.core import telemetry
from toolcrib.core.auth import Actor
from toolcrib.core.http import OutboundClient
from toolcrib.core.json_schema import first_complaint
from toolcrib.core.mcp_server.tool_result import failure
from toolcrib.core.template import TemplateError
from toolcrib.domain.adapters import CapabilityAdapter, HttpAdapter, without_secrets
from toolcrib.domain.audit import Outcome
from toolcrib.domain.tools import CapabilityConfig, HttpConfig, McpConfig
from toolcrib.errors import AppError, Forbidden, Invalid, NotFound, Unavailable, Upstream
from toolcrib.gateway.audit_writer import AuditRow, AuditWriter, now, shown_arguments
from toolcrib.gateway.catalog import Catalog, CatalogView, OfferedTool
from toolcrib.gateway.mcp_client.upstreams import McpUpstreams
from toolcrib.gateway.providers.capability import Capabilities
from toolcrib.gateway.providers.http import HttpPlan, call_http

_log = structlog.get_logger(__name__)
_MAX_NAME = 256
_MAX_INT = 2**31 - 1

Find = Callable[[CatalogView], OfferedTool | None]
OnProgress = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """One call as it came in.

    Attributes:
        find: picks the tool out of the workspace's catalogue, or gives None.
        asked: what the caller wrote, for the audit of a tool that does not exist.
        arguments: a JSON object in bytes.
        door: where it came in: `mcp`, `rest`, `cli` or `run`.
        on_progress: receives the parameters of an MCP progress notification, in JSON.
    """

    find: Find
    asked: str
    arguments: bytes
    door: str
    request_id: str
    on_progress: OnProgress | None = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """An MCP tool result in JSON, and whether it reports an error."""

    body: bytes
    is_error: bool


class ToolCalls:
    """The pipeline with what it needs, built once per process."""

    def __init__(
        self,
        catalog: Catalog,
        audit: AuditWriter,
        outbound: OutboundClient,
        upstreams: McpUpstreams,
        capabilities: Capabilities,
        *,
        timeout_s: float,
    ) -> None:
        self._catalog = catalog
        self._audit = audit
        self._outbound = outbound
        self._upstreams = upstreams
        self._capabilities = capabilities
        self._timeout_s = timeout_s
        self._span = telemetry.spans()

    async def call(self, actor: Actor, request: ToolRequest) -> ToolResult:
        """Call a tool.

        Raises:
            NotFound: the workspace offers no such tool.
            Forbidden: a scope is missing, or the tool needs approval.
            Invalid: the arguments do not fit the tool's schema.
            Unavailable: the call could not be recorded.
        """
        with self._span("tool.call") as span:
            called_at, started = now(), time.perf_counter_ns()
            tool: OfferedTool | None = None
            outcome: Outcome = "refused"
            error_code: str | None = None
            size = 0
            try:
                actor.must("tools:call")
                tool = request.find(await self._catalog.view(actor.workspace_id))
                if tool is None:
                    raise NotFound("tool.unknown", f"There is no tool {request.asked[:_MAX_NAME]!r}.", field="name")
                span.set_attribute("gen_ai.tool.name", tool.call_name)
                _check_arguments(tool, request.arguments)
                if tool.requires_approval:
                    raise Forbidden(
                        "approval.required",
                        f"The tool {tool.call_name} needs a person's approval for each call, and this server cannot ask"
                        " for one yet. Ask an administrator to clear requiresApproval if it may run freely.",
                    )
                try:
                    result = await self._reach(tool, request)
                    outcome = "tool_error" if result.is_error else "ok"
                except Upstream as error:
                    outcome, error_code = "upstream_error", error.code
                    message = without_secrets(error.message, tool.tool_set.adapter)
                    result = ToolResult(failure(message), is_error=True)
                size = len(result.body)
            except asyncio.CancelledError:
                outcome, error_code = "cancelled", "call.cancelled"
                raise
            except AppError as error:
                error_code = error.code
                raise
            except Exception:
                outcome, error_code = "upstream_error", "internal"
                raise
            finally:
                row = _row(actor, request, tool, outcome, error_code, size, started, called_at)
                telemetry.tool_calls(request.door, outcome).inc()
                telemetry.tool_call_seconds(request.door).observe(row[11] / 1e6)
                await self._record(row)
            return result

    async def _reach(self, tool: OfferedTool, request: ToolRequest) -> ToolResult:
        tool_set = tool.tool_set
        if tool_set.broken is not None:
            raise Upstream("tool_set.broken", f"The tool set {tool_set.name} cannot be used: {tool_set.broken}.")
        if isinstance(tool.config, HttpConfig) and isinstance(tool_set.adapter, HttpAdapter):
            if tool.plan is None:
                tool.plan = HttpPlan.compile(tool_set.adapter, tool.config)
            try:
                body, is_error = await call_http(
                    self._outbound, tool.plan, request.arguments, timeout_s=self._timeout_s
                )
            except TemplateError as error:
                raise Invalid("arguments.unusable", f"{error}.", field="arguments") from None
            return ToolResult(body, is_error)
        if isinstance(tool.config, McpConfig) and tool_set.endpoint is not None:
            answer = await self._upstreams.call_tool(
                tool_set.endpoint,
                tool.config.tool_name or tool.name,
                request.arguments,
                timeout_s=self._timeout_s,
                on_progress=request.on_progress,
            )
            return ToolResult(answer.result, answer.is_error)
        if isinstance(tool.config, CapabilityConfig) and isinstance(tool_set.adapter, CapabilityAdapter):
            name = tool.config.tool_name or tool.name
            key, adapter = tool_set.key, tool_set.adapter
            return ToolResult(
                *await self._capabilities.call_tool(key, adapter, name, request.arguments, timeout_s=self._timeout_s)
            )
        raise Upstream("tool.no_adapter", f"The tool {tool.call_name} has no adapter that could run it.")

    async def _record(self, row: AuditRow) -> None:
        try:
            await self._audit.write(row)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise Unavailable(
                "audit.unavailable", "The call could not be recorded, so its result is withheld."
            ) from error


def _check_arguments(tool: OfferedTool, arguments: bytes) -> None:
    try:
        values = orjson.loads(arguments)
    except orjson.JSONDecodeError as error:
        raise Invalid("arguments.not_json", f"The arguments are not JSON: {error}.", field="arguments") from None
    if not isinstance(values, dict):
        raise Invalid("arguments.not_object", "The arguments are a JSON object.", field="arguments")
    _check_same_for_all(arguments, values)
    if complaint := first_complaint(tool.validator(), values):
        path, reason = complaint
        raise Invalid("arguments.invalid", f"arguments{path}: {reason}", field=f"arguments{path}")


def _check_same_for_all(arguments: bytes, values: dict[str, Any]) -> None:
    """Refuse what an upstream may read otherwise than the schema check and the audit do: they get the bytes themselves.

    Of a member that comes twice some parsers take the first; and what is nested too deep cannot be written down.
    """
    try:
        if orjson.dumps(values) != arguments:
            json.loads(arguments, object_pairs_hook=_once)
    except (TypeError, RecursionError):
        raise Invalid("arguments.too_deep", "The arguments are nested too deep.", field="arguments") from None


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise Invalid("arguments.repeated", "An object in the arguments has a member twice.", field="arguments")


def _row(
    actor: Actor,
    request: ToolRequest,
    tool: OfferedTool | None,
    outcome: Outcome,
    error_code: str | None,
    size: int,
    started: int,
    called_at: datetime,
) -> AuditRow:
    return (
        actor.workspace_id,
        actor.principal_id,
        actor.key_id,
        tool.tool_set.id if tool else None,
        tool.id if tool else None,
        tool.call_name if tool else request.asked[:_MAX_NAME].replace("\0", "\ufffd"),
        request.door,
        outcome,
        error_code,
        shown_arguments(request.arguments),
        min(size, _MAX_INT),
        min((time.perf_counter_ns() - started) // 1000, _MAX_INT),  # one value too large would fail the whole batch
        request.request_id,
        called_at,
    )
