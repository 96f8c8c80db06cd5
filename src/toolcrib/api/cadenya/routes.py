"""The routes of both editions: parse, one domain verb, render."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response

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
from toolcrib.api.kit import SECURITY, Caller, InReadTx, InTx, StrictRoute, checked, deps_of
from toolcrib.api.render import json_response
from toolcrib.core.paging import Order
from toolcrib.domain import tool_sets, tools
from toolcrib.errors import Invalid, NotFound

Cursor = Annotated[str | None, Query(description="nextCursor of the page before")]
Info = Annotated[bool, Query(alias="includeInfo", description="fill info")]
Limit = Annotated[int | None, Query(description="most results to return; above 200 counts as 200")]
Prefix = Annotated[str | None, Query(description="only names that begin with this, in any case")]
SortOrder = Annotated[str | None, Query(alias="sortOrder", description="asc or desc, by creation time")]
Labels = Annotated[str | None, Query(description="later edition: key=value, comma-separated")]
Search = Annotated[str | None, Query(description="later edition: text that the name has")]
ToolSetId = Annotated[str, Path(alias="toolSetId", description="an id, or external_id:<value>")]
Id = Annotated[str, Path(alias="id", description="an id, or external_id:<value>")]
_NUL = "\0"
Handler = TypeVar("Handler", bound=Callable[..., Any])


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


def _answers(model: type) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model, "description": "done"}, "default": {"model": RpcStatus, "description": "error"}}


_GONE: dict[int | str, dict[str, Any]] = {
    200: {"description": "gone, empty body"},
    "default": {"model": RpcStatus, "description": "error"},
}


def _router(edition: Edition) -> APIRouter:  # noqa: C901, PLR0915 - one table of routes
    prefix, extra, update = "/v1/tool_sets", [], ["PUT"]
    if edition == "later":
        prefix, extra, update = "/v1/workspaces/{workspaceId}/tool_sets", [Depends(_own_workspace)], ["PUT", "PATCH"]
    router = APIRouter(prefix=prefix, route_class=StrictRoute, dependencies=[*SECURITY, Depends(_no_nul), *extra])
    tag = "" if edition == "published" else "Later"

    def route(
        path: str, methods: list[str], name: str, group: str, model: type | None = None
    ) -> Callable[[Handler], Handler]:
        responses = _answers(model) if model else _GONE
        return router.api_route(
            path,
            methods=methods,
            operation_id=None if len(methods) > 1 else name + tag,
            name=name,
            tags=[group],
            responses=responses,
            response_class=Response,
        )

    @route("", ["GET"], "listToolSets", "Tool Sets", ToolSetPage)
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
        del state  # every tool set is active: archiving them is not offered yet
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

    @route("", ["POST"], "createToolSet", "Tool Sets", ToolSetOut)
    async def create_tool_set(request: Request, actor: Caller, tx: InTx, body: CreateToolSet) -> Response:
        """Create a tool set in the workspace; one with an mcp adapter is synced."""
        deps = deps_of(request)
        tool_set = await tool_sets.create_tool_set(
            tx, actor, vault=deps.vault, draft=from_wire_tool_set(body), commands=deps.commands
        )
        return json_response(to_wire_tool_set(tool_set))

    @route("/{id}", ["GET"], "getToolSet", "Tool Sets", ToolSetOut)
    async def get_tool_set(request: Request, actor: Caller, tx: InReadTx, thing_id: Id) -> Response:
        """One tool set."""
        tool_set = await tool_sets.get_tool_set(tx, actor, vault=deps_of(request).vault, tool_set_id=thing_id)
        return json_response(to_wire_tool_set(tool_set))

    @route("/{id}", update, "updateToolSet", "Tool Sets", ToolSetOut)
    async def update_tool_set(request: Request, actor: Caller, tx: InTx, thing_id: Id, body: UpdateToolSet) -> Response:
        """Change a tool set: the members that updateMask names, or those that are sent."""
        sent = body.model_dump(exclude_unset=True)

        def change(draft: tool_sets.ToolSetDraft) -> tool_sets.ToolSetDraft:
            merged = merge_update(to_wire_tool_set_draft(draft), sent, body.updateMask, CreateToolSet)
            return from_wire_tool_set(checked(CreateToolSet, merged))

        deps = deps_of(request)
        tool_set = await tool_sets.update_tool_set(
            tx, actor, vault=deps.vault, tool_set_id=thing_id, change=change, commands=deps.commands
        )
        return json_response(to_wire_tool_set(tool_set))

    @route("/{id}", ["DELETE"], "deleteToolSet", "Tool Sets")
    async def delete_tool_set(actor: Caller, tx: InTx, thing_id: Id) -> Response:
        """Delete a tool set with its tools."""
        await tool_sets.delete_tool_set(tx, actor, tool_set_id=thing_id)
        return Response(status_code=200)

    @route("/{toolSetId}/events", ["GET"], "listToolSetEvents", "Tool Sets", ToolSetEventPage)
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
        items = [to_wire_event(item, actor, edition=edition, info=include_info) for item in page.items]
        return json_response(to_wire_page(page, items))

    @route("/{toolSetId}/tools", ["GET"], "listTools", "Tools", ToolPage)
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
        states: Annotated[list[str] | None, Query()] = None,
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
            statuses=_statuses(states),
            requires_approval=requires_approval,
            labels=from_wire_labels(labels),
            order=_order(sort_order),
        )
        return json_response(to_wire_page(page, [to_wire_tool(item, info=include_info) for item in page.items]))

    create_model = CreateTool if edition == "published" else LaterCreateTool

    @route("/{toolSetId}/tools", ["POST"], "createTool", "Tools", ToolOut)
    async def create_tool(
        actor: Caller,
        tx: InTx,
        tool_set_id: ToolSetId,
        body: create_model,  # type: ignore[valid-type]
    ) -> Response:
        """Create a tool in a tool set."""
        tool = await tools.create_tool(tx, actor, tool_set_id=tool_set_id, draft=from_wire_tool(body))
        return json_response(to_wire_tool(tool))

    @route("/{toolSetId}/tools/{id}", ["GET"], "getTool", "Tools", ToolOut)
    async def get_tool(actor: Caller, tx: InReadTx, tool_set_id: ToolSetId, thing_id: Id) -> Response:
        """One tool."""
        tool = await tools.get_tool(tx, actor, tool_set_id=tool_set_id, tool_id=thing_id)
        return json_response(to_wire_tool(tool))

    @route("/{toolSetId}/tools/{id}", update, "updateTool", "Tools", ToolOut)
    async def update_tool(actor: Caller, tx: InTx, tool_set_id: ToolSetId, thing_id: Id, body: UpdateTool) -> Response:
        """Change a tool: the members that updateMask names, or those that are sent."""
        sent = body.model_dump(exclude_unset=True)

        def change(draft: tools.ToolDraft) -> tools.ToolDraft:
            merged = merge_update(to_wire_tool_draft(draft), sent, body.updateMask, CreateTool)
            return from_wire_tool(checked(CreateTool, merged))

        tool = await tools.update_tool(tx, actor, tool_set_id=tool_set_id, tool_id=thing_id, change=change)
        return json_response(to_wire_tool(tool))

    @route("/{toolSetId}/tools/{id}", ["DELETE"], "deleteTool", "Tools")
    async def delete_tool(actor: Caller, tx: InTx, tool_set_id: ToolSetId, thing_id: Id) -> Response:
        """Delete a tool."""
        await tools.delete_tool(tx, actor, tool_set_id=tool_set_id, tool_id=thing_id)
        return Response(status_code=200)

    return router


def _statuses(states: list[str] | None) -> list[tools.Status]:
    wanted = [state for state in states or () if state != "STATE_UNSPECIFIED"]
    if unknown := next((state for state in wanted if state not in STATES), None):
        raise Invalid("tool.state_unknown", f"{unknown!r} is no state; known: {', '.join(STATES)}.", field="states")
    return [STATES[state] for state in wanted]


published = _router("published")
later = _router("later")
