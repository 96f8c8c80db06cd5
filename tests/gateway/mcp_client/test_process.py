"""Started programs: what they see of our environment, and that they do not outlive us whatever happens to us."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from gateway.mcp_client.servers.launch import SERVERS, children, running, stdio
from gateway.mcp_client.servers.raw_http import until
from toolcrib.core.http import AddressPolicy, OutboundClient
from toolcrib.gateway.mcp_client import McpUpstreams
from toolcrib.gateway.mcp_client.process import STDIO_ENV_ALLOW, ProcessGuard, child_environment


def test_the_environment_is_what_is_allowed_and_what_is_given() -> None:
    ours = {"PATH": "/bin", "LC_ALL": "C", "http_proxy": "p", "npm_config_registry": "r", "AWS_KEY": "s", "LANG": "de"}
    assert child_environment(ours, STDIO_ENV_ALLOW, [("LANG", "en"), ("AWS_KEY", "mine")]) == {
        "PATH": f"/bin:{Path(sys.executable).parent}",  # servers installed beside Toolcrib are found
        "LC_ALL": "C",
        "http_proxy": "p",
        "npm_config_registry": "r",
        "LANG": "en",
        "AWS_KEY": "mine",
    }


@pytest.mark.parametrize("allow", [("*",), ("TOOLCRIB_*",), ("toolcrib_vault_key",)])
def test_our_own_settings_never_pass(allow: tuple[str, ...]) -> None:
    assert "TOOLCRIB_VAULT_KEY" not in child_environment({"TOOLCRIB_VAULT_KEY": "s", "PATH": "p"}, allow, [])


@pytest.fixture
async def host() -> AsyncIterator[tuple[asyncio.subprocess.Process, list[int]]]:
    """A process that uses the client, and the numbers of what it started."""
    source = Path(sys.modules["toolcrib"].__path__[0]).parent
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SERVERS / "host.py"),
        "stubborn",
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 20)
    pids = json.loads(json.loads(line)["content"][0]["text"])
    yield process, pids
    if process.returncode is None:
        process.kill()
    await process.wait()


async def test_stubborn_servers_and_their_children_end_when_we_are_killed(
    host: tuple[asyncio.subprocess.Process, list[int]],
) -> None:
    process, pids = host
    assert all(map(running, pids))
    process.kill()
    await process.wait()
    await until(lambda: not any(map(running, pids)))


async def test_a_guard_that_was_killed_is_replaced_and_told_everything() -> None:
    guard = ProcessGuard()
    before = children()
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE, start_new_session=True
    )
    await guard.start()
    guard.watch(victim.pid)
    (first,) = children() - before - {victim.pid}
    os.kill(first, signal.SIGKILL)
    await until(lambda: not running(first))
    await until(lambda: guard.lost)
    await guard.start()
    (second,) = children() - before - {victim.pid}
    assert second != first
    guard._pipe.close()  # what happens when we die
    await asyncio.wait_for(victim.wait(), 10)
    await guard.close()


def test_it_works_on_uvloop() -> None:
    async def main() -> bytes:
        outbound = OutboundClient(AddressPolicy.parse([]))
        pool = McpUpstreams(outbound, client_version="0.1")
        result = await pool.call_tool(stdio(), "echo", b'{"a":1}', timeout_s=20)
        await pool.close()
        await outbound.close()
        return result.result

    assert b'\\"a\\": 1' in uvloop.run(main())
