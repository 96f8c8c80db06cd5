"""The load: N keep-alive connections, each with one request under way, for a fixed time, in a process of its own.

`Load` is the parent's handle. The process reads a job per line, answers `"go"` when the warm-up is over and the figures
when the time is. Every answer must be a 200 that holds the expected bytes; each fiftieth is parsed, and its JSON-RPC id
compared.
"""

import asyncio
import json
import re
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import uvloop

from bench.machine import Spent, spent
from bench.servers import Broken, started

_ID = b"@JSONRPCID"  # stands for ten digits that differ from request to request
_FIRST_ID = 1_000_000_000
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_PARSED_EVERY = 50


@dataclass(frozen=True, slots=True)
class Job:
    """One cell of a table.

    Attributes:
        request: the whole HTTP request, `@JSONRPCID` where its id belongs.
        expect: what the body of every answer holds.
    """

    host: str
    port: int
    request: str
    expect: str
    connections: int
    warm_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of a job; `cpu` is of the processes that were watched meanwhile."""

    per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    count: int
    cpu: Spent


class Load:
    """The load process."""

    def __init__(self, process: Any) -> None:
        self._process = process

    def run(self, job: Job, *watched: int) -> Cell:
        """Run a job; raises Broken when answers are wrong."""
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        said = json.loads(self._process.stdout.readline())
        if said != "go":
            raise Broken(f"the load on port {job.port} could not begin: {said}")
        before = spent(*watched)
        figures = json.loads(self._process.stdout.readline())
        cpu = spent(*watched) - before
        if figures["errors"]:
            raise Broken(f"{figures['errors']} of {figures['count']} answers were wrong: {figures['example']}")
        del figures["example"]
        return Cell(**figures, cpu=cpu)


@contextmanager
def load_process() -> Iterator[Load]:
    """A load process."""
    with started(sys.executable, "-m", "bench.load") as (process, _):
        yield Load(process)


class _Run:
    """The state that a job's connections share."""

    def __init__(self, job: Job) -> None:
        self.expect = job.expect.encode()
        self.before, marker, self.after = job.request.encode().partition(_ID)
        self.has_id = bool(marker)
        self.last_id = _FIRST_ID
        self.latencies = array("d")
        self.measuring = self.over = False
        self.errors = 0
        self.example = ""

    def failed(self, answer: bytes) -> None:
        self.errors += 1
        self.example = self.example or repr(answer[:500])


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run) -> None:
        self._run = run
        self._transport: Any = None
        self._data = b""
        self._sent_at = 0.0
        self._id = 0
        self._whole = 0  # bytes of the answer, 0 while its head is incomplete
        self._body = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        run = self._run
        self._whole, self._data = 0, b""
        if run.has_id:
            run.last_id = self._id = run.last_id + 1
            request = b"%b%d%b" % (run.before, self._id, run.after)
        else:
            request = run.before
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data = data = self._data + data if self._data else data
        if not self._whole:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(data, 0, end)
            if length is None:
                self._run.failed(data)
                self._transport.close()
                return
            self._body, self._whole = end + 4, end + 4 + int(length[1])
        if len(data) < self._whole:
            return
        run = self._run
        if run.measuring:
            run.latencies.append(time.perf_counter() - self._sent_at)
        if not self._is_right(data):
            run.failed(data)
        if run.over:
            self._transport.close()
        else:
            self._send()

    def _is_right(self, data: bytes) -> bool:
        run = self._run
        if len(data) != self._whole or not data.startswith(b"HTTP/1.1 200") or data.find(run.expect, self._body) < 0:
            return False
        if len(run.latencies) % _PARSED_EVERY:
            return True
        try:
            answer = orjson.loads(data[self._body :])
        except orjson.JSONDecodeError:
            return False
        return not run.has_id or answer.get("id") == self._id

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._run.over:
            self._run.failed(f"the connection was closed: {exc}".encode())


async def _run(job: Job) -> dict[str, Any] | str:
    loop = asyncio.get_running_loop()
    run = _Run(job)
    try:
        made = [
            await loop.create_connection(lambda: _Connection(run), job.host, job.port) for _ in range(job.connections)
        ]
    except OSError as error:
        return str(error)
    await asyncio.sleep(job.warm_s)
    print('"go"', flush=True)
    run.measuring, began = True, time.perf_counter()
    await asyncio.sleep(job.duration_s)
    took_s = time.perf_counter() - began
    run.measuring, run.over = False, True
    latencies = sorted(run.latencies)
    for transport, _ in made:
        transport.abort()
    if not latencies:
        run.failed(b"nothing came back in time")
        latencies = [0.0]
    return {
        "per_s": len(latencies) / took_s,
        "p50_ms": latencies[len(latencies) // 2] * 1000,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1000,
        "errors": run.errors,
        "count": len(latencies),
        "example": run.example,
    }


def _main() -> None:
    print('"ready"', flush=True)
    for line in sys.stdin:
        print(json.dumps(uvloop.run(_run(Job(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    try:
        _main()
    except KeyboardInterrupt:
        sys.exit(0)
