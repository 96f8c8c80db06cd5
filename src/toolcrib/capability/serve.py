"""Serves capability files: each server on its declared port, several behind one by prefix, swapped when they change.

A changed file takes effect between two requests: those under way finish on the old plan, which is closed after them,
and clients of an MCP server that stays where it is stay connected. A broken change is reported and the old plan stays.
"""

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
from starlette.types import ASGIApp
from watchfiles import awatch

from toolcrib import __version__
from toolcrib.capability.capability import Capability
from toolcrib.capability.expose.control import AdapterState, ControlHooks, control_app
from toolcrib.capability.expose.mcp import McpApp
from toolcrib.capability.findings import CapabilityInvalid, Finding
from toolcrib.capability.listening import (
    GRACE_S,
    CannotListen,
    Door,
    Mount,
    Place,
    Slot,
    Where,
    kind_of,
    names_of,
    place,
    sorted_mounts,
)
from toolcrib.capability.logs import LogBuffer
from toolcrib.capability.spec import ControlServer, McpServer, RestServer, SkillServer
from toolcrib.core.log import hide_secrets
from toolcrib.core.web_server import take_more_files
from toolcrib.errors import AppError, Conflict

_log = structlog.get_logger(__name__)
_LOOK_MS: Final = 1000  # file systems without events are looked at this often
_GATHER_MS: Final = 200  # changes within this time are one
_READ_FROM: Final = (".yaml", ".yml", ".json")

Fingerprint = tuple[int, int, int] | None


class Loader(Protocol):
    """Makes a capability of a path, or of a text as if it stood there; raises CapabilityInvalid."""

    def __call__(self, path: str, *, text: str | None = None, previous: Capability | None = None) -> Capability:
        """`previous` is what it is to replace."""
        ...


