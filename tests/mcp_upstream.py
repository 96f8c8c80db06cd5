"""An MCP server made with the official SDK whose tools a test changes, and whose answers it can hold back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from mcp import types
from mcp.server.lowlevel import Server

from gateway.mcp_client.servers.launch import serving


class ChangingServer:
    """The server: what it lists, what it was asked, and a gate in front of its lists."""

    def __init__(self) -> None:
        self.url = ""
        self.reset()
        self.server = Server("changing", version="1", on_list_tools=self._list, on_call_tool=self._call)

    def reset(self) -> None:
        """Be as new."""
        self.tools: list[types.Tool] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.asked = asyncio.Event()  # set by each request for the list
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    def offer(self, *names: str, **facts: Any) -> None:
        """List these tools from now on, and no others."""
        self.tools = [tool(name, **facts) for name in names]

    async def _list(self, _ctx: Any, _params: Any) -> types.ListToolsResult:
        tools, error = list(self.tools), self.error
        self.asked.set()
        await self.open.wait()
        if error is not None:
            raise error
        return types.ListToolsResult(tools=tools)

    async def _call(self, _ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        self.calls.append((params.name, params.arguments or {}))
        return types.CallToolResult(content=[types.TextContent(type="text", text=f"{params.name} done")])


def tool(name: str, **facts: Any) -> types.Tool:
    """A tool as the server lists it."""
    return types.Tool(name=name, **{"input_schema": {"type": "object"}, **facts})


@contextlib.asynccontextmanager
async def changing_server() -> AsyncIterator[ChangingServer]:
    """A running server; `url` is its streamable HTTP endpoint."""
    made = ChangingServer()
    app = made.server.streamable_http_app(json_response=True, stateless_http=True)
    async with serving(app) as url:
        made.url = f"{url}/mcp"
        yield made
