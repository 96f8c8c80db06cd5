"""JavaScript in child processes: QuickJS has no input or output of its own, and a process can always be ended.

A process is started when a run finds none idle, is used by one run at a time, and each run has a fresh runtime in it.
It has its own process group, no environment, and the limits of `javascript_worker.py`.
"""

import asyncio
import contextlib
import importlib.util
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

import orjson

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

_WORKER: Final = Path(__file__).with_name("javascript_worker.py")
_RUNS_PER_PROCESS: Final = 1000
_GRACE_S: Final = 1.0  # for the interpreter to report its own time-out before it is ended
_CHECK_S: Final = 10.0
_FIXED_BYTES: Final = 128 * 1024 * 1024  # address space of the process itself
_OUTSIDE: Final = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}  # never a script's own doing
_PLACE: Final = re.compile(r"<input>:(\d+)")


def _command(limits: ScriptLimits) -> list[str]:
    """The command line of an interpreter process."""
    module = importlib.util.find_spec("_quickjs")
    if module is None or module.origin is None:
        raise FileNotFoundError("quickjs-ng")
    # The request, its context and the answer are each held about twice beside the heap.
    space = _FIXED_BYTES + 4 * limits.memory_bytes + 4 * limits.output_bytes
    return [sys.executable, "-I", "-S", "-B", str(_WORKER), str(Path(module.origin).parent), str(space)]


def _request(sources: tuple[Source, ...], context: bytes, limits: ScriptLimits, *, check: bool = False) -> bytes:
    """The two frames of a request."""
    header = orjson.dumps(
        {
            "sources": [source.text for source in sources],
            "memory": limits.memory_bytes,
            "output": limits.output_bytes,
            "busy_s": limits.busy_s,
            "check": check,
        }
    )
    return struct.pack(">I", len(header)) + header + struct.pack(">I", len(context)) + context


def check(source: Source, limits: ScriptLimits) -> None:
    """Parse a source in a process of its own; blocks for some ten milliseconds.

    Raises:
        ValueError: it is not JavaScript; names file and line.
    """
    try:
        done = subprocess.run(  # noqa: S603  our own interpreter and program
            _command(limits),
            input=_request((source,), b"null", limits, check=True),
            capture_output=True,
            timeout=_CHECK_S,
            env={},
            cwd="/",
            start_new_session=True,
            check=False,
        )
    except OSError as error:
        raise ValueError(f"the JavaScript interpreter does not start ({type(error).__name__})") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"{source.name}: parsing took longer than {_CHECK_S:g} s") from None
    if done.stdout[5:6] != b"C":  # the acknowledgement, four bytes of length, the kind
        reported = done.stdout[6:].decode("utf-8", "replace") or "the parser failed"
        raise ValueError(_error(reported, (source,), limits).message)


def _error(text: str, sources: tuple[Source, ...], limits: ScriptLimits) -> AppError:
    """What the interpreter reported, with the source and line that it means."""
    main = sources[-1].name
    message, _, _ = text.partition("\n    at ")
    message = message.removesuffix("\nundefined").strip()
    place = _PLACE.search(text)
    name, line = main, None
    if place is not None:
        name, line = _locate(int(place[1]), sources)
    if message == "InternalError: interrupted":
        return too_long(name, limits)
    if message == "InternalError: out of memory":
        return too_much_memory(name, limits, line)
    return failed(name, message, line)


def _locate(line: int, sources: tuple[Source, ...]) -> tuple[str, int | None]:
    """The file and its line for a line of the common numbering."""
    for source in sources:
        lines = source.text.count("\n") + 1
        if line <= lines:
            return source.name, line
        line -= lines
    return sources[-1].name, None


