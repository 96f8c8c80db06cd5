"""The official reference MCP servers from PyPI, governed: listed, called and recorded through one endpoint."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.mcp_client.servers.launch import serving
from serving import Crib

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
async def page() -> AsyncIterator[str]:
    """A web page on loopback."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        known = scope["path"] == "/page"
        headers = [(b"content-type", b"text/html")]
        await send({"type": "http.response.start", "status": 200 if known else 404, "headers": headers})
        body = b"<html><body><h1>Tools</h1><p>are issued here.</p></body></html>" if known else b""
        await send({"type": "http.response.body", "body": body})

    async with serving(app) as url:
        yield f"{url}/page"


async def call(crib: Crib, name: str, **arguments: Any) -> dict[str, Any]:
    answer = await crib.rpc("tools/call", {"name": name, "arguments": arguments})
    return dict(answer["result"])


async def test_time(crib: Crib) -> None:
    await crib.add_mcp("Time", {"command": str(BIN / "mcp-server-time")})
    result = await call(crib, "convert_time", source_timezone="UTC", time="12:00", target_timezone="Asia/Tokyo")
    assert json.loads(result["content"][0]["text"])["time_difference"] == "+9.0h"
    refused = await call(crib, "convert_time", source_timezone="UTC", time="12:00")
    assert "target_timezone" in refused["content"][0]["text"]
    rows = await crib.audit(tool="convert_time")
    assert [row["outcome"] for row in rows] == ["refused", "ok"]
    assert rows[1]["arguments"]["target_timezone"] == "Asia/Tokyo"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with a file that is not committed."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "new.txt").write_text("x")
    return tmp_path


async def test_git_with_writing_tools_kept_out(crib: Crib, repository: Path) -> None:
    reading = [{"attribute": "ATTRIBUTE_NAME", "matcher": {"regex": "^git_(status|diff|log|show)"}}]
    tool_set = await crib.add_mcp(
        "Git",
        {
            "command": str(BIN / "mcp-server-git"),
            "args": ["--repository", str(repository)],
            "includeTools": {"operator": "OPERATOR_OR", "filters": reading},
        },
    )
    listed = (await crib.rpc("tools/list", path="/mcp/git"))["result"]["tools"]
    assert "git_status" in {tool["name"] for tool in listed}
    assert "git_commit" not in {tool["name"] for tool in listed}
    kept = (await crib.http.get(f"/v1/tool_sets/{tool_set['metadata']['id']}/tools", params={"limit": 200})).json()
    statuses = {tool["metadata"]["name"]: tool["spec"]["status"] for tool in kept["items"]}
    assert statuses["git_commit"] == "TOOL_STATUS_FILTERED"
    result = await call(crib, "git_status", repo_path=str(repository))
    assert "new.txt" in result["content"][0]["text"]
    unknown = await crib.rpc("tools/call", {"name": "git_commit", "arguments": {}})
    assert unknown["error"]["message"] == "Unknown tool: git_commit"


async def test_fetch(crib: Crib, page: str) -> None:
    await crib.add_mcp(
        "Fetch", {"command": str(BIN / "mcp-server-fetch"), "args": ["--ignore-robots-txt", "--allow-private-ips"]}
    )
    result = await call(crib, "fetch", url=page)
    assert "are issued here." in result["content"][0]["text"]


async def test_a_tool_that_needs_approval_is_listed_and_refused(crib: Crib) -> None:
    await crib.add_mcp("Careful", {"command": str(BIN / "mcp-server-time"), "toolApprovals": {"always": True}})
    names = {tool["name"] for tool in (await crib.rpc("tools/list", path="/mcp/careful"))["result"]["tools"]}
    assert names == {"get_current_time", "convert_time"}
    answer = await crib.rpc(
        "tools/call", {"name": "get_current_time", "arguments": {"timezone": "UTC"}}, path="/mcp/careful"
    )
    assert answer["error"]["data"] == {"code": "approval.required"}
    assert "approval" in answer["error"]["message"]
