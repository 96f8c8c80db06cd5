"""Stands for Toolcrib: starts a server that starts another process, tells their numbers, and waits to be killed."""

import asyncio
import sys
from pathlib import Path

from toolcrib.core.http import AddressPolicy, OutboundClient
from toolcrib.gateway.mcp_client import McpEndpoint, McpUpstreams


async def main() -> None:
    pool = McpUpstreams(OutboundClient(AddressPolicy.parse([])), client_version="0.1")
    args = (str(Path(__file__).with_name("raw_stdio.py")), *sys.argv[1:])
    result = await pool.call_tool(
        McpEndpoint("x", "stdio", command=sys.executable, args=args), "pids", b"{}", timeout_s=20
    )
    sys.stdout.write(result.result.decode() + "\n")
    sys.stdout.flush()
    await asyncio.sleep(600)


asyncio.run(main())
