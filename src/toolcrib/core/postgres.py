"""The embedded PostgreSQL: start, attach, supervise, stop.

One server per data folder. Whoever starts it holds a lock that the server process and all its children inherit: a free
lock proves that nothing of an earlier server is alive, a taken one that there is something to attach to or to wait for.
The server has no TCP port; its socket stands in a folder that only its account may enter. On Linux it stops when the
process that started it dies, however that dies. Where things live and under which account: `postgres_home.py`.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import quote

import asyncpg
import structlog

from toolcrib.core.postgres_home import (
    PORT,
    Home,
    PostgresError,
    cluster_of,
    is_cluster,
    own,
    remember_made,
    settle,
    socket_folder,
    wheel_bin_dir,
)

__all__ = ["EmbeddedPostgres", "PostgresError", "cluster_of", "find_running", "wheel_bin_dir"]

P = ParamSpec("P")
T = TypeVar("T")

_ROLE = _DATABASE = "toolcrib"
_PATIENCE_S = 60.0  # how long to wait for another starter, or for what is left of a dead server
_LOG_LIMIT = 10_000_000  # bytes
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "max_wal_size": "512MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_logical_replication_workers": "0",  # no launcher process
    # The log is for the life of the server: failed statements are reported to whoever sent them, and may hold data.
    "logging_collector": "off",
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
}
_SETTINGS_SINCE = {18: {"io_method": "sync"}}  # no three worker processes

_log = structlog.get_logger(__name__)
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class _PidFile:
    """What `postmaster.pid` says."""

    pid: int
    port: str
    folder: str
    ready: bool


class EmbeddedPostgres:
    """A PostgreSQL server whose cluster belongs to one data folder.

    Call `start`, `watch` and `stop` on one event loop, which should run in the main thread: on Linux the server stops
    when the thread that started it ends.

    Attributes:
        owned: whether this process started the server (True) or attached to a running one (False).
        location: the cluster's folder; final after `start`.
        bin_dir: programs of the same version (`pg_dump`, `psql`), runnable by this process.
    """

    def __init__(
        self, data_dir: Path, *, bin_dir: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        """`bin_dir` replaces the binaries of the package; `settings` adds to and overrides PostgreSQL settings."""
        self._data_dir = data_dir.absolute()
        self._given_bin_dir = bin_dir.absolute() if bin_dir else None
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._dsn: str | None = None
        self._changing = asyncio.Lock()
        self._stopping = False
        self._lock_path: Path | None = None
        self._socket_folder = Path()
        self.owned = False
        self.location = self._data_dir / "postgres"

    @property
    def dsn(self) -> str:
        """The address for asyncpg and libpq; stays the same over restarts."""
        if self._dsn is None:
            raise RuntimeError("the embedded PostgreSQL has not been started")
        return self._dsn

    @property
    def bin_dir(self) -> Path:
        """The folder of `pg_dump` and `psql`, as given or as installed."""
        return self._given_bin_dir or wheel_bin_dir()

    async def start(self) -> str:
        """Start the server, or attach to one that runs on the same folder; returns the DSN.

        Makes the cluster and the database on first use. A server that recovers from a crash is waited for as long as
        it works.

        Raises:
            PostgresError: it cannot start; the message says what to do.
        """
        self._stopping = False
        return await self._start()

    async def stop(self) -> None:
        """Stop the server if this process started it, at most 20 seconds: fast, then immediate, then by force.

        Connections are cut; what was committed stays. Nothing happens when attached.
        """
        self._stopping = True  # a start in progress sees it and gives up
        async with self._changing:
            if self._process is not None:
                await _end(self._process)
                self._process, self.owned = None, False
                if self._socket_folder != self.location:
                    with contextlib.suppress(OSError):
                        self._socket_folder.rmdir()

    async def watch(self) -> None:
        """Until `stop`: when the server has died, start it again.

        A process that had attached takes over: the server then stops with this process. Failures are logged and tried
        again every second.
        """
        while not self._stopping:
            await asyncio.sleep(0.1)
            if self._stopping or not self._gone():
                continue
            try:
                await self._start()
            except PostgresError as error:
                if not self._stopping:
                    _log.error("postgres.restart_failed", reason=str(error))
                    await asyncio.sleep(1)
            else:
                if self.owned:
                    _log.warning("postgres.restarted", location=str(self.location))

    async def _start(self) -> str:
        async with self._changing:
            if self._process is not None and self._process.poll() is None:
                return self.dsn
            self._process, self.owned = None, False  # poll() has reaped it
            try:
                home = await _to_the_end(settle, self._data_dir, self._given_bin_dir)
                self.location, self._lock_path = home.cluster, home.lock
                lock = await self._attach_or_lock(home)
                if lock is not None:
                    try:
                        await self._launch(home, lock)
                    finally:
                        os.close(lock)  # from here on the server's processes hold it
            except OSError as error:
                reason = str(error) or type(error).__name__
                raise PostgresError(f"the embedded PostgreSQL cannot start: {reason}") from error
            return self.dsn

    async def _attach_or_lock(self, home: Home) -> int | None:
        """The lock's file descriptor when we are to start the server, None when attached to one."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            if await self._attach(home.cluster):
                return None
            if (lock := _try_lock(home.lock)) is not None:
                return lock
            if time.monotonic() > until:
                raise PostgresError(
                    f"a process that started earlier still holds {home.lock}, and its server does not answer: see"
                    f" {self._data_dir / 'postgres.log'}; end what is left of it (fuser {home.lock} names it)"
                )
            await self._pause(0.02)

    async def _attach(self, cluster: Path) -> bool:
        dsn = await _running(cluster)
        if dsn is None:
            return False
        self._dsn = dsn
        return True

    async def _launch(self, home: Home, lock: int) -> None:
        """Start the server; the lock is ours, so no server and no starter but us is alive."""
        await _to_the_end(self._prepare_cluster, home, lock)
        folder = self._socket_folder = await _to_the_end(socket_folder, home.cluster, home.account)
        _forget_dead(home.cluster, folder)
        until = time.monotonic() + _PATIENCE_S
        while True:
            log_start = self._rotate_log()
            process = self._spawn(home, folder, lock)
            try:
                if await self._is_ready(process, home.cluster):
                    self._dsn = _dsn(folder, str(PORT))
                    await self._ensure_database()
                    break
            except BaseException:  # a cancelled start must not leave a server behind either
                await _end(process)
                raise
            said = self._log_since(log_start)
            if "still in use" not in said or time.monotonic() > until:  # shared memory of a dying server
                raise PostgresError(
                    f"PostgreSQL ended while starting: {said or f'exit status {process.returncode}'}"
                    f" (log: {self._data_dir / 'postgres.log'})"
                )
            await self._pause(0.1)
        self._process, self.owned = process, True

    def _prepare_cluster(self, home: Home, lock: int) -> None:
        """Make the cluster if there is none, and refuse one of another major version."""
        if not is_cluster(home.cluster):
            _create_cluster(home, lock)
            remember_made(self._data_dir)
        made_by = (home.cluster / "PG_VERSION").read_text("utf-8").strip()
        if made_by != str(home.major):
            raise PostgresError(
                f"{home.cluster} was made by PostgreSQL {made_by}, and {home.bin_dir} has PostgreSQL {home.major}:"
                f" point bin_dir at the programs of PostgreSQL {made_by}; to move on, make a backup with them, move the"
                " folder away, start again and restore the backup"
            )

    def _spawn(self, home: Home, folder: Path, lock: int) -> subprocess.Popen[bytes]:
        settings = dict(_SETTINGS)
        for major, more in _SETTINGS_SINCE.items():
            settings |= more if home.major >= major else {}
        settings |= {"unix_socket_directories": f'"{folder}"', "port": str(PORT), **self._settings}
        command = [str(home.bin_dir / "postgres"), "-D", str(home.cluster)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        log = os.open(self._data_dir / "postgres.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return subprocess.Popen(  # noqa: S603 - our own arguments, no shell
                command,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C in our terminal is ours to handle
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 - two system calls, no locks
                **home.account.popen_options(),
            )
        finally:
            os.close(log)

    async def _is_ready(self, process: subprocess.Popen[bytes], cluster: Path) -> bool:
        """True when it takes connections, False when it has ended."""
        report_at = time.monotonic() + 10
        while process.poll() is None:
            found = _read_pid_file(cluster)
            if found is not None and found.pid == process.pid and found.ready:
                return True
            if time.monotonic() > report_at:
                _log.warning("postgres.still_starting", location=str(cluster))  # recovery after a crash
                report_at += 10
            await self._pause(0.005)
        return False

    async def _ensure_database(self) -> None:
        try:
            conn = await asyncpg.connect(self.dsn, database="postgres", timeout=10)
            try:
                if not await conn.fetchval("SELECT true FROM pg_database WHERE datname = $1", _DATABASE):
                    await conn.execute(f'CREATE DATABASE "{_DATABASE}"')
            finally:
                await conn.close()
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise PostgresError(f"PostgreSQL has started but refuses connections: {error}") from error

    async def _pause(self, seconds: float) -> None:
        if self._stopping:
            raise PostgresError("the embedded PostgreSQL was stopped while it was starting")
        await asyncio.sleep(seconds)

    def _gone(self) -> bool:
        if self._process is not None:
            return self._process.poll() is not None
        if self._lock_path is None:  # not started yet
            return False
        lock = _try_lock(self._lock_path)
        if lock is not None:
            os.close(lock)
        return lock is not None

    def _rotate_log(self) -> int:
        """Keep the log small; returns its length in bytes."""
        log = self._data_dir / "postgres.log"
        size = log.stat().st_size if log.exists() else 0
        if size > _LOG_LIMIT:
            log.replace(log.with_name("postgres.log.1"))
            return 0
        return size

    def _log_since(self, position: int) -> str:
        """What the server complained about, without time stamps, at most 1,000 characters."""
        with (self._data_dir / "postgres.log").open("rb") as log:
            log.seek(position)
            lines = log.read(100_000).decode(errors="replace").splitlines()
        serious = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "ERROR", "postgres:"))]
        return "; ".join(serious or lines[-3:])[-1000:]


