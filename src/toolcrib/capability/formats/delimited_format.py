"""CSV, TSV and PSV: the first row names the members, each further row is an object of strings.

Quotes are honoured in all three. Blank lines are skipped. A row that is too short lacks its last members; one that is
too long is refused unless the rest is empty: it mostly means an unquoted separator, and shifted cells are worse than
an error.
"""

import csv
import io
import itertools
from collections.abc import Callable
from typing import Any, Final

from toolcrib.capability.formats.charsets import to_text
from toolcrib.capability.formats.limits import MAX_ROWS, NAMES_PER_CHARACTER, SPARE_NAMES

_SEPARATORS: Final = {"csv": ",", "tsv": "\t", "psv": "|"}


def open_decoder(name: str, _schema: str | None, _folders: tuple[str, ...]) -> Callable[[bytes, str | None], Any]:
    """The decoder for that separator; it has no schema."""
    separator = _SEPARATORS[name]

    def decode(body: bytes, charset: str | None) -> Any:
        try:
            return _objects(to_text(body, charset), separator)
        except csv.Error as e:
            raise ValueError(str(e)) from None

    return decode


def _objects(text: str, separator: str) -> list[dict[str, str]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header = [name.strip() for name in next((row for row in rows if row), [])]
    width = len(header)
    named = [0, *itertools.accumulate(map(len, header))]  # characters of names that a row of so many cells repeats
    left = SPARE_NAMES + NAMES_PER_CHARACTER * len(text)
    tree: list[dict[str, str]] = []
    for row in rows:
        if len(row) > width and any(row[width:]):
            raise ValueError(f"line {rows.line_num} has {len(row)} cells, but the header has {width}")
        if len(tree) >= MAX_ROWS:
            raise ValueError(f"it has more than {MAX_ROWS} rows")
        if row:
            left -= named[min(len(row), width)]
            if left < 0:
                raise ValueError("its rows repeat a header that is too long")
            tree.append(dict(zip(header, row, strict=False)))
    return tree
