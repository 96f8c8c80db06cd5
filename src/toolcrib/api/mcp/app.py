"""The MCP endpoints `/mcp` (all tools of the workspace) and `/mcp/{tool set}`: the gateway's face for the MCP server.

The protocol is in `core/mcp_server`, calls take the pipeline in `gateway/call.py`; here is only translation. News of
cancelled requests goes to all processes over the database's bus.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec
import orjson

from toolcrib import __version__
from toolcrib.api.deps import Deps
from toolcrib.api.kit import request_id
from toolcrib.api.mcp.listing import list_tools
from toolcrib.core.auth import Actor
from toolcrib.core.exchange import Exchange
from toolcrib.core.mcp_server import wire
from toolcrib.core.mcp_server.face import About, Asked, Face, Listing, OnProgress
from toolcrib.core.mcp_server.http import McpHttp
from toolcrib.errors import NotFound
from toolcrib.gateway.call import Find, ToolRequest
from toolcrib.gateway.catalog import CatalogView, OfferedTool
from toolcrib.gateway.mcp_client.param_headers import ANNOTATION, param_headers, plan_headers

CANCEL_NEWS = "mcp.cancel"
_ABOUT = About(
    {"name": "toolcrib", "title": "Toolcrib", "version": __version__},
    {"tools": {"listChanged": True}},
    "Tools issued by Toolcrib. Every call is recorded; some tools may need a person's approval.",
)


@dataclass(slots=True)
class _Caller:
    """Who asks, through which endpoint."""

    actor: Actor
    tool_set: str | None

    def find(self, name: str) -> Find:
        """How the pipeline finds the tool behind `name`."""

        def find(view: CatalogView) -> OfferedTool | None:
            if self.tool_set is None:
                return view.find(name)
            tool_set = view.tool_sets.get(self.tool_set)
            return tool_set.by_name.get(name) if tool_set else None

        return find


class _GatewayFace(Face[_Caller]):
    """The tools of the caller's workspace."""

    def __init__(self, deps: Deps) -> None:
        self.about = _ABOUT
        self._deps = deps

    async def admit(self, exchange: Exchange) -> _Caller:
        headers = exchange.headers
        actor = await self._deps.sign_in.actor(headers.get("authorization"), headers.get("x-api-key"))
        tool_set = exchange.path.removeprefix("/mcp").strip("/") or None
        if tool_set is not None and tool_set not in (await self._deps.catalog.view(actor.workspace_id)).tool_sets:
            raise NotFound("tool_set.unknown", f"There is no tool set {tool_set!r} in this workspace.")
        return _Caller(actor, tool_set)

    def identity(self, caller: _Caller) -> str:
        return caller.actor.key_id or caller.actor.principal_id

    async def check_call(self, asked: Asked[_Caller], params: wire.Params) -> None:
        """Arguments that the tool's schema wants repeated as `Mcp-Param-*` headers must agree with them."""
        if params.name is None:
            return
        tool = asked.caller.find(params.name)(await self._deps.catalog.view(asked.caller.actor.workspace_id))
        if tool is None or ANNOTATION not in tool.schema_text:
            return
        with contextlib.suppress(ValueError):  # a schema that breaks the annotation's rules asks for no headers
            plan = plan_headers(orjson.loads(tool.schema_text))
            arguments = orjson.loads(bytes(params.arguments)) if params.arguments is not msgspec.UNSET else {}
            wanted = {name.lower(): value for name, value in param_headers(plan, arguments)}
            for _, name in plan:
                header = f"mcp-param-{name.lower()}"
                if asked.headers.get(header) != wanted.get(header):
                    raise wire.RpcError(wire.HEADER_MISMATCH, f"{header} header does not match the request body")

    async def call_tool(
        self, asked: Asked[_Caller], name: str, arguments: bytes, on_progress: OnProgress | None
    ) -> bytes:
        caller = asked.caller
        request = ToolRequest(caller.find(name), name, arguments, "mcp", request_id.get(), on_progress)
        return (await self._deps.calls.call(caller.actor, request)).body

    async def list_tools(self, asked: Asked[_Caller], cursor: str | None) -> bytes:
        caller = asked.caller
        caller.actor.must("tools:call")
        view = await self._deps.catalog.view(caller.actor.workspace_id)
        return list_tools(view, caller.tool_set, cursor, self._deps.mcp_page_size, modern=asked.modern)

    async def on_change(self, caller: _Caller, listener: Callable[[Listing], None]) -> Callable[[], None]:
        await self._deps.catalog.view(caller.actor.workspace_id)  # news is told of what was once looked at
        return self._deps.catalog.on_change(caller.actor.workspace_id, partial(listener, "tools"))

    async def cancel_elsewhere(self, key: str) -> None:
        async with self._deps.database.tx() as tx:
            await tx.publish(CANCEL_NEWS, key)


def build(deps: Deps) -> McpHttp[_Caller]:
    """The ASGI application."""
    app = McpHttp(
        _GatewayFace(deps),
        max_request_bytes=deps.max_request_bytes,
        allowed_origins=deps.allowed_origins,
        origins_setting="TOOLCRIB_MCP_ALLOWED_ORIGINS",
        callers_sign_in=True,
        closing=deps.closing,
    )
    deps.database.bus.subscribe(CANCEL_NEWS, app.dispatcher.cancel)
    return app
