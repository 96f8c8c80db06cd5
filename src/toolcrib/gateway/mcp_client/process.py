"""A program that we start and stop: its environment, its three pipes, its whole process group.

The program leads its own session, so that stopping it reaches everything it started (`npx` and `uv` start the real
server as a child). Stopping is asking first: end of input, then SIGTERM to the group, then SIGKILL. `ProcessGuard`
covers the case where we get no chance to stop anything, because we were killed. POSIX only; never a shell.
"""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

import structlog

from toolcrib.gateway.mcp_client.contract import McpEndpoint, McpUpstreamError, plain_text

_log = structlog.get_logger(__name__)

# What a program needs to find itself, its language, its caches, its package index and the way out of the network. Proxy
# and index URLs may carry credentials: they are here because `npx` and `uvx` cannot start without them, and a program
# that runs as our user could read the same from that user's configuration files. Names are case-insensitive.
STDIO_ENV_ALLOW: tuple[str, ...] = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "TERM", "XDG_*"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
    *("NPM_CONFIG_CACHE", "NPM_CONFIG_REGISTRY", "NPM_CONFIG_CAFILE", "NPM_CONFIG_USERCONFIG", "NPM_CONFIG_PREFIX"),
    *("PIP_CACHE_DIR", "PIP_INDEX_URL", "PIP_CERT", "PIP_CONFIG_FILE"),
    *("UV_CACHE_DIR", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "UV_PYTHON_INSTALL_DIR"),
    *("DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT"),
)

GRACE_S = 2.0
_STDERR_TAIL_BYTES = 4096
_EXIT_DRAIN_S = 0.25

_GUARD = """\
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for number in [signal.SIGTERM, *[0] * 20, signal.SIGKILL]:
    for group in list(groups):
        try:
            os.killpg(group, number)
        except OSError:
            groups.discard(group)
    if groups:
        time.sleep(0.1)
"""


