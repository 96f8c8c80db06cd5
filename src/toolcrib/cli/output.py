"""What commands print: tables on a terminal, JSON with `--json` or into a pipe, words for people on standard error.

Everything that came from elsewhere is printed without control characters, so that no tool can write escape sequences
to somebody's terminal.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

words = Console(stderr=True, highlight=False, soft_wrap=True)


def wants_json(asked: bool) -> bool:
    """Whether to print JSON: it was asked for, or nobody looks at standard output."""
    return asked or not sys.stdout.isatty()


def print_json(value: Any) -> None:
    """Print a value as JSON in UTF-8, whatever the locale."""
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    sys.stdout.flush()
    # a lone surrogate becomes \udxxx, which is how JSON writes it
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
    sys.stdout.buffer.flush()


def printable(text: Any) -> str:
    """A value as text that is safe to print."""
    return _CONTROL.sub("\ufffd", "" if text is None else str(text)).encode("utf-8", "replace").decode()


def print_text(text: str) -> None:
    """Print foreign text on standard output, line by line as it is."""
    sys.stdout.flush()
    sys.stdout.buffer.write(printable(text.replace("\r\n", "\n")).encode() + b"\n")
    sys.stdout.buffer.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """Print rows under headings, the last column cut to what the terminal has room for; `empty` if there are none."""
    if not rows:
        say(empty)
        return
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        last = i == len(columns) - 1
        table.add_column(column, no_wrap=True, overflow="ellipsis" if last else "fold", ratio=1 if last else None)
    for row in rows:
        table.add_row(*(Text(printable(cell).replace("\n", " ")) for cell in row))
    console.print(table)


def print_panel(text: str, title: str, style: str = "green") -> None:
    """Print something short that must not be overlooked on standard output."""
    Console(highlight=False).print(
        Panel(Text(text), title=title, expand=False, border_style=style), soft_wrap=True, crop=False
    )


def say(text: str) -> None:
    """Tell a person something, on standard error."""
    words.print(Text(printable(text)))


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show a spinner on standard error while the block runs, if somebody looks at it."""
    if words.is_terminal:
        with words.status(Text(printable(text))):
            yield
    else:
        yield


def local_time(text: str | None) -> str:
    """An RFC 3339 time as this machine's wall clock shows it."""
    if not text:
        return ""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
