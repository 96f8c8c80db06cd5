"""Serves capability files: each server on its declared port, several behind one by prefix, swapped when they change.

A listener is bound once and dispatches to whatever is mounted at the moment, so a changed file takes effect between two
requests: those under way finish on the old plan. A broken change is reported and the old plan stays.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send
from watchfiles import awatch

from toolcrib.capability.capability import Capability
from toolcrib.capability.expose.problem import problem
from toolcrib.capability.findings import CapabilityInvalid
from toolcrib.capability.spec import ControlServer, McpServer, RestServer, Server, SkillServer
from toolcrib.core.web_server import WebServer, take_more_files, web_server, web_server_socket
from toolcrib.errors import AppError

_log = structlog.get_logger(__name__)
_GRACE_S = 10
_USUAL = {"rest": 8080, "mcp": 9090, "skill": 8090, "control": 9099}

Loader = Callable[[str], Capability]
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Where:
    """Where servers listen: None keeps what the file says."""

    host: str | None = None
    rest_port: int | None = None
    mcp_port: int | None = None
    port: int | None = None  # everything behind one port


@dataclass(frozen=True, slots=True)
class Mount:
    """One server at its place."""

    capability: Capability
    server: Server
    kind: str
    address: Address
    prefix: str
    app: ASGIApp

    @property
    def url(self) -> str:
        """What people connect to."""
        host, port = self.address
        shown = "127.0.0.1" if host in {"0.0.0.0", "::", "localhost"} else host  # noqa: S104 - shown, not bound
        path = self.prefix + {"mcp": "/mcp", "skill": "/skills"}.get(self.kind, "")
        return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}{path}"


def kind_of(server: Server) -> str:
    """rest, mcp, skill or control."""
    match server:
        case RestServer():
            return "rest"
        case McpServer():
            return "mcp"
        case SkillServer():
            return "skill"
        case ControlServer():
            return "control"


class _Door:
    """What listens on one address."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.mounts: tuple[Mount, ...] = ()
        self.socket: socket.socket | None = None
        self.server: WebServer | None = None
        self.task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to the mount that its path belongs to."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        mounts = self.mounts
        for mount in mounts:
            if _belongs(path, mount, alone=len(mounts) == 1):
                await mount.app(scope if mount.kind == "rest" else _below(scope, mount.prefix), receive, send)
                return
        places = ", ".join(sorted({mount.prefix or "/" for mount in mounts}))
        await problem(send, 404, "Not Found", f"nothing is served here; capabilities are below {places}")

    def open(self) -> None:
        """Bind the address; raises OSError."""
        self.socket = web_server_socket(*self.address)
        self.address = (self.address[0], self.socket.getsockname()[1])

    def start(self) -> None:
        """Serve."""
        self.server = web_server(self, grace_s=_GRACE_S)
        self.task = asyncio.create_task(self.server.serve(sockets=[self.socket] if self.socket else []))

    async def started(self) -> None:
        """Return when requests are taken."""
        server, task = self.server, self.task
        while server is not None and task is not None and not server.started and not task.done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # uvicorn sets no event

    async def stop(self) -> None:
        """Finish what is under way, and close."""
        if self.server is not None:
            self.server.should_exit = True
        if self.task is not None:
            await self.task
        elif self.socket is not None:
            self.socket.close()


def _belongs(path: str, mount: Mount, *, alone: bool) -> bool:
    rest = path.removeprefix(mount.prefix) if mount.prefix else path
    if mount.prefix and (rest == path or not (rest == "" or rest.startswith("/"))):
        return False
    if alone or mount.kind == "rest":
        return True
    if mount.kind == "mcp":
        return rest == "/mcp" or rest.startswith("/.well-known/")
    return rest == "/skills" or rest.startswith("/skills/") or mount.kind == "control"


def _below(scope: Scope, prefix: str) -> Scope:
    if not prefix:
        return scope
    raw = (scope.get("raw_path") or scope["path"].encode()).removeprefix(prefix.encode())
    return {**scope, "path": scope["path"].removeprefix(prefix), "raw_path": raw}


def place(capabilities: Sequence[Capability], where: Where) -> list[tuple[Capability, Server, Address, str]]:
    """Where every server goes: its address and prefix.

    Servers of several files on one address get the file's name as a prefix; so do those of one file that would take
    each other's paths.
    """
    wanted = [
        (capability, server, _address(server, where))
        for capability in capabilities
        for server in capability.servers()
        if not (isinstance(server, McpServer) and server.transport == "stdio")
    ]
    placed = []
    for capability, server, address in wanted:
        there = [(c, s) for c, s, a in wanted if a == address and address[1] != 0]
        several = len({id(c) for c, _ in there}) > 1
        same_kind = [s for _, s in there if kind_of(s) == kind_of(server)]
        prefix = f"/{capability.name}" if several else ""
        if len([s for c, s in there if c is capability and kind_of(s) == kind_of(server)]) > 1 and len(same_kind) > 1:
            prefix += f"/{server.namespace}"
        placed.append((capability, server, address, prefix))
    return placed


