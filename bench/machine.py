"""What the kernel says of processes: who belongs to whom, how much processor time and memory they took. Linux only."""

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_POSTGRES = {"postgres"}


@dataclass(frozen=True, slots=True)
class _Stat:
    pid: int
    parent: int
    name: str
    cpu_s: float  # its own, and that of children which it has waited for


@dataclass(frozen=True, slots=True)
class Spent:
    """Processor seconds, user and system, of a process tree: PostgreSQL's processes and all others."""

    own_s: float
    postgres_s: float

    def __sub__(self, earlier: "Spent") -> "Spent":
        return Spent(self.own_s - earlier.own_s, self.postgres_s - earlier.postgres_s)


def spent(*pids: int) -> Spent:
    """What these processes and all their descendants have used since they started."""
    own = postgres = 0.0
    for stat in _tree(pids):
        if stat.name in _POSTGRES:
            postgres += stat.cpu_s
        else:
            own += stat.cpu_s
    return Spent(own, postgres)


def memory(pid: int) -> tuple[float, float]:
    """Megabytes (PSS, so that shared pages count once) of a process tree: PostgreSQL's processes, all others."""
    own = postgres = 0.0
    for stat in _tree((pid,)):
        lines = (_PROC / str(stat.pid) / "smaps_rollup").read_text().splitlines()
        mb = next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
        if stat.name in _POSTGRES:
            postgres += mb
        else:
            own += mb
    return postgres, own


def description() -> dict[str, Any]:
    """What a figure needs beside it to be compared: the machine, and the versions of what was measured."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_kb = int((_PROC / "meminfo").read_text().split()[1])
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(memory_kb / 2**20, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("uvicorn", "uvloop", "httptools", "asyncpg", "mcp")},
        "load_average": os.getloadavg()[0],
    }


def _tree(roots: tuple[int, ...]) -> list[_Stat]:
    every = {stat.pid: stat for entry in _PROC.iterdir() if entry.name.isdigit() and (stat := _stat(entry))}
    wanted = {pid for pid in roots if pid in every}
    grown = True
    while grown:
        more = {stat.pid for stat in every.values() if stat.parent in wanted} - wanted
        wanted |= more
        grown = bool(more)
    return [every[pid] for pid in wanted]


def _stat(entry: Path) -> _Stat | None:
    try:
        text = (entry / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None  # it ended meanwhile
    head, _, tail = text.rpartition(")")  # the name may hold anything, a bracket too
    fields = tail.split()
    ticks = sum(map(int, fields[11:15]))
    return _Stat(int(entry.name), int(fields[1]), head.partition("(")[2], ticks * _TICK_S)
