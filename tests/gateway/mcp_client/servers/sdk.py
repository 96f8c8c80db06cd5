"""A server made with the official SDK; run as a script it speaks over standard input and output."""

import asyncio
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context


class SdkServer:
    """The server, and what happened inside it."""

    def __init__(self) -> None:
        self.mcp = MCPServer("sdk", version="2.3", log_level="CRITICAL")
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        for tool in (self.echo, self.broken, self.steps, self.hang, self.grow):
            self.mcp.add_tool(tool)

    async def echo(self, value: Any) -> str:
        return str(value)

    async def broken(self) -> str:
        raise ValueError("never mind")

    async def steps(self, ctx: Context) -> str:
        for step in range(3):
            await ctx.report_progress(step, 3)
        return "done"

    async def hang(self) -> str:
        self.started.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return "never"

    async def grow(self, ctx: Context) -> str:
        self.mcp.add_tool(self.echo, name="grown")
        await ctx.notify_tools_changed()
        return "grown"


if __name__ == "__main__":
    SdkServer().mcp.run()
