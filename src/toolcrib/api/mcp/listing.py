"""tools/list: pages of a catalogue, joined from bytes that were made when the catalogue was loaded."""

import base64
import binascii
from bisect import bisect_right
from operator import attrgetter

from toolcrib.core.mcp_server.wire import INVALID_PARAMS, RpcError
from toolcrib.errors import NotFound
from toolcrib.gateway.catalog import CatalogView

_CALL_NAME, _LOCAL_NAME = attrgetter("call_name"), attrgetter("local_name")


def list_tools(view: CatalogView, tool_set: str | None, cursor: str | None, size: int, *, modern: bool) -> bytes:
    """The result of tools/list: one page, and where the next begins.

    A cursor holds the last name of its page, so that pages stay right when tools come and go between them.

    Raises:
        RpcError: the cursor is not one of ours.
        NotFound: there is no such tool set.
    """
    if tool_set is None:
        tools, name_of = view.tools, _CALL_NAME
    else:
        found = view.tool_sets.get(tool_set)
        if found is None:
            raise NotFound("tool_set.unknown", f"There is no tool set {tool_set!r} in this workspace.")
        tools, name_of = sorted(found.tools, key=_LOCAL_NAME), _LOCAL_NAME
    start = 0 if cursor is None else bisect_right(tools, _last_name(cursor), key=name_of)
    page = tools[start : start + size]
    more = start + size < len(tools)
    tail = b""
    if more:
        tail = b',"nextCursor":"%b"' % base64.urlsafe_b64encode(name_of(page[-1]).encode()).rstrip(b"=")
    if modern:
        tail += b',"ttlMs":0,"cacheScope":"private"'
    return b'{"tools":[%b]%b}' % (b",".join([tool.wire(name_of(tool)) for tool in page]), tail)


def _last_name(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        raise RpcError(INVALID_PARAMS, "The cursor is not one that a page returned", {"field": "cursor"}) from None
