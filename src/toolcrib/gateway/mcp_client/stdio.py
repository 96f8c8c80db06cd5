"""A server that we start and talk to over its standard input and output, one JSON-RPC message a line.

Lines that are no messages are passed over (many servers print something by mistake), until there are too many. A line
over the size limit is never held: it fails the call that it answers and the server lives on; when it does not say which
call that is, or never ends, the server is stopped. The death of the server fails every call in flight with its last
words.
"""

import asyncio
import re
from collections.abc import Callable, Mapping

import structlog

from toolcrib.errors import AppError
from toolcrib.gateway.mcp_client.contract import McpEndpoint, McpUpstreamError, OnProgress, plain_text
from toolcrib.gateway.mcp_client.inflight import UNCANCELLABLE, InFlight, cancelled_bytes, expire, ignore
from toolcrib.gateway.mcp_client.jsonrpc import Message, NotJsonRpc
from toolcrib.gateway.mcp_client.process import ProcessGuard, ServerProcess

MAX_FOREIGN_LINES = 1000
"""How many lines in a row may be something else than messages."""

_ENDLESS = 16
"""A line this many times over the limit is taken for one that never ends."""

_EDGE_BYTES = 256
_ID_AT_START = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*"?(\d{1,18})"?\s*,')
_ID_AT_END = re.compile(rb',\s*"id"\s*:\s*"?(\d{1,18})"?\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$')

_log = structlog.get_logger(__name__)


