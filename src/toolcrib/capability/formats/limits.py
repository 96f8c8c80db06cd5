"""The limits that all decoders share, and the rule for numbers that JSON cannot hold."""

import math
from typing import Final

MAX_DEPTH: Final = 200  # levels of a tree; orjson writes 254, and output mappings wrap trees further
MAX_NODES: Final = 5_000_000  # values in a tree once every alias is written out
SPARE_NAMES: Final = 16 * 2**20  # characters of member names that the rows of a table may repeat at least
NAMES_PER_CHARACTER: Final = 10  # and for each character of the text
MAX_ROWS: Final = 1_000_000  # of delimited text; an object for each takes a hundred times the room of the shortest row
TOO_DEEP: Final = f"it is nested deeper than {MAX_DEPTH} levels"


def json_number(value: float) -> int | float | str:
    """A number as orjson can write it.

    Integers beyond 64 bits become floats, as they do in orjson's own reader; what is not finite becomes the text
    "NaN", "Infinity" or "-Infinity", as in Jackson and in the JSON mapping of protobuf.
    """
    if isinstance(value, int):
        if -(1 << 63) <= value < 1 << 64:
            return value
        try:
            return float(value)
        except OverflowError:
            return "Infinity" if value > 0 else "-Infinity"
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
