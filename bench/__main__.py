"""`python -m bench`: measure, print tables, write `bench/out/<time>.json`. What is measured, and why: README.md."""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import calls, listing, queue_bench, start
from bench.capability import measure as capability
from bench.machine import description
from bench.servers import has_nginx, temporary_folder

_OUT = Path(__file__).parent / "out"
_console = Console(width=None if sys.stdout.isatty() else 130)
Rows = list[dict[str, Any]]
_CELL_COLUMNS = ("", "calls/s", "of the relay", "p50 ms", "p99 ms", "CPU µs/call", "PostgreSQL µs/call")


def main() -> None:
    """Run what was asked for."""
    options = _options()
    began = time.monotonic()
    machine = description()
    run: dict[str, Any] = {"machine": machine, "quick": options.quick}
    about = f"{machine['commit']}, {machine['cores']} cores of {machine['cpu']}, Python {machine['python']}"
    _console.print(f"[bold]Toolcrib bench[/] {about}, load average {machine['load_average']:.1f}")
    if not has_nginx():
        _console.print("nginx is not installed: its rows are left out, and a slower upstream stands in for it.")
    for part in options.only:
        run[part] = _PARTS[part](options)
    run["took_s"] = round(time.monotonic() - began, 1)
    _OUT.mkdir(exist_ok=True)
    path = _OUT / f"{machine['at'].replace(':', '')[:17]}.json"
    path.write_text(json.dumps(run, indent=1))
    _console.print(f"{run['took_s']:.0f} s; the figures are in bench/out/{path.name}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute: for a look, not for a record")
    parser.add_argument("--only", default=",".join(_PARTS), help=f"some of {','.join(_PARTS)}")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(_PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    return options


def _start(options: argparse.Namespace) -> Rows:
    rows = start.measure(times=1 if options.quick else 3)
    columns = ("", "to the first answer, s", "spread", "stop, s", "memory idle, MB", "of it PostgreSQL")
    table = _table("Start and stop, medians", *columns)
    for row in rows:
        table.add_row(
            row["what"],
            f"{row['answer_s']:.2f}",
            f"{row['least_s']:.2f}-{row['most_s']:.2f}",
            _number(row.get("stop_s"), ".2f"),
            _number(row.get("memory_mb"), ".0f"),
            _number(row.get("postgres_mb"), ".0f"),
        )
    _console.print(table)
    return rows


def _calls(options: argparse.Namespace) -> Rows:
    timing = calls.Timing(1, 0.2, 0.5, (1, 32)) if options.quick else calls.Timing(3, 0.3, 1.0, (1, 8, 32))
    rows = calls.measure(timing)
    for upstream in dict.fromkeys(row["upstream"] for row in rows):
        title = "The limit under the audit" if upstream == calls.COMMITS else f"Calls to an {upstream} upstream"
        _print_cells(title, [row for row in rows if row["upstream"] == upstream])
    return rows


def _capability(options: argparse.Namespace) -> Rows:
    timing = calls.Timing(1, 0.2, 0.5, (1, 64)) if options.quick else calls.Timing(3, 0.3, 1.0, (1, 8, 64))
    *cells, start = capability.measure(timing, times=1 if options.quick else 5)
    _print_cells("A capability file, one process", cells)
    columns = ("to the first answer, s", "spread", "memory idle, MB", "after load, MB")
    table = _table("A capability file: start and memory", *columns)
    spread = f"{start['least_s']:.2f}-{start['most_s']:.2f}"
    table.add_row(f"{start['answer_s']:.2f}", spread, f"{start['idle_mb']:.0f}", f"{start['loaded_mb']:.0f}")
    _console.print(table)
    return [*cells, start]


def _print_cells(title: str, rows: Rows) -> None:
    table = _table(title, "connections", *_CELL_COLUMNS)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(
            str(row["connections"]),
            row["door"],
            f"{row['per_s']:,.0f}",
            _number(row.get("of_relay"), ".2f"),
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            _number(row["cpu_us"] or None, ".0f"),
            _number(row["postgres_us"] or None, ".0f"),
            end_section=following is not None and following["connections"] != row["connections"],
        )
    _console.print(table)


def _list(options: argparse.Namespace) -> Rows:
    rows = listing.measure(times=3 if options.quick else 9)
    columns = ("tools", "", "first page, ms", "all pages, ms", "pages", "MB", "tools added in, s")
    table = _table("tools/list, medians", *columns)
    for row in rows:
        table.add_row(
            f"{row['tools']:,}",
            row["what"],
            f"{row['first_ms']:.2f}",
            f"{row['all_ms']:.2f}",
            str(row["pages"]),
            f"{row['bytes'] / 1e6:.2f}",
            _number(row.get("sync_s"), ".2f"),
        )
    _console.print(table)
    return rows


def _queue(options: argparse.Namespace) -> Rows:
    pace = {"rounds": 1, "cell_s": 0.2} if options.quick else {}
    with temporary_folder() as folder:
        rows = asyncio.run(queue_bench.measure_here(folder, **pace))
    _console.print(queue_bench.table_of(rows))
    return rows


_PARTS = {"start": _start, "calls": _calls, "list": _list, "queue": _queue, "capability": _capability}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()
