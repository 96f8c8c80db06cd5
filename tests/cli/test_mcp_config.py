"""`toolcrib mcp-config`: configurations that real clients take."""

import asyncio
import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from clitools import Crib, Tools, refusal
from toolcrib.cli.mcp_config import _CLIENTS, _Entry
from toolcrib.cli.mcp_config import Client as Known

URL = "https://crib.example.com/mcp"
BEARER = "Bearer tck_k"

WITH_KEY: dict[Known, dict[str, Any]] = {
    Known.CLAUDE: {
        "mcpServers": {
            "crib": {
                "command": "npx",
                "args": ["-y", "mcp-remote", URL, "--header", "Authorization:${AUTH_HEADER}"],
                "env": {"AUTH_HEADER": BEARER},
            }
        }
    },
    Known.CLAUDE_CODE: {"mcpServers": {"crib": {"type": "http", "url": URL, "headers": {"Authorization": BEARER}}}},
    Known.CURSOR: {"mcpServers": {"crib": {"url": URL, "headers": {"Authorization": BEARER}}}},
    Known.VSCODE: {"servers": {"crib": {"type": "http", "url": URL, "headers": {"Authorization": BEARER}}}},
    Known.WINDSURF: {"mcpServers": {"crib": {"serverUrl": URL, "headers": {"Authorization": BEARER}}}},
    Known.ZED: {"context_servers": {"crib": {"url": URL, "headers": {"Authorization": BEARER}}}},
    Known.GEMINI: {"mcpServers": {"crib": {"httpUrl": URL, "headers": {"Authorization": BEARER}}}},
    Known.CODEX: {"mcp_servers": {"crib": {"url": URL, "http_headers": {"Authorization": BEARER}}}},
}


@pytest.mark.parametrize("client", Known)
def test_every_client_gets_its_own_form(client: Known) -> None:
    text = _CLIENTS[client].render(_Entry("crib", URL, "tck_k"))
    assert (tomllib.loads(text) if client is Known.CODEX else json.loads(text)) == WITH_KEY[client]


@pytest.mark.parametrize("client", Known)
def test_without_a_key_there_is_a_placeholder_and_the_form_still_holds(client: Known) -> None:
    text = _CLIENTS[client].render(_Entry("crib", URL, None))
    assert tomllib.loads(text) if client is Known.CODEX else json.loads(text)
    assert "tck_" not in text
    assert "None" not in text
    assert any(word in text for word in ("TOOLCRIB_API_KEY", "YOUR_API_KEY", "toolcrib-api-key"))


def test_the_bridge_of_claude_desktop_may_use_plain_http_only_where_the_server_does() -> None:
    render = _CLIENTS[Known.CLAUDE].render
    assert "--allow-http" in render(_Entry("crib", "http://127.0.0.1:8700/mcp", "tck_k"))
    assert "--allow-http" not in render(_Entry("crib", URL, "tck_k"))


async def test_the_configuration_lets_a_real_client_list_and_call_the_tools(crib: Crib, mini: Tools) -> None:
    done = await asyncio.to_thread(crib.run, "mcp-config", "cursor", "--tool-set", "mini")
    assert ".cursor/mcp.json" in done.err
    assert "Made the API key" in done.err
    server = done.json["mcpServers"]["toolcrib"]
    assert server["url"] == f"{crib.url}/mcp/mini"
    async with (
        httpx.AsyncClient(headers=server["headers"], timeout=20) as http,
        Client(streamable_http_client(server["url"], http_client=http)) as client,
    ):
        assert {tool.name for tool in (await client.list_tools()).tools} == {
            *("add", "describe", "broken", "sealed", "environment")
        }
        result = await client.call_tool("add", {"a": 1})
        assert result.content[0].text == "1 True"  # type: ignore[union-attr]
    keys = (await asyncio.to_thread(crib.run, "key", "list")).json
    assert next(key["scopes"] for key in keys if key["name"] == "cursor") == ["tools:call"]
    assert mini.added["mcp_url"] == server["url"]


def test_a_key_that_is_given_is_used_and_none_is_made(crib: Crib) -> None:
    done = crib.run("mcp-config", "claude-code", "--command", "--key", "tck_mine")
    words = shlex.split(done.out)
    assert words[:3] == ["claude", "mcp", "add"]
    assert words[-1] == "Authorization: Bearer tck_mine"
    assert "Bearer tck_env" in crib.run("mcp-config", "vscode", TOOLCRIB_API_KEY="tck_env").out
    assert "Made" not in done.err


def test_what_cannot_be_configured_is_refused(crib: Crib) -> None:
    for args in (["emacs"], ["cursor", "--command"], ["cursor", "--url", "https://crib.example.com"]):
        assert refusal("mcp-config", *args)[0] == 2
    assert crib.run("mcp-config", "cursor", "--no-key", "--tool-set", "nothing").code == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_disk_behind_standard_output_is_told(nowhere: Crib) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "toolcrib", "mcp-config", "cursor", "--no-key"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=nowhere.environment(),
            check=False,
        )
    assert done.returncode != 0
    assert "Standard output cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
