"""One HTTP/1.1 connection to an upstream: writes a request, parses the answer, keeps the limits on it.

One exchange at a time, never pipelined. An answer that is not HTTP, breaks off, outgrows its limit or is followed by
bytes nobody asked for ends the connection, so that nothing of it can be taken for the next answer. Names, addresses,
TLS and pooling belong to `http.py`.
"""

import asyncio
import math
import re
import select
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import httptools

from toolcrib.errors import Upstream

_HEAD_LIMIT: Final = 64 * 1024  # bytes that may pass without a byte of body: heads, chunk framing, trailers
_PAUSE_ABOVE: Final = 256 * 1024  # bytes received and not yet consumed at which a stream stops reading
_INFLATE_STEP: Final = 64 * 1024  # decoded bytes made at once, so that a compressed bomb cannot fill the memory
_TRUSTED_S: Final = 1.0  # an idle connection is not examined before use if it rested for less
_KEEP_ALIVE_TIMEOUT: Final = re.compile(rb"timeout=(\d{1,6})")
_JOIN_BELOW: Final = 64 * 1024  # a body up to this size travels in the same write as its head


class OutboundError(Upstream):
    """A call to an upstream failed; the message names the host and the reason, never headers, query or body.

    Codes: `outbound.dns_failed`, `outbound.connect_failed`, `outbound.tls_failed`, `outbound.timeout`,
    `outbound.too_large`, `outbound.protocol_error`, `outbound.closed`.
    """


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call must be over: `at` by the clock of the loop, because of a limit of `limit_s` seconds."""

    at: float
    limit_s: float


class Headers:
    """The headers of an answer, in the order they came; names compare without case."""

    __slots__ = ("_raw",)

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._raw = raw  # names in lower case

    def get(self, name: str) -> str | None:
        """The first value under this name, or None."""
        key = name.lower().encode()
        for known, value in self._raw:
            if known == key:
                return value.decode("latin-1")
        return None

    def items(self) -> list[tuple[str, str]]:
        """Every header, names in lower case; a name may occur more than once."""
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._raw]

    def __repr__(self) -> str:
        return f"Headers({[name.decode('latin-1') for name, _ in self._raw]})"  # values can be secrets


class Inflater:
    """Undoes the content encodings `gzip` and `deflate`."""

    __slots__ = ("_gzip", "_inflate")

    def __init__(self, encoding: str) -> None:
        self._gzip = encoding != "deflate"
        self._inflate: Any = None

    @property
    def unfinished(self) -> bool:
        """Whether compressed data came, but not to its end."""
        return self._inflate is not None and not self._inflate.eof

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What `data`, which is not empty, decodes to, in pieces of bounded size; raises zlib.error when damaged."""
        if self._inflate is None:
            # "deflate" is zlib to the standard and raw deflate to some servers; the first byte tells them apart.
            raw = not self._gzip and data[0] & 0x0F != 8
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32)
        inflate = self._inflate
        while not inflate.eof:
            out = inflate.decompress(data, _INFLATE_STEP)
            if out:
                yield out
            data = inflate.unconsumed_tail
            if not data and len(out) < _INFLATE_STEP:
                return
        # Padding after the end is ignored, as everyone does. A second gzip member is not decoded: nobody sends one over
        # HTTP, and thousands of tiny ones would cost far more time than their size suggests.
        if (inflate.unused_data or data).startswith(b"\x1f\x8b"):
            raise zlib.error("a second gzip member")


