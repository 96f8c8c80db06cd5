"""Runs the server's parts until a signal: web, worker, keeper, the embedded PostgreSQL's watch, all in one event loop.

Everything started here is stopped here, in the reverse order, within seconds; a part that dies takes the process with
it, because a server without its worker only looks well.
"""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from toolcrib.cli.failure import CommandFailed
from toolcrib.core.web_server import WebServer, on_signals, take_more_files, web_server, web_server_socket
from toolcrib.installation import Ready
from toolcrib.settings import Settings
from toolcrib.wiring import Parts, build_app, build_keeper, build_worker

_log = structlog.get_logger(__name__)
_GRACE_S = 5


@dataclass(slots=True)
class Served:
    """What a running process offers; `url` is None when it only works."""

    url: str | None
    stop: asyncio.Event


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        CommandFailed: the address is taken or not ours.
    """
    try:
        return web_server_socket(host, port)
    except OSError as error:
        raise CommandFailed(f"Cannot listen on {host}:{port}: {error.strerror}. Choose another with --port.") from None


def url_of(sock: socket.socket, settings: Settings) -> str:
    """The URL under which people reach the server."""
    if settings.public_url:
        return settings.public_url.rstrip("/")
    host, port = sock.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - shown, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def running(ready: Ready, parts: Parts, *, sock: socket.socket | None, work: bool) -> AsyncIterator[Served]:
    """Start what was asked for; on leaving, stop it all. Raises CommandFailed if a part dies while inside."""
    take_more_files()
    stop = asyncio.Event()
    served = Served(url_of(sock, parts.settings) if sock else None, stop)
    names: dict[asyncio.Task[None], str] = {}

    def start(name: str, work_: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work_)
        names[task] = name
        task.add_done_callback(lambda _: stop.set())

    server: WebServer | None = None
    if sock is not None:
        server = web_server(build_app(parts), grace_s=_GRACE_S)
        start("web", server.serve(sockets=[sock]))
    if work:
        start("worker", build_worker(parts).run(stop))
        start("keeper", build_keeper(parts).run(stop))
    # also when attached: whoever started PostgreSQL may stop first (`toolcrib key` does), and then it is ours to start
    watch = asyncio.create_task(ready.postgres.watch()) if ready.postgres else None
    remove = on_signals(stop.set)
    try:
        if server is not None:
            while not server.started and not stop.is_set():  # noqa: ASYNC110 - uvicorn sets no event
                await asyncio.sleep(0.005)
        # What was made to start lives as long as the process: searching it for garbage only costs pauses. Calls leave
        # next to none, and with Python's own thresholds the search took a tenth of their time.
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        yield served
    finally:
        remove()
        stop.set()
        parts.deps.closing.set()
        if server is not None:
            server.should_exit = True
        if died := await _end(names, watch):
            raise CommandFailed(f"stopped because of the {died}, which died; the log says why")


async def _end(names: dict[asyncio.Task[None], str], watch: asyncio.Task[None] | None) -> str | None:
    """Wait for the parts, cancel those that take too long, log what died; returns the name of one that did."""
    died = None
    done, late = await asyncio.wait(names, timeout=_GRACE_S + 5) if names else (set(), set())
    if watch is not None:
        late.add(watch)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("part.died", part=names[task], exc_info=error)
            died = names[task]
    return died
