"""The shipped server in the test's own event loop: real PostgreSQL, real sockets, worker and keeper running."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from toolcrib.cli.running import listen, running
from toolcrib.core.ids import new_id
from toolcrib.core.log import configure_logging
from toolcrib.domain import access
from toolcrib.installation import open_installation
from toolcrib.settings import Settings
from toolcrib.wiring import Parts, open_parts

DEADLINE_S = 20.0


@dataclass
class Crib:
    """A running Toolcrib and the key of its first start."""

    url: str
    api_key: str
    workspace_id: str
    parts: Parts
    http: httpx.AsyncClient  # signed in with the first key

    def as_(self, api_key: str | None) -> httpx.AsyncClient:
        """A client with another key, or none."""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=DEADLINE_S)

    async def key(self, *scopes: str) -> str:
        """A new key of the first workspace with these scopes."""
        async with self.parts.deps.database.tx() as tx:
            admin = await access.find_admin(tx)
            assert admin
            return (await access.create_api_key(tx, admin, name="test", scopes=list(scopes)))[1].text

    async def other_workspace_key(self, *scopes: str) -> str:
        """A key with these scopes in a workspace of its own."""
        async with self.parts.deps.database.tx() as tx:
            workspace_id = new_id("workspace")
            await tx.execute(
                "INSERT INTO workspace (id, account_id, name, slug) SELECT $1, id, 'Other', $1 FROM account LIMIT 1",
                workspace_id,
            )
            admin = await access.find_admin(tx, workspace_id=workspace_id)
            assert admin
            return (await access.create_api_key(tx, admin, name="other", scopes=list(scopes or ["*"])))[1].text

    async def add_tool_set(self, name: str, adapter: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
        """Create a tool set over REST."""
        body = {"metadata": {"name": name}, "spec": {**({"adapter": adapter} if adapter else {}), **spec}}
        response = await self.http.post("/v1/tool_sets", json=body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def add_mcp(self, name: str, mcp: dict[str, Any]) -> dict[str, Any]:
        """Create an MCP tool set and wait for its first sync; fails when that fails."""
        tool_set = await self.add_tool_set(name, {"mcp": mcp})
        event = await self.synced(tool_set["metadata"]["id"])
        assert event["type"] == "sync_completed", event
        return tool_set

    async def synced(self, tool_set_id: str, after: int = 0) -> dict[str, Any]:
        """The outcome of the first sync that ends after the first `after` events of a tool set."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                page = await self.http.get(f"/v1/tool_sets/{tool_set_id}/events", params={"limit": 200})
                for item in page.json()["items"][after:]:
                    if item["event"]["type"] != "sync_started":
                        return dict(item["event"])
                await asyncio.sleep(0.02)

    async def add_http_tool(self, tool_set_id: str, name: str, http: dict[str, Any], **spec: Any) -> dict[str, Any]:
        """Create an HTTP tool over REST."""
        full = {
            "config": {"http": http},
            "description": "",
            "parameters": {"type": "object"},
            "status": "TOOL_STATUS_AVAILABLE",
            **spec,
        }
        response = await self.http.post(
            f"/v1/tool_sets/{tool_set_id}/tools", json={"metadata": {"name": name}, "spec": full}
        )
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def call(self, name: str, arguments: dict[str, Any] | None = None) -> httpx.Response:
        """Call a tool by name over REST."""
        return await self.http.post(f"/api/tools/{name}/call", json={"arguments": arguments or {}})

    async def rpc(
        self, method: str, params: dict[str, Any] | None = None, *, path: str = "/mcp", **headers: str
    ) -> Any:
        """One JSON-RPC request of the handshake era, without a session; the whole answer."""
        response = await self.http.post(
            path,
            content=json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}),
            headers={"Accept": "application/json, text/event-stream", **headers},
        )
        return response.json()

    async def audit(self, **query: Any) -> list[dict[str, Any]]:
        """Tool calls, newest first."""
        return list((await self.http.get("/api/tool-calls", params=query)).json()["data"])


@contextlib.asynccontextmanager
async def crib_on(database_url: str, data: Path, **settings: Any) -> AsyncIterator[Crib]:
    """Run the shipped server against a database."""
    values = {"data": data, "database_url": database_url, "port": 0, "host": "127.0.0.1", **settings}
    chosen = Settings(**values)
    configure_logging("warning", "json")
    sock = listen(chosen.host, chosen.port)
    with sock:
        async with (
            open_installation(chosen) as ready,
            open_parts(chosen, ready.database, ready.vault) as parts,
            running(ready, parts, sock=sock, work=True) as served,
        ):
            first = ready.first_start
            assert first
            assert served.url
            headers = {"Authorization": f"Bearer {first.api_key}"}
            async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=DEADLINE_S) as http:
                yield Crib(served.url, first.api_key, ready.installation.workspace_id, parts, http)
