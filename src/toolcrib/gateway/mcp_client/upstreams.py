"""The pool of warm sessions: one per endpoint, opened by the first call, shared by all, closed when idle.

Concurrent callers wait for one opening; what fails it fails them all, and the next call tries again (a program that
cannot be started is left alone for a while, longer each time). A session that the server has forgotten is opened again
and the call repeated once, because such a call was not processed; nothing else is ever repeated.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import structlog

from toolcrib.core.http import OutboundClient
from toolcrib.errors import AppError
from toolcrib.gateway.mcp_client.contract import (
    McpEndpoint,
    McpResult,
    McpToolList,
    McpUpstreamError,
    OnProgress,
    SessionLost,
    again,
)
from toolcrib.gateway.mcp_client.http import HttpTransport
from toolcrib.gateway.mcp_client.process import STDIO_ENV_ALLOW, ProcessGuard, child_environment
from toolcrib.gateway.mcp_client.session import Session, Transport
from toolcrib.gateway.mcp_client.sse import SseTransport
from toolcrib.gateway.mcp_client.stdio import StdioTransport

T = TypeVar("T")

_LONGEST_BACKOFF_S = 30.0
_SETTLE_S = 0.2  # news of changes that comes closer together than this is told once
_CLOSE_S = 10.0
_FORGET_S = 3600.0  # what is known of an endpoint that nobody calls
_LIST_MESSAGES = 4  # a whole list of tools may be as large as this many messages
_NOT_FOR_SSE = frozenset({401, 403, 407, 408, 421, 429})

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Slot:
    """What is known of one endpoint, and its session while there is one."""

    endpoint: McpEndpoint
    session: Session | None = None
    opening: asyncio.Task[Session] | None = None
    checking: asyncio.Task[None] | None = None
    modern: bool | None = None  # the era it spoke last time
    kind: Literal["http", "sse", "stdio"] | None = None  # what `auto` turned out to be
    lost: bool = False  # the last session ended by itself, so the tools may be others now
    failures: int = 0
    failure: AppError | None = None
    retry_at: float = 0.0
    used_at: float = 0.0


class McpUpstreams:
    """Every MCP server that this process talks to; used from one event loop.

    Args:
        outbound: the HTTP client; closed by its owner, after this.
        idle_s: seconds without a call after which a session is closed.
        max_message_bytes: size of one message from a server.
        max_tools: how many tools a server may list.
        on_tools_changed: called with an endpoint's key when its tools have, or may have, changed; several changes in
            quick succession are told once. Runs on the event loop and must not block.
        client_version: what we tell servers about ourselves.
        stdio_env_allow: names of our environment that started programs see; see `child_environment`.
        environment: that environment; ours unless given.
        open_timeout_s: how long opening may take in all. A call waits for its own timeout only, while the opening goes
            on: the first start of a package runner downloads the package.
        backoff_s: how long a program that could not be started is left alone; doubles up to half a minute.
        liveness_s: how long a silent server has to answer a ping after a call timed out.
    """

    def __init__(
        self,
        outbound: OutboundClient,
        *,
        client_version: str,
        idle_s: float = 600.0,
        max_message_bytes: int = 10 * 2**20,
        max_tools: int = 20_000,
        on_tools_changed: Callable[[str], None] | None = None,
        stdio_env_allow: Iterable[str] = STDIO_ENV_ALLOW,
        environment: Mapping[str, str] | None = None,
        open_timeout_s: float = 120.0,
        backoff_s: float = 1.0,
        liveness_s: float = 10.0,
    ) -> None:
        self._outbound = outbound
        self._client_version = client_version
        self._idle_s = idle_s
        self._max_message_bytes = max_message_bytes
        self._max_tools = max_tools
        self._on_tools_changed = on_tools_changed
        self._stdio_env_allow = tuple(stdio_env_allow)
        self._environment = environment
        self._open_timeout_s = open_timeout_s
        self._backoff_s = backoff_s
        self._liveness_s = liveness_s
        self._guard = ProcessGuard()
        self._slots: dict[str, _Slot] = {}
        self._news: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    # -- what callers use ----------------------------------------------------------------------------------------------

    async def call_tool(
        self,
        endpoint: McpEndpoint,
        name: str,
        arguments: bytes,
        *,
        timeout_s: float,
        on_progress: OnProgress | None = None,
    ) -> McpResult:
        """Call a tool.

        Cancelling this coroutine tells the server to stop.

        Args:
            endpoint: the server.
            name: the tool's name there.
            arguments: one JSON object, sent as it is.
            timeout_s: for everything, opening the session included.
            on_progress: gets the raw JSON object `params` of each progress notification; its `progressToken` is ours.

        Raises:
            McpUpstreamError: see there for the codes.
            Invalid, Forbidden: the endpoint's URL is malformed, or the address policy forbids it.
        """
        return await self._use(
            endpoint, timeout_s, lambda session, until: session.call_tool(name, arguments, until, on_progress)
        )

    async def list_tools(self, endpoint: McpEndpoint, *, timeout_s: float) -> McpToolList:
        """Every tool of a server, page by page; raises as `call_tool` does."""
        return await self._use(endpoint, timeout_s, lambda session, until: session.list_tools(until))

    async def drop(self, key: str) -> None:
        """Forget an endpoint and close its session; a call in flight may fail with mcp.closed."""
        slot = self._slots.pop(key, None)
        if (news := self._news.pop(key, None)) is not None:
            news.cancel()
        if slot is not None:
            await self._end(slot)

    def __len__(self) -> int:
        """How many servers are connected, or being connected to."""
        return len(self._slots)

    def retire(self, key: str) -> None:
        """`drop`, without waiting for it."""
        if key in self._slots:
            self._spawn(self.drop(key))

    async def close(self) -> None:
        """Close everything, in some seconds at most; later calls fail."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for news in self._news.values():
            news.cancel()
        self._news.clear()
        slots, self._slots = list(self._slots.values()), {}
        for slot in slots:
            self._spawn(self._end(slot))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CLOSE_S
        while self._tasks and loop.time() < deadline:  # an ending may start another
            await asyncio.wait(set(self._tasks), timeout=deadline - loop.time())
        if late := set(self._tasks):
            _log.warning("mcp.close_took_too_long", sessions=len(late))
            for task in late:
                task.cancel()
            await asyncio.wait(late, timeout=1.0)
        await self._guard.close()

    # -- sessions ------------------------------------------------------------------------------------------------------

    async def _use(self, endpoint: McpEndpoint, timeout_s: float, work: Callable[[Session, float], Awaitable[T]]) -> T:
        """Do something with the endpoint's session, and once more if the server turns out to have forgotten it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        last_try = False
        while True:
            slot = self._slots.get(endpoint.key)
            session = slot.session if slot is not None else None
            if slot is None or session is None or session.transport.ended is not None:
                slot = self._slot(endpoint)
                session = await self._opened(slot, deadline)
            session.in_flight += 1
            try:
                return await work(session, deadline)
            except SessionLost as exc:
                self._discard(slot, session)
                if last_try:
                    raise exc.error from None
                last_try = True
            except McpUpstreamError as error:
                if error.code == "mcp.timeout" and not session.transport.has_headers:
                    self._check(slot, session)
                raise
            finally:
                session.in_flight -= 1
                session.last_used_at = slot.used_at = loop.time()

    def _slot(self, endpoint: McpEndpoint) -> _Slot:
        if self._closed:
            raise McpUpstreamError("mcp.closed", "Toolcrib is shutting down")
        slot = self._slots.get(endpoint.key)
        if slot is None:
            slot = self._slots[endpoint.key] = _Slot(endpoint)
            self._arm()
        return slot

    async def _opened(self, slot: _Slot, deadline: float) -> Session:
        """The slot's session, opened if there is none; several callers wait for one opening."""
        loop = asyncio.get_running_loop()
        if slot.session is not None and slot.session.transport.ended is None:
            return slot.session
        opening = slot.opening
        if opening is None:
            if slot.failure is not None and loop.time() < slot.retry_at:
                raise again(slot.failure)
            opening = asyncio.create_task(self._open(slot), name=f"open {slot.endpoint.key}")
            opening.add_done_callback(_seen)
            slot.opening = opening
        await asyncio.wait({opening}, timeout=deadline - loop.time())
        if not opening.done():
            raise McpUpstreamError(
                "mcp.timeout", "the MCP server was still starting when the time for the call was over"
            )
        if opening.cancelled():
            raise McpUpstreamError("mcp.closed", "the MCP server was removed or changed while it was starting")
        failure = opening.exception()
        if isinstance(failure, AppError):
            raise again(failure)
        return opening.result()

    async def _open(self, slot: _Slot) -> Session:
        loop = asyncio.get_running_loop()
        try:
            session = await self._connect(slot, loop.time() + self._open_timeout_s)
        except AppError as error:
            if slot.endpoint.transport == "stdio":
                slot.failure = error
                slot.retry_at = loop.time() + min(self._backoff_s * 2**slot.failures, _LONGEST_BACKOFF_S)
                slot.failures = min(slot.failures + 1, 10)
            raise
        finally:
            slot.opening = None
        slot.session, slot.modern = session, session.modern
        slot.failure, slot.failures = None, 0
        slot.used_at = loop.time()
        session.listen()
        if slot.lost:
            slot.lost = False
            self._tools_changed(slot.endpoint.key)
        return session

    async def _connect(self, slot: _Slot, deadline: float) -> Session:
        endpoint = slot.endpoint
        if endpoint.transport != "auto":
            return await self._connect_by(endpoint.transport, slot, deadline)
        if slot.kind is not None:
            kind, slot.kind = slot.kind, None
            try:
                session = await self._connect_by(kind, slot, deadline)
            except McpUpstreamError as error:
                if "status" not in error.details:
                    slot.kind = kind
                    raise
            else:
                slot.kind = kind
                return session
        try:
            session = await self._connect_by("http", slot, deadline)
            slot.kind = "http"
        except McpUpstreamError as error:
            status = error.details.get("status", 0)
            if not 400 <= status < 500 or status in _NOT_FOR_SSE:
                raise
            try:
                session = await self._connect_by("sse", slot, deadline)
            except AppError as older:
                error.message += f" (and for the older HTTP+SSE transport: {older.message})"
                raise error from None
            slot.kind = "sse"
        return session

    async def _connect_by(self, kind: Literal["http", "sse", "stdio"], slot: _Slot, deadline: float) -> Session:
        """Start a transport and agree on the protocol over it; nothing is left behind when that fails."""
        endpoint = slot.endpoint
        limit = self._max_message_bytes

        def changed() -> None:
            self._tools_changed(endpoint.key)

        def ended() -> None:
            if slot.session is not None and slot.session.transport is transport:
                self._discard(slot, slot.session)

        transport: HttpTransport | SseTransport | StdioTransport
        if kind == "stdio":
            transport = StdioTransport(endpoint, max_message_bytes=limit, on_tools_changed=changed, on_end=ended)
            starting = transport.start(self._child_environment(endpoint), self._guard)
        elif kind == "sse":
            transport = SseTransport(
                endpoint, self._outbound, max_message_bytes=limit, on_tools_changed=changed, on_end=ended
            )
            starting = transport.start(deadline)
        else:
            transport = HttpTransport(endpoint, self._outbound, max_message_bytes=limit, on_tools_changed=changed)
            starting = None
        try:
            if starting is not None:
                await starting
            session = self._session(transport)
            await session.open(deadline, modern=slot.modern)
        except SessionLost as exc:
            self._spawn(transport.close())
            raise exc.error from None
        except BaseException:
            self._spawn(transport.close())
            raise
        return session

    def _session(self, transport: Transport) -> Session:
        return Session(
            transport,
            client_version=self._client_version,
            max_tools=self._max_tools,
            max_list_bytes=_LIST_MESSAGES * self._max_message_bytes,
        )

    def _child_environment(self, endpoint: McpEndpoint) -> dict[str, str]:
        ours = os.environ if self._environment is None else self._environment
        return child_environment(ours, self._stdio_env_allow, endpoint.env)

    def _discard(self, slot: _Slot, session: Session) -> None:
        """Part with a session that ended by itself."""
        if slot.session is session:
            slot.session, slot.lost = None, True
            self._spawn(session.close())

    async def _end(self, slot: _Slot) -> None:
        """Close what the slot holds, on our own account."""
        for task in (slot.opening, slot.checking):
            if task is not None:
                task.cancel()
                await asyncio.wait({task}, timeout=_CLOSE_S)
        session, slot.session = slot.session, None
        if session is not None:
            await session.close()

    # -- watching over them --------------------------------------------------------------------------------------------

    def _check(self, slot: _Slot, session: Session) -> None:
        """After a timeout: find out whether the server still answers anything, and part with it if it does not.

        Over HTTP each call has its own connection; here a dead one would fail every later call as well.
        """
        if slot.session is session and slot.checking is None and not self._closed:
            slot.checking = asyncio.create_task(self._ping(slot, session), name=f"check {slot.endpoint.key}")

    async def _ping(self, slot: _Slot, session: Session) -> None:
        try:
            await session.ping(asyncio.get_running_loop().time() + self._liveness_s)
        except (McpUpstreamError, SessionLost) as exc:
            _log.warning("mcp.server_does_not_answer", server=session.server_name, reason=str(exc))
            self._discard(slot, session)
        finally:
            slot.checking = None

    def _arm(self) -> None:
        if self._sweeper is None and self._slots:
            delay_s = min(max(self._idle_s / 4, 0.01), 60.0)
            self._sweeper = asyncio.get_running_loop().call_later(delay_s, self._sweep)

    def _sweep(self) -> None:
        """Close idle sessions, and forget endpoints that nobody has called for long."""
        self._sweeper = None
        now = asyncio.get_running_loop().time()
        for key, slot in list(self._slots.items()):
            session = slot.session
            if session is not None and not session.in_flight and session.last_used_at + self._idle_s <= now:
                slot.session = None
                self._spawn(session.close())
            elif session is None and slot.opening is None and max(slot.used_at, slot.retry_at) + _FORGET_S <= now:
                del self._slots[key]
        self._arm()

    def _tools_changed(self, key: str) -> None:
        if self._on_tools_changed is not None and key not in self._news and not self._closed:
            self._news[key] = asyncio.get_running_loop().call_later(_SETTLE_S, self._tell, key)

    def _tell(self, key: str) -> None:
        del self._news[key]
        if self._on_tools_changed is not None:
            try:
                self._on_tools_changed(key)
            except Exception:  # noqa: BLE001  a callback may fail in any way
                _log.exception("mcp.tools_changed_callback_failed", key=key)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="close mcp session")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _seen(opening: asyncio.Task[Session]) -> None:
    if not opening.cancelled():
        opening.exception()
