"""Markdown bodies: front matter, tables and sections; `outputSchema` is the start of the headings to keep.

Front matter is what stands between a first line `---` and the next one, read as YAML; it is {} unless it is a mapping.
Long texts are parsed in a child process: the parser is written in Python, and takes seconds for megabytes.
"""

from collections.abc import Callable
from typing import Any, Final

from toolcrib.capability.formats import markdown_parts, yaml_format
from toolcrib.capability.formats.charsets import to_text
from toolcrib.capability.formats.confined import run_confined

_SHORT: Final = 32 * 1024  # characters; the worst of them take a third of a second
_FENCE: Final = "---\n"


def open_decoder(_name: str, schema: str | None, _folders: tuple[str, ...]) -> Callable[[bytes, str | None], Any]:
    """The decoder; any text is a valid filter."""
    prefix = schema if schema and schema.strip() else ""

    def decode(body: bytes, charset: str | None) -> Any:
        matter, text = _split(to_text(body, charset).replace("\r\n", "\n"))
        front = yaml_format.load(matter)
        if len(text) <= _SHORT:
            parts = markdown_parts.extract(text, prefix)
        else:
            parts = run_confined(markdown_parts.__file__, text, prefix)
        return {"frontMatter": front if isinstance(front, dict) else {}, **parts}

    return decode


def _split(text: str) -> tuple[str, str]:
    """Front matter, empty if there is none, and the rest."""
    if text.startswith(_FENCE):
        end = f"{text}\n".find("\n---\n", len(_FENCE) - 1)
        if end >= 0:
            return text[len(_FENCE) : end + 1], text[end + 5 :]
    return "", text
