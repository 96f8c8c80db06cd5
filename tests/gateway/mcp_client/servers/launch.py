"""Endpoints for the servers here, ASGI applications on loopback, and a look at what is still running."""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from gateway.mcp_client.servers.raw_http import until
from toolcrib.gateway.mcp_client import McpEndpoint, McpUpstreamError, McpUpstreams

SERVERS = Path(__file__).parent
OUR_TASKS = ("mcp ", "open ", "stop ", "check ", "close mcp session")

_keys = itertools.count()

MakePool = Callable[..., McpUpstreams]


def children() -> set[int]:
    """Processes that this one started and that still run."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return {pid for pid in found if running(pid)}


def running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def our_tasks() -> list[asyncio.Task[Any]]:
    """Tasks of the client that have not ended."""
    return [task for task in asyncio.all_tasks() if task.get_name().startswith(OUR_TASKS)]


def stdio(*options: str, script: str = "raw_stdio.py", **fields: Any) -> McpEndpoint:
    """An endpoint that starts one of the scripts here."""
    args = (str(SERVERS / script), *options)
    return McpEndpoint(f"stdio-{next(_keys)}", "stdio", command=sys.executable, args=args, **fields)


def over_http(url: str, transport: Any = "auto", **fields: Any) -> McpEndpoint:
    """An endpoint behind a URL."""
    return McpEndpoint(f"http-{next(_keys)}", transport, url=url, **fields)


class _Quiet(uvicorn.Server):
    """Uvicorn without its signal handlers: the process belongs to pytest."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI application on loopback; yields its URL without a final slash."""
    config = uvicorn.Config(app, port=0, log_level="critical", ws="none", timeout_graceful_shutdown=1)
    server = _Quiet(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started or task.done())
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


async def failure(work: Awaitable[Any]) -> McpUpstreamError:
    with pytest.raises(McpUpstreamError) as caught:
        await work
    return caught.value