class Connection(asyncio.Protocol):
    """An open connection; made by `loop.create_connection`.

    After `exchange` came back, exactly one of these holds: `complete` (the whole answer is here), `error` (it failed
    and the connection is gone), or, for a stream, neither, and `next_chunk` brings the rest. Whoever is not interested
    any more calls `abort`, which closes the socket at once.

    Attributes:
        status: status of the final answer, once its head is here.
        raw_headers: its headers, names in lower case.
        began: whether any byte of an answer to this request arrived.
        complete: whether the answer arrived to its end.
        reusable: whether another exchange may follow.
        error: what went wrong, if something did.
    """

    __slots__ = (
        "_bodiless",
        "_body",
        "_head_done",
        "_limit",
        "_loop",
        "_name",
        "_on_lost",
        "_parser",
        "_paused",
        "_quiet",
        "_streaming",
        "_transport",
        "_until_eof",
        "_waiter",
        "began",
        "complete",
        "error",
        "raw_headers",
        "rests_since",
        "rests_until",
        "reusable",
        "status",
    )

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, on_lost: "Callable[[Connection], None]") -> None:
        self._name = name  # host and port, for messages
        self._loop = loop
        self._on_lost = on_lost
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._body = bytearray()  # received and not yet consumed
        self._paused = self._streaming = self._bodiless = self._head_done = self._until_eof = False
        self._limit: int | None = None
        self._quiet = 0  # bytes received since the last byte of body
        self.rests_since = self.rests_until = 0.0
        self.status = 0
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.began = False
        self.complete = self.reusable = True  # nothing is going on yet
        self.error: OutboundError | None = None

    # -- what the client calls ---------------------------------------------------------------------------------------

    async def exchange(
        self, head: bytes, body: bytes | None, *, bodiless: bool, streaming: bool, limit: int | None, deadline: Deadline
    ) -> None:
        """Send a request; returns when the answer is complete, or its head is when `streaming`, or `error` is set.

        Args:
            head: request line and headers, up to and including the empty line.
            body: what follows, or None.
            bodiless: the answer has no body whatever its headers say (HEAD).
            streaming: the body is fetched with `next_chunk`; otherwise with `whole_body`.
            limit: bytes of body above which the answer is refused; None for no limit.
            deadline: when waiting ends with `outbound.timeout`.
        """
        self.complete = self.reusable = self.began = self._head_done = self._until_eof = False
        self._bodiless, self._streaming, self._limit = bodiless, streaming, limit
        self._quiet = 0
        self.raw_headers, self._body = [], bytearray()
        if self._transport.is_closing():
            self._ended()  # it was closed between connecting and now, and will not report it a second time
            return
        if body is None or len(body) <= _JOIN_BELOW:
            self._transport.write(head + body if body else head)
        else:
            self._transport.write(head)
            self._transport.write(body)
        try:
            await self._wait(deadline.at - self._loop.time(), "did not answer within", deadline.limit_s)
        except BaseException:
            self.abort()  # the caller is gone, so the upstream need not go on
            raise

    async def next_chunk(self, idle_timeout_s: float) -> bytes | None:
        """The bytes that arrived since the last call, waiting for some if there are none; None at the end.

        Raises:
            OutboundError: the answer broke off, or nothing arrived for `idle_timeout_s` seconds.
        """
        while not self._body:
            if self.error is not None:
                raise self.error
            if self.complete:
                return None
            await self._wait(idle_timeout_s, "sent nothing for", idle_timeout_s)
        chunk, self._body = bytes(self._body), bytearray()
        self._resume()
        return chunk

    def whole_body(self) -> bytes:
        """The decoded body of a complete answer; raises OutboundError when it is damaged or too large."""
        inflater = self.inflater()
        if inflater is None:
            return bytes(self._body)
        decoded = bytearray()
        try:
            for start in range(0, len(self._body), _INFLATE_STEP):
                for piece in inflater.pieces(bytes(self._body[start : start + _INFLATE_STEP])):
                    decoded += piece
                    if self._limit is not None and len(decoded) > self._limit:
                        raise self.too_large(self._limit)
        except zlib.error:
            raise self.undecodable() from None
        if inflater.unfinished:
            raise self.undecodable()
        return bytes(decoded)

    def inflater(self) -> Inflater | None:
        """What undoes the content encoding of this answer, or None when there is none."""
        encoding = self._header(b"content-encoding")
        return None if encoding in {b"", b"identity"} else Inflater(encoding.decode("latin-1"))

    def too_large(self, limit: int) -> OutboundError:
        """The error for a body above `limit` bytes."""
        return OutboundError("outbound.too_large", f"{self._name} answered with more than {limit} bytes")

    def undecodable(self) -> OutboundError:
        """The error for a body that does not decode."""
        return OutboundError("outbound.protocol_error", f"{self._name} sent a body that does not decompress")

    def abort(self) -> None:
        """Close the socket at once; an exchange in flight fails with `outbound.closed`."""
        self._fail("closed", "the connection was closed")

    @property
    def partial(self) -> bool:
        """Whether an answer that broke off can still be streamed up to where it broke."""
        error = self.error
        return self._streaming and self._head_done and error is not None and error.code != "outbound.too_large"

    def rest(self, longest_s: float) -> None:
        """Go idle for at most `longest_s` seconds, or as long as the upstream said it keeps the connection."""
        if hint := _KEEP_ALIVE_TIMEOUT.search(self._header(b"keep-alive")):
            longest_s = min(longest_s, int(hint[1]) - 1)  # a second early: the request must arrive before it closes
        self.rests_since = self._loop.time()
        self.rests_until = self.rests_since + longest_s
        self.raw_headers, self._body = [], bytearray()
        self._resume()

    def fit(self) -> bool:
        """Whether an idle connection can take a request."""
        now = self._loop.time()
        if not self.reusable or self._transport.is_closing() or now >= self.rests_until:
            return False
        # The end of the connection may be in the kernel while the loop has not come round to it yet.
        return now - self.rests_since < _TRUSTED_S or not _readable(self._transport)

    # -- what the transport calls ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        if self.complete or self.error is not None:
            self.abort()  # nobody asked for this
            return
        self.began = True
        self._quiet += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("protocol_error", "switched to another protocol without being asked")
        except httptools.HttpParserError:
            self._fail("protocol_error", "answered with something that is not HTTP/1.1")
        if self._quiet > _HEAD_LIMIT and not self.complete:
            self._fail("protocol_error", f"sent more than {_HEAD_LIMIT} bytes of headers")

    def eof_received(self) -> None:
        """The upstream will send nothing more; the transport closes."""
        self._ended()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._ended(broken=exc is not None)
        self.reusable = False
        self._parser = None  # parser and connection hold each other
        self._on_lost(self)

    # -- what the parser calls ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A second answer in the same bytes belongs to no request; nothing more is sent on this connection."""
        if self.complete:
            self.reusable = False
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers are dropped."""
        if not self._head_done:
            self.raw_headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is here: find out how the body ends and whether it can be accepted."""
        if self.complete:
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return  # interim: the answer follows
        self._head_done = True
        headers = dict(self.raw_headers)
        length = headers.get(b"content-length")
        transfer = headers.get(b"transfer-encoding")
        if self._bodiless:
            self.complete = True  # the parser expects a body now, so the connection ends with this
            self._wake()
            return
        if transfer is not None and transfer.lower() != b"chunked":
            self._fail("protocol_error", "used a transfer encoding it was not offered")
        elif self._header(b"content-encoding") not in {b"", b"identity", b"gzip", b"x-gzip", b"deflate"}:
            self._fail("protocol_error", "used a content encoding it was not offered")
        elif self._limit is not None and length is not None and int(length) > self._limit:
            self._fail("too_large", f"answered with {int(length)} bytes, the limit is {self._limit} bytes")
        self._until_eof = length is None and transfer is None
        if self._streaming:
            self._wake()

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        if self.complete or self.error is not None:
            return
        self._quiet = 0
        self._body += data
        if self._streaming:
            self._wake()
            if len(self._body) > _PAUSE_ABOVE and not self._paused:
                self._paused = True
                self._transport.pause_reading()
        elif self._limit is not None and len(self._body) > self._limit:
            self._fail("too_large", f"answered with more than {self._limit} bytes")

    def on_message_complete(self) -> None:
        """The answer is here to its end."""
        if self.complete or self.error is not None:
            return
        if not self._head_done:
            self.raw_headers = []  # of an interim answer
            return
        self.complete = True
        # A request that is still being written would run into the next one.
        self.reusable = self._parser.should_keep_alive() and not self._transport.get_write_buffer_size()
        self._wake()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _header(self, name: bytes) -> bytes:
        return next((value.strip().lower() for known, value in self.raw_headers if known == name), b"")

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _ended(self, *, broken: bool = False) -> None:
        if self.complete or self.error is not None:
            return
        if self._until_eof and not broken:
            self.complete = True
            self._wake()
        elif self.began:
            self._fail("protocol_error", "broke off in the middle of its answer")
        else:
            self._fail("protocol_error", "closed the connection without an answer")

    def _fail(self, code: str, reason: str) -> None:
        self.reusable = False
        if not self.complete and self.error is None:
            self.error = OutboundError(f"outbound.{code}", f"{self._name} {reason}")
        self._wake()
        self._transport.abort()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self, timeout_s: float, reason: str, limit_s: float) -> None:
        """Until something happened; after `timeout_s`, which may be infinite, that is a failure."""
        self._waiter = waiter = self._loop.create_future()
        timer = None if timeout_s == math.inf else self._loop.call_later(timeout_s, self._expire, reason, limit_s)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _expire(self, reason: str, limit_s: float) -> None:
        self._fail("timeout", f"{reason} {limit_s:g} s")


def _readable(transport: Any) -> bool:
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))
