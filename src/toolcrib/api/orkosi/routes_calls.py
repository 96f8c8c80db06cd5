"""The record of tool calls (an operation of Toolcrib's own, in Orkosi's shapes)."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from toolcrib.api.kit import SECURITY, Caller, InReadTx, StrictRoute
from toolcrib.api.orkosi.wire import Error, ToolCallList, to_wire_list, to_wire_tool_call
from toolcrib.api.render import json_response
from toolcrib.domain import audit

router = APIRouter(prefix="/api", tags=["Tools"], route_class=StrictRoute, dependencies=SECURITY)


@router.get(
    "/tool-calls", operation_id="listToolCalls", responses={200: {"model": ToolCallList}, "default": {"model": Error}}
)
async def list_tool_calls(
    actor: Caller,
    tx: InReadTx,
    tool: Annotated[str | None, Query(description="call name")] = None,
    tool_set_id: Annotated[str | None, Query()] = None,
    outcome: Annotated[str | None, Query(description="ok, tool_error, upstream_error, refused or cancelled")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Response:
    """Tool calls of the workspace, newest first."""
    page = await audit.list_tool_calls(
        tx, actor, tool_name=tool, tool_set_id=tool_set_id, outcome=outcome, limit=limit, offset=offset
    )
    return json_response(to_wire_list(page, [to_wire_tool_call(c) for c in page.items], limit=limit, offset=offset))
