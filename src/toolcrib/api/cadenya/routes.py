"""The routes of both editions: parse, one domain verb, render."""

from typing import Annotated, Any, Literal
from urllib.parse import unquote

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import AfterValidator

from toolcrib.api.cadenya.convert import (
    STATES,
    Edition,
    from_wire_labels,
    from_wire_tool,
    from_wire_tool_set,
    to_wire_event,
    to_wire_page,
    to_wire_tool,
    to_wire_tool_draft,
    to_wire_tool_set,
    to_wire_tool_set_draft,
)
from toolcrib.api.cadenya.updates import merge_update
from toolcrib.api.cadenya.wire import (
    CreateTool,
    CreateToolSet,
    LaterCreateTool,
    RpcStatus,
    ToolOut,
    ToolPage,
    ToolSetEventPage,
    ToolSetOut,
    ToolSetPage,
    UpdateTool,
    UpdateToolSet,
)
from toolcrib.api.deps import Deps
from toolcrib.api.kit import SECURITY, Caller, InReadTx, InTx, StrictRoute, checked, deps_of
from toolcrib.api.render import json_response
from toolcrib.core.auth import Actor
from toolcrib.core.paging import Order, Page
from toolcrib.domain import tool_sets, tools
from toolcrib.domain.adapters import Adapter, CapabilityAdapter, check_adapter
from toolcrib.errors import Conflict, Invalid, NotFound

Cursor = Annotated[str | None, Query(description="nextCursor of the page before")]
Info = Annotated[bool, Query(alias="includeInfo", description="fill info")]
Limit = Annotated[int | None, Query(description="most results to return; above 200 counts as 200")]
Prefix = Annotated[str | None, Query(description="only names that begin with this, in any case")]
SortOrder = Annotated[str | None, Query(alias="sortOrder", description="asc or desc, by creation time")]
Labels = Annotated[str | None, Query(description="later edition: key=value, comma-separated")]
Search = Annotated[str | None, Query(description="later edition: text that the name has")]
ToolSetId = Annotated[
    str, AfterValidator(unquote), Path(alias="toolSetId", description="an id, or external_id:<value>")
]
Id = Annotated[str, AfterValidator(unquote), Path(alias="id", description="an id, or external_id:<value>")]
State = Literal["STATE_UNSPECIFIED", "STATE_AVAILABLE", "STATE_OMITTED", "STATE_ARCHIVED"]
_NUL = "\0"


def _order(text: str | None) -> Order:
    match (text or "asc").lower():
        case "asc":
            return "asc"
        case "desc":
            return "desc"
        case _:
            raise Invalid("paging.order_invalid", "sortOrder is asc or desc.", field="sortOrder")


async def _own_workspace(workspace_id: Annotated[str, Path(alias="workspaceId")], actor: Caller) -> None:
    """The later edition names the workspace; it must be the one of the credentials."""
    if workspace_id != actor.workspace_id:
        raise NotFound("workspace.unknown", "There is no such workspace.", field="workspaceId")


async def _no_nul(request: Request) -> None:
    """PostgreSQL stores no NUL: an identifier with one names nothing, a query with one is refused."""
    if any(_NUL in value for value in request.path_params.values()):
        raise NotFound("request.path", "There is nothing at this path.")
    for name, value in request.query_params.multi_items():
        if _NUL in value:
            raise Invalid("query.nul", "The value has a NUL character.", field=name)


def edition_of(request: Request) -> Edition:
    """Which edition the client speaks: the later one names the workspace in the path."""
    return "later" if "workspaceId" in request.path_params else "published"


def _answers(model: type) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model, "description": "done"}, "default": {"model": RpcStatus, "description": "error"}}


_GONE: dict[int | str, dict[str, Any]] = {
    200: {"description": "gone, empty body"},
    "default": {"model": RpcStatus, "description": "error"},
}


shared = APIRouter(route_class=StrictRoute, default_response_class=Response)
published_only = APIRouter(route_class=StrictRoute, default_response_class=Response)
later_only = APIRouter(route_class=StrictRoute, default_response_class=Response)


@shared.get("", name="listToolSets", tags=["Tool Sets"], responses=_answers(ToolSetPage))
async def list_tool_sets(
    request: Request,
    actor: Caller,
    tx: InReadTx,
    cursor: Cursor = None,
    include_info: Info = False,  # noqa: FBT002
    limit: Limit = None,
    prefix: Prefix = None,
    sort_order: SortOrder = None,
    query: Search = None,
    labels: Labels = None,
    state: Annotated[Literal["STATE_UNSPECIFIED", "STATE_ACTIVE", "STATE_ARCHIVED"] | None, Query()] = None,
) -> Response:
    """Tool sets of the workspace by page."""
    if state == "STATE_ARCHIVED":  # every tool set is active: archiving them is not offered yet
        actor.must("tool_sets:read")
        return json_response(to_wire_page(Page([], 0), []))
    page = await tool_sets.list_tool_sets(
        tx,
        actor,
        vault=deps_of(request).vault,
        cursor=cursor,
        limit=limit,
        prefix=prefix,
        query=query,
        labels=from_wire_labels(labels),
        order=_order(sort_order),
        counts=include_info,
    )
    return json_response(to_wire_page(page, [to_wire_tool_set(item, info=include_info) for item in page.items]))


