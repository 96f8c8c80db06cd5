"""Tool calls: through every door of Toolcrib, beside the direct call, nginx, the bare relay, and a bare commit.

All doors lead to the same upstream. The rounds take turns, so that a busy moment of the machine hits all of them; a
cell shows the medians of its rounds.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from bench.load import Cell, Job, Load, load_process
from bench.machine import Spent, spent
from bench.servers import Broken, Gateway, free_port, gateway, has_nginx, nginx, python_module, temporary_folder
from bench.upstream import ANSWER, ARGUMENTS, PARAMETERS
from toolcrib.core.postgres import EmbeddedPostgres

RELAY = "bare relay"
COMMITS = "PostgreSQL"
_PLAIN = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
_META = (
    '"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":'
    '{"name":"bench","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}'
)


@dataclass(frozen=True, slots=True)
class Door:
    """A way to reach the upstream, and the processes whose time it costs (the upstream's and the load's are not)."""

    name: str
    address: tuple[str, int]
    request: str
    pids: tuple[int, ...]
    expect: str = ANSWER.decode()


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a cell is measured."""

    rounds: int
    warm_s: float
    duration_s: float
    connections: tuple[int, ...]


def measure(timing: Timing) -> list[dict[str, Any]]:
    """Every cell: upstream, connections, door, and its figures."""
    rows = []
    with temporary_folder() as folder, gateway(folder / "data") as crib, load_process() as load:
        with _http_doors(crib, folder) as doors:
            rows += cells_of(load, "HTTP", doors, timing)
        with _mcp_doors(crib, folder) as doors:
            rows += cells_of(load, "MCP", doors, timing)
        rows += asyncio.run(_commits(folder / "data", timing, crib.process.pid))
    return rows


def cells_of(load: Load, upstream: str, doors: list[Door], timing: Timing) -> list[dict[str, Any]]:
    """The figures of every door, beside those of the bare relay, which is one of them."""
    rows = []
    for connections in timing.connections:
        found: dict[str, list[Cell]] = {door.name: [] for door in doors}
        for _ in range(timing.rounds):
            for door in doors:
                job = Job(*door.address, door.request, door.expect, connections, timing.warm_s, timing.duration_s)
                try:
                    found[door.name].append(load.run(job, *door.pids))
                except Broken as error:
                    raise Broken(f"{door.name}, {connections} connections: {error}") from None
        rows += [{"upstream": upstream, "connections": connections, "door": n, **_row(c)} for n, c in found.items()]
        relay = next(row for row in rows if row["door"] == RELAY and row["connections"] == connections)
        for row in rows:
            if row["connections"] == connections:
                row["of_relay"] = row["per_s"] / relay["per_s"]
    return rows


def _row(cells: list[Cell]) -> dict[str, Any]:
    return {
        "per_s": median(cell.per_s for cell in cells),
        "p50_ms": median(cell.p50_ms for cell in cells),
        "p99_ms": median(cell.p99_ms for cell in cells),
        "cpu_us": median(cell.cpu.own_s / cell.count * 1e6 for cell in cells),
        "postgres_us": median(cell.cpu.postgres_s / cell.count * 1e6 for cell in cells),
        "calls": sum(cell.count for cell in cells),
    }


@contextmanager
def _http_doors(crib: Gateway, folder: Path) -> Iterator[list[Door]]:
    """Doors to an HTTP API: nginx with a fixed answer where it is installed, else our own upstream."""
    with contextlib.ExitStack() as stack:
        if has_nginx():
            port = free_port()
            fixed = f"location / {{ default_type application/json; return 200 '{ANSWER.decode()}'; }}"
            stack.enter_context(nginx(folder / "nginx-upstream", port, fixed))
        else:
            _, port = stack.enter_context(python_module("bench.upstream"))
        url = f"http://127.0.0.1:{port}"
        crib.add_http("weather over http", url, "weather_http", "/weather", PARAMETERS)
        plain = _post("/weather", ARGUMENTS.decode(), _PLAIN)
        yield [
            *peers(stack, folder / "nginx-http", url, plain),
            *_toolcrib_doors(crib, "weather_http"),
        ]


@contextmanager
def _mcp_doors(crib: Gateway, folder: Path) -> Iterator[list[Door]]:
    with contextlib.ExitStack() as stack:
        _, port = stack.enter_context(python_module("bench.upstream"))
        url = f"http://127.0.0.1:{port}"
        crib.add_mcp("weather over mcp", f"{url}/mcp")
        plain = _mcp_modern("/mcp", "weather", {})
        yield [*peers(stack, folder / "nginx-mcp", url, plain), *_toolcrib_doors(crib, "weather")]


