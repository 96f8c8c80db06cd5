"""Bodies that are plain text: the tree is the text itself."""

from collections.abc import Callable
from typing import Any

from toolcrib.capability.formats.charsets import to_text


def open_decoder(_name: str, _schema: str | None, _folders: tuple[str, ...]) -> Callable[[bytes, str | None], Any]:
    """The decoder: a text."""
    return to_text
