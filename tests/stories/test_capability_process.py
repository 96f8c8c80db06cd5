"""`toolcrib capability serve` as a process: what it prints, swaps under load, signals, standard streams, sudden death."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters

from stories.processes import DEADLINE_S, Command, alive, gone, run, start
from toolcrib.core.web_server import web_server_socket

FREE = ("--rest-port", "0", "--mcp-port", "0")
BOTH = {"Accept": "application/json, text/event-stream"}


def shop(said: str, *, more: str = "", transport: str = "http") -> str:
    return f"""
naftiko: 1.0.0-alpha2
info: {{label: Shop, description: A shop.}}
capability:
  exposes:
    - type: rest
      namespace: shop-api
      port: 0
      resources:
        - path: /said/{{who}}
          operations:
            - {{method: GET, name: said, outputParameters: [{{name: said, type: string, value: "{said} {{{{who}}}}"}}]}}
{more}
    - type: mcp
      namespace: shop-tools
      transport: {transport}
      tools:
        - name: say
          description: Say it.
          inputParameters: [{{name: who, type: string, description: Whom}}]
          outputParameters: [{{name: said, type: string, value: "{said} {{{{who}}}}"}}]
"""


def put(path: Path, text: str) -> str:
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text)
    os.replace(beside, path)  # noqa: PTH105
    return str(path)


class Serving:
    """A process that serves."""

    def __init__(self, command: Command, line: dict[str, Any]) -> None:
        self.command = command
        self.line = line

    def url(self, namespace: str) -> str:
        return str(next(s["url"] for s in self.line["servers"] if s["namespace"] == namespace))

    async def ended(self) -> tuple[int, str]:
        return await self.command.end()


@contextlib.asynccontextmanager
async def serve(*arguments: str, **environment: str) -> AsyncIterator[Serving]:
    command = await start("capability", "serve", *arguments, "--json", **environment)
    try:
        assert command.process.stdout
        async with asyncio.timeout(DEADLINE_S):
            line = await command.process.stdout.readline()
        assert line, (await command.end())[1]
        yield Serving(command, json.loads(line))
    finally:
        if command.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                command.signal(signal.SIGKILL)
            await command.end()


async def said(http: httpx.AsyncClient, serving: Serving) -> str:
    return str((await http.get(f"{serving.url('shop-api')}/said/Ann")).json()["said"])


async def becomes(http: httpx.AsyncClient, serving: Serving, text: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await said(http, serving) != text:
            await asyncio.sleep(0.02)


async def heard(serving: Serving, word: str) -> None:
    """Wait until it says this on standard error."""
    assert serving.command.process.stderr
    async with asyncio.timeout(DEADLINE_S):
        while word not in (await serving.command.process.stderr.readline()).decode():
            pass


async def test_it_serves_rest_and_mcp_and_ends_well_with_an_event_stream_open(tmp_path: Path) -> None:
    async with serve(put(tmp_path / "shop.yaml", shop("one")), *FREE) as serving:
        mcp = serving.url("shop-tools")
        async with httpx.AsyncClient(timeout=DEADLINE_S) as http:
            assert await said(http, serving) == "one Ann"
            async with Client(mcp) as client:
                assert (await client.call_tool("say", {"who": "Bob"})).structured_content == {"said": "one Bob"}
            async with http.stream("GET", mcp, headers=BOTH) as events:
                assert events.status_code == 200
                serving.command.signal(signal.SIGTERM)
                async with asyncio.timeout(4):
                    code, error = await serving.ended()
        assert code == 0
        assert "shop-api, 1 operation" in error
        assert "Traceback" not in error


async def test_a_file_that_changes_is_swapped_in_while_requests_pour_in(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    answers: list[int] = []
    over = asyncio.Event()

    async def ask(http: httpx.AsyncClient) -> None:
        while not over.is_set():
            answers.append((await http.get(f"{serving.url('shop-api')}/said/Ann")).status_code)

    async with serve(put(path, shop("0")), *FREE, "--watch") as serving, httpx.AsyncClient(timeout=DEADLINE_S) as http:
        asking = [asyncio.create_task(ask(http)) for _ in range(4)]
        async with Client(serving.url("shop-tools")) as client:
            for number in range(1, 4):
                put(path, shop(str(number)))
                await becomes(http, serving, f"{number} Ann")
                told = await client.call_tool("say", {"who": "Bob"})
                assert told.structured_content == {"said": f"{number} Bob"}
        put(path, "naftiko: [")
        await heard(serving, "capability.reload_failed")
        assert await said(http, serving) == "3 Ann"
        path.unlink()
        put(path, shop("mended"))
        await becomes(http, serving, "mended Ann")
        over.set()
        await asyncio.gather(*asking)
        serving.command.signal(signal.SIGINT)
        assert (await serving.ended())[0] == 0
    assert set(answers) == {200}
    assert len(answers) > 50


async def test_a_hangup_reads_every_file_again(tmp_path: Path) -> None:
    path, other = tmp_path / "shop.yaml", tmp_path / "stock.yaml"
    put(other, shop("stock").replace("shop-", "stock-"))
    async with (
        serve(put(path, shop("one")), str(other), "--port", "0") as serving,
        httpx.AsyncClient(timeout=DEADLINE_S) as http,
    ):
        assert serving.url("stock-api").endswith("/stock")
        put(path, shop("two"))
        put(other, "naftiko: [")
        serving.command.signal(signal.SIGHUP)
        await becomes(http, serving, "two Ann")
        assert (await http.get(f"{serving.url('stock-api')}/said/Ann")).json() == {"said": "stock Ann"}


async def test_a_sudden_death_leaves_no_process_behind(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("result = 'js'")
    (tmp_path / "a.py").write_text("result = 'py'")
    scripts = "".join(
        f"""
        - path: /{file}
          operations:
            - method: GET
              name: run-{language}
              steps: [{{type: script, name: made, language: {language}, location: "{tmp_path.as_uri()}", file: {file}}}]
              mappings: [{{targetName: made, value: $.made}}]
