"""The cells of the capability engine, and what it costs to start it and to keep it."""

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.calls import Door, Timing, cells_of, mcp_requests, peers
from bench.capability.ship import MOCK, SHIP, SUMMARY
from bench.load import Job, Load, load_process
from bench.machine import memory
from bench.servers import Broken, free_port, has_nginx, nginx, python_module, request, started, temporary_folder

_FILE = str(Path(__file__).parent / "ships.yaml")
_IMO = "9321483"
_ARGUMENTS = f'{{"imo":"{_IMO}"}}'
# what is called, the path behind the ship's, its tool, what it answers
_KINDS = (
    ("mock", "/mock", "mock-ship", MOCK),
    ("call", "", "get-ship", SHIP),
    ("call + map", "/summary", "ship-summary", SUMMARY),
)
_SETTLE_S = 0.5


def measure(timing: Timing, times: int) -> list[dict[str, Any]]:
    """Rows of cells (as `bench.calls`), then one of starting and memory."""
    with temporary_folder() as folder, load_process() as load, _upstream(folder) as url:
        with contextlib.ExitStack() as stack:
            plain = _get(f"/ships/{_IMO}")
            doors = peers(stack, folder / "nginx", url, plain, SHIP.decode())
            doors += _doors(*stack.enter_context(_capability(folder, url)))
            rows = cells_of(load, "capability", doors, timing)
        return [*rows, _start(folder, load, url, times)]


@contextmanager
def _upstream(folder: Path) -> Iterator[str]:
    """The document from nginx where it is installed, else from our own upstream."""
    with contextlib.ExitStack() as stack:
        if has_nginx():
            port = free_port()
            fixed = f"location / {{ default_type application/json; return 200 '{SHIP.decode()}'; }}"
            stack.enter_context(nginx(folder / "nginx-upstream", port, fixed))
        else:
            _, port = stack.enter_context(python_module("bench.upstream"))
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _capability(folder: Path, url: str) -> Iterator[tuple[int, int]]:
    """`toolcrib capability serve` on a free port: its pid and the port."""
    command = (sys.executable, "-m", "toolcrib", "capability", "serve", _FILE, "--base-uri", f"registry={url}")
    with started(*command, "--port", "0", "--json", log=folder / "serve.log") as (process, line):
        yield process.pid, int(line["servers"][0]["port"])


def _doors(pid: int, port: int) -> list[Door]:
    doors = []
    for kind, below, tool, answer in _KINDS:
        requests = {"REST": _get(f"/ships/{_IMO}{below}"), **mcp_requests("/mcp", tool, {}, _ARGUMENTS)}
        doors += [Door(f"{kind}, {n}", ("127.0.0.1", port), r, (pid,), answer.decode()) for n, r in requests.items()]
    return doors


def _start(folder: Path, load: Load, url: str, times: int) -> dict[str, Any]:
    """Seconds from the start of the process to its first answer; memory before and after nine seconds of load."""
    first_s, idle_mb = [], []
    for _ in range(times):
        began = time.perf_counter()
        with _capability(folder, url) as (pid, port):
            status, answer = request(("127.0.0.1", port), "GET", f"/ships/{_IMO}/summary")
            first_s.append(time.perf_counter() - began)
            if (status, answer) != (200, SUMMARY):
                raise Broken(f"the mapped ship: {status} {answer[:500]!r}")
            time.sleep(_SETTLE_S)
            idle_mb.append(memory(pid)[1])
            for door in _doors(pid, port):
                load.run(Job(*door.address, door.request, door.expect, 64, 0.1, 1.0))
            loaded_mb = memory(pid)[1]
    return {
        "what": "start and memory",
        "answer_s": median(first_s),
        "least_s": min(first_s),
        "most_s": max(first_s),
        "idle_mb": median(idle_mb),
        "loaded_mb": loaded_mb,
    }


def _get(path: str) -> str:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n"