class _Interpreter:
    """One process, and how often it was used."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.runs = 0

    @classmethod
    async def start(cls, limits: ScriptLimits) -> "_Interpreter":
        """A new process.

        Raises:
            Unavailable: the system would not start one.
        """
        try:
            return cls(
                await asyncio.create_subprocess_exec(
                    *_command(limits),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                    env={},
                    cwd="/",
                    start_new_session=True,
                )
            )
        except OSError as error:
            raise Unavailable(
                "script.interpreter_missing", f"The JavaScript interpreter does not start ({type(error).__name__})."
            ) from None

    async def ask(self, request: bytes, max_answer: int) -> bytes | None:
        """The answer to a request; None if the process ended on the way, or answered what it never would.

        Raises:
            EOFError: it was gone before it began.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise EOFError
        self.runs += 1
        try:
            stdin.write(request)
            await stdin.drain()
            await stdout.readexactly(1)
        except (OSError, asyncio.IncompleteReadError):
            raise EOFError from None
        try:
            (size,) = struct.unpack(">I", await stdout.readexactly(4))
            return await stdout.readexactly(size) if 0 < size <= max_answer else None
        except (OSError, asyncio.IncompleteReadError):
            return None

    async def end(self) -> int:
        """End the process with everything in its group; returns how it ended."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        return await self._process.wait()

    async def outcome(self) -> int | None:
        """How a process ended that broke off an answer; None if it has not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                return await self._process.wait()
        return None


class JavaScript:
    """The JavaScript interpreters of a capability process; the caller bounds how many run at once."""

    def __init__(self) -> None:
        self._idle: list[_Interpreter] = []

    async def run(self, sources: tuple[Source, ...], context: bytes, limits: ScriptLimits) -> str | None:
        """Evaluate the sources in order; returns `result` as JSON text, None if it was not assigned.

        Raises:
            Invalid: `script.failed`, with the file and line.
            Unavailable: the interpreter was ended from outside, or none can be started.
        """
        while self._idle:
            with contextlib.suppress(EOFError):  # it died while it was idle
                return self._result(await self._ask(self._idle.pop(), sources, context, limits), sources, limits)
        try:
            interpreter = await _Interpreter.start(limits)
            return self._result(await self._ask(interpreter, sources, context, limits), sources, limits)
        except EOFError:
            raise Unavailable("script.interpreter_missing", "The JavaScript interpreter does not start.") from None

    async def _ask(
        self, interpreter: _Interpreter, sources: tuple[Source, ...], context: bytes, limits: ScriptLimits
    ) -> bytes:
        """The answer of one process, which is idle again afterwards or gone."""
        name, kept = sources[-1].name, False
        try:
            async with asyncio.timeout(limits.timeout_s + _GRACE_S):
                data = await interpreter.ask(_request(sources, context, limits), limits.output_bytes + 16 * 1024)
            if data is None:
                raise self._broken(name, await interpreter.outcome(), limits)
            kept = interpreter.runs < _RUNS_PER_PROCESS
            return data
        except TimeoutError:
            raise too_long(name, limits) from None
        finally:
            if kept:
                self._idle.append(interpreter)
            else:
                await interpreter.end()

    async def stop(self) -> None:
        """End the processes that are idle; a later run starts new ones."""
        idle, self._idle = self._idle, []
        for interpreter in idle:
            await interpreter.end()

    @staticmethod
    def _result(data: bytes, sources: tuple[Source, ...], limits: ScriptLimits) -> str | None:
        """What an answer says."""
        kind, text = data[:1], data[1:].decode("utf-8", "replace")
        match kind:
            case b"R":
                return text
            case b"A":
                return None
            case b"O":
                raise too_much_output(sources[-1].name, limits)
            case _:
                raise _error(text, sources, limits)

    @staticmethod
    def _broken(name: str, ending: int | None, limits: ScriptLimits) -> AppError:
        """Why a process went away in the middle of a run."""
        if ending == -signal.SIGXCPU:
            return too_long(name, limits)
        if ending is not None and ending < 0 and -ending in _OUTSIDE:
            return interpreter_lost(name, signal.Signals(-ending).name)
        return failed(name, "the script broke the interpreter")