@shared.post("", name="createToolSet", tags=["Tool Sets"], responses=_answers(ToolSetOut))
async def create_tool_set(request: Request, actor: Caller, body: CreateToolSet) -> Response:
    """Create a tool set in the workspace; one with an mcp or a capability adapter is synced."""
    deps = deps_of(request)
    draft = from_wire_tool_set(body)
    await _check_capability(deps, actor, draft.adapter)
    async with deps.database.tx() as tx:
        tool_set = await tool_sets.create_tool_set(tx, actor, vault=deps.vault, draft=draft, commands=deps.commands)
    return json_response(to_wire_tool_set(tool_set))


async def _check_capability(deps: Deps, actor: Actor, adapter: Adapter | None) -> None:
    """Raise Invalid for a capability file that cannot be served; outside of a transaction, because it takes a while."""
    if isinstance(adapter, CapabilityAdapter):
        actor.must("tool_sets:write")
        check_adapter(actor, adapter, commands=deps.commands)
        await deps.capabilities.check(adapter)


@shared.get("/{id}", name="getToolSet", tags=["Tool Sets"], responses=_answers(ToolSetOut))
async def get_tool_set(request: Request, actor: Caller, tx: InReadTx, thing_id: Id) -> Response:
    """One tool set."""
    tool_set = await tool_sets.get_tool_set(tx, actor, vault=deps_of(request).vault, tool_set_id=thing_id)
    return json_response(to_wire_tool_set(tool_set))


@shared.put("/{id}", name="updateToolSet", tags=["Tool Sets"], responses=_answers(ToolSetOut))
@later_only.patch("/{id}", name="patchToolSet", tags=["Tool Sets"], responses=_answers(ToolSetOut))
async def update_tool_set(request: Request, actor: Caller, thing_id: Id, body: UpdateToolSet) -> Response:
    """Change a tool set: the members that updateMask names, or those that are sent."""
    actor.must("tool_sets:write")
    deps = deps_of(request)
    sent = body.model_dump(exclude_unset=True)

    def change(draft: tool_sets.ToolSetDraft) -> tool_sets.ToolSetDraft:
        merged = merge_update(to_wire_tool_set_draft(draft), sent, body.updateMask, CreateToolSet)
        return from_wire_tool_set(checked(CreateToolSet, merged))

    async with deps.database.read() as before:
        known = await tool_sets.get_tool_set(before, actor, vault=deps.vault, tool_set_id=thing_id)
    judged = change(known.draft).adapter
    if judged != known.draft.adapter:
        await _check_capability(deps, actor, judged)

    def change_as_judged(draft: tool_sets.ToolSetDraft) -> tool_sets.ToolSetDraft:
        after = change(draft)
        if isinstance(after.adapter, CapabilityAdapter) and after.adapter not in (draft.adapter, judged):
            raise Conflict("tool_set.changed", "Somebody changed the tool set at the same moment; try again.")
        return after

    async with deps.database.tx() as tx:
        tool_set = await tool_sets.update_tool_set(
            tx, actor, vault=deps.vault, tool_set_id=thing_id, change=change_as_judged, commands=deps.commands
        )
    return json_response(to_wire_tool_set(tool_set))


@shared.delete("/{id}", name="deleteToolSet", tags=["Tool Sets"], responses=_GONE)
async def delete_tool_set(actor: Caller, tx: InTx, thing_id: Id) -> Response:
    """Delete a tool set with its tools."""
    await tool_sets.delete_tool_set(tx, actor, tool_set_id=thing_id)
    return Response(status_code=200)


@shared.post("/{toolSetId}:sync", name="syncToolSet", tags=["Tool Sets"], responses=_answers(ToolSetOut))
async def sync_tool_set(request: Request, actor: Caller, tx: InTx, tool_set_id: ToolSetId) -> Response:
    """Read the tools of an MCP server or a capability again, soon; events tell how. Toolcrib's own operation."""
    tool_set = await tool_sets.request_sync(tx, actor, vault=deps_of(request).vault, tool_set_id=tool_set_id)
    return json_response(to_wire_tool_set(tool_set))


@shared.get("/{toolSetId}/events", name="listToolSetEvents", tags=["Tool Sets"], responses=_answers(ToolSetEventPage))
async def list_tool_set_events(
    request: Request,
    actor: Caller,
    tx: InReadTx,
    tool_set_id: ToolSetId,
    cursor: Cursor = None,
    include_info: Info = False,  # noqa: FBT002
    limit: Limit = None,
    sort_order: SortOrder = None,
) -> Response:
    """Events of a tool set, the outcome of syncs among them."""
    page = await tool_sets.list_tool_set_events(
        tx,
        actor,
        vault=deps_of(request).vault,
        tool_set_id=tool_set_id,
        cursor=cursor,
        limit=limit,
        order=_order(sort_order),
    )
    items = [to_wire_event(item, actor, edition=edition_of(request), info=include_info) for item in page.items]
    return json_response(to_wire_page(page, items))


