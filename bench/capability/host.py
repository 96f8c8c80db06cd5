"""`python -m bench.capability.host FILE NS=URL`: serves a capability file on one free port and prints which."""

import asyncio
import json
import sys

import uvloop
from starlette.types import Receive, Scope, Send

from toolcrib.capability.capability import Capability
from toolcrib.core.web_server import on_signals, web_server, web_server_socket


async def _serve(path: str, namespace: str, url: str) -> None:
    capability = Capability.load(path, base_uris={namespace: url})
    rest, mcp = capability.rest_app(), capability.mcp_http()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (mcp if scope["path"] == "/mcp" else rest)(scope, receive, send)

    sock = web_server_socket("127.0.0.1", 0)
    server = web_server(app, grace_s=1)
    on_signals(lambda: setattr(server, "should_exit", True))
    print(json.dumps({"port": sock.getsockname()[1]}), flush=True)
    await server.serve(sockets=[sock])
    await capability.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sys.argv[1], *sys.argv[2].split("=", 1)))
