"""Bytes to text: the declared charset, else a byte order mark, else UTF-8.

Only plain character sets are accepted: Python also lists codecs that are compressors or that take quadratic time.
Bytes that the charset does not define become U+FFFD, as Java readers and browsers do.
"""

import codecs
from typing import Final

_FAMILIES: Final = (
    "utf-8",
    "utf-16",
    "utf-32",
    "iso8859-",
    "cp125",
    "koi8-",
    "mac-",
    "euc_",
    "gb",
    "big5",
    "shift_jis",
)
_OTHERS: Final = {
    "ascii",
    "cp437",
    "cp850",
    "cp852",
    "cp866",
    "cp874",
    "cp932",
    "cp949",
    "cp950",
    "iso2022_jp",
    "tis-620",
}
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is the start of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def to_text(body: bytes, charset: str | None) -> str:
    """The text of a body, without its byte order mark; raises ValueError for a charset that is not known."""
    for mark, name in _MARKS:
        if body.startswith(mark):
            return body[len(mark) :].decode(name, "replace")
    return body.decode(_codec(charset), "replace")


def _codec(charset: str | None) -> str:
    wanted = (charset or "utf-8").strip(" \t\"'")
    try:
        name = codecs.lookup(wanted).name
    except (LookupError, ValueError):
        name = ""
    if name in _OTHERS or name.startswith(_FAMILIES):
        # The web reads Latin-1 and ASCII as windows-1252, which fills the gap of control characters.
        return "cp1252" if name in {"ascii", "iso8859-1"} else name
    raise ValueError(f"its charset {wanted[:40]!r} is not known")
