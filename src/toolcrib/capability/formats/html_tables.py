"""The tables of an HTML text, by lexbor, the parser of browsers' rules.

Also run by file in a child process (`confined.py`), so it imports nothing of ours. A table's rows are its own: those
of a table inside one of its cells belong to that table, which is listed too.
"""

from typing import Any, Final

from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

_HIDDEN: Final = {"script", "style", "template"}
_INLINE: Final = frozenset(
    {"a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd", "label"}
    | {"mark", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"}
)
_TEXT: Final = "-text"
_CELLS: Final = {"td", "th"}
_SPARE_TEXT: Final = 1_000_000
_TEXT_PER_CHARACTER: Final = 4  # tables inside cells repeat their text in every cell around them
_SPARE_NAMES: Final = 16 * 2**20  # as in limits.py: every row repeats the headers of its table
_NAMES_PER_CHARACTER: Final = 10


class _Budget:
    """How much may still be written; raises ValueError when it is spent."""

    def __init__(self, length: int) -> None:
        self._left = _SPARE_TEXT + _TEXT_PER_CHARACTER * length
        self._names_left = _SPARE_NAMES + _NAMES_PER_CHARACTER * length

    def spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError("its tables are nested too often")

    def name(self, size: int) -> None:
        self._names_left -= size
        if self._names_left < 0:
            raise ValueError("its rows repeat a header that is too long")


def check_selector(selector: str) -> None:
    """Raise ValueError if it is not a CSS selector."""
    try:
        LexborHTMLParser("").css(selector)
    except SelectolaxError:
        raise ValueError(f"outputSchema {selector[:80]!r} is not a CSS selector") from None


def extract(text: str, selector: str) -> dict[str, Any]:
    """`{"tables": [[{header: cell}]]}` of the tables that the selector matches or contains; all if it is empty.

    The headers are the `th` of a table's first row, that of its `thead` if it has one; a table without is left out,
    and so are rows with a `th`. Missing cells are "". Raises ValueError if nested tables repeat too much.
    """
    document = LexborHTMLParser(text)
    budget = _Budget(len(text))
    tables = []
    for table in _tables(document, selector):
        rows = [[cell for cell in row.iter() if cell.tag in _CELLS] for row in _rows(table)]
        headers = [_text(cell, budget) for cell in rows[0] if cell.tag == "th"] if rows else []
        if any(headers):
            data = (row for row in rows if row and all(cell.tag == "td" for cell in row))
            size = sum(map(len, headers))
            tables.append([_record(headers, size, row, budget) for row in data])
    return {"tables": tables}


def _record(headers: list[str], size: int, cells: list[LexborNode], budget: _Budget) -> dict[str, str]:
    budget.spend(len(headers))  # a wide header makes a wide object of the shortest row
    budget.name(size)
    missing = [""] * (len(headers) - len(cells))
    return dict(zip(headers, [_text(cell, budget) for cell in cells[: len(headers)]] + missing, strict=True))


def _text(cell: LexborNode, budget: _Budget) -> str:
    """What a reader sees in a cell, white space folded; blocks are apart, and inline elements are not."""
    pieces = []
    for node in cell.traverse(include_text=True):
        budget.spend(1)
        tag = node.tag or ""
        if tag == _TEXT:
            parent = node.parent
            if parent is None or parent.tag not in _HIDDEN:
                pieces.append(node.text_content or "")
        elif tag not in _INLINE:
            pieces.append(" ")
    text = " ".join("".join(pieces).split())
    budget.spend(len(text))
    return text


def _tables(document: LexborHTMLParser, selector: str) -> list[LexborNode]:
    """The tables to show, in the order of the document, each once."""
    tables = document.css("table")
    if not selector:
        return tables
    inside = {match.mem_id: True for match in document.css(selector)}  # matched, or in what is matched
    return [table for table in tables if _is_inside(table, inside)]


def _is_inside(node: LexborNode, inside: dict[int, bool]) -> bool:
    """Climb to the first node that is decided; all on the way are decided with it, so the whole stays linear."""
    path = []
    at: LexborNode | None = node
    while at is not None and at.mem_id not in inside:
        path.append(at.mem_id)
        at = at.parent
    verdict = at is not None and inside[at.mem_id]
    inside.update(dict.fromkeys(path, verdict))
    return verdict


def _rows(table: LexborNode) -> list[LexborNode]:
    """The `tr` elements of the table itself, the head's first."""
    head: list[LexborNode] = []
    rows: list[LexborNode] = []
    for section in table.iter():
        if section.tag == "thead":
            head += [row for row in section.iter() if row.tag == "tr"]
        elif section.tag in {"tbody", "tfoot"}:
            rows += [row for row in section.iter() if row.tag == "tr"]
    return head + rows