@shared.get("/{toolSetId}/tools", name="listTools", tags=["Tools"], responses=_answers(ToolPage))
async def list_tools(
    actor: Caller,
    tx: InReadTx,
    tool_set_id: ToolSetId,
    cursor: Cursor = None,
    include_info: Info = False,  # noqa: FBT002
    limit: Limit = None,
    prefix: Prefix = None,
    sort_order: SortOrder = None,
    query: Search = None,
    labels: Labels = None,
    names: Annotated[list[str] | None, Query()] = None,
    states: Annotated[list[State] | None, Query()] = None,
    requires_approval: Annotated[bool | None, Query(alias="requiresApproval")] = None,
) -> Response:
    """Tools of a tool set by page."""
    page = await tools.list_tools(
        tx,
        actor,
        tool_set_id=tool_set_id,
        cursor=cursor,
        limit=limit,
        prefix=prefix,
        query=query,
        names=names or (),
        statuses=[STATES[state] for state in states or () if state != "STATE_UNSPECIFIED"],
        requires_approval=requires_approval,
        labels=from_wire_labels(labels),
        order=_order(sort_order),
    )
    return json_response(to_wire_page(page, [to_wire_tool(item, info=include_info) for item in page.items]))


@published_only.post("/{toolSetId}/tools", name="createTool", tags=["Tools"], responses=_answers(ToolOut))
async def create_tool(actor: Caller, tx: InTx, tool_set_id: ToolSetId, body: CreateTool) -> Response:
    """Create a tool in a tool set."""
    tool = await tools.create_tool(tx, actor, tool_set_id=tool_set_id, draft=from_wire_tool(body))
    return json_response(to_wire_tool(tool))


@later_only.post("/{toolSetId}/tools", name="createTool", tags=["Tools"], responses=_answers(ToolOut))
async def create_tool_later(actor: Caller, tx: InTx, tool_set_id: ToolSetId, body: LaterCreateTool) -> Response:
    """Create a tool in a tool set; this edition has no status on input."""
    return await create_tool(actor, tx, tool_set_id, body)


@shared.get("/{toolSetId}/tools/{id}", name="getTool", tags=["Tools"], responses=_answers(ToolOut))
async def get_tool(actor: Caller, tx: InReadTx, tool_set_id: ToolSetId, thing_id: Id) -> Response:
    """One tool."""
    tool = await tools.get_tool(tx, actor, tool_set_id=tool_set_id, tool_id=thing_id)
    return json_response(to_wire_tool(tool))


@shared.put("/{toolSetId}/tools/{id}", name="updateTool", tags=["Tools"], responses=_answers(ToolOut))
@later_only.patch("/{toolSetId}/tools/{id}", name="patchTool", tags=["Tools"], responses=_answers(ToolOut))
async def update_tool(actor: Caller, tx: InTx, tool_set_id: ToolSetId, thing_id: Id, body: UpdateTool) -> Response:
    """Change a tool: the members that updateMask names, or those that are sent."""
    sent = body.model_dump(exclude_unset=True)

    def change(draft: tools.ToolDraft) -> tools.ToolDraft:
        merged = merge_update(to_wire_tool_draft(draft), sent, body.updateMask, CreateTool)
        return from_wire_tool(checked(CreateTool, merged))

    tool = await tools.update_tool(tx, actor, tool_set_id=tool_set_id, tool_id=thing_id, change=change)
    return json_response(to_wire_tool(tool))


@shared.delete("/{toolSetId}/tools/{id}", name="deleteTool", tags=["Tools"], responses=_GONE)
async def delete_tool(actor: Caller, tx: InTx, tool_set_id: ToolSetId, thing_id: Id) -> Response:
    """Delete a tool."""
    await tools.delete_tool(tx, actor, tool_set_id=tool_set_id, tool_id=thing_id)
    return Response(status_code=200)


def _operation_id(route: APIRoute) -> str:
    return route.name + ("Later" if "{workspaceId}" in route.path_format else "")


def include_routes(app: FastAPI) -> None:
    """Both editions: the published one, and the one whose paths name the workspace."""
    for route in (*shared.routes, *published_only.routes, *later_only.routes):
        if isinstance(route, APIRoute):
            route.summary = route.description.partition(".")[0].partition(";")[0]
    for prefix, own, extra in (
        ("/v1/tool_sets", published_only, []),
        ("/v1/workspaces/{workspaceId}/tool_sets", later_only, [Depends(_own_workspace)]),
    ):
        for router in (shared, own):
            app.include_router(
                router,
                prefix=prefix,
                dependencies=[*SECURITY, Depends(_no_nul), *extra],
                generate_unique_id_function=_operation_id,
            )
