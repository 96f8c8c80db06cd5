"""Several web processes on one database: what one does, all know; what one runs, another can cancel."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.mcp_client.servers.raw_http import Exchange, legacy, raw_mcp, text
from stories.processes import Command, answering, start, up

LISTED = {"tools": [{"name": "hang", "inputSchema": {"type": "object"}}]}
ACCEPT = {"Accept": "application/json, text/event-stream"}


@contextlib.asynccontextmanager
async def web(data: Path, dsn: str, key: str) -> AsyncIterator[Command]:
    """`toolcrib serve`, once it answers."""
    command = await start("serve", "--data", str(data), "--port", "0", TOOLCRIB_DATABASE_URL=dsn)
    try:
        assert command.process.stderr
        told = ""
        async with asyncio.timeout(30):
            while "web server at " not in told:
                told += (await command.process.stderr.readline()).decode()
        command.line = {"url": told.split("web server at ")[1].split(",")[0].strip(), "api_key": key}
        async with command.http() as http:
            await answering(http)
        yield command
    finally:
        command.process.terminate()
        await command.end()


async def call(http: httpx.AsyncClient, method: str, params: object, session: str, id_: int = 1) -> httpx.Response:
    body = {"jsonrpc": "2.0", "method": method, "params": params, **({"id": id_} if id_ else {})}
    return await http.post("/mcp", content=json.dumps(body), headers={**ACCEPT, "Mcp-Session-Id": session})


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
async def test_processes_share_changes_revocations_and_cancellations(data_dir: Path, fresh_dsn: str) -> None:
    started = asyncio.Event()
    cancelled = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if exchange.method == "tools/list":
            exchange.reply(result=LISTED)
        elif exchange.method == "tools/call":
            started.set()
            await cancelled.wait()
            exchange.reply(result=text("too late"))

    async def upstream(exchange: Exchange) -> None:
        if exchange.method == "notifications/cancelled":
            cancelled.set()
        await legacy(answer)(exchange)

    async with (
        raw_mcp(upstream) as server,
        up(data_dir, TOOLCRIB_DATABASE_URL=fresh_dsn) as first,
        web(data_dir, fresh_dsn, first.line["api_key"]) as second,
        first.http() as one,
        second.http() as two,
    ):
        body = {"metadata": {"name": "far"}, "spec": {"adapter": {"mcp": {"url": server.url}}}}
        assert (await one.post("/v1/tool_sets", json=body)).status_code == 200
        async with asyncio.timeout(30):
            while not (await call(two, "tools/list", {}, "s")).json()["result"]["tools"]:
                await asyncio.sleep(0.02)

        running = asyncio.create_task(call(two, "tools/call", {"name": "hang"}, "session-1", 7))
        await asyncio.wait_for(started.wait(), 30)
        stranger = await call(one, "notifications/cancelled", {"requestId": 7}, "session-2", 0)
        assert stranger.status_code == 202
        assert not cancelled.is_set()
        assert (await call(one, "notifications/cancelled", {"requestId": 7}, "session-1", 0)).status_code == 202
        assert (await asyncio.wait_for(running, 30)).json()["error"]["message"] == "Request cancelled"
        await asyncio.wait_for(cancelled.wait(), 30)
        rows = (await one.get("/api/tool-calls")).json()["data"]
        assert [(row["tool"], row["outcome"]) for row in rows] == [("hang", "cancelled")]
