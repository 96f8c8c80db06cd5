"""The REST face: what callers may send, and what they get back."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from capability.stub import (
    JSON,
    Stub,
    api,
    document,
    face,
    param,
    raw_get,
    serving,
    simple,
    stub,
)
from toolcrib.capability.expose.rest import RestApp
from upstream_app import Told

MAPPED = {"outputParameters": [{"type": "object", "properties": {"n": {"type": "string", "mapping": "$.name"}}}]}
WHOLE = {"outputParameters": [{"type": "object", "mapping": "$."}]}


@pytest.fixture
async def up() -> AsyncIterator[Stub]:
    async with stub() as served:
        yield served


@pytest.mark.parametrize("path", ["/nope", "/x/y", "/", "//", "/x//", "/X", "/x%2F"])
async def test_an_unknown_path_is_a_404_problem(up: Stub, path: str) -> None:
    async with serving(simple(up.url)) as served:
        answer = await served.http.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == 404
    up.nothing()


async def test_another_method_is_405_with_allow_and_options_says_what_is_allowed(up: Stub) -> None:
    made = document(api(up.url, {}), face({"path": "/x"}, {"path": "/x", "method": "PUT"}))
    async with serving(made) as served:
        refused = await served.http.delete("/x")
        options = await served.http.options("/x")
    assert refused.status_code == 405
    assert {m.strip() for m in refused.headers["allow"].split(",")} == {"GET", "HEAD", "PUT", "OPTIONS"}
    assert options.status_code == 204
    assert options.headers["allow"] == refused.headers["allow"]
    up.nothing()


async def test_head_answers_as_get_without_a_body(up: Stub) -> None:
    async with serving(simple(up.url)) as served:
        answer = await served.http.head("/x")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "11")
    assert up.only().method == "GET"


async def test_static_paths_come_before_variables_and_a_trailing_slash_is_tolerated(up: Stub) -> None:
    consumed = api(up.url, {"name": "get", "path": "/u/{id}"}, {"name": "reset", "path": "/reset", "method": "POST"})
    exposed = face(
        {"path": "/users/{user-id}", "call": "up.get"}, {"path": "/users/reset", "call": "up.reset", "method": "POST"}
    )
    async with serving(document(consumed, exposed)) as served:
        assert (await served.http.post("/users/reset/")).status_code == 200
        assert up.only().target == "/reset"
        assert (await served.http.get("/users/reset")).status_code == 405
        up.nothing()
        assert (await served.http.get("/users/u1/")).status_code == 200
        assert up.only().target == "/u/u1"


@pytest.mark.parametrize(
    ("sent", "received"),
    [("a%20b", "a%20b"), ("a%2Fb", "a%2Fb"), ("%C3%A9", "%C3%A9"), ("a+b", "a%2Bb"), ("%25", "%25"), ("a.b", "a.b"),
     ("%zz", "%25zz"), ("%", "%25"), ("a%0d%0ab", "a%0D%0Ab"), ("%00", "%00"), ("{x}", "%7Bx%7D"), ("a;b=c", "a%3Bb%3Dc")],
)  # fmt: skip
async def test_a_path_value_is_decoded_and_encoded_once(up: Stub, sent: str, received: str) -> None:
    made = document(api(up.url, {"path": "/u/{id}"}), face({"path": "/v/{id}"}))
    async with serving(made) as served:
        status = await raw_get(served.capability.rest_app(), f"/v/{sent}")
    assert status == 200
    assert up.only().target == f"/u/{received}"


@pytest.mark.parametrize("sent", ["%2e%2e", "%2E", "..%2fadmin", "a%2f..%2fb", "a%5c..", "..%5c", "%2e%2e%2f"])
async def test_dot_segments_are_refused_and_not_sent(up: Stub, sent: str) -> None:
    made = document(api(up.url, {"path": "/u/{id}"}), face({"path": "/v/{id}"}))
    async with serving(made) as served:
        assert await raw_get(served.capability.rest_app(), f"/v/{sent}") == 400
    up.nothing()


async def test_bytes_that_are_no_text_are_400(up: Stub) -> None:
    made = document(api(up.url, {"path": "/u/{id}"}), face({"path": "/v/{id}"}))
    async with serving(made) as served:
        assert await raw_get(served.capability.rest_app(), "/v/%ff%fe") == 400
        assert await raw_get(served.capability.rest_app(), "/v/x", query=b'a=%ff&\xc3\xa9=1\x00#frag"<>') == 200
    assert "#" not in up.only().target


@pytest.mark.parametrize(
    ("declared", "request_", "field"),
    [
        (param("n", "query", type="integer"), {"params": {"n": "x"}}, "n"),
        (param("n", "query", type="number"), {"params": {"n": "1e"}}, "n"),
        (param("n", "query", type="number"), {"params": {"n": "1e999"}}, "n"),
        (param("n", "query", type="integer"), {"params": {"n": "9" * 5000}}, "n"),
        (param("n", "query", type="boolean"), {"params": {"n": "maybe"}}, "n"),
        (param("n", "query", type="object"), {"params": {"n": "[1]"}}, "n"),
        (param("n", "query", required=True), {}, "n"),
        (param("n", "query", pattern="^a+$"), {"params": {"n": "b"}}, "n"),
        (param("n", "query", enum=["a", "b"]), {"params": {"n": "c"}}, "n"),
        (param("N", "header", required=True), {}, "N"),
        (param("n", "cookie", required=True), {"params": {"n": "1"}}, "n"),
        (param("n", "body", required=True), {}, "n"),
        (param("n", "body", type="integer"), {"json": {"n": "x"}}, "n"),
        (param("n", "body", type="integer"), {"json": {"n": True}}, "n"),
        (param("n", "body", type="string"), {"json": {"n": {"a": 1}}}, "n"),
        (param("body", "body", type="array"), {"json": {"n": 1}}, "body"),
        (param("body", "body", type="object"), {"json": [1]}, "body"),
    ],
)
async def test_what_breaks_a_declaration_is_400_naming_it(up: Stub, declared: Any, request_: Any, field: str) -> None:
    made = simple(up.url, {"method": "POST"}, {"method": "POST", "inputParameters": [declared]})
    async with serving(made) as served:
        answer = await served.http.post("/x", **request_)
    assert answer.status_code == 400, answer.text
    assert answer.json()["field"] == field
    assert field in answer.json()["detail"]
    up.nothing()


@pytest.mark.parametrize(
    ("declared", "query", "sent"),
    [
        ({"type": "integer"}, "p=007", None),
        ({"type": "integer"}, "p=7", b"7"),
        ({"type": "integer", "pattern": "^[0-9]+$"}, "p=7", b"7"),
        ({"type": "integer", "enum": [7, 8]}, "p=7", b"7"),
        ({"enum": [7, 8]}, "p=7", b'"7"'),
        ({"type": "integer"}, "p=123456789012345678901234567890", b"123456789012345678901234567890"),
        ({"type": "number"}, "p=12.50", b"12.5"),
        ({"type": "number"}, "p=-0.5e2", b"-50.0"),
        ({"type": "boolean"}, "p=TRUE", b"true"),
        ({"type": "array"}, "p=a,b", b'["a","b"]'),
        ({"type": "array"}, "p=a&p=b", b'["a","b"]'),
        ({"type": "array"}, "p=[1,2]", b"[1,2]"),
        ({"type": "object"}, 'p={"a":1}', b'{"a":1}'),
        ({"type": "string"}, "p=7", b'"7"'),
        ({"default": 3}, "", b"3"),
        ({"default": 3, "type": "integer", "required": True}, "", b"3"),
    ],
)
async def test_declared_types_are_converted(up: Stub, declared: Any, query: str, sent: bytes | None) -> None:
    consumed = {"method": "POST", "body": {"type": "json", "data": {"v": "{{p}}"}}}
    made = simple(up.url, consumed, {"method": "POST", "inputParameters": [param("p", "query", **declared)]})
    async with serving(made) as served:
        answer = await served.http.post(f"/x?{query}")
    if sent is None:
        assert answer.status_code == 400
    else:
        assert up.only().body == b'{"v":' + sent + b"}"


async def test_declared_places_are_read_from_where_they_are(up: Stub) -> None:
    inputs = [
        param("id", "path"), param("q", "query"), param("X-H", "header"), param("c", "cookie"), param("m", "body"),
        param("deep", "body", value="$.a.b[0]"), param("fixed", "query", value="f"), param("HOME_X", "environment"),
    ]  # fmt: skip
    names = [i["name"] for i in inputs]
    consumed = {"method": "POST", "body": {"type": "json", "data": {n: f"{{{{{n}}}}}" for n in names}}}
    made = simple(up.url, consumed, {"path": "/x/{id}", "method": "POST", "inputParameters": inputs})
    async with serving(made, {"HOME_X": "env"}) as served:
        headers = {"x-h": "h", "Cookie": "c=k"}
        answer = await served.http.post("/x/1?q=2&fixed=no", headers=headers, json={"m": {"z": 1}, "a": {"b": [9]}})
        assert answer.status_code == 200, answer.text
    assert json.loads(up.only().body) == {
        "id": "1", "q": "2", "X-H": "h", "c": "k", "m": {"z": 1}, "deep": 9, "fixed": "f", "HOME_X": "env"
    }  # fmt: skip


@pytest.mark.parametrize("body", [b"{", b'{"a":1}x', b"{'a':1}", b"\xff", b"nope", b"[" * 200_000])
async def test_a_broken_json_body_is_400(up: Stub, body: bytes) -> None:
    template = {"name": "tpl", "path": "/t", "method": "POST", "body": {"type": "json", "data": {"v": "{{v}}"}}}
    consumed = api(up.url, {"method": "POST"}, template)
    exposed = face(
        {"method": "POST"},
        {"path": "/t", "method": "POST", "call": "up.tpl"},
        {"path": "/d", "method": "POST", "call": "up.tpl", "inputParameters": [param("v", "body")]},
    )
    async with serving(document(consumed, exposed)) as served:
        for path in ("/x", "/t", "/d"):
            answer = await served.http.post(path, content=body, headers=JSON)
            assert (answer.status_code, answer.json()["code"]) == (400, "body.not_json"), path
    up.nothing()


async def test_a_body_of_any_type_is_relayed_and_never_415(up: Stub) -> None:
    async with serving(simple(up.url, {"method": "POST"}, {"method": "POST"})) as served:
        for media in ("text/plain", "application/x-www-form-urlencoded", "application/octet-stream", "x/y; a=b", "???"):
            answer = await served.http.post("/x", content=b"\x00\xffraw", headers={"Content-Type": media})
            assert answer.status_code == 200
            asked = up.only()
            assert (asked.body, asked.get("content-type")) == (b"\x00\xffraw", media)


async def test_a_body_that_is_too_large_is_413(up: Stub) -> None:
    async with serving(simple(up.url, {"method": "POST"}, {"method": "POST"})) as served:
        plan = served.capability.plan.rest["shop"]
        small = RestApp(plan, served.capability.telemetry, max_request_bytes=10)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=small), base_url="http://x") as http:
            assert (await http.post("/x", content=b"x" * 11)).status_code == 413

            async def chunks() -> AsyncIterator[bytes]:
                for _ in range(20):
                    yield b"xx"

            assert (await http.post("/x", content=chunks())).status_code == 413
            assert (await http.post("/x", content=b'"' + b"x" * 8 + b'"')).status_code == 200
    assert up.only().body == b'"xxxxxxxx"'


async def test_huge_headers_and_queries_do_no_harm(up: Stub) -> None:
    async with serving(simple(up.url)) as served:
        answer = await served.http.get("/x", headers={"X-Big": "a" * 60_000}, params={"q": "b" * 3000})
    assert answer.status_code == 200
    assert up.only().get("x-big") is None


@pytest.mark.parametrize("status", [200, 201, 202, 206, 301, 302, 400, 401, 403, 404, 409, 422, 429, 500, 503])
@pytest.mark.parametrize("exposed", [{}, WHOLE, MAPPED])
async def test_the_status_of_the_upstream_is_passed_on(up: Stub, status: int, exposed: Any) -> None:
    up.answer = Told(b'{"name":"a"}', status, {**JSON, "Location": "http://127.0.0.1:1/else"})
    async with serving(simple(up.url, exposed=exposed)) as served:
        answer = await served.http.get("/x")
    assert answer.status_code == status
    assert answer.headers["location"] == "http://127.0.0.1:1/else"
    assert answer.json() == ({"n": "a"} if exposed is MAPPED else {"name": "a"})
    assert len(up.asked) == 1  # redirects are not followed


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("exposed", [{}, WHOLE, MAPPED])
async def test_an_answer_without_a_body_stays_one(up: Stub, status: int, exposed: Any) -> None:
    up.answer = Told(b"", status, {"ETag": '"1"'})
    async with serving(simple(up.url, exposed=exposed)) as served:
        answer = await served.http.get("/x")
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (status, b"", '"1"')
    assert "content-type" not in answer.headers


async def test_an_empty_body_stays_empty(up: Stub) -> None:
    up.answer = Told(b"", 200, JSON)
    async with serving(simple(up.url, exposed=MAPPED)) as served:
        answer = await served.http.get("/x")
    assert (answer.status_code, answer.content) == (200, b"")


BODIES = [
    b' {"a" : 1 ,\n"a":2, "big":123456789012345678901234567890, "f":1.50, "u":"\\u00e9\\/"}\n',
    b"[ ]", b'"text"', b"null", b"12.00", b"\xef\xbb\xbf{}", b'{"deep":' + b"[" * 500 + b"]" * 500 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("exposed", [{}, WHOLE])
async def test_a_json_body_is_relayed_byte_for_byte_both_ways(up: Stub, body: bytes, exposed: Any) -> None:
    up.answer = Told(body, 200, {"Content-Type": "application/hal+json"})
    async with serving(simple(up.url, {"method": "POST"}, {"method": "POST", **exposed})) as served:
        answer = await served.http.post("/x", content=body, headers={"Content-Type": "application/json; v=1"})
    assert answer.content == body
    assert answer.headers["content-type"] == "application/hal+json"
    asked = up.only()
    assert (asked.body, asked.get("content-type")) == (body, "application/json; v=1")


async def test_only_harmless_headers_go_on(up: Stub) -> None:
    good = {
        "ETag": '"e"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "Retry-After": "3", "Link": "<a>; rel=next",
        "X-RateLimit-Remaining": "9", "Cache-Control": "no-store", "Content-Language": "de",
    }  # fmt: skip
    bad = {"Set-Cookie": "sid=1", "Server": "up", "X-Powered-By": "y", "Connection": "keep-alive", "Via": "1.1 z",
           "X-Internal": "secret"}  # fmt: skip
    up.answer = Told(b'{"name":"a"}', 200, {**JSON, **good, **bad})
    async with serving(simple(up.url)) as served:
        answer = await served.http.get("/x")
    assert {name: answer.headers[name] for name in good} == good
    assert not [name for name in bad if name in answer.headers]
    async with serving(simple(up.url, exposed=MAPPED)) as served:
        answer = await served.http.get("/x")
    assert "etag" not in answer.headers  # another body
    assert answer.headers["retry-after"] == "3"


async def test_garbage_is_502_when_it_is_mapped_and_relayed_otherwise(up: Stub) -> None:
    up.answer = Told(b"<html>oops", 200, {"Content-Type": "text/html"})
    async with serving(simple(up.url)) as served:
        answer = await served.http.get("/x")
        assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, "<html>oops", "text/html")
    for exposed in (WHOLE, MAPPED):
        async with serving(simple(up.url, exposed=exposed)) as served:
            assert (await served.http.get("/x")).status_code == 502
            up.answer = Told(b"<html>oops", 500, {"Content-Type": "text/html"})
            answer = await served.http.get("/x")
            assert (answer.status_code, answer.text, answer.headers["content-type"]) == (500, "<html>oops", "text/html")
            up.answer = Told(b"<html>oops", 200, {"Content-Type": "text/html"})


async def test_an_error_body_that_maps_to_nothing_is_kept(up: Stub) -> None:
    up.answer = Told(b'{"error":"no such thing"}', 404, JSON)
    async with serving(simple(up.url, exposed=MAPPED)) as served:
        answer = await served.http.get("/x")
    assert (answer.status_code, answer.content) == (404, b'{"error":"no such thing"}')


async def test_all_null_keeps_the_raw_body(up: Stub) -> None:
    exposed = {"outputParameters": [{"type": "string", "mapping": "$.none"}]}
    async with serving(simple(up.url, exposed=exposed)) as served:
        assert (await served.http.get("/x")).content == b'{"ok":true}'


async def test_problems_are_problem_json_unless_text_is_asked_for(up: Stub) -> None:
    made = document(api(up.url, {"path": "/{id}"}), face({}))
    async with serving(made) as served:
        for accept, media in (
            (None, "application/problem+json"), ("*/*", "application/problem+json"),
            ("text/plain", "text/plain; charset=utf-8"), ("text/plain, application/json;q=0.5", "text/plain; charset=utf-8"),
        ):  # fmt: skip
            for path in ("/x", "/none"):
                answer = await served.http.get(path, headers={"Accept": accept} if accept else {})
                assert answer.headers["content-type"] == media


async def test_what_the_file_cannot_do_is_501_and_found_at_the_start(up: Stub) -> None:
    exposed = face(
        {"call": "up.nothing"},
        {"path": "/none", "mock": True},
        {"path": "/pattern", "inputParameters": [param("a", "query", pattern="(")]},
        {"path": "/out", "outputParameters": [{"type": "string", "mapping": "$.a["}]},
        {"path": "/fine"},
    )
    async with serving(document(api(up.url, {}), exposed)) as served:
        assert {"call-unresolved", "action-missing", "input-invalid", "action-invalid"} <= served.rules()
        for path in ("/x", "/none", "/pattern", "/out"):
            assert (await served.http.get(path)).status_code == 501, path
        assert (await served.http.get("/fine")).status_code == 200
    assert up.only().path == "/thing"
