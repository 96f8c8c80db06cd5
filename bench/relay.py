"""The bare relay: the least a Python gateway can do with Toolcrib's own HTTP client. No keys, rules, audit or metrics.

`python -m bench.relay http://host:port`: every request goes to the same path there, the answer comes back as it is.
"""

import asyncio
import json
import socket
import sys

import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from toolcrib.core.http import AddressPolicy, OutboundClient

_PASSED = {b"content-type", b"accept", b"mcp-protocol-version", b"mcp-method", b"mcp-name"}


class Relay:
    """The ASGI application."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._outbound = OutboundClient(AddressPolicy.parse(["loopback"]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay one request."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = [(name.decode(), value.decode()) for name, value in scope["headers"] if name in _PASSED]
        answer = await self._outbound.request(
            scope["method"], self._upstream + scope["path"], headers=headers, body=body or None
        )
        head = [
            (b"content-type", (answer.headers.get("content-type") or "").encode()),
            (b"content-length", str(len(answer.body)).encode()),
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": head})
        await send({"type": "http.response.body", "body": answer.body})


async def _serve(sock: socket.socket, upstream: str) -> None:
    config = uvicorn.Config(
        Relay(upstream),
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
    )
    print(json.dumps({"port": sock.getsockname()[1]}), flush=True)  # the socket listens already
    await uvicorn.Server(config).serve(sockets=[sock])


if __name__ == "__main__":
    with (
        socket.create_server(("127.0.0.1", 0), backlog=1024) as listening,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        try:
            runner.run(_serve(listening, sys.argv[1]))
        except KeyboardInterrupt:
            sys.exit(0)
