"""The last log records of the process, for the control port: redacted, bounded, and followed by whoever looks on.

A `logging.Handler` for the root logger. Records come from any thread; readers are in the event loop. A follower that
does not keep up loses the oldest records and is told how many.
"""

import asyncio
import contextlib
import logging
import traceback
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from toolcrib.core.log import HIDDEN, hide_secrets, is_secret_name, redact

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_WAITING: Final = 500  # records that a follower may be behind
_TEXT_LIMIT: Final = 8_192  # characters of one text of a record
_OWN_KEYS: Final = frozenset({"event", "level", "timestamp", "logger"})


class LogBuffer(logging.Handler):
    """Keeps the last `size` records as JSON-like maps: at, level, logger, event, and the facts of structured ones."""

    def __init__(self, size: int = 1_000) -> None:
        super().__init__(logging.DEBUG)
        self.size = size
        self._records: deque[dict[str, Any]] = deque(maxlen=size)
        self._followers: set[Follower] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        try:
            entry = _entry(record)
        except Exception:  # noqa: BLE001 - a record that cannot be shown must not stop what it reports on
            self.handleError(record)
            return
        self._records.append(entry)
        for follower in tuple(self._followers):
            follower.offer(record.levelno, entry)

    def last(self, limit: int, level: str = "debug") -> list[dict[str, Any]]:
        """The last records of at least this level, oldest first."""
        least = LEVELS[level]
        found = [entry for entry in tuple(self._records) if LEVELS[entry["level"]] >= least]
        return found[-limit:] if limit else []

    @contextlib.contextmanager
    def follow(self, level: str = "debug") -> Iterator["Follower"]:
        """Records from now on; within an event loop."""
        follower = Follower(LEVELS[level])
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    @property
    def followers(self) -> int:
        """How many are following."""
        return len(self._followers)


class Follower:
    """The records that somebody has not read yet."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[dict[str, Any]] = deque()
        self._lost = 0
        self._news = asyncio.Event()

    def offer(self, level: int, entry: dict[str, Any]) -> None:
        """A new record; from any thread."""
        if level >= self._least:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._take, entry)

    def _take(self, entry: dict[str, Any]) -> None:
        if len(self._waiting) >= _WAITING:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(entry)
        self._news.set()

    async def batches(self) -> AsyncIterator[tuple[list[dict[str, Any]], int]]:
        """What came since the last time, and how many records were lost before it."""
        while True:
            await self._news.wait()
            self._news.clear()
            batch, lost = list(self._waiting), self._lost
            self._waiting.clear()
            self._lost = 0
            yield batch, lost


def _entry(record: logging.LogRecord) -> dict[str, Any]:
    facts: Mapping[str, Any]
    if isinstance(record.msg, dict):  # structlog hands its event over unrendered
        event, facts = str(record.msg.get("event", "")), record.msg
    else:
        event, facts = record.getMessage(), {}
    entry: dict[str, Any] = {
        "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": _level(record.levelno),
        "logger": record.name,
        "event": hide_secrets(event[:_TEXT_LIMIT]),
    }
    for name, value in facts.items():
        if name in _OWN_KEYS or name.startswith("_") or name == "exc_info":
            continue
        entry[name] = HIDDEN if is_secret_name(name) and value is not None else redact(_plain(value))
    if record.exc_info and record.exc_info[1] is not None:
        text = "".join(traceback.format_exception(record.exc_info[1]))
        entry["exception"] = hide_secrets(text[-_TEXT_LIMIT:])
    return entry


def _plain(value: Any) -> Any:
    """The value as JSON knows it, detached from what may still change."""
    text = orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
    return text.decode()[:_TEXT_LIMIT] if len(text) > _TEXT_LIMIT else orjson.loads(text)


def _level(number: int) -> str:
    return next((name for name, least in reversed(LEVELS.items()) if number >= least), "debug")
