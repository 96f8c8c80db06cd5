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
_LOOK_S = 60.0  # how often a body that is arriving is looked at
_BODY_BYTES = 4096  # what must have arrived since the last look
_STALLED_S = 60.0  # for how long a client may take nothing of an answer that waits for it
_MAX_WAITING = 128  # requests of one connection behind the one that is answered; each takes some kilobytes


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
    """uvicorn's protocol with bounds on what a client may hold on to: nobody has signed in yet.

    The head of a request has a largest size and a time; its body must keep arriving while the application reads it; its
    answer must be taken; and requests cannot be piled up without waiting for answers.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head, self._head_bytes = True, 0
        self._late: asyncio.TimerHandle | None = None
        self._in_body, self._body_bytes = False, 0
        self._look: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        self._late = self.loop.call_later(_HEAD_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        self._body_ended()
        self._taken()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._in_time()
        if len(self.pipeline) >= _MAX_WAITING:
            self.transport.abort()
        if self.transport.is_closing():  # what else was read together with it is of no interest
            return
        super().on_headers_complete()
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._body_ended()
        if self.cycle is not None:
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_body:
            self._body_bytes += len(data)
            if self._look is None:
                self._body_bytes = 0
                self._look = self.loop.call_later(_LOOK_S, self._still_arriving)
        elif self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.transport.abort()
            elif self._late is None:
                self._late = self.loop.call_later(_HEAD_S, self.transport.abort)
        elif self._late is None and self.timeout_keep_alive_task is None and self.cycle.response_complete:
            # an empty line between requests ended the wait for the next one, and is none itself
            self._late = self.loop.call_later(_HEAD_S, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_client()

    def resume_writing(self) -> None:
        self._taken()
        super().resume_writing()

    def _still_arriving(self) -> None:
        """Give up a body that hardly arrives; while the application does not read, the client is not to blame."""
        if self._body_bytes < _BODY_BYTES and not self.flow.read_paused:
            self.transport.abort()
            return
        self._body_bytes = 0
        self._look = self.loop.call_later(_LOOK_S, self._still_arriving)

    def _body_ended(self) -> None:
        self._in_body = False
        look, self._look = self._look, None
        if look is not None:
            look.cancel()

    def _wait_for_client(self) -> None:
        size = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(_STALLED_S, self._still_taking, size)

    def _still_taking(self, before: int) -> None:
        """Give up a client that took nothing of what waits for it: memory and a connection hang on it."""
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._wait_for_client()

    def _taken(self) -> None:
        stalled, self._stalled = self._stalled, None
        if stalled is not None:
            stalled.cancel()

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
