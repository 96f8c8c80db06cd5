"""Identifiers: prefixed ULIDs (`toolset_01J...`), sortable by time, one prefix per noun."""

import re

from ulid import ULID

_ID = re.compile(r"[a-z]+_[0-9A-HJKMNP-TV-Z]{26}")


def new_id(prefix: str) -> str:
    """A fresh identifier such as `toolset_01J9Z0...`."""
    return f"{prefix}_{ULID()}"


def is_id(text: str, prefix: str) -> bool:
    """Whether `text` has the form of an identifier with this prefix."""
    return text.startswith(prefix + "_") and _ID.fullmatch(text) is not None
