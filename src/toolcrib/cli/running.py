"""Runs the server's parts until a signal: web, worker, keeper, the embedded PostgreSQL's watch, all in one event loop.

Everything started here is stopped here, in the reverse order, within seconds; a part that dies takes the process with
it, because a server without its worker only looks well.
"""

import asyncio
import contextlib
import gc
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from toolcrib.cli.failure import CommandFailed
from toolcrib.installation import Ready
from toolcrib.settings import Settings
from toolcrib.wiring import Parts, build_app, build_keeper, build_worker

_log = structlog.get_logger(__name__)
_GRACE_S = 5
_MAX_FILES = 65_536
_MAX_HEAD_BYTES = 512 * 1024  # more than asyncio reads at a time, so that the end of a body never counts
_HEAD_S = 60.0


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: this process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing to capture."""
        yield


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol with a bound on the head of a request, in bytes and in time: nobody has signed in yet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head, self._head_bytes = True, 0
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(_HEAD_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._in_time()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            self.transport.abort()
        elif self._late is None:
            self._late = self.loop.call_later(_HEAD_S, self.transport.abort)

    def _in_time(self) -> None:
        late, self._late = self._late, None
        if late is not None:
            late.cancel()


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
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        sock = socket.create_server((host, port), family=family, backlog=2048, reuse_port=False)
    except OSError as error:
        raise CommandFailed(f"Cannot listen on {host}:{port}: {error.strerror}. Choose another with --port.") from None
    # asyncio sets it only on sockets that name their protocol; connections inherit it from here
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


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
    _take_more_files()
    stop = asyncio.Event()
    served = Served(url_of(sock, parts.settings) if sock else None, stop)
    names: dict[asyncio.Task[None], str] = {}

    def start(name: str, work_: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work_)
        names[task] = name
        task.add_done_callback(lambda _: stop.set())

    server: _Server | None = None
    if sock is not None:
        server = _server(parts)
        start("web", server.serve(sockets=[sock]))
    if work:
        start("worker", build_worker(parts).run(stop))
        start("keeper", build_keeper(parts).run(stop))
    # also when attached: whoever started PostgreSQL may stop first (`toolcrib key` does), and then it is ours to start
    watch = asyncio.create_task(ready.postgres.watch()) if ready.postgres else None
    remove = _on_signals(stop.set)
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


def _take_more_files() -> None:
    """Each client is an open file, and the usual limit of 1,024 is soft: ask for what we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has limits of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _server(parts: Parts) -> _Server:
    return _Server(
        uvicorn.Config(
            build_app(parts),
            loop="none",
            http=_Protocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_GRACE_S,
            h11_max_incomplete_event_size=64 * 1024,
        )
    )


def _on_signals(handle: Callable[[], None]) -> Callable[[], None]:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, handle)

    def remove() -> None:
        for number in signals:
            loop.remove_signal_handler(number)

    return remove
