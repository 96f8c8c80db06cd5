"""Tables and sections of a Markdown text, by markdown-it (CommonMark and GFM tables), top-level blocks only.

Also run by file in a child process (`confined.py`), so it imports nothing of ours.
"""

from collections.abc import Iterator
from typing import Any, Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

_PARSER: Final = MarkdownIt("commonmark").enable("table")
_CODE: Final = {"fence", "code_block"}
_SPARE_NAMES: Final = 16 * 2**20  # as in limits.py: every row repeats the headers of its table
_NAMES_PER_CHARACTER: Final = 10


def extract(text: str, prefix: str) -> dict[str, Any]:
    """`{"tables": [[{header: cell}]], "sections": [{heading, level, content}]}` of a text without front matter.

    Sections are those whose heading starts with `prefix`. Content is plain text, a line for each block; it holds no
    tables and no HTML. Raises ValueError if the rows of its tables repeat too much.
    """
    left = _SPARE_NAMES + _NAMES_PER_CHARACTER * len(text)
    tables = []
    sections: list[dict[str, Any]] = []
    content: list[str] = []
    for block in _blocks(_PARSER.parse(text)):
        kind = block[0].type
        if kind == "table_open":
            rows = _rows(block)
            left -= len(rows) * sum(map(len, rows[0]))
            if left < 0:
                raise ValueError("its rows repeat a header that is too long")
            if any(rows[0]):
                tables.append([dict(zip(rows[0], row, strict=False)) for row in rows[1:]])
        elif kind == "heading_open":
            _finish(sections, content)
            sections.append({"heading": _text(block), "level": int(block[0].tag[1:]), "content": ""})
        else:
            content.append(_text(block))
    _finish(sections, content)
    return {"tables": tables, "sections": [one for one in sections if one["heading"].startswith(prefix)]}


def _finish(sections: list[dict[str, Any]], content: list[str]) -> None:
    """Give the blocks since the last heading to its section; those before the first heading belong to none."""
    if sections:
        sections[-1]["content"] = "\n".join(text for text in content if text)
    content.clear()


def _blocks(tokens: list[Token]) -> Iterator[list[Token]]:
    """The tokens of each top-level block."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []


def _rows(table: list[Token]) -> list[list[str]]:
    """The cells of each row, the header first."""
    rows: list[list[str]] = []
    for token in table:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(_inline(token))
    return rows


def _text(block: list[Token]) -> str:
    """The plain text of a block: one line for each paragraph or piece of code in it."""
    lines = (token.content if token.type in _CODE else _inline(token) for token in block)
    return "\n".join(line.strip() for line in lines if line.strip())


def _inline(token: Token) -> str:
    """The text of inline elements: a soft break is a space, a hard one a line; images give their description."""
    pieces = []
    for child in token.children or ():
        if child.type in {"text", "code_inline", "text_special"}:
            pieces.append(child.content)
        elif child.type == "softbreak":
            pieces.append(" ")
        elif child.type == "hardbreak":
            pieces.append("\n")
        elif child.type == "image":
            pieces.append(_inline(child))
    return "".join(pieces).strip()
