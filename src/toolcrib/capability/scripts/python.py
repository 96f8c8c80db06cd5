"""Python in child processes: Monty, an interpreter of a part of Python that was made to hold untrusted code.

Its worker processes know no files, sockets, environment or subprocesses; they are started when a run finds none free
and every run has a session of its own. Values cross as JSON text, so nothing but text is ever built on this side.
"""

import asyncio
import contextlib
import os
import resource
import signal
from typing import Any, Final

from pydantic_monty import (
    AsyncMonty,
    CollectString,
    Frame,
    Monty,
    MontyCrashedError,
    MontyError,
    MontyRuntimeError,
    MontySyntaxError,
    ResourceLimits,
)

from toolcrib.capability.scripts.limits import (
    ScriptLimits,
    failed,
    interpreter_lost,
    too_long,
    too_much_memory,
    too_much_output,
)
from toolcrib.capability.scripts.source import Source
from toolcrib.errors import AppError, Unavailable

_RUNS_PER_PROCESS: Final = 1000
_GRACE_S: Final = 1.0  # for the interpreter to report its own time-out before it is ended
_FIXED_BYTES: Final = 256 * 1024 * 1024  # address space of the process itself
_OPEN_FILES: Final = 16  # it has its three pipes and what it inherited; this leaves no room for connections to spare
_OUTSIDE: Final = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")  # never a script's own doing
_PARSED: Final = "toolcrib: parsed"
_CONTEXT: Final = "import json as _json\ncontext = _json.loads(_context)\n_context = None"
_RESULT: Final = """import json as _json
try:
    _result = result
    _result = _json.dumps(_result, ensure_ascii=False)
except NameError:
    _result = None
_result if _result is None or len(_result) <= {limit} else ''"""


def _resource_limits(limits: ScriptLimits) -> ResourceLimits:
    """The limits in the interpreter's words. A script may not sleep: it has nothing to wait for."""
    return {
        "max_feed_duration_secs": limits.busy_s,
        "max_memory": limits.memory_bytes,
        "max_total_sleep_secs": 0.0,
    }


def check(source: Source, limits: ScriptLimits) -> None:
    """Parse a source in a process of its own; blocks for some ten milliseconds.

    Raises:
        ValueError: it is not Python, or not in the part that the interpreter knows; names file and line.
    """
    # The whole text is parsed before its first statement, and the first statement leaves.
    text = f"raise Exception({_PARSED!r})\n{source.text}"
    try:
        with Monty(min_processes=0, max_processes=1) as pool, pool.checkout(limits=_resource_limits(limits)) as session:
            session.feed_run(text, print_callback=CollectString(limits.output_bytes))
    except OSError as error:
        raise ValueError(f"the Python interpreter does not start ({type(error).__name__})") from None
    except MontyError as error:
        if str(error) == f"Exception: {_PARSED}":
            return
        raise ValueError(_error(error, {"<python-input-0>": (source.name, 1)}, source.name, limits).message) from None


def _error(error: MontyError, names: dict[str, tuple[str, int]], main: str, limits: ScriptLimits) -> AppError:
    """What the interpreter reported, with the source and line that it means.

    `names` maps what the interpreter calls an input to a file and how many lines were put before it.
    """
    if isinstance(error, MontyCrashedError):
        if error.timed_out:
            return too_long(main, limits)
        ending = next((name for name in _OUTSIDE if name in str(error)), None)
        return interpreter_lost(main, ending) if ending else failed(main, "the script broke the interpreter")
    name: str = main
    line: int | None = None
    frames: tuple[Frame, ...] = ()
    if isinstance(error, (MontyRuntimeError, MontySyntaxError)):
        frames = tuple(frame for frame in error.traceback() if frame.filename in names)
        message = error.display("type-msg")
    else:
        message = str(error)
    if frames:
        name, before = names[frames[-1].filename]
        line = frames[-1].line - before
    cause = error.exception()
    if isinstance(cause, TimeoutError) and not frames:  # one that the script raises has a place
        return too_long(main, limits)
    if isinstance(cause, MemoryError) and str(cause).endswith(f"> {limits.output_bytes} bytes"):
        return failed(name, f"the script printed more than {limits.output_bytes} bytes", line)
    if isinstance(cause, MemoryError) and "memory limit exceeded" in str(cause):
        return too_much_memory(name, limits, line)
    return failed(name, message.removeprefix("NotImplementedError: "), line)


