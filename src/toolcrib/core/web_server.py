"""The web server of every ASGI application of ours: uvicorn with bounds on what it reads before it is a request.

It takes no signals and makes no event loop: the process that runs it has its own.
"""

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_MAX_FILES = 65_536
_MAX_HEAD_BYTES = 512 * 1024  # more than asyncio reads at a time, so that the end of a body never counts
_HEAD_S = 60.0


class WebServer(uvicorn.Server):
    """uvicorn without its signal handlers: this process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing to capture."""
        yield


class _Transport:
    """A connection that sends the head of an answer together with the first of its body, as one packet.

    uvicorn writes them apart, and each write is a system call on our side and often a wake-up on the client's.
    """

    __slots__ = ("_held", "_protocol", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, protocol: HttpToolsProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._held = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Write, or keep a head that says that bytes follow until they do."""
        if self._held:
            self._flush(data)
        elif data.startswith(b"HTTP/1.") and self._promised():
            self._held = data
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close when everything is written."""
        if self._held:
            self._flush()
        self._transport.close()

    def _flush(self, data: bytes = b"") -> None:
        held, self._held = self._held, b""
        self._transport.write(held + data)

    def _promised(self) -> bool:
        """Whether the answer under way has a body that is still to come, and will be written."""
        cycle: RequestResponseCycle | None = self._protocol.cycle
        return cycle is not None and cycle.expected_content_length > 0 and cycle.scope["method"] != "HEAD"

    def __getattr__(self, name: str) -> Any:
        """Everything else is the connection's own."""
        return getattr(self._transport, name)


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol with a bound on the head of a request, in bytes and in time: nobody has signed in yet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head, self._head_bytes = True, 0
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
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


def web_server(app: Any, *, grace_s: int) -> WebServer:
    """A server of an ASGI application; requests under way get `grace_s` seconds when it stops."""
    return WebServer(
        uvicorn.Config(
            app,
            loop="none",
            http=_Protocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=grace_s,
            h11_max_incomplete_event_size=64 * 1024,
        )
    )


def web_server_socket(host: str, port: int) -> socket.socket:
    """A listening socket; raises OSError when the address is taken or not ours."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    sock = socket.create_server((host, port), family=family, backlog=2048, reuse_port=False)
    # asyncio sets it only on sockets that name their protocol; connections inherit it from here
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def take_more_files() -> None:
    """Each client is an open file, and the usual limit of 1,024 is soft: ask for what we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has limits of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def on_signals(handle: Callable[[], None]) -> Callable[[], None]:
    """Call `handle` on SIGINT and SIGTERM; returns what ends that."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, handle)

    def remove() -> None:
        for number in signals:
            loop.remove_signal_handler(number)

    return remove