def _address(server: Server, where: Where) -> Address:
    kind = kind_of(server)
    declared = server.address or "localhost"
    host = "127.0.0.1" if declared == "localhost" else declared
    if where.host is not None and kind != "control":
        host = where.host
    port = server.port if server.port is not None else _USUAL[kind]
    if where.port is not None:
        port = where.port
    elif kind == "rest" and where.rest_port is not None:
        port = where.rest_port
    elif kind == "mcp" and where.mcp_port is not None:
        port = where.mcp_port
    return host, port


class CapabilityHost:
    """Capabilities being served.

    Args:
        load: makes a capability of a path; raises CapabilityInvalid.
        paths: the files.
        where: what overrides the files' addresses.
        control: makes the application of a control server.
    """

    def __init__(
        self,
        load: Loader,
        paths: Sequence[str],
        where: Where,
        *,
        control: "Callable[[CapabilityHost, Capability, ControlServer], ASGIApp]",
    ) -> None:
        self._load = load
        self._where = where
        self._control = control
        self._doors: dict[Address, _Door] = {}
        self._retired: set[asyncio.Task[None]] = set()
        self.capabilities: dict[str, Capability] = {path: load(path) for path in paths}
        self.started_at = time.time()
        self.mounts: list[Mount] = []

    async def start(self) -> None:
        """Bind every address and serve; raises OSError naming the address that is taken, with nothing left open."""
        take_more_files()
        try:
            await self._apply()
        except BaseException:
            await self.stop()
            raise
        for capability in self.capabilities.values():
            capability.telemetry.started()

    async def stop(self) -> None:
        """Finish what is under way and close everything."""
        await asyncio.gather(*(door.stop() for door in self._doors.values()))
        self._doors.clear()
        for capability in self.capabilities.values():
            capability.telemetry.stopped()
            await capability.close()
        for task in self._retired:
            task.cancel()
        await asyncio.gather(*self._retired, return_exceptions=True)

    async def reload(self, path: str) -> Capability:
        """Read a file again and swap it in; requests under way finish on the old one.

        Raises:
            CapabilityInvalid: the new one cannot be served; the old one stays.
            OSError: it wants an address that is taken; the old one stays.
        """
        new = self._load(path)
        old = self.capabilities[path]
        self.capabilities[path] = new
        try:
            await self._apply()
        except BaseException:
            self.capabilities[path] = old
            await new.close()
            await self._apply()
            raise
        new.telemetry.started()
        old.telemetry.stopped()
        retired = asyncio.create_task(_retire(old))
        self._retired.add(retired)
        retired.add_done_callback(self._retired.discard)
        return new

    async def watch(self, stop: asyncio.Event) -> None:
        """Reload files that change, until told to stop."""
        while not stop.is_set():
            files = {file: path for path, c in self.capabilities.items() for file in c.document.files}
            folders = {str(Path(file).parent) for file in files}
            async for changes in awatch(*folders, stop_event=stop, recursive=False, step=20, debounce=200):
                touched = {files[file] for _, file in changes if file in files}
                for path in sorted(touched):
                    await self._reload_quietly(path)
                if touched:
                    break  # imports may have changed

    async def _reload_quietly(self, path: str) -> None:
        try:
            await self.reload(path)
        except (CapabilityInvalid, OSError, AppError) as error:
            _log.error("capability.reload_failed", file=path, reason=str(error), effect="the old one stays")
        else:
            _log.info("capability.reloaded", file=path)

    async def _apply(self) -> None:
        """Make the doors and what is behind them agree with the capabilities."""
        placed = place(list(self.capabilities.values()), self._where)
        doors = dict(self._doors)
        opened = []
        try:
            for _, _, address, _ in placed:
                if address not in doors:
                    door = doors[address] = _Door(address)
                    door.open()
                    opened.append(door)
            mounts = [self._mount(c, s, doors[address].address, prefix) for c, s, address, prefix in placed]
        except BaseException:
            for door in opened:
                await door.stop()
            raise
        for address, door in doors.items():
            # the longest prefix first; a REST server takes what no other server of its file does
            own = [m for (_, _, a, _), m in zip(placed, mounts, strict=True) if a == address]
            door.mounts = tuple(sorted(own, key=lambda m: (-len(m.prefix), m.kind == "rest")))
        for door in opened:
            door.start()
        for door in opened:
            await door.started()
        gone = [address for address, door in doors.items() if not door.mounts]
        for address in gone:
            await doors.pop(address).stop()
        self._doors, self.mounts = doors, mounts

    def _mount(self, capability: Capability, server: Server, address: Address, prefix: str) -> Mount:
        match server:
            case RestServer():
                app = capability.rest_app(server.namespace, prefix=prefix)
            case McpServer():
                app = capability.mcp_http(server.namespace, prefix=prefix)
            case SkillServer():
                app = capability.skill_app(server.namespace)
            case ControlServer():
                app = capability.guarded(self._control(self, capability, server), server)
        return Mount(capability, server, kind_of(server), address, prefix, app)


async def _retire(capability: Capability) -> None:
    """Close a capability when its last requests must be done."""
    await asyncio.sleep(_GRACE_S * 6)
    await capability.close()


@asynccontextmanager
async def serving(host: CapabilityHost, *, watch: bool) -> AsyncIterator[asyncio.Event]:
    """Serve; yields the event that stops it."""
    stop = asyncio.Event()
    await host.start()
    watcher = asyncio.create_task(host.watch(stop)) if watch else None
    try:
        yield stop
    finally:
        stop.set()
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
        await host.stop()