class CapabilityHost:
    """Capabilities being served, in one event loop.

    Args:
        load: makes them; called in threads when a file changes.
        paths: the files.
        where: what outranks the files' addresses.
        logs: what control servers show; None shows nothing.
        facts: what control servers say of how this process was started; never a secret.

    Attributes:
        capabilities: what is served, by path.
        broken: why a file is not served at all, by path.
        mounts: the servers that listen.
        unserved: servers whose address was taken, when that was allowed.
    """

    def __init__(
        self,
        load: Loader,
        paths: Sequence[str],
        where: Where,
        *,
        logs: LogBuffer | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._load = load
        self._where = where
        self._logs = logs
        self._facts = dict(facts or {})
        self._doors: dict[Slot, Door] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._swapping = asyncio.Lock()
        self._prints: dict[str, dict[str, Fingerprint]] = {}
        self._troubled: set[str] = set()
        self._settled = False
        self._stdio: tuple[str, str] | None = None
        self.names = names_of(tuple(dict.fromkeys(paths)))
        self.capabilities: dict[str, Capability] = {}
        self.broken: dict[str, CapabilityInvalid] = {}
        self.mounts: list[Mount] = []
        self.unserved: list[CannotListen] = []
        for path in self.names:
            self._load_first(path)

    def _load_first(self, path: str) -> None:
        try:
            capability = self._load(path)
        except CapabilityInvalid as error:
            self.broken[path] = error
            self._troubled.add(path)
            self._prints[path] = _fingerprints((path,))
        else:
            self.capabilities[path] = capability
            self._note(path, capability)

    async def start(self, *, stdio: tuple[str, str] | None = None) -> None:
        """Bind every address and serve.

        Args:
            stdio: path and namespace of the MCP server that uses standard streams; then an address that is taken is
                noted in `unserved`, because the one client that matters is already there.

        Raises:
            CannotListen: an address is taken; nothing is left open.
        """
        take_more_files()
        self._stdio = stdio
        try:
            await self._apply(dict(self.capabilities), lenient=stdio is not None)
        except BaseException:
            await self.stop()
            raise
        for capability in self.capabilities.values():
            capability.telemetry.started()

    def stdio_server(self) -> McpApp | None:
        """The MCP server for standard streams."""
        return self.capabilities[self._stdio[0]].mcp_server(self._stdio[1]) if self._stdio else None

    def settle(self) -> None:
        """Take what was made to start out of the search for garbage: it stays, and searching it only costs pauses."""
        self._settled = True
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)

    async def stop(self) -> None:
        """Finish what is under way and close everything; what takes too long is answered that it broke off."""
        for capability in self.capabilities.values():
            capability.end_streams()
        late = asyncio.get_running_loop().call_later(GRACE_S, self.hurry)
        await asyncio.gather(*(door.stop() for door in self._doors.values()))
        late.cancel()
        self._doors.clear()
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        for capability in self.capabilities.values():
            capability.telemetry.stopped()
            await capability.close()
        self.capabilities, self.mounts = {}, []

    def hurry(self) -> None:
        """Wait no longer for what is under way while stopping; closing what it uses ends it."""
        for door in self._doors.values():
            door.hurry()

    async def reload(self, path: str) -> Capability:
        """Read a file again and swap it in; requests under way finish on the old one.

        Raises:
            CapabilityInvalid: the new one cannot be served; the old one stays.
            CannotListen: it wants an address that is taken; the old one stays.
            Conflict: it has not the MCP server that a client uses over standard streams; the old one stays.
        """
        async with self._swapping:
            old = self.capabilities.get(path)
            try:
                new = await asyncio.to_thread(self._load, path, previous=old)
            except CapabilityInvalid as error:
                self._troubled.add(path)
                if old is None:
                    self.broken[path] = error
                raise
            try:
                self._must_keep_stdio(path, new)
                await self._apply({**self.capabilities, path: new})
            except BaseException:
                self._troubled.add(path)
                if old is not None:
                    new.inherit(old, ())
                await new.close()
                raise
            self.broken.pop(path, None)
            self._note(path, new)
            new.telemetry.started()
            if old is not None:
                old.telemetry.stopped()
                self._later(self._retire(old))
            return new

    async def reload_all(self) -> None:
        """Reload every file; what cannot be reloaded stays, and is said in the log."""
        for path in self.names:
            await self._reload_quietly(path)

    async def watch(self, stop: asyncio.Event) -> None:
        """Reload files that change, until told to stop."""
        while not stop.is_set():
            folders = self._folders()
            if not folders:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _LOOK_MS / 1000)
                continue
            events = awatch(
                *folders, stop_event=stop, recursive=False, watch_filter=None, debounce=_GATHER_MS, step=20,
                rust_timeout=_LOOK_MS, yield_on_timeout=True, ignore_permission_denied=True,
            )  # fmt: skip
            with contextlib.suppress(OSError):  # a folder that goes at this very moment
                async for changes in events:
                    await self._look({os.path.dirname(file) for _, file in changes if file.endswith(_READ_FROM)})  # noqa: PTH120
                    if self._folders() != folders:
                        break

    # -- watching

    def _note(self, path: str, capability: Capability) -> None:
        """Remember how the files of a capability are now, its own first."""
        self._prints[path] = _fingerprints((path, *capability.files))
        serious = any(finding.severity == "error" for finding in capability.findings)
        (self._troubled.add if serious else self._troubled.discard)(path)

    def _folders(self) -> tuple[str, ...]:
        """The folders to watch: of every file, and of what its links lead to."""
        files = {file for prints in self._prints.values() for file in prints}
        folders = {os.path.dirname(known) for file in files for known in (file, os.path.realpath(file))}  # noqa: PTH120
        return tuple(sorted(folder for folder in folders if os.path.isdir(folder)))  # noqa: PTH112

    async def _look(self, touched: set[str]) -> None:
        """Reload the files that are not what they were; one in trouble also when something beside it changed."""
        for path in self.names:
            before = self._prints[path]
            now = _fingerprints(before)
            beside = path in self._troubled and touched & {os.path.dirname(file) for file in before}  # noqa: PTH120
            if now == before and not beside:
                continue
            self._prints[path] = now
            own = next(iter(before))
            if now[own] is not None:
                await self._reload_quietly(path)
            elif before[own] is not None:
                _log.warning("capability.file_gone", file=path, effect="it is served as it was")

    async def _reload_quietly(self, path: str) -> None:
        effect = "it is served as it was" if path in self.capabilities else "it is not served"
        try:
            new = await self.reload(path)
        except AppError as error:
            _log.error("capability.reload_failed", file=path, reason=error.message, effect=effect)
        except Exception:  # noqa: BLE001 - whatever a file does to us, the others are watched on
            _log.exception("capability.reload_failed", file=path, effect=effect)
        else:
            _log.info("capability.reloaded", file=path, findings=len(new.findings))

    # -- swapping

    def _must_keep_stdio(self, path: str, new: Capability) -> None:
        if self._stdio is not None and self._stdio[0] == path and self._stdio[1] not in new.plan.mcp:
            message = f"{path} has no MCP server {self._stdio[1]} any more, which a client uses over standard streams."
            raise Conflict("server.in_use", message)

    async def _apply(self, capabilities: dict[str, Capability], *, lenient: bool = False) -> None:
        """Serve these; all or nothing until the addresses are bound, and at once from then on.

        Raises:
            CannotListen: an address is taken; unless `lenient`.
        """
        named = {path: (self.names[path], capability) for path, capability in capabilities.items()}
        placed = place(named, self._where)
        if self._stdio is not None:
            placed = [p for p in placed if (p.path, p.server.namespace) != self._stdio]
        opened = self._open(placed, lenient=lenient)
        doors = {**self._doors, **opened}
        placed = [p for p in placed if p.slot in doors]
        try:
            mounts = self._mounts(placed, doors, capabilities)
        except BaseException:
            for door in opened.values():
                await door.stop()
            raise
        self.capabilities, self.mounts, self._doors = capabilities, mounts, doors
        for slot, door in doors.items():
            door.mounts = sorted_mounts([mount for mount in mounts if mount.place.slot == slot])
        for slot in [slot for slot, door in doors.items() if not door.mounts]:
            self._later(self._doors.pop(slot).stop())
        for door in opened.values():
            await door.start()

    def _open(self, placed: Sequence[Place], *, lenient: bool) -> dict[Slot, Door]:
        opened: dict[Slot, Door] = {}
        refused: set[Slot] = set()
        for wanted in placed:
            if wanted.slot in self._doors or wanted.slot in opened:
                continue
            door = Door(wanted.slot)
            try:
                door.open()
            except OSError as error:
                failure = CannotListen(wanted, error.strerror or str(error))
                if not lenient:
                    for other in opened.values():
                        other.abandon()
                    raise failure from None
                if wanted.slot not in refused:
                    self.unserved.append(failure)
                refused.add(wanted.slot)
            else:
                opened[wanted.slot] = door
        return opened

    def _mounts(
        self, placed: Sequence[Place], doors: Mapping[Slot, Door], capabilities: Mapping[str, Capability]
    ) -> list[Mount]:
        """The applications; from here on, MCP clients of those that are replaced talk to the new ones."""
        before = {mount.place.seat for mount in self.mounts}
        stays = {(p.path, p.server.namespace) for p in placed if p.seat in before} | {self._stdio}
        replaced = {path: old for path, old in self.capabilities.items() if capabilities[path] is not old}
        for path, old in replaced.items():
            capabilities[path].inherit(old, {seat[1] for seat in stays if seat is not None and seat[0] == path})
        mounts = [Mount(p, self._app(p), doors[p.slot].port) for p in placed]
        for path, old in replaced.items():
            capabilities[path].adopt(old)
        return mounts

    def _app(self, wanted: Place) -> ASGIApp:
        capability, server = wanted.capability, wanted.server
        match server:
            case RestServer():
                return capability.rest_app(server.namespace, prefix=wanted.prefix)
            case McpServer():
                return capability.mcp_http(server.namespace, prefix=wanted.prefix)
            case SkillServer():
                return capability.skill_app(server.namespace)
            case ControlServer():
                app = control_app(server, self._hooks(wanted.path, capability), capability.telemetry)
                return capability.guarded(app, server)

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _retire(self, old: Capability) -> None:
        """Close what was replaced when its last call is done."""
        try:
            await old.finished()
        finally:
            await old.close()
        if self._settled:  # what was replaced is among what is never searched
            del old
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    # -- control servers

    def _hooks(self, path: str, capability: Capability) -> ControlHooks:
        async def reload() -> Sequence[Finding]:
            return (await self.reload(path)).findings

        async def validate(text: str | None) -> Sequence[Finding]:
            try:
                made = await asyncio.to_thread(self._load, path, text=text)
            except CapabilityInvalid as error:
                return error.findings
            await made.close()
            return made.findings

        def set_scripting(settings: Mapping[str, Any]) -> None:
            capability.plan.scripts.update(settings)

        document = capability.document
        return ControlHooks(
            adapters=lambda: self._adapters(path),
            capability=lambda: {"label": document.label, "specVersion": document.version},
            version=__version__,
            reload=reload,
            validate=validate,
            scripting=capability.plan.scripts.settings,
            set_scripting=set_scripting,
            logs=self._logs,
            config=lambda: self._config(path),
        )

    def _adapters(self, path: str) -> list[AdapterState]:
        ports = {m.place.server.namespace: (m.port, self._doors.get(m.place.slot)) for m in self._mounts_of(path)}
        found = []
        for server in self.capabilities[path].servers():
            kind = kind_of(server)
            port, door = ports.get(server.namespace, (None, None))
            started = door.is_open if door is not None else (path, server.namespace) == self._stdio
            found.append(AdapterState(kind, None if kind == "control" else server.namespace, port, started))
        return found

    def _mounts_of(self, path: str) -> list[Mount]:
        return [mount for mount in self.mounts if mount.place.path == path]

    def _config(self, path: str) -> dict[str, Any]:
        """What is in force for a file; names of variables, never their values."""
        capability = self.capabilities[path]
        plan = capability.plan
        missing = {m.variable for m in plan.binds.missing}
        return {
            **self._facts,
            "file": path,
            "servers": [{"type": m.kind, "namespace": m.place.server.namespace, "url": m.url}
                        for m in self._mounts_of(path)],
            "baseUris": {name: hide_secrets(uri) for name, uri in capability.base_uris.items()},
            "binds": [
                {"namespace": bind.namespace, "variable": name, "source": bind.location or "environment",
                 "resolved": name not in missing}
                for bind in capability.document.binds for name in bind.keys
            ],
        }  # fmt: skip


@asynccontextmanager
async def serving(
    host: CapabilityHost, *, watch: bool = False, stdio: tuple[str, str] | None = None
) -> AsyncIterator[asyncio.Event]:
    """Serve; yields the event that stops it. Raises CannotListen."""
    stop = asyncio.Event()
    await host.start(stdio=stdio)
    watcher = asyncio.create_task(host.watch(stop)) if watch else None
    try:
        yield stop
    finally:
        stop.set()
        if watcher is not None:
            await watcher
        await host.stop()


def _fingerprints(files: Sequence[str] | Mapping[str, Fingerprint]) -> dict[str, Fingerprint]:
    """How files are now; None for one that is not there."""
    found: dict[str, Fingerprint] = {}
    for file in files:
        full = os.path.abspath(file)  # noqa: PTH100 - links stay links
        try:
            status = Path(full).stat()
            found[full] = status.st_ino, status.st_size, status.st_mtime_ns
        except OSError:
            found[full] = None
    return found