def child_environment(
    ours: Mapping[str, str], allow: Iterable[str], extra: Iterable[tuple[str, str]]
) -> dict[str, str]:
    """The environment of a started program: what `allow` lets through of ours, then `extra`.

    A name in `allow` may end in `*`. Nothing of ours that begins with TOOLCRIB_ ever passes, whatever `allow` says, nor
    do shell functions. PATH ends with the folder of our own interpreter, so that servers installed beside Toolcrib are
    found however it was started.
    """
    names = {name.upper() for name in allow}
    prefixes = tuple(name[:-1] for name in names if name.endswith("*"))
    passed = {
        name: value
        for name, value in ours.items()
        if (name.upper() in names or (prefixes and name.upper().startswith(prefixes)))
        and not name.upper().startswith("TOOLCRIB_")
        and not value.startswith("()")
    }
    if "PATH" in names:
        passed["PATH"] = os.pathsep.join([passed.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    return passed | dict(extra)


class ProcessGuard:
    """A tiny process that outlives us if we are killed, and then ends the process groups that we started.

    It reads group numbers from a pipe; end of input means that we are gone. It costs one bare Python interpreter per
    Toolcrib process, and only once the first program is started.
    """

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._pipe: asyncio.WriteTransport | None = None
        self._transport: asyncio.SubprocessTransport | None = None
        self._ended: asyncio.Event = asyncio.Event()
        self._starting = asyncio.Lock()

    @property
    def lost(self) -> bool:
        """Whether no guard runs."""
        return self._pipe is None or self._pipe.is_closing()

    async def start(self) -> None:
        """Make sure that the guard runs; without one (no interpreter to start) everything else still works."""
        async with self._starting:
            if not self.lost:
                return
            loop = asyncio.get_running_loop()
            self._ended = asyncio.Event()
            if self._transport is not None:
                self._transport.close()  # of the guard that died
            try:
                transport, _ = await loop.subprocess_exec(
                    lambda: _GuardProtocol(self._ended),
                    *(sys.executable, "-I", "-S", "-c", _GUARD),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as exc:
                _log.warning("mcp.process_guard_unavailable", reason=str(exc))
                return
            self._transport, self._pipe = transport, _input_pipe(transport)
            for group in self._groups:
                self._tell("+", group)

    def watch(self, group: int) -> None:
        """End this process group if we die."""
        self._groups.add(group)
        self._tell("+", group)

    def forget(self, group: int) -> None:
        """The group has ended; its number may be somebody else's from now on."""
        self._groups.discard(group)
        self._tell("-", group)

    async def close(self) -> None:
        """Let the guard go; the groups must have been stopped before."""
        if self._transport is None or self._pipe is None:
            return
        for group in list(self._groups):
            self.forget(group)
        self._pipe.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), GRACE_S)
        self._transport.close()
        self._transport = self._pipe = None

    def _tell(self, sign: str, group: int) -> None:
        if self._pipe is not None and not self._pipe.is_closing():
            self._pipe.write(b"%b%d\n" % (sign.encode(), group))


class _GuardProtocol(asyncio.SubprocessProtocol):
    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended

    def process_exited(self) -> None:
        self._ended.set()


class ServerProcess(asyncio.SubprocessProtocol):
    """One running program.

    Args:
        on_output: gets what the program writes to standard output, as it comes.
        on_gone: called once, when the program has exited or can no longer answer.
    """

    def __init__(
        self,
        endpoint: McpEndpoint,
        guard: ProcessGuard,
        on_output: Callable[[bytes], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._command = endpoint.command or ""
        self._secrets = [value.encode() for _, value in endpoint.env if len(value) >= 5]
        self._guard = guard
        self._on_output = on_output
        self._on_gone: Callable[[], None] | None = on_gone
        self._transport: asyncio.SubprocessTransport | None = None
        self._stdin: asyncio.WriteTransport | None = None
        self._stderr = bytearray()
        self._exited = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._stopping: asyncio.Task[None] | None = None
        self.pid = 0

    @classmethod
    async def start(
        cls,
        endpoint: McpEndpoint,
        environment: Mapping[str, str],
        guard: ProcessGuard,
        on_output: Callable[[bytes], None],
        on_gone: Callable[[], None],
    ) -> "ServerProcess":
        """Start the endpoint's command; raises McpUpstreamError (mcp.unreachable) naming what is wrong with it."""
        path = _executable(endpoint, environment)
        await guard.start()
        loop = asyncio.get_running_loop()
        process = cls(endpoint, guard, on_output, on_gone)
        try:
            await loop.subprocess_exec(
                lambda: process,
                *(path, *endpoint.args),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=dict(environment),
                cwd=endpoint.cwd,
                start_new_session=True,
            )
        except asyncio.CancelledError:
            await process.stop()  # it may have started already
            raise
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise McpUpstreamError("mcp.unreachable", f"'{endpoint.command}' cannot be started: {reason}") from exc
        return process

    # -- what asyncio tells us -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The program runs."""
        self._transport = cast("asyncio.SubprocessTransport", transport)
        self._stdin = _input_pipe(self._transport)
        self.pid = self._transport.get_pid()
        self._guard.watch(self.pid)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Standard output goes to the reader; of standard error the tail is kept."""
        if fd == 1:
            self._on_output(data)
        else:
            self._stderr += data
            if len(self._stderr) > 2 * _STDERR_TAIL_BYTES:
                del self._stderr[:-_STDERR_TAIL_BYTES]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        """A program that closes standard output, or stops reading its input, can answer nothing any more."""
        if fd == 0:
            self._writable.set()
        elif fd == 1:
            # Exit status and last words usually follow at once; wait for them so that the error can tell.
            self._on_output(b"\n")  # the last line may lack its end
            asyncio.get_running_loop().call_later(_EXIT_DRAIN_S, self._gone)

    def pause_writing(self) -> None:
        """Standard input is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Standard input takes more."""
        self._writable.set()

    def process_exited(self) -> None:
        """The program itself is gone; its children may still hold the pipes, so do not wait for those for long."""
        self._exited.set()
        asyncio.get_running_loop().call_later(_EXIT_DRAIN_S, self._gone)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        """Exited, and every pipe read to its end."""
        self._gone()

    def _gone(self) -> None:
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            on_gone()

    # -- what we do with it --------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether standard input has room."""
        return self._writable.is_set()

    async def wait_writable(self) -> None:
        """Wait until standard input has room."""
        await self._writable.wait()

    def write(self, line: bytes) -> None:
        """Send one line; dropped when the program is no longer there (`on_gone` tells)."""
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.write(line + b"\n")

    def describe_exit(self) -> McpUpstreamError:
        """How the program ended, with the last words of its standard error."""
        status = self._transport.get_returncode() if self._transport is not None else None
        if status is None:
            how = "closed its standard output"
        elif status < 0:
            how = f"was killed by {_signal_name(-status)}"
        else:
            how = f"exited with status {status}"
        words = bytes(self._stderr[-_STDERR_TAIL_BYTES:])
        for secret in self._secrets:
            words = words.replace(secret, b"***")
        text = plain_text(words.decode(errors="replace"), _STDERR_TAIL_BYTES)
        message = f"'{self._command}' {how}" + (f": {text}" if text else " without a word on standard error")
        return McpUpstreamError("mcp.process_exited", message, status=status)

    async def stop(self) -> None:
        """End the program and everything it started; takes at most some seconds, and runs to its end if cancelled."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name=f"stop {self._command}")
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        if self._transport is None:
            return
        if self._stdin is not None and not self._stdin.is_closing():
            # A program that does not read leaves bytes behind that would keep the pipe, and so its input, open.
            self._stdin.abort() if self._stdin.get_write_buffer_size() else self._stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._exited.wait(), GRACE_S)
        for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S / 2)):
            if not _signal_group(self.pid, number):
                break
            await self._wait_for_group(patience_s)
        self._guard.forget(self.pid)
        self._transport.close()
        self._gone()

    async def _wait_for_group(self, patience_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        while loop.time() < deadline and _signal_group(self.pid, 0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._exited.wait(), 0.02)
            if self._exited.is_set():
                await asyncio.sleep(0.02)  # the leader is gone, and nobody tells us when its children are


def _input_pipe(transport: asyncio.SubprocessTransport) -> asyncio.WriteTransport:
    return cast("asyncio.WriteTransport", transport.get_pipe_transport(0))  # uvloop's classes are not asyncio's


def _signal_group(group: int, number: int) -> bool:
    """Signal a process group; False when nothing is left of it."""
    if group <= 1:  # 0 would be our own group, and 1 is nobody's business
        return False
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS, for a group of which only zombies are left
        return False
    return True


def _executable(endpoint: McpEndpoint, environment: Mapping[str, str]) -> str:
    command = endpoint.command
    if not command:
        raise McpUpstreamError("mcp.unreachable", "the server has no command to start")
    if endpoint.cwd is not None and not Path(endpoint.cwd).is_dir():
        raise McpUpstreamError(
            "mcp.unreachable", f"'{command}' cannot be started: the working directory {endpoint.cwd} does not exist"
        )
    if "/" in command:
        return command
    path = shutil.which(command, path=environment.get("PATH", os.defpath))
    if path is None:
        raise McpUpstreamError(
            "mcp.unreachable", f"'{command}' cannot be started: there is no such program on this machine's PATH"
        )
    return path


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