async def find_running(data_dir: Path) -> str | None:
    """The DSN of the server that runs on a data folder, or None; starts and changes nothing.

    Raises:
        PostgresError: as `cluster_of`.
    """
    cluster = cluster_of(data_dir)
    return None if cluster is None else await _running(cluster)


async def _running(cluster: Path) -> str | None:
    found = _read_pid_file(cluster)
    if found is None or not found.ready or not found.folder:
        return None
    dsn = _dsn(Path(found.folder), found.port)
    try:
        await _connect_and_leave(dsn)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return None
    return dsn


def _create_cluster(home: Home, lock: int) -> None:
    """Made under another name, synced to disk by initdb, and then renamed: nobody ever sees half a cluster."""
    cluster, draft = home.cluster, home.cluster.with_name(home.cluster.name + ".new")
    if cluster.exists() and any(cluster.iterdir()):
        raise PostgresError(f"{cluster} is neither empty nor a PostgreSQL cluster: move it away")
    shutil.rmtree(draft, ignore_errors=True)  # left by a process that died here
    draft.mkdir(mode=0o700)
    own(draft, home.account)
    locale = ["--locale=C"]  # the same on every system, so indexes survive a move
    if home.major >= 17:
        locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    status, answer = home.account.run(
        [
            *(home.bin_dir / "initdb", "-D", draft, "--username", _ROLE, "--auth=trust", "--encoding=UTF8"),
            *("--data-checksums", "--no-instructions", *locale),
        ],
        keep=(lock,),
    )
    if status != 0:
        shutil.rmtree(draft, ignore_errors=True)
        raise PostgresError(f"initdb could not make a cluster for the user {home.account.name}: {answer[-1000:]}")
    draft.rename(cluster)
    parent = os.open(cluster.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _read_pid_file(cluster: Path) -> _PidFile | None:
    """None when there is no file, or not a whole one."""
    try:
        lines = (cluster / "postmaster.pid").read_text("utf-8", "surrogateescape").splitlines()
        return _PidFile(int(lines[0]), lines[3], lines[4], ready=len(lines) > 7 and lines[7].strip() == "ready")
    except (OSError, ValueError, IndexError):
        return None


def _forget_dead(cluster: Path, folder: Path) -> None:
    """Make PostgreSQL ignore the files of a dead server although another process may have its number now.

    In a container numbers repeat after every restart. The first line becomes our own number, which PostgreSQL takes for
    stale as its parent's; the rest stays, because PostgreSQL also looks whether the shared memory named there is in
    use. A server that somebody started by hand on this cluster keeps its file, and PostgreSQL refuses to start.
    """
    if not Path("/proc/self").exists():  # macOS: nothing tells whose number it is; PostgreSQL decides
        return
    with contextlib.suppress(FileNotFoundError):
        file = os.open(cluster / "postmaster.pid", os.O_RDWR | os.O_NOFOLLOW)
        try:
            pid, end, rest = os.read(file, 10_000).partition(b"\n")
            with contextlib.suppress(OSError):
                if pid.isdigit() and os.fsencode(cluster) in Path(f"/proc/{int(pid)}/cmdline").read_bytes().split(
                    b"\0"
                ):
                    return
            content = str(os.getpid()).encode() + end + rest
            os.pwrite(file, content, 0)
            os.ftruncate(file, len(content))
        finally:
            os.close(file)
    for name in (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock"):
        (folder / name).unlink(missing_ok=True)


def _try_lock(path: Path) -> int | None:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    except BaseException:
        os.close(file)
        raise
    return file


def _die_with(parent: int) -> Callable[[], None] | None:
    """For the child between fork and exec: a fast shutdown when the thread that started it ends, however it ends."""
    if _prctl is None:
        return None
    arguments = ctypes.c_ulong(_PR_SET_PDEATHSIG), ctypes.c_ulong(signal.SIGINT)

    def in_child() -> None:
        _prctl(*arguments)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return in_child


async def _to_the_end(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run in a thread; when cancelled, wait for it all the same, because it works with a lock of ours."""
    running = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


async def _end(process: subprocess.Popen[bytes]) -> None:
    """Fast shutdown, then immediate, then by force; returns when it is gone, or after 20 seconds."""
    for sign, patience_s in ((signal.SIGINT, 12), (signal.SIGQUIT, 4), (signal.SIGKILL, 4)):
        process.send_signal(sign)
        until = time.monotonic() + patience_s
        while process.poll() is None and time.monotonic() < until:  # noqa: ASYNC110 - processes set no events
            await asyncio.sleep(0.01)
        if process.returncode is not None:
            return


async def _connect_and_leave(dsn: str) -> None:
    conn = await asyncpg.connect(dsn, timeout=10, server_settings={"application_name": "toolcrib start"})
    await conn.close()


def _dsn(folder: Path, port: str) -> str:
    """The port is part of the socket's name; it is spelled out because PGPORT would count otherwise."""
    return f"postgresql://{_ROLE}@/{_DATABASE}?host={quote(str(folder))}&port={port}"
