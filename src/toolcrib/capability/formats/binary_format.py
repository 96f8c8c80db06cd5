"""Bodies that are bytes, such as images: relayed as they are, or base64 text where a tree is needed."""

import base64
from collections.abc import Callable
from typing import Any


def open_decoder(_name: str, _schema: str | None, _folders: tuple[str, ...]) -> Callable[[bytes, str | None], Any]:
    """The decoder: base64 text without line breaks."""
    return _decode


def _decode(body: bytes, _charset: str | None) -> Any:
    return base64.b64encode(body).decode("ascii")
