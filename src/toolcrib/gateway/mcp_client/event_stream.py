"""Server-sent events, read as the HTML standard says, one chunk at a time.

Lines end in LF, CRLF or CR and may be split anywhere between chunks; a byte order mark, comments and unknown fields are
skipped, and so are events without data (MCP uses them to hand out an id). Data stays bytes. At most `max_bytes` of one
unfinished event are held.
"""

import re
from dataclasses import dataclass

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


@dataclass(slots=True)
class Event:
    """One event."""

    name: str
    data: bytes


class EventTooLarge(Exception):
    """One event is larger than the limit."""


class EventReader:
    """Turns the chunks of one response body into events.

    Attributes:
        last_id: the newest event id, for `Last-Event-ID`; None until the server sends one.
        retry_s: how long the server asks us to wait before reconnecting, or None.
    """

    def __init__(self, max_bytes: int, *, last_id: str | None = None) -> None:
        self.last_id = last_id
        self.retry_s: float | None = None
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []  # of a line whose end has not come yet
        self._data: list[bytes] = []
        self._held = 0
        self._name = "message"
        self._id: str | None = last_id
        self._at_start = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that this chunk completes; raises EventTooLarge."""
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if b"\n" not in chunk and b"\r" not in chunk:
            self._hold(chunk)
            return []
        if self._pieces:
            self._held -= sum(map(len, self._pieces))
            chunk = b"".join([*self._pieces, chunk])
            self._pieces = []
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            lines = chunk.splitlines()
            rest = b"" if chunk.endswith((b"\r", b"\n")) else lines.pop()
        else:
            *lines, rest = chunk.split(b"\n")
        events = [event for line in lines if (event := self._line(line)) is not None]
        self._hold(rest)
        return events

    def _hold(self, piece: bytes) -> None:
        if piece:
            self._pieces.append(piece)
            self._count(len(piece))

    def _count(self, size: int) -> None:
        self._held += size
        if self._held > self._max_bytes:
            raise EventTooLarge

    def _line(self, line: bytes) -> Event | None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._data.append(value)
                self._count(len(value) + 1)
            case b"event":
                self._name = value.decode(errors="replace") or "message"
            case b"id" if not _CONTROL.search(value):  # the standard excludes NUL; a header carries none of these
                self._id = value.decode(errors="replace") or None
            case b"retry" if value.isdigit() and len(value) < 10:
                self.retry_s = int(value) / 1000
            case _:
                pass
        return None

    def _dispatch(self) -> Event | None:
        self.last_id = self._id
        name, self._name = self._name, "message"
        if not self._data:
            return None
        data, self._data = self._data, []
        self._held -= sum(map(len, data)) + len(data)
        body = data[0] if len(data) == 1 else b"\n".join(data)
        return Event(name, body) if body.strip() else None
