"""Identifiers: prefixed ULIDs (`toolset_01J...`), sortable by time, one prefix per noun."""

import os
import re
import time

_ID = re.compile(r"[a-z]+_[0-9A-HJKMNP-TV-Z]{26}")
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]  # ten bits each
_SHIFTS = range(120, -1, -10)


def new_id(prefix: str) -> str:
    """A fresh identifier such as `toolset_01J9Z0...`: 48 bits of milliseconds, 80 random bits."""
    value = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big")
    return prefix + "_" + "".join([_PAIRS[value >> shift & 1023] for shift in _SHIFTS])


def is_id(text: str, prefix: str) -> bool:
    """Whether `text` has the form of an identifier with this prefix."""
    return text.startswith(prefix + "_") and _ID.fullmatch(text) is not None
