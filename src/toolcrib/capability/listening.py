"""Where servers of capability files listen: one listener an address, which hands requests to what is mounted there now.

An address is bound once; what is behind it may change between two requests. Servers that would take each other's paths
get a prefix: the file's name among several files, the namespace among several of a kind.
"""

import asyncio
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolcrib.capability.capability import Capability
from toolcrib.capability.expose.oauth import WELL_KNOWN
from toolcrib.capability.expose.problem import problem
from toolcrib.capability.spec import ControlServer, McpServer, RestServer, Server, SkillServer
from toolcrib.core.web_server import WebServer, web_server, web_server_socket
from toolcrib.errors import Unavailable

GRACE_S: Final = 4  # for requests under way when a host stops
_USUAL: Final = {"rest": 8080, "mcp": 9090, "skill": 8090, "control": 9099}
_PATHS: Final = {"mcp": "/mcp", "skill": "/skills"}


@dataclass(frozen=True, slots=True)
class Where:
    """Where servers listen; None keeps what the file says, 0 takes a free port.

    `host` and `port` move everything but control servers, which are for this machine alone unless their file says
    otherwise; with `port`, all share one listener.
    """

    host: str | None = None
    port: int | None = None
    rest_port: int | None = None
    mcp_port: int | None = None
    skill_port: int | None = None
    control_port: int | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """A listener: its address, and for free ports whose it is."""

    host: str
    port: int
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server of a file goes."""

    path: str
    capability: Capability
    server: Server
    slot: Slot
    prefix: str

    @property
    def seat(self) -> tuple[str, str, Slot, str]:
        """What stays the same when the server stays where it is."""
        return self.path, self.server.namespace, self.slot, self.prefix


@dataclass(frozen=True, slots=True)
class Mount:
    """A server at its place, on the port that it got."""

    place: Place
    app: ASGIApp
    port: int

    @property
    def kind(self) -> str:
        """Kind of the server."""
        return kind_of(self.place.server)

    @property
    def url(self) -> str:
        """What people connect to."""
        host = self.place.slot.host
        shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 - shown, not bound
        path = self.place.prefix + _PATHS.get(self.kind, "")
        return f"http://{f'[{shown}]' if ':' in shown else shown}:{self.port}{path}"


class CannotListen(Unavailable):
    """An address is taken or not ours; `place` says for which server."""

    def __init__(self, place: Place, reason: str) -> None:
        self.place = place
        server = place.server
        super().__init__(
            "server.cannot_listen",
            f"The {kind_of(server)} server {server.namespace} of {place.path} cannot listen on "
            f"{place.slot.host}:{place.slot.port}: {reason}.",
        )


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


def place(capabilities: Mapping[str, tuple[str, Capability]], where: Where) -> list[Place]:
    """Where every server goes; MCP servers that use standard streams never listen.

    Args:
        capabilities: name and capability by path.
        where: what outranks the files.
    """
    wanted = [
        (path, capability, server, _slot(path, server, where))
        for path, (_, capability) in capabilities.items()
        for server in capability.servers()
        if not (isinstance(server, McpServer) and server.transport == "stdio")
    ]
    placed = []
    for path, capability, server, slot in wanted:
        there = [(other, kind_of(s)) for other, _, s, at in wanted if at == slot]
        prefix = f"/{capabilities[path][0]}" if any(other != path for other, _ in there) else ""
        own = [kind for other, kind in there if other == path]
        kind = kind_of(server)
        if own.count(kind) > 1:
            prefix += f"/{server.namespace}"
        elif kind == "control" and len(own) > 1:
            prefix += "/control"
        placed.append(Place(path, capability, server, slot, prefix))
    return placed


def _slot(path: str, server: Server, where: Where) -> Slot:
    kind = kind_of(server)
    host = server.address or "localhost"
    if where.host is not None and kind != "control":
        host = where.host
    if host == "localhost":
        host = "127.0.0.1"
    if where.port is not None and kind != "control":
        return Slot(host, where.port)
    asked = {
        "rest": where.rest_port, "mcp": where.mcp_port, "skill": where.skill_port, "control": where.control_port
    }[kind]  # fmt: skip
    port = asked if asked is not None else server.port if server.port is not None else _USUAL[kind]
    return Slot(host, port) if port else Slot(host, 0, f"{path} {server.namespace}")


class Door:
    """What listens on one address."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.mounts: tuple[Mount, ...] = ()
        self.port = slot.port
        self._socket: socket.socket | None = None
        self._server: WebServer | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return self._server is not None and self._server.started and not self._server.should_exit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to the mount that its path belongs to."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        mounts = self.mounts
        for mount in mounts:
            if not _belongs(path, mount, alone=len(mounts) == 1):
                continue
            if mount.kind != "rest":
                scope = _below(scope, mount.place.prefix)
            if mount.kind == "control":
                await _until(self._closing, mount.app, scope, receive, send)
            else:
                await mount.app(scope, receive, send)
            return
        places = ", ".join(sorted({mount.place.prefix + _PATHS.get(mount.kind, "/") for mount in mounts}))
        await problem(send, 404, "Not Found", f"nothing is served here; there is something at {places}")

    def open(self) -> None:
        """Bind the address; raises OSError."""
        try:
            self._socket = web_server_socket(self.slot.host, self.slot.port)
        except (OverflowError, UnicodeError) as error:
            raise OSError(0, str(error)) from None
        self.port = self._socket.getsockname()[1]

    async def start(self) -> None:
        """Serve; returns when requests are taken."""
        self._server = server = web_server(self, grace_s=GRACE_S + 1)
        self._task = task = asyncio.create_task(server.serve(sockets=[self._socket] if self._socket else []))
        while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn sets no event
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Take no more requests, finish those under way, and close."""
        self._closing.set()
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task
        else:
            self.abandon()

    def abandon(self) -> None:
        """Close an address that was bound and is not served."""
        if self._socket is not None:
            self._socket.close()

    def hurry(self) -> None:
        """Wait no longer for what is under way."""
        if self._server is not None:
            self._server.force_exit = True


def sorted_mounts(mounts: list[Mount]) -> tuple[Mount, ...]:
    """In the order in which they are asked: longest prefix first; a REST server gets what its file's others leave."""
    return tuple(sorted(mounts, key=lambda m: (-len(m.place.prefix), m.kind == "rest", not _has_metadata(m))))


