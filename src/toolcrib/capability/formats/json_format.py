"""JSON bodies, by orjson: the hot path, so it does nothing but parse and prove the depth.

An empty body is null: answers such as 201 often have none. Integers up to 64 bits stay integers, larger ones become
floats. NaN and lone surrogates are refused, being no JSON.
"""

import codecs
from typing import Any, Final

import orjson

from toolcrib.capability.formats.charsets import to_text
from toolcrib.capability.formats.limits import MAX_DEPTH, TOO_DEEP

_WRITABLE_DEPTH: Final = 254  # of orjson.dumps
_UTF8: Final = {"utf-8", "utf8", "us-ascii", "ascii"}


def decode(body: bytes, charset: str | None = None) -> Any:
    """The tree of a JSON text; raises ValueError."""
    try:
        if charset is not None and charset.strip(' "').lower() not in _UTF8:
            tree = orjson.loads(to_text(body, charset))
        else:
            tree = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        return _second_look(body, e)
    if len(body) > 2 * MAX_DEPTH and body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _check_depth(tree)
    return tree


def _second_look(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """What a body with a byte order mark, or an empty one, means."""
    if not body.strip():
        return None
    if body.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return decode(to_text(body, None).encode("utf-8", "replace"))
    # The message of orjson is a reason and a place; it holds nothing of the body.
    raise ValueError(str(error)) from None


def _check_depth(tree: Any) -> None:
    """Refuse a tree that could not be written again once a mapping wrapped it: writing it costs less than a walk."""
    probe = tree
    for _ in range(_WRITABLE_DEPTH - MAX_DEPTH):
        probe = [probe]
    try:
        orjson.dumps(probe)
    except TypeError:
        raise ValueError(TOO_DEEP) from None
