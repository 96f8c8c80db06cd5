"""`python -m bench`: measure, print tables, write `bench/out/<time>.json`."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import calls, listing, start
from bench.machine import description
from bench.servers import has_nginx

_OUT = Path(__file__).parent / "out"
_PARTS = ("start", "calls", "list", "queue")
_console = Console(width=None if sys.stdout.isatty() else 130)


def main() -> None:
    """Run what was asked for."""
    options = _options()
    began = time.monotonic()
    run: dict[str, Any] = {"machine": description(), "quick": options.quick}
    _console.print(
        f"[bold]Toolcrib bench[/] {run['machine']['commit']}, {run['machine']['cores']} cores of"
        f" {run['machine']['cpu']}, Python {run['machine']['python']}"
    )
    if not has_nginx():
        _console.print("nginx is not installed: its rows are left out (and a slower upstream stands in for it).")
    for part in options.only:
        run[part] = _MEASURE[part](options.quick)
    run["took_s"] = round(time.monotonic() - began, 1)
    _OUT.mkdir(exist_ok=True)
    path = _OUT / f"{run['machine']['at'].replace(':', '')[:17]}.json"
    path.write_text(json.dumps(run, indent=1))
    _console.print(
        f"{run['took_s']:.0f} s; the figures are in {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less than a minute; for a look, not for a record")
    parser.add_argument("--only", default=",".join(_PARTS), help=f"some of {','.join(_PARTS)}")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(_PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    return options


def _start(quick: bool) -> Any:
    rows = start.measure(times=1 if quick else 5)
    table = _table(
        "Start and stop, medians",
        "",
        "to the first answer, s",
        "spread",
        "stop, s",
        "memory idle, MB",
        "of it PostgreSQL",
    )
    for row in rows:
        spread = f"{row['least_s']:.2f}-{row['most_s']:.2f}"
        table.add_row(
            row["what"],
            f"{row['answer_s']:.2f}",
            spread,
            _number(row.get("stop_s"), ".2f"),
            _number(row.get("memory_mb"), ".0f"),
            _number(row.get("postgres_mb"), ".0f"),
        )
    _console.print(table)
    return rows


def _calls(quick: bool) -> Any:
    timing = calls.Timing(1, 0.2, 0.6, (1, 32)) if quick else calls.Timing(3, 0.3, 1.0, (1, 8, 32))
    rows = calls.measure(timing)
    for upstream in dict.fromkeys(row["upstream"] for row in rows):
        table = _table(
            f"Calls, {upstream} upstream" if upstream != "PostgreSQL" else "The limit under the audit",
            "connections",
            "",
            "calls/s",
            "of the relay",
            "p50 ms",
            "p99 ms",
            "CPU µs/call",
            "PostgreSQL µs/call",
        )
        last = None
        for row in (row for row in rows if row["upstream"] == upstream):
            if last not in {None, row["connections"]}:
                table.add_section()
            last = row["connections"]
            table.add_row(
                str(row["connections"]),
                row["door"],
                f"{row['per_s']:,.0f}",
                _number(row.get("of_relay"), ".2f"),
                f"{row['p50_ms']:.2f}",
                f"{row['p99_ms']:.2f}",
                f"{row['cpu_us']:.0f}" if row["cpu_us"] else "",
                f"{row['postgres_us']:.0f}" if row["postgres_us"] else "",
            )
        _console.print(table)
    return rows


def _list(quick: bool) -> Any:
    rows = listing.measure(times=2 if quick else 7)
    table = _table(
        "tools/list, medians", "tools", "", "first page, ms", "all pages, ms", "pages", "MB", "tools added in, s"
    )
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


def _queue(quick: bool) -> Any:
    return None


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if column == "" else "right", overflow="fold")
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


_MEASURE = {"start": _start, "calls": _calls, "list": _list, "queue": _queue}

if __name__ == "__main__":
    sys.exit(main())
