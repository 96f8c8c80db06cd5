"""Orkosi's words, and translations to them."""

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from toolcrib.core.paging import Page
from toolcrib.domain.audit import ToolCall


class HealthResponse(BaseModel):
    """Liveness; `uptime` in seconds, `redis` for compatibility (there is none to configure)."""

    status: str
    db: str
    redis: str
    version: str
    uptime: int


class ReadyResponse(BaseModel):
    """Readiness."""

    status: str
    db: str


class Version(BaseModel):
    """What runs here."""

    version: str
    uptime: int


class VersionResponse(BaseModel):
    """The version in its envelope."""

    data: Version


class ToolCallOut(BaseModel):
    """One call of a tool."""

    id: int
    tool: str
    tool_id: str | None
    tool_set_id: str | None
    principal_id: str
    principal: str | None
    api_key_id: str | None
    door: str
    outcome: str
    error_code: str | None
    arguments: Any
    result_bytes: int
    duration_ms: float
    request_id: str
    called_at: datetime


class Meta(BaseModel):
    """Where a page stands."""

    total: int
    limit: int
    offset: int


class ToolCallList(BaseModel):
    """A page of tool calls, newest first."""

    data: list[ToolCallOut]
    meta: Meta


class Error(BaseModel):
    """An error."""

    error: dict[str, str]


def to_wire_tool_call(call: ToolCall) -> dict[str, Any]:
    """One call of a tool."""
    return {
        "id": call.id,
        "tool": call.tool_name,
        "tool_id": call.tool_id,
        "tool_set_id": call.tool_set_id,
        "principal_id": call.principal_id,
        "principal": call.principal_name,
        "api_key_id": call.api_key_id,
        "door": call.door,
        "outcome": call.outcome,
        "error_code": call.error_code,
        "arguments": call.arguments,
        "result_bytes": call.result_bytes,
        "duration_ms": call.duration_ms,
        "request_id": call.request_id,
        "called_at": call.called_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }


def to_wire_list(page: Page[Any], items: list[dict[str, Any]], *, limit: int, offset: int) -> dict[str, Any]:
    """A page in its envelope."""
    return {"data": items, "meta": {"total": page.total, "limit": limit, "offset": offset}}
