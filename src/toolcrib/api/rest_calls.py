"""Tool calls over REST, on plain ASGI because they are as hot as MCP's.

`POST /v1/tool_sets/{tool set}/tools/{tool}:call` speaks Cadenya's errors, `POST /api/tools/{name}/call` Orkosi's. Both
take `{"arguments": {...}}` and answer an MCP tool result.
"""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import msgspec
from starlette.types import Receive, Scope, Send

from toolcrib.api.deps import Deps
from toolcrib.api.kit import MethodNotAllowed, Render, request_id
from toolcrib.core.exchange import Exchange, read_body, run_unless_gone
from toolcrib.errors import AppError, Invalid, NotFound
from toolcrib.gateway.call import Find, ToolRequest
from toolcrib.gateway.catalog import CatalogView, OfferedTool

_BY_ID = re.compile(r"/v1(?:/workspaces/([^/]+))?/tool_sets/([^/]+)/tools/([^/]+):call")
_BY_NAME = re.compile(r"/api/tools/([^/]+)/call")

_RESULT_SCHEMA = {
    "type": "object",
    "description": "An MCP tool result; an upstream's failure is a result with isError.",
    "required": ["content"],
    "properties": {
        "content": {"type": "array", "items": {"type": "object"}},
        "structuredContent": {"type": "object"},
        "isError": {"type": "boolean"},
    },
}
_BODY_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"arguments": {"type": "object", "description": "what the tool's parameters ask for"}},
}


def _operation(operation_id: str, tag: str, result: dict[str, Any], *names: str) -> dict[str, Any]:
    error = {"description": "refused", "content": {"application/json": {"schema": {"type": "object"}}}}
    return {
        "post": {
            "operationId": operation_id,
            "tags": [tag],
            "summary": "Call a tool",
            "security": [{"bearerAuth": []}, {"apiKey": []}],
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ],
            "requestBody": {"content": {"application/json": {"schema": _BODY_SCHEMA}}},
            "responses": {
                "200": {"description": "result", "content": {"application/json": {"schema": result}}},
                "default": error,
            },
        }
    }


CALL_PATHS: dict[str, dict[str, Any]] = {
    "/v1/tool_sets/{toolSetId}/tools/{id}:call": _operation("callTool", "Tools", _RESULT_SCHEMA, "toolSetId", "id"),
    "/v1/workspaces/{workspaceId}/tool_sets/{toolSetId}/tools/{id}:call": _operation(
        "callToolLater", "Tools", _RESULT_SCHEMA, "workspaceId", "toolSetId", "id"
    ),
    "/api/tools/{name}/call": _operation(
        "callToolByName", "Tools", {"type": "object", "properties": {"data": _RESULT_SCHEMA}}, "name"
    ),
}


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    arguments: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Body).decode


class RestCalls:
    """The ASGI application of one of the two forms."""

    def __init__(self, deps: Deps, render: Render, *, envelope: bool) -> None:
        self._deps = deps
        self._render = render
        self._wrap: Callable[[bytes], bytes] = (lambda body: b'{"data":' + body + b"}") if envelope else (lambda b: b)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        exchange = Exchange(scope, receive, send)
        try:
            body = await self._call(exchange)
        except AppError as error:
            response = self._render(error)
            if isinstance(error, MethodNotAllowed):
                response.headers["Allow"] = "POST"
            await response(scope, receive, send)
        else:
            await exchange.reply(self._wrap(body))

    async def _call(self, exchange: Exchange) -> bytes:
        headers = exchange.headers
        actor = await self._deps.sign_in.actor(headers.get("authorization"), headers.get("x-api-key"))
        if exchange.method != "POST":
            raise MethodNotAllowed("request.method", "This path takes POST.")
        find, asked, workspace = _target(exchange)
        if workspace is not None and workspace != actor.workspace_id:
            raise NotFound("workspace.unknown", "There is no such workspace.", field="workspaceId")
        raw = await read_body(exchange.receive, self._deps.max_request_bytes)
        try:
            body = _decode(raw) if raw.strip() else _Body()
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Invalid(
                "body.invalid", f"The request body is not {{'arguments': {{...}}}}: {error}.", field="body"
            ) from None
        arguments = b"{}" if body.arguments is msgspec.UNSET else bytes(body.arguments)
        request = ToolRequest(find, asked, arguments, "rest", request_id.get())
        return (await run_unless_gone(exchange, self._deps.calls.call(actor, request))).body


def is_call(path: str) -> bool:
    """Whether a path is one of those served here."""
    return path.endswith((":call", "/call"))


def _target(exchange: Exchange) -> tuple[Find, str, str | None]:
    path = exchange.scope.get("raw_path", exchange.path.encode()).decode("ascii", "replace").partition("?")[0]
    if match := _BY_ID.fullmatch(path):
        workspace, tool_set_id, tool_id = (unquote(part) if part else None for part in match.groups())

        def by_id(view: CatalogView) -> OfferedTool | None:
            tool_set = view.tool_sets.get(tool_set_id or "")
            return tool_set.by_id.get(tool_id or "") if tool_set else None

        return by_id, tool_id or "", workspace
    if match := _BY_NAME.fullmatch(path):
        name = unquote(match[1])
        return (lambda view: view.find(name)), name, None
    raise NotFound("request.path", "There is nothing at this path.")
