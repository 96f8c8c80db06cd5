"""The one outbound HTTP client: every call to an upstream goes through here.

A URL is read strictly, its host is resolved, each address is judged by the `AddressPolicy`, and the connection is
opened to the very address that was judged (the name stays in TLS and in Host). Nothing is followed, remembered or
guessed: no redirects, cookies, proxies, credentials in URLs. Every wait and every body has a limit. A cancelled call
closes its connection at once. A request is repeated only when it is safe (GET, HEAD, OPTIONS) and a connection out of
the pool turned out to be closed before any of the answer came.
"""

import asyncio
import functools
import ipaddress
import os
import re
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from urllib.parse import quote

from toolcrib.core.addresses import Address, AddressPolicy, address_kind
from toolcrib.core.http1 import Connection, Deadline, Headers, OutboundError
from toolcrib.errors import Forbidden, Invalid

__all__ = [
    "AddressPolicy",
    "AddressRefused",
    "Headers",
    "OutboundClient",
    "OutboundError",
    "OutboundResponse",
    "OutboundStream",
    "Resolver",
]

Resolver = Callable[[str], Awaitable[Sequence[str]]]  # a name to its addresses as text; raises OSError

_DNS_S: Final = 30.0  # how long an answer of the resolver serves further connections
_DNS_NAMES: Final = 1024  # how many answers are kept
_DNS_ADDRESSES: Final = 8  # how many addresses of a name are looked at
_IDLE_S: Final = 30.0  # how long an unused connection is kept
_IDLE_PER_ORIGIN: Final = 64
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_METHOD: Final = re.compile(r"[A-Z][A-Z-]{0,31}")
_URL_LIMIT: Final = 64 * 1024  # characters
_URL: Final = re.compile(r"([Hh][Tt][Tt][Pp][Ss]?://[^/?#\\\x00-\x20\x7f]+)([/?][^#\x00-\x1f\x7f]*)?(?:#.*)?")
_AUTHORITY_LIMIT: Final = 300  # characters; a name has 253 at most
_PRINTABLE: Final = "".join(map(chr, range(0x21, 0x7F)))
_PLAIN_TARGET: Final = re.compile(r"[!-~]*")
_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMERIC: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")  # resolvers take these for an address, in any spelling
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
# Framing and connection handling belong to this client; a caller that sets them could smuggle a second request.
_OURS: Final = frozenset(
    {
        *("accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    }
)


class AddressRefused(Forbidden):
    """The policy forbids the address that a URL leads to; nothing was sent. Code `outbound.address_refused`."""


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a URL leads: what to connect to and what to call it."""

    key: str  # scheme, host and port; connections are shared under it
    name: str  # for messages: the host, and the port unless it is the usual one
    host: str  # what is resolved
    server_name: str  # what TLS asks for and verifies: the host without a trailing dot
    port: int
    tls: bool
    address: Address | None  # when the host is one
    preamble: str  # what follows the target in every request: version, and the headers that depend on the origin


@dataclass(slots=True)
class OutboundResponse:
    """An answer, complete; the body is decoded."""

    status: int
    headers: Headers
    body: bytes


class OutboundStream:
    """An answer whose head is here and whose body is arriving."""

    def __init__(self, connection: Connection, idle_timeout_s: float, max_bytes: int | None) -> None:
        self.status = connection.status
        self.headers = Headers(connection.raw_headers)
        self._connection: Connection | None = connection
        self._idle_timeout_s = idle_timeout_s
        self._max_bytes = max_bytes

    async def chunks(self) -> AsyncIterator[bytes]:
        """The decoded body, as it arrives.

        Raises:
            OutboundError: it broke off, went silent, does not decode, or outgrew `max_bytes`.
        """
        connection = self._attached()
        inflater = connection.inflater()
        total = 0
        while (chunk := await self._attached().next_chunk(self._idle_timeout_s)) is not None:
            try:
                for piece in (chunk,) if inflater is None else inflater.pieces(chunk):
                    total += len(piece)
                    if self._max_bytes is not None and total > self._max_bytes:
                        raise connection.too_large(self._max_bytes)
                    yield piece
            except zlib.error:
                raise connection.undecodable() from None
        if inflater is not None and inflater.unfinished:
            raise connection.undecodable()

    async def read(self, max_bytes: int) -> bytes:
        """The whole decoded body; raises as `chunks` does, and above `max_bytes`."""
        self._max_bytes = max_bytes if self._max_bytes is None else min(max_bytes, self._max_bytes)
        return b"".join([chunk async for chunk in self.chunks()])

    def detach(self) -> None:
        """Let go of the connection, which may serve another call from now on."""
        self._connection = None

    def _attached(self) -> Connection:
        if self._connection is None:
            raise OutboundError("outbound.closed", "the stream was left before it was read")
        return self._connection


class OutboundClient:
    """Calls upstreams; one per process, used from one event loop.

    Args:
        policy: which addresses may be called.
        connect_timeout_s: for resolving, connecting and TLS together, unless the call says otherwise.
        timeout_s: for a call from start to end, unless the call says otherwise.
        max_bytes: size of a body, as sent and as decoded, unless the call says otherwise.
        user_agent: value of User-Agent, unless the call sets one.
        ca_file: further certificate authorities to trust, as a PEM file.
        resolver: how names become addresses; the system's resolver by default.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 60.0,
        max_bytes: int = 10 * 2**20,
        user_agent: str = "toolcrib",
        ca_file: str | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        self._policy = policy
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        if _FORBIDDEN.search(user_agent) or "\n" in user_agent:
            raise ValueError("user_agent holds a control character")
        self._user_agent = f"User-Agent: {user_agent}\n"
        self._tls = _tls_context(ca_file)
        self._resolver = resolver or _system_resolver
        self._names: dict[str, tuple[float, tuple[Address, ...]]] = {}
        self._lookups: dict[str, asyncio.Task[tuple[Address, ...]]] = {}
        self._connections: set[Connection] = set()
        self._all_lost = asyncio.Event()
        self._idle: dict[str, list[Connection]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        timeout_s: float | None = None,
        connect_timeout_s: float | None = None,
        max_bytes: int | None = None,
    ) -> OutboundResponse:
        """Send a request and read the whole answer; any status is an answer.

        Args:
            method: in upper case.
            url: absolute, http or https; a fragment is not sent.
            headers: sent in this order; the client adds what frames the request.
            body: what follows them, or None.
            timeout_s: from start to end; None for the client's.
            connect_timeout_s: of it, for a connection if a new one is needed; None for the client's.
            max_bytes: size of the decoded body; None for the client's.

        Raises:
            Invalid: the URL, the method or a header is malformed or not allowed.
            AddressRefused: the policy forbids the address.
            OutboundError: it failed; the code says how.
        """
        limit = self._max_bytes if max_bytes is None else max_bytes
        origin, head = self._compose(method, url, headers, body)
        times = (timeout_s, connect_timeout_s)
        connection = await self._exchange(method, origin, (head, body), limit, times, streaming=False)
        try:
            return OutboundResponse(connection.status, Headers(connection.raw_headers), connection.whole_body())
        finally:
            self._release(origin, connection)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        idle_timeout_s: float | None = None,
        timeout_s: float | None = None,
        connect_timeout_s: float | None = None,
        max_bytes: int | None = None,
    ) -> AsyncIterator[OutboundStream]:
        """Send a request and enter when the head of the answer is here; leaving early closes the connection.

        Args:
            method: as in `request`.
            url: as in `request`.
            headers: as in `request`.
            body: as in `request`.
            idle_timeout_s: longest silence within the body; None for the client's `timeout_s`, `math.inf` for ever.
            timeout_s: until the head is here; None for the client's.
            connect_timeout_s: as in `request`.
            max_bytes: size of the decoded body; None for no limit.

        Raises:
            Invalid, AddressRefused, OutboundError: as in `request`.
        """
        origin, head = self._compose(method, url, headers, body)
        times = (timeout_s, connect_timeout_s)
        connection = await self._exchange(method, origin, (head, body), max_bytes, times, streaming=True)
        idle_s = self._timeout_s if idle_timeout_s is None else idle_timeout_s
        stream = OutboundStream(connection, idle_s, max_bytes)
        try:
            yield stream
        finally:
            stream.detach()
            self._release(origin, connection)

    async def close(self) -> None:
        """Close every connection; calls in flight and later ones fail with `outbound.closed`."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for lookup in self._lookups.values():
            lookup.cancel()
        for connection in list(self._connections):
            connection.abort()
        if self._connections:
            await self._all_lost.wait()  # the loop closes the sockets in its next round

    def _compose(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes | None
    ) -> tuple[_Origin, bytes]:
        """The origin, and the request up to the empty line."""
        if not _METHOD.fullmatch(method) or method in {"CONNECT", "TRACE"}:
            raise Invalid("outbound.method_invalid", f"{method!r} is not a method that can be used")
        origin, target = _split(url)
        names = {name.lower() for name, _ in headers}
        lines = "".join([f"{name}: {value}\n" for name, value in headers])
        # One header is one line: more line ends than headers means that a value brought its own.
        if lines.count("\n") != len(headers) or _FORBIDDEN.search(lines):
            raise Invalid("outbound.header_invalid", "a header holds a line break or a control character")
        if headers and (not names.isdisjoint(_OURS) or not all(map(_TOKEN.fullmatch, names))):
            raise _name_error(names)
        if "user-agent" not in names:
            lines += self._user_agent
        if body is not None or method in {"POST", "PUT", "PATCH"}:
            lines += f"Content-Length: {len(body or b'')}\n"
        text = f"{method} {target}{origin.preamble}{lines}\n"
        try:
            return origin, text.replace("\n", "\r\n").encode()
        except UnicodeEncodeError:
            raise Invalid("outbound.header_invalid", "a header is not text that can be sent") from None

    async def _exchange(
        self,
        method: str,
        origin: _Origin,
        request: tuple[bytes, bytes | None],
        limit: int | None,
        times: tuple[float | None, float | None],
        *,
        streaming: bool,
    ) -> Connection:
        """Send a request (head, body) on a pooled or a new connection, which comes back with the answer on it.

        `times` are the seconds for all of it and for connecting, None for the client's.
        """
        timeout_s, connect_s = times
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = Deadline(asyncio.get_running_loop().time() + limit_s, limit_s)
        connection = self._take(origin)
        pooled = connection is not None
        while True:
            if connection is None:
                connection = await self._connect(origin, deadline, connect_s)
            await connection.exchange(
                *request, bodiless=method == "HEAD", streaming=streaming, limit=limit, deadline=deadline
            )
            error = connection.error
            if error is None or connection.partial:
                return connection
            if not pooled or connection.began or method not in _SAFE or error.code != "outbound.protocol_error":
                raise error
            connection, pooled = None, False

    def _take(self, origin: _Origin) -> Connection | None:
        """An idle connection, the one used last first."""
        if self._closed:
            raise OutboundError("outbound.closed", "the outbound client is closed")
        idle = self._idle.get(origin.key)
        while idle:
            connection = idle.pop()
            if connection.fit():
                return connection
            connection.abort()
        return None

    def _release(self, origin: _Origin, connection: Connection) -> None:
        """Keep a connection whose answer is complete for the next request, close any other."""
        if not connection.reusable or self._closed:
            connection.abort()
            return
        idle = self._idle.setdefault(origin.key, [])
        if len(idle) >= _IDLE_PER_ORIGIN:
            connection.abort()
            return
        connection.rest(_IDLE_S)
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(_IDLE_S / 2, self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle for too long."""
        for key, idle in list(self._idle.items()):
            fit = [connection for connection in idle if connection.fit()]
            for connection in idle:
                if connection not in fit:
                    connection.abort()
            if fit:
                self._idle[key] = fit
            else:
                del self._idle[key]
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(_IDLE_S / 2, self._sweep) if self._idle else None

    async def _connect(self, origin: _Origin, deadline: Deadline, connect_s: float | None) -> Connection:
        """A new connection to the first address of the origin that takes it."""
        loop = asyncio.get_running_loop()
        connect_s = self._connect_timeout_s if connect_s is None else connect_s
        limit = Deadline(loop.time() + connect_s, connect_s)
        if deadline.at < limit.at:
            limit = deadline
        failure: OSError = TimeoutError()
        try:
            async with asyncio.timeout_at(limit.at):
                addresses = self._permitted(origin, await self._addresses(origin))
            for tried, address in enumerate(addresses):
                # The time left is shared, so that one address that swallows packets leaves some for the next.
                share_s = (limit.at - loop.time()) / (len(addresses) - tried)
                try:
                    async with asyncio.timeout(share_s):
                        return await self._open(origin, address)
                except ssl.SSLError:
                    raise
                except OSError as error:
                    failure = error
            raise failure
        except TimeoutError:
            message = f"could not connect to {origin.name} within {limit.limit_s:g} s"
            raise OutboundError("outbound.timeout", message) from None
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or (error.reason or "handshake failed").lower().replace(
                "_", " "
            )
            raise OutboundError("outbound.tls_failed", f"no secure connection to {origin.name}: {reason}") from None
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno else "the connection was closed"
            raise OutboundError("outbound.connect_failed", f"could not connect to {origin.name}: {reason}") from None

    async def _open(self, origin: _Origin, address: Address) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(origin.name, loop, self._lost),
            str(address),
            origin.port,
            ssl=self._tls if origin.tls else None,
            server_hostname=origin.server_name if origin.tls else None,
        )
        self._connections.add(connection)
        self._all_lost.clear()
        if self._closed:
            connection.abort()
            raise OutboundError("outbound.closed", "the outbound client is closed")
        return connection

    def _lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._all_lost.set()

    def _permitted(self, origin: _Origin, addresses: Sequence[Address]) -> Sequence[Address]:
        """The addresses that may be connected to; raises AddressRefused."""
        refused = [address for address in addresses if not self._policy.permits(address)]
        if not refused:
            return addresses
        # A name with public and forbidden addresses is what DNS rebinding looks like and is refused as a whole. With
        # addresses that an operator allowed it is not: "localhost" is ::1 and 127.0.0.1, and only one may be allowed.
        permitted = [address for address in addresses if address not in refused]
        if permitted and all(map(self._policy.names, permitted)):
            return permitted
        kind = address_kind(refused[0])
        kind = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} address"
        literal = origin.address is not None
        subject = f"{refused[0]} is {kind}" if literal else f"{origin.host} resolves to {refused[0]}, {kind}"
        raise AddressRefused("outbound.address_refused", f"{subject}; allow it with TOOLCRIB_OUTBOUND_ALLOW")

    async def _addresses(self, origin: _Origin) -> tuple[Address, ...]:
        """The addresses of a host; many callers share one lookup, and its answer for a while."""
        if origin.address is not None:
            return (origin.address,)
        loop = asyncio.get_running_loop()
        known = self._names.get(origin.host)
        if known is not None and loop.time() < known[0]:
            return known[1]
        lookup = self._lookups.get(origin.host)
        if lookup is None:
            lookup = self._lookups[origin.host] = loop.create_task(self._look_up(origin.host))
            lookup.add_done_callback(functools.partial(self._looked_up, origin.host))
        try:
            return await asyncio.shield(lookup)
        except asyncio.CancelledError:
            if lookup.cancelled():
                raise OutboundError("outbound.closed", "the outbound client is closed") from None
            raise

    async def _look_up(self, host: str) -> tuple[Address, ...]:
        try:
            texts = await self._resolver(host)
        except (OSError, UnicodeError):
            texts = ()
        if not texts:
            raise OutboundError("outbound.dns_failed", f"{host} could not be resolved")
        return tuple(dict.fromkeys(ipaddress.ip_address(text) for text in texts))[:_DNS_ADDRESSES]

    def _looked_up(self, host: str, lookup: asyncio.Task[tuple[Address, ...]]) -> None:
        del self._lookups[host]
        if lookup.cancelled() or lookup.exception() is not None:
            return
        self._names.pop(host, None)
        if len(self._names) >= _DNS_NAMES:
            del self._names[next(iter(self._names))]  # the one learnt first
        self._names[host] = (asyncio.get_running_loop().time() + _DNS_S, lookup.result())