def peers(
    stack: contextlib.ExitStack, folder: Path, url: str, request: str, expect: str = ANSWER.decode()
) -> list[Door]:
    """The same request without anything between, through nginx if it is installed, and through the bare relay."""
    doors = [Door("direct", _address(url), request, (), expect)]
    if has_nginx():
        port = free_port()
        proxy = 'location / { proxy_pass http://upstream; proxy_http_version 1.1; proxy_set_header Connection ""; }'
        upstream = f"upstream upstream {{ server {url.removeprefix('http://')}; keepalive 64; }}"
        master = stack.enter_context(nginx(folder, port, proxy, upstream))
        doors.append(Door("nginx in front", ("127.0.0.1", port), request, (master,), expect))
    process, port = stack.enter_context(python_module("bench.relay", url))
    return [*doors, Door(RELAY, ("127.0.0.1", port), request, (process.pid,), expect)]


def mcp_requests(path: str, tool: str, headers: dict[str, str], arguments: str) -> dict[str, str]:
    """A tool call in both eras of MCP."""
    params = f'{{"name":"{tool}","arguments":{arguments}}}'
    old = _post(path, _rpc(params), _PLAIN | headers | {"MCP-Protocol-Version": "2025-11-25"})
    return {"MCP 2025-11-25": old, "MCP 2026-07-28": _mcp_modern(path, tool, headers, arguments)}


def _toolcrib_doors(crib: Gateway, tool: str) -> list[Door]:
    key = {"Authorization": f"Bearer {crib.key}"}
    rest = _post(f"/api/tools/{tool}/call", f'{{"arguments":{ARGUMENTS.decode()}}}', _PLAIN | key)
    requests = {"REST": rest, **mcp_requests("/mcp", tool, key, ARGUMENTS.decode())}
    return [Door(f"Toolcrib, {n}", crib.address, request, (crib.process.pid,)) for n, request in requests.items()]


def _mcp_modern(path: str, tool: str, headers: dict[str, str], arguments: str = ARGUMENTS.decode()) -> str:
    params = f'{{"name":"{tool}","arguments":{arguments},{_META}}}'
    modern = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": tool}
    return _post(path, _rpc(params), _PLAIN | headers | modern)


def _rpc(params: str) -> str:
    return f'{{"jsonrpc":"2.0","id":@JSONRPCID,"method":"tools/call","params":{params}}}'


def _post(path: str, body: str, headers: dict[str, str]) -> str:
    """A whole request; the mark for the id is as long as the id."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: {len(body)}\r\n\r\n{body}"


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80


async def _commits(data: Path, timing: Timing, gateway_pid: int) -> list[dict[str, Any]]:
    """The limit under the audit: rows as a call writes them, one commit each, over as many connections."""
    dsn = await EmbeddedPostgres(data).start()  # it runs already, so this attaches
    rows = []
    for connections in timing.connections:
        opened = [await asyncpg.connect(dsn) for _ in range(connections)]
        latencies: list[float] = []
        before, until = spent(gateway_pid), time.perf_counter() + timing.duration_s
        await asyncio.gather(*(_commit_until(conn, until, latencies) for conn in opened))
        cpu = spent(gateway_pid) - before
        for conn in opened:
            await conn.close()
        latencies.sort()
        cell = Cell(
            per_s=len(latencies) / timing.duration_s,
            p50_ms=latencies[len(latencies) // 2] * 1000,
            p99_ms=latencies[len(latencies) * 99 // 100] * 1000,
            errors=0,
            count=len(latencies),
            cpu=Spent(0.0, cpu.postgres_s),
        )
        door = "one audit row, one commit, no call"
        rows.append({"upstream": COMMITS, "connections": connections, "door": door, **_row([cell])})
    return rows


async def _commit_until(conn: asyncpg.Connection, until: float, latencies: list[float]) -> None:
    while (began := time.perf_counter()) < until:
        await conn.execute(
            "INSERT INTO tool_call (workspace_id, principal_id, tool_name, door, outcome, arguments, result_bytes,"
            " duration_us, request_id, called_at) VALUES ('bench', 'bench', 'bench', 'rest', 'ok', $1::text::json, 64,"
            " 1, 'bench', now())",
            ARGUMENTS.decode(),
        )
        latencies.append(time.perf_counter() - began)
