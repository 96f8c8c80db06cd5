"""Starting and stopping: from nothing, and again on the same data; what it holds while nobody asks."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.machine import memory
from bench.servers import Broken, gateway, python_module, request, stop, temporary_folder
from toolcrib.core.postgres import EmbeddedPostgres

_LIST = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
_SETTLE_S = 1.0


def measure(times: int) -> list[dict[str, Any]]:
    """Rows: Toolcrib on a new folder and on a used one; PostgreSQL alone and the bare relay as what it stands on."""
    cold, warm, alone, again, relays = [], [], [], [], []
    for _ in range(times):
        with temporary_folder() as folder:
            first, key = _toolcrib(folder / "data", None)
            cold.append(first)
            warm.append(_toolcrib(folder / "data", key)[0])
        with temporary_folder() as folder:
            alone.append(asyncio.run(_postgres(folder)))
            again.append(asyncio.run(_postgres(folder)))
        relays.append(_relay())
    return [
        _row("toolcrib up, new data folder", cold),
        _row("toolcrib up, used data folder", warm),
        _row("its PostgreSQL alone, new", alone),
        _row("its PostgreSQL alone, used", again),
        _row("bare relay (Python, uvicorn)", relays),
        _row("python -c pass", [_python() for _ in range(times)]),
    ]


def _toolcrib(data: Path, key: str | None) -> tuple[dict[str, float], str]:
    began = time.perf_counter()
    with gateway(data, key=key) as crib:
        status, answer = request(crib.address, "POST", "/mcp", _LIST, crib.key)
        answer_s = time.perf_counter() - began
        if status != 200 or b'"tools":[' not in answer:
            raise Broken(f"tools/list: {status} {answer[:500]!r}")
        time.sleep(_SETTLE_S)
        postgres_mb, own_mb = memory(crib.process.pid)
        stop_s = stop(crib.process)
        return {
            "answer_s": answer_s,
            "stop_s": stop_s,
            "memory_mb": postgres_mb + own_mb,
            "postgres_mb": postgres_mb,
        }, crib.key


async def _postgres(data: Path) -> dict[str, float]:
    server = EmbeddedPostgres(data)
    began = time.perf_counter()
    await server.start()
    answer_s = time.perf_counter() - began
    began = time.perf_counter()
    await server.stop()
    return {"answer_s": answer_s, "stop_s": time.perf_counter() - began}


def _relay() -> dict[str, float]:
    with python_module("bench.upstream") as (_, upstream):
        began = time.perf_counter()
        with python_module("bench.relay", f"http://127.0.0.1:{upstream}") as (process, port):
            request(("127.0.0.1", port), "POST", "/", b"{}")
            answer_s = time.perf_counter() - began
            postgres_mb, own_mb = memory(process.pid)
            return {"answer_s": answer_s, "memory_mb": postgres_mb + own_mb, "stop_s": stop(process)}


def _python() -> dict[str, float]:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return {"answer_s": time.perf_counter() - began}


def _row(what: str, runs: list[dict[str, float]]) -> dict[str, Any]:
    times = [run["answer_s"] for run in runs]
    medians = {name: median(run[name] for run in runs) for name in runs[0]}
    return {"what": what, **medians, "least_s": min(times), "most_s": max(times)}