@functools.cache
def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    """One context per set of authorities: reading the system's takes some 25 ms."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


async def _system_resolver(host: str) -> list[str]:
    infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in infos]


def _name_error(names: Iterable[str]) -> Invalid:
    for name in sorted(names):
        if name in _OURS:
            return Invalid("outbound.header_invalid", f"the header {name} is set by the client itself")
    return Invalid("outbound.header_invalid", "a header has a name that is not a token")


def _split(url: str) -> tuple[_Origin, str]:
    """The origin and the target (path and query) of a URL; raises Invalid."""
    match = _URL.fullmatch(url) if len(url) <= _URL_LIMIT else None
    if match is None:
        raise Invalid("outbound.url_invalid", "the URL must be http:// or https://, a host, and a path")
    target = match[2] or "/"
    if not _PLAIN_TARGET.fullmatch(target):
        target = quote(target, safe=_PRINTABLE)
    return _origin(match[1]), target if target[0] == "/" else f"/{target}"


@functools.lru_cache(maxsize=4096)
def _origin(text: str) -> _Origin:
    """Read `https://host:port`; raises Invalid."""
    scheme, _, authority = text.partition("://")
    if len(authority) > _AUTHORITY_LIMIT:
        raise Invalid("outbound.url_invalid", "the host of the URL is too long")
    tls = scheme.lower() == "https"
    if "@" in authority:
        raise Invalid("outbound.url_invalid", "the URL must not hold a user name or a password; use a header")
    if authority[0] == "[":
        host, bracket, port_text = authority[1:].partition("]")
        if not bracket or port_text[:1] not in {"", ":"}:
            raise Invalid("outbound.url_invalid", "the host of the URL is not an IPv6 address")
        address: Address | None = _ipv6(host)
        host = shown = f"[{address}]"
        port_text = port_text[1:]
    else:
        host, _, port_text = authority.partition(":")
        host, address = _host(host)
        shown = host.removesuffix(".")
    usual = 443 if tls else 80
    port = usual if not port_text else int(port_text) if re.fullmatch(r"[0-9]{1,5}", port_text) else 0
    if not 1 <= port <= 65535:
        raise Invalid("outbound.url_invalid", "the port of the URL must be a number from 1 to 65535")
    name = shown if port == usual else f"{shown}:{port}"
    return _Origin(
        key=f"{'https' if tls else 'http'}://{host}:{port}",
        name=name,
        host=host,
        server_name=shown.strip("[]"),
        port=port,
        tls=tls,
        address=address,
        preamble=f" HTTP/1.1\nHost: {name}\nAccept-Encoding: gzip, deflate\n",
    )


def _ipv6(text: str) -> IPv6Address:
    try:
        return IPv6Address(text if "%" not in text else "")  # a zone means something on one machine only
    except ValueError:
        raise Invalid("outbound.url_invalid", "the host of the URL is not an IPv6 address") from None


def _host(text: str) -> tuple[str, IPv4Address | None]:
    """The host in lower case and ASCII, and the address that it is, if it is one."""
    try:
        host = text.lower() if text.isascii() else text.encode("idna").decode().lower()
    except UnicodeError:
        raise Invalid("outbound.url_invalid", "the host of the URL is not a name") from None
    bare = host.removesuffix(".")
    if _NUMERIC.fullmatch(bare):
        # 0x7f.1, 2130706433 and 0177.0.0.1 are 127.0.0.1 to a resolver; nobody needs them.
        try:
            address = IPv4Address(bare)
        except ValueError:
            raise Invalid("outbound.url_invalid", "an IPv4 address must be four decimal numbers") from None
        return bare, address
    if len(bare) > 253 or not _NAME.fullmatch(bare):
        raise Invalid("outbound.url_invalid", "the host of the URL is not a name")
    return host, None