def names_of(paths: tuple[str, ...]) -> dict[str, str]:
    """A name for each file, unlike all others: the file's own without its ending, with a number if need be."""
    names: dict[str, str] = {}
    for path in paths:
        name = stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in os.path.basename(path).partition(".")[0])  # noqa: PTH119
        number = 1
        while not name or name in names.values():
            number += 1
            name = f"{stem or 'capability'}-{number}"
        names[path] = name
    return names


def _belongs(path: str, mount: Mount, *, alone: bool) -> bool:
    prefix = mount.place.prefix
    if path.startswith(WELL_KNOWN) and _has_metadata(mount):
        return path == WELL_KNOWN + prefix or alone
    rest = path.removeprefix(prefix) if prefix else path
    if prefix and (rest == path or not (rest == "" or rest.startswith("/"))):
        return False
    if alone or mount.kind in {"rest", "control"}:
        return True
    own = _PATHS[mount.kind]
    return rest == own or rest.startswith(own + "/")


def _has_metadata(mount: Mount) -> bool:
    auth = mount.place.server.authentication
    return auth is not None and auth.type == "oauth2"


def _below(scope: Scope, prefix: str) -> Scope:
    if not prefix or not scope["path"].startswith(prefix):
        return scope
    raw = (scope.get("raw_path") or scope["path"].encode()).removeprefix(prefix.encode())
    return {**scope, "path": scope["path"].removeprefix(prefix), "raw_path": raw}


async def _until(closing: asyncio.Event, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run an application that may stream for ever; when we close, it is told that its client went."""
    began = ended = False

    async def watched(message: Message) -> None:
        nonlocal began, ended
        began = True
        ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    async def receive_or_close() -> Message:
        waits = [asyncio.ensure_future(receive()), asyncio.ensure_future(closing.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return waits[0].result() if waits[0].done() else {"type": "http.disconnect"}  # type: ignore[return-value]
        finally:
            for wait in waits:
                wait.cancel()

    await app(scope, receive_or_close, watched)
    if began and not ended and closing.is_set():
        await send({"type": "http.response.body", "body": b""})
