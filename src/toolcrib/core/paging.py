"""Pages: a list of items, how many there are in all, and where the next page begins.

A cursor is opaque to callers: the sort key of the last item, so that pages stay right while rows come and go.
"""

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, Literal, TypeVar

import msgspec

from toolcrib.errors import Invalid

MAX_PAGE = 200
DEFAULT_PAGE = 50
Order = Literal["asc", "desc"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Items of one page; `next_cursor` is None on the last one, `total` counts all items that match."""

    items: list[T]
    total: int
    next_cursor: str | None = None


class Position(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The place after which a page begins: creation time and id of the item before it."""

    at: datetime
    id: str


def encode_cursor(at: datetime, item_id: str) -> str:
    """The cursor of the page that begins after this item."""
    return base64.urlsafe_b64encode(msgspec.json.encode(Position(at, item_id))).decode().rstrip("=")


def decode_cursor(cursor: str) -> Position:
    """The position inside a cursor.

    Raises:
        Invalid: it is not one of our cursors.
    """
    position: Position | None
    try:
        position = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=Position)
        position.at.astimezone(UTC)  # raises for a year that no clock shows
    except (binascii.Error, ValueError, OverflowError, msgspec.MsgspecError):
        position = None
    if position is None or position.at.tzinfo is None or "\0" in position.id:
        raise Invalid("paging.cursor_invalid", "The cursor is not one that a page returned.", field="cursor")
    return position


def page_size(limit: int | None) -> int:
    """The number of items to return: `limit` between 1 and 200, 50 when absent.

    Raises:
        Invalid: the limit is below 1.
    """
    if limit is None:
        return DEFAULT_PAGE
    if limit < 1:
        raise Invalid("paging.limit_invalid", "limit must be at least 1.", field="limit")
    return min(limit, MAX_PAGE)
