"""A peer for tools/list: the official SDK's low-level server, stateless and answering JSON, with n tools."""

import asyncio
import json
import socket
import sys
from typing import Any

import uvicorn
import uvloop
from mcp.server.lowlevel import Server
from mcp_types import ListToolsResult, Tool

from bench.upstream import tools


async def _serve(sock: socket.socket, count: int) -> None:
    listed = ListToolsResult(tools=[Tool.model_validate(tool) for tool in tools(count)])

    async def list_tools(_context: Any, _params: Any) -> ListToolsResult:
        return listed

    app = Server("bench", on_list_tools=list_tools).streamable_http_app(json_response=True, stateless_http=True)
    config = uvicorn.Config(app, loop="none", http="httptools", access_log=False, log_level="warning")
    print(json.dumps({"port": sock.getsockname()[1]}), flush=True)
    await uvicorn.Server(config).serve(sockets=[sock])


if __name__ == "__main__":
    with (
        socket.create_server(("127.0.0.1", 0), backlog=1024) as listening,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        try:
            runner.run(_serve(listening, int(sys.argv[1])))
        except KeyboardInterrupt:
            sys.exit(0)
