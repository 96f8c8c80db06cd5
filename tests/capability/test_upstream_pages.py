"""Pagination: every way to the next page, its bounds, and upstreams that lead astray."""

import json
from typing import Any

import pytest

from toolcrib.capability.upstream import Upstream, UpstreamRequest, compile_pagination, fetch_all
from toolcrib.capability.upstream.pages import next_link
from toolcrib.core.http import OutboundResponse
from toolcrib.errors import Upstream as UpstreamFailure
from upstream_app import App, Asked, Told, app

ITEMS = [{"id": n} for n in range(7)]


def told(document: Any, **headers: str) -> Told:
    return Told(json.dumps(document).encode(), headers={"Content-Type": "application/json", "ETag": "1", **headers})


async def fetched(served: App, settings: dict[str, Any], target: str = "/i?q=a%2Fb", **more: Any) -> OutboundResponse:
    up = Upstream(served.outbound, "crm")
    request = UpstreamRequest(more.pop("method", "GET"), served.url + target, **more)
    return await fetch_all(up.send, request, compile_pagination(settings))


def cursor(asked: Asked) -> Told:
    """Pages of three; the cursor is where the next one starts."""
    given = json.loads(asked.body)["from"] if asked.body else int(asked.query.get("token", ["0"])[0])
    following = given + 3 if given + 3 < len(ITEMS) else None
    return told({"data": {"items": ITEMS[given : given + 3]}, "next": following and str(following), "total": 7})


CURSOR = {"type": "cursor", "items": "$.data.items", "next": "$.next", "parameter": "token"}


async def test_cursors_are_followed_and_the_first_document_carries_all_items():
    async with app(cursor) as served:
        answer = await fetched(served, CURSOR)
        assert [asked.target for asked in served.asked] == ["/i?q=a%2Fb", "/i?q=a%2Fb&token=3", "/i?q=a%2Fb&token=6"]
    assert json.loads(answer.body) == {"data": {"items": ITEMS}, "next": None, "total": 7}
    assert answer.headers.get("content-type") == "application/json"
    assert answer.headers.get("etag") is answer.headers.get("content-length") is None
    assert answer.headers.get("x-toolcrib-truncated") is None


async def test_the_items_alone_can_be_asked_for():
    async with app(cursor) as served:
        assert json.loads((await fetched(served, {**CURSOR, "result": "items"})).body) == ITEMS


async def test_a_cursor_can_be_a_member_of_the_body():
    def answer(asked: Asked) -> Told:
        body = json.loads(asked.body)
        assert body["filter"] == "x"
        given = int(body.get("token", 0))
        return told({"items": ITEMS[given : given + 4], "next": given + 4 if given + 4 < 7 else ""})

    async with app(answer) as served:
        settings = {"type": "cursor", "items": "$.items", "next": "$.next", "parameter": "token", "in": "body"}
        answered = await fetched(served, settings, method="POST", body=b'{"filter":"x"}')
    assert json.loads(answered.body)["items"] == ITEMS


@pytest.mark.parametrize(
    ("bounds", "items", "following", "cut"),
    [
        ({"maxPages": 2}, 6, "6", "maxPages"),
        ({"maxPages": 3}, 7, None, None),
        ({"maxItems": 6}, 6, "6", "maxItems"),
        ({"maxItems": 4}, 4, "3", "maxItems"),  # inside the second page: its own cursor, so that nothing is lost
        ({"maxItems": 7}, 7, None, None),
        ({"maxPages": 1}, 3, "3", "maxPages"),
    ],
)
async def test_bounds_cut_and_say_so_and_the_cursor_leads_on(bounds, items, following, cut):
    async with app(cursor) as served:
        answer = await fetched(served, {**CURSOR, **bounds})
    document = json.loads(answer.body)
    assert (len(document["data"]["items"]), document["next"]) == (items, following)
    assert answer.headers.get("x-toolcrib-truncated") == cut


@pytest.mark.parametrize(
    ("settings", "targets"),
    [
        ({"type": "page"}, ["/i?page=1", "/i?page=2", "/i?page=3", "/i?page=4"]),
        ({"type": "page", "parameter": "p", "start": 0}, ["/i?p=0", "/i?p=1", "/i?p=2", "/i?p=3"]),
        ({"type": "page", "size": 3, "sizeParameter": "n"}, ["/i?n=3&page=1", "/i?n=3&page=2", "/i?n=3&page=3"]),
        ({"type": "offset"}, ["/i?offset=0", "/i?offset=3", "/i?offset=6", "/i?offset=7"]),
        ({"type": "offset", "size": 3}, ["/i?offset=0", "/i?offset=3", "/i?offset=6"]),
    ],
)
async def test_pages_and_offsets_are_counted(settings, targets):
    def answer(asked: Asked) -> Told:
        name, value = asked.target.rpartition("?")[2].rpartition("&")[2].split("=")
        first = {"page": 1}.get(name, 0)
        start = int(value) if name == "offset" else (int(value) - first) * 3
        return told(ITEMS[start : start + 3])

    async with app(answer) as served:
        assert json.loads((await fetched(served, settings, "/i")).body) == ITEMS
        assert [asked.target for asked in served.asked] == targets


