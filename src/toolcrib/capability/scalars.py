"""One JSON value in the type that a file declares for it, only where nothing is lost: otherwise null.

Numbers are those of JSON that fit 64 bits or a float exactly as written.
"""

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

import orjson

_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
_LONGEST_NUMBER: Final = 64  # characters
_SMALLEST: Final = -(2**63)
_GREATEST: Final = 2**64 - 1


def to_string(value: Any) -> str | None:
    """Its text: as it is if it is one, otherwise its JSON; null stays null."""
    if value is None or isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # nested too deeply, or an integer beyond 64 bits
        return None


def to_number(value: Any) -> float | None:
    """A number, or a text that spells one exactly."""
    if isinstance(value, str):
        return _spelled(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return value if _SMALLEST <= value <= _GREATEST else None
    return value if math.isfinite(value) else None


def to_integer(value: Any) -> int | None:
    """A number without a fraction."""
    number = to_number(value)
    if number is None or number != int(number):
        return None
    return to_integer_range(int(number))


def to_integer_range(value: int) -> int | None:
    """The integer if it fits 64 bits."""
    return value if _SMALLEST <= value <= _GREATEST else None


def to_boolean(value: Any) -> bool | None:
    """A boolean, or the text true or false."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _to_container(kind: type) -> Callable[[Any], Any]:
    def read(text: Any) -> Any:
        try:
            value = orjson.loads(text)
        except ValueError:
            return None
        return value if isinstance(value, kind) else None

    return read


_FROM_TEXT: Final[Mapping[str, Callable[[Any], Any]]] = {
    "number": to_number,
    "integer": to_integer,
    "boolean": to_boolean,
    "object": _to_container(dict),
    "array": _to_container(list),
}


def from_text(text: str, kind: str) -> Any:
    """A rendered text in a declared type: the text itself if it is no such value, null if a non-text type has none."""
    read = _FROM_TEXT.get(kind)
    if read is None:
        return text
    stripped = text.strip()
    if not stripped:
        return None
    value = read(stripped)
    return text if value is None else value


def _spelled(text: str) -> float | None:
    if len(text) > _LONGEST_NUMBER or _NUMBER.fullmatch(text) is None:
        return None
    if text.lstrip("-").isdigit():
        return to_integer_range(int(text))
    number = float(text)
    return number if math.isfinite(number) and Decimal(text) == Decimal(repr(number)) else None