class StdioTransport:
    """One started server.

    Args:
        on_end: called once when the server has gone, with calls in flight already failed.
    """

    modern_first = False  # a server that knows only the handshake may ignore the probe, or die of it
    has_headers = False

    def __init__(
        self,
        endpoint: McpEndpoint,
        *,
        max_message_bytes: int,
        on_tools_changed: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._endpoint = endpoint
        self._max_bytes = max_message_bytes
        self._on_end = on_end
        self._in_flight = InFlight(self._write, on_tools_changed)
        self._process: ServerProcess | None = None
        self._pieces: list[bytes] = []
        self._held = 0
        self._skipped_bytes = 0
        self._foreign_lines = 0
        self._stop_task: asyncio.Task[None] | None = None

    async def start(self, environment: Mapping[str, str], guard: ProcessGuard) -> None:
        """Start the program; raises McpUpstreamError."""
        self._process = await ServerProcess.start(self._endpoint, environment, guard, self._output, self._gone)

    @property
    def ended(self) -> AppError | None:
        """Why no more requests can be sent, or None."""
        return self._in_flight.ended

    def adopt(self, version: str | None, *, modern: bool) -> None:
        """The protocol version is in the messages alone; nothing to do on a pipe."""

    async def request(
        self,
        request_id: int,
        method: str,
        body: bytes,
        deadline: float,
        *,
        on_progress: OnProgress | None = None,
        extra_headers: tuple[tuple[str, str], ...] = (),  # noqa: ARG002  only HTTP has headers
    ) -> Message:
        """Send a request and wait for its answer until `deadline` (event loop time); raises McpUpstreamError."""
        if self._process is not None and not self._process.writable:
            await self._wait_for_room(self._process, deadline)
        future = self._in_flight.add(request_id, on_progress)
        self._write(body)
        timer = future.get_loop().call_at(deadline, expire, future)
        try:
            return await future
        except (TimeoutError, asyncio.CancelledError) as exc:
            if method not in UNCANCELLABLE:
                self._write(cancelled_bytes(request_id))
            if isinstance(exc, asyncio.CancelledError):
                raise
            raise self._late(method) from None
        finally:
            timer.cancel()
            self._in_flight.discard(request_id)

    async def _wait_for_room(self, process: ServerProcess, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await process.wait_writable()
        except TimeoutError:
            raise McpUpstreamError("mcp.timeout", f"'{self._endpoint.command}' does not read its input") from None

    async def notify(self, body: bytes, deadline: float) -> None:  # noqa: ARG002  writing does not wait
        """Send a notification."""
        self._write(body)

    def listen(self, request_id: int, body: bytes | None) -> None:
        """Open the modern era's subscription; news arrives like everything else, in both eras."""
        if body is None:
            return
        self._in_flight.add(request_id, None).add_done_callback(ignore)
        self._write(body)

    async def close(self) -> None:
        """Stop the server; takes some seconds at most."""
        self._in_flight.end(McpUpstreamError("mcp.closed", f"the session with '{self._endpoint.command}' was closed"))
        if self._process is not None:
            await self._process.stop()

    def _write(self, body: bytes) -> None:
        if b"\n" in body or b"\r" in body:  # the line is the frame; in valid JSON these stand between tokens only
            body = body.replace(b"\n", b" ").replace(b"\r", b" ")
        if self._process is not None:
            self._process.write(body)

    def _output(self, chunk: bytes) -> None:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            line = chunk[start:end]
            start = end + 1
            if self._skipped_bytes:
                self._skip(line)
                self._skipped_line()
            else:
                if self._pieces:
                    line = b"".join([*self._pieces, line])
                    self._pieces, self._held = [], 0
                self._line(line)
        if start < len(chunk):
            self._keep(chunk[start:] if start else chunk)

    def _keep(self, piece: bytes) -> None:
        if self._skipped_bytes:
            self._skip(piece)
            return
        self._pieces.append(piece)
        self._held += len(piece)
        if self._held > self._max_bytes:
            self._skipped_bytes, self._held = self._held, 0
            whole = b"".join(self._pieces)
            self._pieces = [whole[:_EDGE_BYTES], whole[-_EDGE_BYTES:]]

    def _skip(self, piece: bytes) -> None:
        """Of a line that is too long only the edges are kept: the id may be there."""
        self._skipped_bytes += len(piece)
        self._pieces[1] = (self._pieces[1] + piece)[-_EDGE_BYTES:]
        if self._skipped_bytes > _ENDLESS * self._max_bytes:
            self._break(self._too_large())

    def _skipped_line(self) -> None:
        head, tail = self._pieces
        self._pieces, self._skipped_bytes = [], 0
        found = _ID_AT_START.match(head) or _ID_AT_END.search(tail)
        if found is not None:
            self._in_flight.fail(int(found[1]), self._too_large())
        else:
            self._break(self._too_large())

    def _line(self, line: bytes) -> None:
        if len(line) > self._max_bytes:
            self._pieces, self._skipped_bytes = [line[:_EDGE_BYTES], line[-_EDGE_BYTES:]], len(line)
            self._skipped_line()
            return
        if not line.strip():
            return
        try:
            self._in_flight.receive(line)
        except NotJsonRpc:
            self._foreign(line)
        else:
            self._foreign_lines = 0

    def _foreign(self, line: bytes) -> None:
        self._foreign_lines += 1
        text = plain_text(line[:400].decode(errors="replace"), 200)
        if self._foreign_lines == 1:
            _log.warning("mcp.foreign_line_on_stdout", command=self._endpoint.command, line=text)
        elif self._foreign_lines > MAX_FOREIGN_LINES:
            self._break(
                McpUpstreamError(
                    "mcp.protocol_error",
                    f"'{self._endpoint.command}' writes text instead of JSON-RPC to its standard output: {text}",
                )
            )

    def _late(self, method: str) -> McpUpstreamError:
        return McpUpstreamError("mcp.timeout", f"'{self._endpoint.command}' did not answer {method} in time")

    def _too_large(self) -> McpUpstreamError:
        return McpUpstreamError(
            "mcp.too_large", f"'{self._endpoint.command}' sent a message of more than {self._max_bytes} bytes"
        )

    def fail(self, error: McpUpstreamError) -> None:
        """End the connection for this reason."""
        self._break(error)

    def _break(self, error: McpUpstreamError) -> None:
        if self._in_flight.ended is None:
            self._in_flight.end(error)
            self._on_end()

    def _gone(self) -> None:
        if self._process is not None:
            self._break(self._process.describe_exit())