def linked(asked: Asked) -> Told:
    start = int(asked.query.get("s", ["0"])[0])
    link = f'</other>; rel="prev"; title="a, b", <?s={start + 3}>; title=x; rel="last next"'
    return told(ITEMS[start : start + 3], **({"Link": link} if start < 6 else {}))


async def test_links_are_followed_relative_to_the_page():
    async with app(linked) as served:
        answer = await fetched(served, {"type": "link"}, "/i")
        assert [asked.target for asked in served.asked] == ["/i", "/i?s=3", "/i?s=6"]
    assert json.loads(answer.body) == ITEMS
    assert answer.headers.get("link") is None


async def test_links_can_be_in_the_body():
    def answer(asked: Asked) -> Told:
        start = int(asked.query.get("s", ["0"])[0])
        following = f"http://{asked.get('host')}/i?s={start + 4}" if start == 0 else None
        return told({"items": ITEMS[start : start + 4], "links": {"next": following}})

    async with app(answer) as served:
        answered = await fetched(served, {"type": "link", "items": "$.items", "next": "$.links.next"}, "/i")
    assert json.loads(answered.body) == {"items": ITEMS, "links": {"next": None}}


@pytest.mark.parametrize(
    "link",
    ["http://other.test/i", "//other.test/i", "http://127.0.0.1:1/i", "https://127.0.0.1/", "ftp://x", "http://["],
)
async def test_a_link_never_leaves_the_origin(link):
    async with app(lambda _: told([1], Link=f"<{link}>; rel=next")) as served:
        with pytest.raises(UpstreamFailure) as caught:
            await fetched(served, {"type": "link"})
        assert caught.value.code == "upstream.pagination_failed"
        assert len(served.asked) == 1


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        (CURSOR, told({"data": {"items": [1]}, "next": "same"})),
        ({"type": "page"}, told([1])),
        ({"type": "offset"}, told([1])),
        ({"type": "link"}, told([1], Link="</i>; rel=next")),
    ],
)
async def test_a_loop_is_noticed(settings, answer):
    async with app(lambda _: answer) as served:
        with pytest.raises(UpstreamFailure) as caught:
            await fetched(served, settings, "/i")
        assert caught.value.code == "upstream.pagination_loop"
        assert len(served.asked) <= 2


@pytest.mark.parametrize("failing", [0, 1])
async def test_a_page_that_fails_is_the_answer(failing):
    count = iter(range(9))

    def answer(asked: Asked) -> Told:
        return Told(b"sorry", 503) if next(count) == failing else cursor(asked)

    async with app(answer) as served:
        answered = await fetched(served, CURSOR)
    assert (answered.status, answered.body) == (503, b"sorry")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "Page 1 is not JSON"),
        (b"", "Page 1 is not JSON"),
        (b'{"data":{"items":{}}}', "Page 1 has no list"),
        (b'{"data":{"items":[]},"next":{}}', "cursor on page 1"),
    ],
)
async def test_a_page_of_another_shape_is_a_failure(body, message):
    async with app(lambda _: Told(body)) as served:
        with pytest.raises(UpstreamFailure, match=message):
            await fetched(served, CURSOR)


async def test_no_list_means_no_items():
    async with app(lambda _: told({"data": {}})) as served:
        assert json.loads((await fetched(served, CURSOR)).body) == {"data": {"items": []}, "next": None}


def test_links_are_read_as_they_are_written():
    assert next_link(['<a>; rel=first, <b>;rel=next;title="x"']) == "b"
    assert next_link(["<a>; rel=prev", '<b>; REL="next"']) == "b"
    assert next_link(['<a>; title="rel=next"', "<a>", "", "garbage; rel=next"]) is None
    assert next_link(["<" + "a" * 60_000, "<a>" + "; x" * 20_000]) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("link", "^pagination must be a map"),
        ({}, "^pagination.type must be one of cursor, page, offset, link"),
        ({"type": "cursor", "parameter": "p"}, "^pagination.next is missing"),
        ({"type": "cursor", "next": "$.n"}, "^pagination.parameter is missing"),
        ({"type": "page", "next": "$.n"}, "^pagination.next is not used with type page"),
        ({"type": "page", "items": "$..["}, "^pagination.items is no JSONPath"),
        ({"type": "page", "items": "$..x"}, "^pagination.items is not a path of names"),
        ({"type": "page", "maxPages": 0}, "^pagination.maxPages must be"),
        ({"type": "page", "sizeParameter": "n"}, "^pagination.size is missing"),
        ({"type": "page", "in": "header"}, "^pagination.in must be one of"),
    ],
)
def test_settings_that_are_wrong_are_refused_with_the_key(settings, message):
    with pytest.raises(ValueError, match=message):
        compile_pagination(settings)
