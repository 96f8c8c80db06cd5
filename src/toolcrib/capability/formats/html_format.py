"""HTML bodies: their tables, by `html_tables.py`; `outputSchema` is a CSS selector.

Short and plain texts are parsed here. All others go to a child process, because HTML's own rules for unclosed
formatting elements can turn 30 KB of text into gigabytes of tree.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from toolcrib.capability.formats import html_tables
from toolcrib.capability.formats.charsets import to_text
from toolcrib.capability.formats.confined import run_confined

_MAX_SELECTOR: Final = 2000
_SHORT: Final = 64 * 1024  # characters; time is at most quadratic in them: half a second
_MAX_CREATED: Final = 500_000  # elements: each tag may open anew every formatting element left open before it
_FORMATTING: Final = re.compile(r"<(?:a|b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u)[\s/>]", re.IGNORECASE)
_META_CHARSET: Final = re.compile(rb"<meta[^>]{1,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9._-]{1,40})", re.IGNORECASE)


def open_decoder(_name: str, schema: str | None, _folders: tuple[str, ...]) -> Callable[[bytes, str | None], Any]:
    """The decoder; raises ValueError for what is not a CSS selector."""
    selector = (schema or "").strip()
    if len(selector) > _MAX_SELECTOR:
        raise ValueError(f"outputSchema is longer than {_MAX_SELECTOR} characters")
    if selector:
        html_tables.check_selector(selector)

    def decode(body: bytes, charset: str | None) -> Any:
        text = to_text(body, charset or _declared(body))
        created = text.count("<") * (1 + len(_FORMATTING.findall(text)))
        if len(text) <= _SHORT and created <= _MAX_CREATED:
            return html_tables.extract(text, selector)
        return run_confined(html_tables.__file__, text, selector)

    return decode


def _declared(body: bytes) -> str | None:
    """The charset that the document names in its first kilobyte, as browsers look for it."""
    meta = _META_CHARSET.search(body[:1024])
    name = meta[1].decode("ascii") if meta else ""
    # A meta element that could be read at all was not written in UTF-16.
    return name if name and not name.lower().startswith("utf-16") else None
