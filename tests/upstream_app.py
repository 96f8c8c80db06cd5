"""A real HTTP/1.1 server on loopback whose answers are a function of the request, and time that a test moves by hand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from raw_upstream import Reader, Upstream, Writer, client, upstream
from toolcrib.core.http import OutboundClient


@dataclass
class Asked:
    """A request that arrived."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        return next((value for known, value in self.headers if known.lower() == name), None)

    def count(self, name: str) -> int:
        return sum(known.lower() == name for known, _ in self.headers)

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)


@dataclass
class Told:
    """An answer to send."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] | list[tuple[str, str]] = field(default_factory=dict)


Answer = Callable[[Asked], Told | Awaitable[Told]]


@dataclass
class App:
    """The server and what it was asked."""

    url: str
    outbound: OutboundClient
    asked: list[Asked]
    raw: Upstream


def _encoded(told: Told, *, head: bool) -> bytes:
    pairs = told.headers.items() if isinstance(told.headers, Mapping) else told.headers
    lines = [f"HTTP/1.1 {told.status} {HTTPStatus(told.status).phrase}"]
    if told.status not in {204, 304}:
        lines.append(f"Content-Length: {len(told.body)}")
    lines += [f"{name}: {value}" for name, value in pairs]
    text = "\r\n".join(lines) + "\r\n\r\n"
    return text.encode("latin-1") + (b"" if head else told.body)


@contextlib.asynccontextmanager
async def app(answer: Answer, **options: object) -> AsyncIterator[App]:
    """Serve `answer`; the outbound client is closed first."""
    asked: list[Asked] = []

    async def handler(served: Upstream, reader: Reader, writer: Writer) -> None:
        while True:
            head, _, body = (await served.request(reader)).partition(b"\r\n\r\n")
            first, *lines = head.decode("utf-8").split("\r\n")
            method, target, _ = first.split(" ")
            pairs = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
            request = Asked(method, target, pairs, body)
            asked.append(request)
            told = answer(request)
            if not isinstance(told, Told):
                told = await told
            writer.write(_encoded(told, head=method == "HEAD"))
            await writer.drain()

    async with upstream(handler) as served, client(**options) as outbound:
        yield App(served.url, outbound, asked, served)


class Time:
    """Seconds that pass when told to, or when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)
