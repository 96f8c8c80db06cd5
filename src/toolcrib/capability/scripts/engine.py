"""Script steps, compiled when a file is planned and run in sandboxed interpreters on every call.

One `Scripts` per capability process holds the settings, the statistics and the interpreters. Interpreters are started
when needed, stopped when nothing ran for a while, and gone after `close`. Nothing here blocks the event loop but
`compile`, which belongs to planning.
"""

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, Final, Literal

import orjson

from toolcrib.capability.scripts import javascript, python
from toolcrib.capability.scripts.limits import MAX_DEPTH, ScriptLimits, failed, too_much_memory, too_much_output
from toolcrib.capability.scripts.settings import ScriptingSettings, SettingInvalid, language_of
from toolcrib.capability.scripts.source import Source, read_sources
from toolcrib.capability.spec import ABSENT, Step
from toolcrib.errors import AppError, Invalid, Unavailable

Language = Literal["javascript", "python"]

_BY_EXTENSION: Final = {".js": "javascript", ".py": "python", ".groovy": "groovy"}


@dataclass(frozen=True, slots=True, eq=False)
class Script:
    """A script step, read and parsed.

    `sources` are the dependencies in order and the script itself last; `files` is what to watch for changes.
    `made_from` is what it was compiled from, with the defaults that held then, or None if it uses none.
    """

    step: str
    language: Language
    sources: tuple[Source, ...]
    made_from: tuple[Step, tuple[str, ...], tuple[str | None, str | None]] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The files that were read."""
        return tuple(source.path for source in self.sources)


class Scripts:
    """The script steps of a capability process."""

    def __init__(
        self,
        *,
        enabled: bool = True,
        default_language: str | None = None,
        default_location: str | None = None,
        allowed_languages: tuple[str, ...] = (),
        limits: ScriptLimits | None = None,
        processes: int | None = None,
        idle_s: float = 30.0,
    ) -> None:
        """`processes` run at once (default: one a processor, at least 2); they stop after `idle_s` without a run."""
        self._settings = ScriptingSettings(
            enabled, default_language, default_location, allowed_languages, limits or ScriptLimits()
        )
        self._processes = processes or max(2, os.cpu_count() or 2)
        self._idle_s = idle_s
        self._free = asyncio.Semaphore(self._processes)
        self._javascript = javascript.JavaScript()
        self._python = python.Python(self._processes)
        self._running: set[asyncio.Task[str | None]] = set()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._is_closed = False
        self._again: dict[Script, Script] = {}  # scripts compiled anew since the defaults changed
        self._total, self._errors, self._spent_s = 0, 0, 0.0
        self._last_at: datetime | None = None

    @classmethod
    def from_settings(
        cls,
        given: Mapping[str, Any],
        *,
        enabled: bool = True,
        limits: ScriptLimits | None = None,
        processes: int | None = None,
        idle_s: float = 30.0,
    ) -> "Scripts":
        """From `management.scripting` of a capability file; its `enabled` outranks the argument.

        Raises:
            ValueError: names the setting and what is wrong with it.
        """
        settings = ScriptingSettings(enabled=enabled, limits=limits or ScriptLimits()).changed_by(given)
        scripts = cls(processes=processes, idle_s=idle_s)
        scripts._settings = settings
        return scripts

    def settings(self) -> dict[str, Any]:
        """The answer of `GET /scripting`: settings and `stats`."""
        return {**self._settings.as_written(), "stats": self.stats()}

    def stats(self) -> dict[str, Any]:
        """What ran so far; `lastExecutionAt` is left out before the first run."""
        average_ms = self._spent_s / self._total * 1000 if self._total else 0.0
        stats: dict[str, Any] = {
            "totalExecutions": self._total,
            "totalErrors": self._errors,
            "averageDurationMs": round(average_ms, 2),
        }
        if self._last_at is not None:
            stats["lastExecutionAt"] = self._last_at.isoformat().replace("+00:00", "Z")
        return stats

    def update(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Change settings as `PUT /scripting` does, from the next run on; all or nothing. Returns `settings()`.

        Raises:
            Invalid: names the setting and what is wrong with it.
        """
        if not isinstance(given, Mapping):
            raise Invalid("scripting.invalid", "The settings must be a JSON object.")
        try:
            self._settings = self._settings.changed_by(given)
        except SettingInvalid as error:
            raise Invalid("scripting.invalid", str(error), field=error.field) from None
        self._again.clear()
        return self.settings()

    def compile(self, step: Step, folders: tuple[str, ...]) -> Script:
        """Read and parse the files of a script step; blocks for some ten milliseconds a file.

        `folders` is where a relative location is looked up, in that order. With scripting switched off nothing is
        parsed: no interpreter is started then.

        Raises:
            ValueError: says what is wrong with the step or its files.
        """
        settings = self._settings
        language, location = step.language or settings.default_language, step.location or settings.default_location
        if not step.file:
            raise ValueError(f"script step {step.name!r} has no file")
        if not location:
            raise ValueError(f"script step {step.name!r} has no location, and management.scripting no defaultLocation")
        runs = _language(step.name, language or _BY_EXTENSION.get(PurePosixPath(step.file).suffix, ""), settings)
        try:
            sources = read_sources(location, (*step.dependencies, step.file), folders)
            if settings.enabled:
                for source in sources:
                    (javascript if runs == "javascript" else python).check(source, settings.limits)
        except ValueError as error:
            raise ValueError(f"script step {step.name!r}: {error}") from None
        inherits = not (step.language and step.location)
        return Script(step.name, runs, sources, (step, folders, _defaults(settings)) if inherits else None)

    async def run(self, script: Script, context: dict[str, Any]) -> Any:
        """The value of `result` after the script, ABSENT if it assigned none.

        Raises:
            Invalid: `script.failed`: the script raised, broke a limit, or left a result that is no JSON.
            Unavailable: scripting is switched off, all interpreters stay busy, or the one at work was ended.
        """
        settings = self._settings
        self._must_be_open()
        if not settings.enabled:
            raise Unavailable("script.disabled", "Script steps are switched off (management.scripting.enabled).")
        started = time.perf_counter()
        name = script.sources[-1].name
        try:
            script = await self._current(script, settings)
            text = await self._execute(script, _context(context, name, settings.limits), settings.limits)
            return ABSENT if text is None else _tree(text, name, settings.limits)
        except AppError:
            self._errors += 1
            raise
        finally:
            self._total += 1
            self._spent_s += time.perf_counter() - started
            self._last_at = datetime.now(UTC)

    async def close(self) -> None:
        """Break off what runs and end every interpreter; further runs are refused."""
        self._is_closed = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._stopping is not None:
            await self._stopping
        await self._stop()

    def _must_be_open(self) -> None:
        if self._is_closed:
            raise Unavailable("script.closed", "Script steps have been shut down.")

    async def _current(self, script: Script, settings: ScriptingSettings) -> Script:
        """The script under the settings that hold now: its language allowed, its defaults the present ones."""
        if script.made_from is not None and script.made_from[2] != _defaults(settings):
            step, folders, _ = script.made_from
            if script not in self._again:
                try:
                    self._again[script] = await asyncio.to_thread(self.compile, step, folders)
                except ValueError as error:
                    raise failed(step.file or step.name, str(error)) from None
            return self._again[script]
        if settings.allowed_languages and script.language not in settings.allowed_languages:
            raise failed(script.sources[-1].name, f"the language {script.language} is not allowed")
        return script

    async def _execute(self, script: Script, context: bytes, limits: ScriptLimits) -> str | None:
        """Wait for an interpreter, run, and see to it that interpreters rest when nothing runs any more."""
        self._must_be_open()  # it may have been closed while the script was compiled anew
        task = asyncio.create_task(self._in_interpreter(script, context, limits))
        self._running.add(task)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and not current.cancelling():
                self._must_be_open()
            raise
        finally:
            self._running.discard(task)
            if not self._running and not self._is_closed:
                self._idle_timer = asyncio.get_running_loop().call_later(self._idle_s, self._rest)

    async def _in_interpreter(self, script: Script, context: bytes, limits: ScriptLimits) -> str | None:
        """One run, once one of the processes is free."""
        try:
            async with asyncio.timeout(limits.timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise Unavailable("script.busy", f"All {self._processes} interpreters are busy; try again later.") from None
        try:
            interpreters = self._javascript if script.language == "javascript" else self._python
            return await interpreters.run(script.sources, context, limits)
        finally:
            self._free.release()

    def _rest(self) -> None:
        """Nothing ran for a while: stop the interpreters."""
        self._idle_timer = None
        if not self._running and (self._stopping is None or self._stopping.done()):
            self._stopping = asyncio.get_running_loop().create_task(self._stop())

    async def _stop(self) -> None:
        await self._javascript.stop()
        await self._python.stop()


def _defaults(settings: ScriptingSettings) -> tuple[str | None, str | None]:
    """What a step without its own takes."""
    return settings.default_language, settings.default_location


def _language(step: str, name: str, settings: ScriptingSettings) -> Language:
    """The language of a step, if it is one that runs here and is allowed."""
    language = language_of(name)
    if not language:
        raise ValueError(f"script step {step!r} has no language, and management.scripting no defaultLanguage")
    if settings.allowed_languages and language not in settings.allowed_languages:
        allowed = ", ".join(settings.allowed_languages)
        raise ValueError(
            f"script step {step!r} uses the language {language}, which is not allowed (allowed: {allowed})"
        )
    if language == "javascript":
        return "javascript"
    if language == "python":
        return "python"
    if language == "groovy":
        raise ValueError(
            f"script step {step!r} is written in groovy, which this engine does not run: "
            "there is no Groovy interpreter outside a Java machine; rewrite it in javascript or python"
        )
    raise ValueError(f"script step {step!r} uses the language {name!r}; known are javascript and python")


def _context(context: dict[str, Any], name: str, limits: ScriptLimits) -> bytes:
    """The context as JSON."""
    try:
        text = orjson.dumps(context, option=orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        raise failed(name, f"the context is no JSON tree ({error})") from None
    if len(text) > limits.memory_bytes:
        raise too_much_memory(name, limits)
    return text


def _tree(text: str, name: str, limits: ScriptLimits) -> Any:
    """The JSON value that an interpreter gave, which is not to be trusted to be one."""
    data = text.encode("utf-8", "replace")
    if len(data) > limits.output_bytes:
        raise too_much_output(name, limits)
    try:
        value = orjson.loads(data)
    except ValueError:
        raise failed(name, "the result is no JSON value") from None
    level, depth = [value], 0
    while level := [child for each in level if isinstance(each, dict | list) for child in _children(each)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise failed(name, f"the result is nested deeper than {MAX_DEPTH} levels")
    return value


def _children(value: dict[str, Any] | list[Any]) -> Any:
    """The values in a container."""
    return value.values() if isinstance(value, dict) else value
