"""Pagination: one call that fetches the pages of an answer one after the other and gives them as one document.

Four ways to the next page: a cursor in the answer, page numbers, offsets, links. Bounded by pages, items and bytes;
following a loop or leaving the origin (where the credentials would go too) is refused. A page that fails is the answer:
part of the items would look like all of them. The first page's document carries the items of all pages, and where its
cursor stood, that of the last page.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal
from urllib.parse import urljoin

import orjson

from toolcrib.capability.jsonpath import Path, compile_path
from toolcrib.capability.upstream.request import UpstreamRequest, encode_parameter, origin_of, set_parameter
from toolcrib.core.http import Headers, OutboundResponse
from toolcrib.errors import Upstream

Send = Callable[[UpstreamRequest], Awaitable[OutboundResponse]]
Way = Literal["cursor", "page", "offset", "link"]

_MAX_BYTES: Final = 64 * 2**20  # of all pages together
_COMMON: Final = frozenset({"type", "items", "result", "maxPages", "maxItems"})
_KEYS: Final[Mapping[str, frozenset[str]]] = {
    "cursor": _COMMON | {"next", "parameter", "in"},
    "page": _COMMON | {"parameter", "in", "start", "size", "sizeParameter"},
    "offset": _COMMON | {"parameter", "in", "start", "size", "sizeParameter"},
    "link": _COMMON | {"next"},
}
_PARAMETERS: Final = {"page": "page", "offset": "offset"}
_LINK: Final = re.compile(r'<([^<>]*)>((?:\s*;\s*[^\s;,="]+(?:\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s;,"]*))?)*)')
_REL: Final = re.compile(r';\s*rel\s*=\s*(?:"([^"]*)"|([^\s;,"]*))', re.IGNORECASE)
# They describe the first page's bytes, or lead to the second page.
_DROPPED: Final = frozenset(
    {"content-length", "content-encoding", "content-md5", "etag", "last-modified", "link", "transfer-encoding"}
)


def _put(document: Any, path: Path, value: Any) -> Any:
    """The document with another value at a path of names and indices; the value itself when that is the root."""
    if not path.steps:
        return value
    holder = document
    try:
        for step in path.steps[:-1]:
            holder = holder[step]
        holder[path.steps[-1]] = value
    except (LookupError, TypeError):
        pass  # there is no such place in this document
    return document


@dataclass(frozen=True, slots=True)
class Pagination:
    """How an operation is paginated; made by `compile_pagination`.

    Attributes:
        way: how the next page is found.
        items: where the items of a page are.
        next: where the cursor (`cursor`) or the URL (`link`) of the next page is; None to use the Link header.
        parameter: what carries cursor, page or offset.
        in_body: whether it is a member of the JSON body instead of the query.
        start: number of the first page, or first offset.
        size: items of a full page; fewer mean the last page. None: the last page is an empty one.
        size_parameter: what carries the size, if it is to be sent.
        as_document: whether the first page's document is given, or the items alone.
        max_pages: pages fetched at most.
        max_items: items given at most.
    """

    way: Way
    items: Path
    next: Path | None
    parameter: str
    in_body: bool
    start: int
    size: int | None
    size_parameter: str | None
    as_document: bool
    max_pages: int
    max_items: int


def compile_pagination(settings: Any) -> Pagination:
    """The pagination of `x-toolcrib.pagination` of a consumed operation.

    Raises:
        ValueError: a value is wrong; the message starts with the key, dotted.
    """
    if not isinstance(settings, Mapping):
        raise ValueError("pagination must be a map")  # noqa: TRY004
    written = settings.get("type")
    way: Any = written if isinstance(written, str) else ""
    if way not in _KEYS:
        raise ValueError(f"pagination.type must be one of {', '.join(_KEYS)}")
    for key in settings:
        if key not in _KEYS[way]:
            raise ValueError(f"pagination.{key} is not used with type {way}; known are {', '.join(sorted(_KEYS[way]))}")
    parameter = _text(settings, "parameter") or _PARAMETERS.get(way, "")
    items = _path(settings, "items") or compile_path("$")
    following = _path(settings, "next")
    if way == "cursor" and (following is None or not parameter):
        raise ValueError(f"pagination.{'parameter' if following else 'next'} is missing")
    as_document = _choice(settings, "result", "document", "items") == "document"
    if as_document and items.steps is None:
        raise ValueError("pagination.items is not a path of names alone: use it with `result: items`")
    size_parameter = _text(settings, "sizeParameter")
    size = _number(settings, "size", None, 1)
    if size_parameter is not None and size is None:
        raise ValueError("pagination.size is missing: it is the value of pagination.sizeParameter")
    return Pagination(
        way=way,
        items=items,
        next=following,
        parameter=parameter,
        in_body=_choice(settings, "in", "query", "body") == "body",
        start=_number(settings, "start", 1 if way == "page" else 0, 0) or 0,
        size=size,
        size_parameter=size_parameter,
        as_document=as_document,
        max_pages=_number(settings, "maxPages", 100, 1) or 100,
        max_items=_number(settings, "maxItems", 10_000, 1) or 10_000,
    )


def _text(settings: Mapping[str, Any], key: str) -> str | None:
    value = settings.get(key)
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"pagination.{key} must be a text")
    return value


def _choice(settings: Mapping[str, Any], key: str, *known: str) -> str:
    value = settings.get(key, known[0])
    if value not in known:
        raise ValueError(f"pagination.{key} must be one of {', '.join(known)}")
    return str(value)


def _number(settings: Mapping[str, Any], key: str, absent: int | None, low: int) -> int | None:
    value = settings.get(key, absent)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= 10_000_000:
        raise ValueError(f"pagination.{key} must be a whole number from {low} to 10000000")
    return value


def _path(settings: Mapping[str, Any], key: str) -> Path | None:
    text = _text(settings, key)
    try:
        return None if text is None else compile_path(text)
    except ValueError as error:
        raise ValueError(f"pagination.{key} is no JSONPath: {error}") from None


class _Walk:
    """The pages of one call so far."""

    def __init__(self, plan: Pagination, request: UpstreamRequest) -> None:
        self.plan = plan
        self.first: Any = None
        self.items: list[Any] = []
        self.cursor: Any = None  # what leads on from the last page, if anything does
        self.cut: str | None = None  # which bound ended it
        self._first_request = request
        self._seen: set[str] = set()
        self._pages = self._bytes = 0
        self._offset = plan.start
        self._last_body: bytes | None = None

    def opening(self) -> UpstreamRequest:
        """The request of the first page."""
        request, plan = self._first_request, self.plan
        self._seen.add(request.url)
        if plan.size_parameter is not None:
            request = self._with(request, plan.size_parameter, plan.size)
        return request if plan.way in {"cursor", "link"} else self._with(request, plan.parameter, plan.start)

    def take(self, request: UpstreamRequest, response: OutboundResponse) -> UpstreamRequest | None:
        """Add a page; the request of the next, None after the last."""
        plan = self.plan
        self._pages += 1
        self._bytes += len(response.body)
        if self._bytes > _MAX_BYTES:
            raise Upstream("upstream.too_large", f"The pages hold more than {_MAX_BYTES} bytes together")
        document = self._parsed(response.body)
        found = plan.items.read(document)
        found = [] if found is None else found
        if not isinstance(found, list):
            raise Upstream(
                "upstream.pagination_failed", f"Page {self._pages} has no list where pagination.items points"
            )
        if self._pages == 1:
            self.first = document
        room = plan.max_items - len(self.items)
        self.items += found[:room]
        if len(found) > room:
            # The cursor of this page is kept, not the next one's: reading some items twice is better than losing some.
            self.cut = "maxItems"
            return None
        following = self._following(request, response, document, found)
        if following is not None and len(found) == room:
            self.cut = "maxItems"
        elif following is not None and self._pages >= plan.max_pages:
            self.cut = "maxPages"
        return None if self.cut else following

    def _parsed(self, body: bytes) -> Any:
        try:
            return orjson.loads(body)
        except ValueError:
            raise Upstream("upstream.pagination_failed", f"Page {self._pages} is not JSON") from None

    def _following(
        self, request: UpstreamRequest, response: OutboundResponse, document: Any, found: list[Any]
    ) -> UpstreamRequest | None:
        plan = self.plan
        if plan.way == "cursor":
            self.cursor = plan.next.read(document) if plan.next is not None else None
            if self.cursor is None or self.cursor in ("", False):
                self.cursor = None
                return None
            if isinstance(self.cursor, bool) or not isinstance(self.cursor, str | int | float):
                raise Upstream("upstream.pagination_failed", f"The cursor on page {self._pages} is no text")
            self._once(repr(self.cursor))
            return self._with(request, plan.parameter, self.cursor)
        if plan.way == "link":
            return self._linked(request, response, document)
        if not found or (plan.size is not None and len(found) < plan.size):
            return None
        if response.body == self._last_body:
            raise _loop(self._pages)  # the upstream does not look at the parameter
        self._last_body = response.body
        self._offset += 1 if plan.way == "page" else len(found)
        return self._with(request, plan.parameter, self._offset)

    def _linked(self, request: UpstreamRequest, response: OutboundResponse, document: Any) -> UpstreamRequest | None:
        if self.plan.next is not None:
            target = self.cursor = self.plan.next.read(document)
        else:
            target = next_link([value for name, value in response.headers.items() if name == "link"])
        if target is None or target == "":
            return None
        try:
            url = urljoin(request.url, target)
            is_home = origin_of(url) == origin_of(self._first_request.url)
        except (TypeError, ValueError):
            raise Upstream("upstream.pagination_failed", f"The link on page {self._pages} is no URL") from None
        if not is_home:
            raise Upstream("upstream.pagination_failed", f"The link on page {self._pages} leads to another origin")
        self._once(url)
        return replace(request, url=url)

    def _once(self, name: str) -> None:
        if name in self._seen:
            raise _loop(self._pages)
        self._seen.add(name)

    def _with(self, request: UpstreamRequest, name: str, value: Any) -> UpstreamRequest:
        if not self.plan.in_body:
            return replace(request, url=set_parameter(request.url, name, encode_parameter(name, str(value))))
        try:
            body = orjson.loads(request.body or b"{}")
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Upstream("upstream.pagination_failed", "The request has no JSON object that could take the page")
        return replace(request, body=orjson.dumps({**body, name: value}))


def _loop(page: int) -> Upstream:
    return Upstream("upstream.pagination_loop", f"Page {page} leads back to a page that was already read")


def next_link(values: list[str]) -> str | None:
    """The target of `rel=next` in the values of Link headers."""
    for value in values:
        for target, parameters in _LINK.findall(value):
            for quoted, plain in _REL.findall(parameters):
                if "next" in (quoted or plain).lower().split():
                    return str(target)
    return None


async def fetch_all(send: Send, request: UpstreamRequest, plan: Pagination) -> OutboundResponse:
    """All pages of an answer as one; where a bound cut it, the header `x-toolcrib-truncated` names the bound.

    Raises:
        Upstream: `upstream.pagination_failed`, `upstream.pagination_loop`, `upstream.too_large`.
        AppError: what `send` raises.
    """
    walk = _Walk(plan, request)
    following: UpstreamRequest | None = walk.opening()
    first: OutboundResponse | None = None
    while following is not None:
        response = await send(following)
        if not 200 <= response.status < 300:
            return response
        first = first or response
        following = walk.take(following, response)
    assert first is not None  # noqa: S101  the opening request is never None
    document: Any = walk.items
    if plan.as_document:
        document = _put(walk.first, plan.items, walk.items)
        if plan.next is not None and plan.next.steps and plan.items.steps:
            document = _put(document, plan.next, walk.cursor)
    kept = [pair for pair in first.headers.items() if pair[0] not in _DROPPED]
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in kept]
    if walk.cut is not None:
        raw.append((b"x-toolcrib-truncated", walk.cut.encode()))
    return OutboundResponse(first.status, Headers(raw), orjson.dumps(document))
