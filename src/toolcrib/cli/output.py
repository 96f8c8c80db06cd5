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

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from toolcrib.cli.failure import CommandFailed

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_GAP = "  "
_LEAST = 20  # columns of a terminal that the last cell keeps however narrow it is

words = Console(stderr=True, highlight=False, soft_wrap=True)


def wants_json(asked: bool) -> bool:
    """Whether to print JSON: it was asked for, or nobody looks at standard output."""
    return asked or not sys.stdout.isatty()


def print_json(value: Any) -> None:
    """Print a value as JSON in UTF-8, whatever the locale."""
    # a lone surrogate becomes \udxxx, which is how JSON writes it
    _write(json.dumps(value, ensure_ascii=False, indent=2).encode("utf-8", "backslashreplace"))


def _write(line: bytes) -> None:
    """Write a line to standard output; a reader who left early is Typer's to handle.

    Raises:
        CommandFailed: there is no room for it.
    """
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandFailed(f"Standard output cannot be written: {error.strerror}.") from None


def printable(text: Any) -> str:
    """A value as text that is safe to print."""
    return _CONTROL.sub("\ufffd", "" if text is None else str(text)).encode("utf-8", "replace").decode()


def print_text(text: str) -> None:
    """Print foreign text on standard output, line by line as it is."""
    _write(printable(text.replace("\r\n", "\n")).encode())


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str = "", cut_last: bool = True
) -> None:
    """Print rows under headings; `empty` is said if there are none.

    The last column is cut to what the terminal has room for, the others never: what people copy stays whole.
    """
    if not rows:
        if empty:
            say(empty)
        return
    lines = [tuple(columns), *(tuple(printable(cell).replace("\n", " ") for cell in row) for row in rows)]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(columns) - 1)]
    console = Console(highlight=False)
    room = max(console.width - sum(widths) - len(_GAP) * len(widths), _LEAST)
    for number, line in enumerate(lines):
        last = line[-1]
        if cut_last and cell_len(last) > room:
            last = set_cell_size(last, room - 1).rstrip() + "…"
        text = _GAP.join([*map(set_cell_size, line, widths), last]).rstrip()
        console.print(Text(text, style="bold" if number == 0 else ""), soft_wrap=True)


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