"""
        for language, file in (("javascript", "a.js"), ("python", "a.py"))
    )
    async with (
        serve(put(tmp_path / "shop.yaml", shop("one", more=scripts)), *FREE) as serving,
        httpx.AsyncClient(timeout=DEADLINE_S) as http,
    ):
        for kind in ("js", "py"):
            answer = await http.get(f"{serving.url('shop-api')}/a.{kind}")
            assert answer.json() == {"made": kind}
        children = _children(serving.command.process.pid)
        assert children
        serving.command.signal(signal.SIGKILL)
        await serving.ended()
        for child in children:
            await gone(child)
            assert not alive(child)


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


@pytest.mark.parametrize(("transport", "options"), [("http", ["--stdio"]), ("stdio", [])])
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_client_on_standard_streams(tmp_path: Path, transport: str, options: list[str], mode: str) -> None:
    path = tmp_path / "shop.yaml"
    put(path, shop("one", transport=transport))
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "toolcrib", "capability", "serve", str(path), *options, "--watch"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        cwd=Path.cwd(),
    )
    async with Client(server, mode=mode) as client:
        assert (await client.call_tool("say", {"who": "Bob"})).structured_content == {"said": "one Bob"}
        put(path, shop("two", transport=transport))
        async with asyncio.timeout(DEADLINE_S):
            while (await client.call_tool("say", {"who": "Bob"})).structured_content != {"said": "two Bob"}:
                await asyncio.sleep(0.02)


async def test_a_taken_port_does_not_keep_a_client_on_standard_streams_waiting(tmp_path: Path) -> None:
    path = put(tmp_path / "shop.yaml", shop("one"))
    with web_server_socket("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        code, out, error = await run("capability", "serve", path, "--stdio", "--rest-port", port)
        assert (code, out) == (0, "")  # standard input is at its end: so is the client
        assert f"cannot listen on 127.0.0.1:{port}" in error
        code, out, error = await run("capability", "serve", path, "--rest-port", port)
        assert (code, out) == (1, "")
        assert "The rest server shop-api" in error
        assert "Choose another with --rest-port." in error
        assert "Traceback" not in error


async def test_a_variable_without_a_value_is_told_and_strict_refuses_it(tmp_path: Path) -> None:
    text = shop("one").replace("capability:", "binds: [{namespace: env, keys: {TOKEN: SHOP_TOKEN}}]\ncapability:", 1)
    path = put(tmp_path / "shop.yaml", text)
    (tmp_path / ".env").write_text("SHOP_TOKEN='sesame-4711'\n")
    async with serve(path, *FREE) as serving:
        serving.command.signal(signal.SIGTERM)
        code, error = await serving.ended()
        assert code == 0
        assert "SHOP_TOKEN in the environment is not set" in error
    code, _, error = await run("capability", "serve", path, *FREE, "--strict")
    assert code == 1
    assert "bind-unresolved" in error
    async with serve(path, *FREE, "--strict", "--env-file", str(tmp_path / ".env")) as serving:
        serving.command.signal(signal.SIGTERM)
        code, error = await serving.ended()
        assert code == 0
        assert "sesame" not in error
