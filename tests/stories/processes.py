"""`toolcrib` as its users run it: processes, standard output, signals."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

DEADLINE_S = 30.0


class Command:
    """A running `toolcrib` command."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.line: dict[str, Any] = {}

    @property
    def url(self) -> str:
        return str(self.line["url"])

    def http(self, api_key: str | None = None) -> httpx.AsyncClient:
        key = api_key or self.line["api_key"]
        return httpx.AsyncClient(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=DEADLINE_S)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def end(self) -> tuple[int, str]:
        """Wait for the end; exit code and standard error."""
        async with asyncio.timeout(DEADLINE_S):
            _, error = await self.process.communicate()
        return self.process.returncode or 0, error.decode()


async def start(*arguments: str, **environment: str) -> Command:
    """Start a command in a session of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TOOLCRIB_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "toolcrib",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**env, **environment},
    )
    return Command(process)


@contextlib.asynccontextmanager
async def up(data: Path, *arguments: str, **environment: str) -> AsyncIterator[Command]:
    """`toolcrib up --json` once it answers; killed if the test leaves it running."""
    command = await start("up", "--data", str(data), "--port", "0", "--json", *arguments, **environment)
    try:
        assert command.process.stdout
        async with asyncio.timeout(DEADLINE_S):
            line = await command.process.stdout.readline()
        assert line, (await command.end())[1]
        command.line = json.loads(line)
        yield command
    finally:
        if command.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                command.signal(signal.SIGINT)
            await command.end()


async def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run a command to its end: exit code, standard output, standard error."""
    command = await start(*arguments, **environment)
    async with asyncio.timeout(DEADLINE_S):
        out, error = await command.process.communicate()
    return command.process.returncode or 0, out.decode(), error.decode()


def postmaster(data: Path) -> int:
    """The process id of the embedded server of a data folder."""
    location = data / "postgres"
    pointer = data / "postgres.location"
    if pointer.exists():
        location = Path(pointer.read_text("utf-8").splitlines()[0])
    return int((location / "postmaster.pid").read_text("utf-8").splitlines()[0])


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


async def gone(pid: int) -> None:
    """Wait until a process has ended."""
    end = time.monotonic() + DEADLINE_S
    while alive(pid):
        assert time.monotonic() < end, f"process {pid} still runs"
        await asyncio.sleep(0.02)


async def answering(http: httpx.AsyncClient, path: str = "/api/ready") -> None:
    """Wait until the server says that it is ready."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await http.get(path)).status_code == 200:
                    return
            await asyncio.sleep(0.05)