class Python:
    """The Python interpreters of a capability process: `processes` at most."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool: AsyncMonty | None = None
        self._starting = asyncio.Lock()

    async def run(self, sources: tuple[Source, ...], context: bytes, limits: ScriptLimits) -> str | None:
        """Evaluate the sources in order; returns `result` as JSON text, None if it was not assigned.

        Raises:
            Invalid: `script.failed`, with the file and line.
            Unavailable: the interpreter was ended from outside, or none can be started.
        """
        main = sources[-1].name
        names = {f"<python-input-{number}>": (source.name, 0) for number, source in enumerate(sources, start=1)}
        pool = await self._started()
        try:
            text = await self._ask(pool, sources, context.decode(), limits)
        except MontyError as error:
            raise _error(error, names, main, limits) from None
        except TimeoutError:
            raise too_long(main, limits) from None
        if text is not None and not isinstance(text, str):
            raise failed(main, "the result is no JSON value")
        if text == "":
            raise too_much_output(main, limits)
        return text

    async def stop(self) -> None:
        """End the processes; a later run starts new ones. Nothing may be running."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.__aexit__(None, None, None)

    async def _started(self) -> AsyncMonty:
        """The pool, started if need be."""
        async with self._starting:
            if self._pool is None:
                pool = AsyncMonty(
                    min_processes=0,
                    max_processes=self._processes,
                    max_checkouts_per_worker=_RUNS_PER_PROCESS,
                    feed_duration_limit_grace=_GRACE_S,
                )
                try:
                    self._pool = await pool.__aenter__()
                except (OSError, MontyError) as error:
                    raise Unavailable(
                        "script.interpreter_missing", f"The Python interpreter does not start ({type(error).__name__})."
                    ) from None
            return self._pool

    @staticmethod
    async def _ask(pool: AsyncMonty, sources: tuple[Source, ...], context: str, limits: ScriptLimits) -> Any:
        """`result` as JSON text, None if not assigned, empty if too long; ends the process when broken off."""
        # A cancelled call of the pool drops its process unreaped where the loop has taken over SIGCHLD, as uvloop does.
        # So none is ever cancelled: the process is ended, and the pool, which notices, buries it.
        process: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        session = asyncio.ensure_future(_in_session(pool, process, sources, context, limits))
        try:
            async with asyncio.timeout(limits.timeout_s + _GRACE_S):
                return await asyncio.shield(session)
        except (TimeoutError, asyncio.CancelledError):
            await asyncio.wait({session, process}, timeout=_GRACE_S, return_when=asyncio.FIRST_COMPLETED)
            if process.done() and not session.done() and (pid := process.result()) is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.wait({session}, timeout=_GRACE_S)
            if not session.cancel():
                session.exception()
            raise


async def _in_session(
    pool: AsyncMonty,
    process: asyncio.Future[int | None],
    sources: tuple[Source, ...],
    context: str,
    limits: ScriptLimits,
) -> Any:
    """The inputs of a run one after the other, in a session of its own; the value of the last."""
    # What is printed goes nowhere: standard output may be the wire of an MCP server.
    printed = CollectString(limits.output_bytes)
    async with pool.checkout(script_name=sources[-1].name, limits=_resource_limits(limits)) as session:
        process.set_result(session.worker_pid)
        _confine(session.worker_pid, limits)
        await session.feed_run(_CONTEXT, inputs={"_context": context}, print_callback=printed)
        for source in sources:
            # The value of a last expression would be brought over here; there is none after this.
            await session.feed_run(source.text + "\n\nNone\n", print_callback=printed)
        return await session.feed_run(_RESULT.format(limit=limits.output_bytes), print_callback=printed)


def _confine(pid: int | None, limits: ScriptLimits) -> None:
    """Limit a worker process from outside, behind its own limits, where the system can."""
    if pid is None or not hasattr(resource, "prlimit"):
        return
    space = _FIXED_BYTES + 4 * limits.memory_bytes
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_AS, space),
    ):
        try:
            resource.prlimit(pid, kind, (limit, limit))
        except (OSError, ValueError):  # it just ended, or another account's; its own limits stand
            return
