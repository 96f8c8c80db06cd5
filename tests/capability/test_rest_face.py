"""The REST face: statuses, headers and bodies in both directions, whatever the caller or the upstream does."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvicorn

from capability.stub import DEADLINE_S, JSON, Stub, api, binds, document, face, param, serving, stub
from raw_upstream import answering, gone, hanging, ok, upstream
from toolcrib.capability.expose.rest import RestApp
from upstream_app import Asked, Told

MAPPED = {"outputParameters": [{"type": "object", "properties": {"n": {"type": "string", "mapping": "$.name"}}}]}
WHOLE = {"outputParameters": [{"type": "object", "mapping": "$."}]}


@pytest.fixture
async def up() -> AsyncIterator[Stub]:
    async with stub() as served:
        yield served


def simple(url: str, consumed: Any = None, exposed: Any = None, **more: Any) -> dict[str, Any]:
    return document(api(url, consumed or {}, **more), face(exposed or {}))


# -- requests


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
    consumed = api(
        up.url, {"name": "get", "path": "/u/{id}"}, {"name": "reset", "path": "/reset", "method": "POST"}
    )
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
        assert await raw_get(served.capability.rest_app(), "/v/x", query=b"a=%ff&\xc3\xa9=1\x00#frag\"<>") == 200
    assert "#" not in up.only().target


async def raw_get(app: Any, raw_path: str, query: bytes = b"", headers: Any = ()) -> int:
    """A GET whose path is what it is: clients tidy paths up."""
    scope = {
        "type": "http", "method": "GET", "path": raw_path, "raw_path": raw_path.encode("latin-1"),
        "query_string": query, "headers": list(headers), "http_version": "1.1",
    }  # fmt: skip
    sent: list[Any] = []
    asked: list[int] = []

    async def receive() -> Any:
        if asked:
            await asyncio.Event().wait()
        asked.append(1)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    status: int = sent[0]["status"]
    return status


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


# -- answers


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


# -- upstreams in trouble


@pytest.mark.parametrize("exposed", [{}, MAPPED])
async def test_an_upstream_that_refuses_is_502(unused_tcp_port: int, exposed: Any) -> None:
    async with serving(simple(f"http://127.0.0.1:{unused_tcp_port}", exposed=exposed)) as served:
        answer = await served.http.get("/x")
    assert (answer.status_code, answer.headers["content-type"]) == (502, "application/problem+json")


@pytest.mark.parametrize(
    "data",
    [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", b"HTTP/9.9 xx\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"\x16\x03\x01\x00"],
)  # fmt: skip
async def test_an_upstream_that_speaks_no_http_is_502(data: bytes) -> None:
    async with upstream(answering(data)) as served_up, serving(simple(served_up.url)) as served:
        assert (await served.http.get("/x")).status_code == 502


async def test_a_slow_upstream_is_504() -> None:
    async with upstream(hanging(b"")) as slow:
        made = simple(slow.url, **{"x-toolcrib": {"timeoutSeconds": 0.05}})
        async with serving(made, timeout_s=0.05) as served:
            answer = await served.http.get("/x")
            assert (answer.status_code, answer.json()["status"]) == (504, 504)
            await gone(slow)


async def test_an_endless_body_is_502() -> None:
    async def endless(served: Any, reader: Any, writer: Any) -> None:
        await served.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
        while True:
            writer.write(chunk)
            await writer.drain()

    async with upstream(endless) as never_ends:
        async with serving(simple(never_ends.url)) as served:
            answer = await served.http.get("/x")
            assert answer.status_code == 502
            await gone(never_ends)


async def test_the_trouble_of_one_capability_leaves_others_unharmed(up: Stub, unused_tcp_port: int) -> None:
    consumed = [api(f"http://127.0.0.1:{unused_tcp_port}", {}, namespace="down"), api(up.url, {})]
    made = document(consumed, face({"path": "/down", "call": "down.op"}, {"path": "/x"}))
    async with serving(made) as served:
        answers = await asyncio.gather(*(served.http.get(p) for p in ("/down", "/x") * 10))
    assert [a.status_code for a in answers] == [502, 200] * 10


async def test_a_client_that_goes_away_cancels_the_call_upstream() -> None:
    async with upstream(hanging(b"")) as slow, serving(simple(slow.url)) as served:
        async with real(served.capability.rest_app()) as url:
            host, port = url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
            await wait_for(lambda: slow.requests)
            writer.close()
            await gone(slow)
            del reader


async def wait_for(claim: Any) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not claim():
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def real(app: Any) -> AsyncIterator[str]:
    """The application on a socket of its own."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off", ws="none"))
    task = asyncio.create_task(server.serve())
    await wait_for(lambda: server.started or task.done())
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


# -- forwarding


def forwarding(url: str, *, trusted: tuple[str, ...] = (), path: str = "/proxy/{rest}", **more: Any) -> dict[str, Any]:
    server = face({"path": path, "method": "PATCH"})
    server["resources"][0]["forward"] = {"targetNamespace": "up", "trustedHeaders": list(trusted)}
    return document(api(url, {"method": "PATCH"}, **more), server)


async def test_forwarding_keeps_method_path_query_and_body(up: Stub) -> None:
    up.answer = Told(b"raw", 418, {"Content-Type": "x/y", "Set-Cookie": "a=b", "Location": "/l", "X-Internal": "i"})
    async with serving(forwarding(up.url + "/base")) as served:
        answer = await served.http.put("/proxy/a%2Fb/c%20d/?q=1&q=2%20", content=b"\x00", headers={"Content-Type": "m/n"})
        assert (answer.status_code, answer.content) == (418, b"raw")
        assert {"set-cookie", "x-internal"}.isdisjoint(answer.headers)
        assert (answer.headers["content-type"], answer.headers["location"]) == ("x/y", "/l")
        asked = up.only()
        assert (asked.method, asked.target) == ("PUT", "/base/a%2Fb/c%20d/?q=1&q=2%20")
        assert (asked.body, asked.get("content-type")) == (b"\x00", "m/n")
        await served.http.get("/proxy")
        assert up.only().target == "/base"
        await served.http.patch("/proxy/x")  # the declared operation comes first
        assert up.only().target == "/base/thing"


async def test_forwarding_copies_trusted_headers_only(up: Stub) -> None:
    sent = {"X-Good": "1", "X-Bad": "2", "Authorization": "Bearer caller", "Cookie": "a=b"}
    async with serving(forwarding(up.url, trusted=("x-good",))) as served:
        await served.http.get("/proxy/x", headers=sent)
    asked = up.only()
    assert [asked.get(n) for n in ("x-good", "x-bad", "authorization", "cookie")] == ["1", None, None, None]
    async with serving(forwarding(up.url, trusted=("AUTHORIZATION", "Host", "Content-Length", "TE"))) as served:
        assert (await served.http.get("/proxy/x", headers={**sent, "TE": "trailers"})).status_code == 200
    assert up.only().get("authorization") == "Bearer caller"


async def test_forwarding_applies_the_apis_own_inputs_and_credentials(up: Stub) -> None:
    made = forwarding(
        up.url,
        trusted=("authorization", "x-v"),
        binds=(),
        authentication={"type": "apikey", "key": "api_key", "value": "{{env.K}}", "placement": "query"},
        inputParameters=[param("v", "query", value="2"), param("X-V", "header", value="{{env.V}}")],
    )
    made["binds"] = binds("K", "V")
    async with serving(made, {"K": "real", "V": "hv"}) as served:
        target = "/proxy/x?v=1&api_key=evil&API-KEY=evil&api%5Fkey=evil&w=3"
        assert (await served.http.get(target, headers={"X-V": "evil"})).status_code == 200
    asked = up.only()
    assert asked.query == {"v": ["2"], "w": ["3"], "api_key": ["real"]}
    assert asked.get("x-v") == "hv"
    async with serving(made, {"V": "hv"}) as served:
        assert (await served.http.get("/proxy/x")).status_code == 503
    up.nothing()


@pytest.mark.parametrize("path", ["/proxy/../secret", "/proxy/%2e%2e/secret", "/proxy/a/..%2f..%2fb", "/proxy/a%5c..%5cb"])
async def test_forwarding_does_not_climb(up: Stub, path: str) -> None:
    async with serving(forwarding(up.url + "/base")) as served:
        assert await raw_get(served.capability.rest_app(), path) == 400
    up.nothing()


async def test_forwarding_to_nowhere_is_404(up: Stub) -> None:
    made = forwarding(up.url)
    made["capability"]["exposes"][0]["resources"][0]["forward"]["targetNamespace"] = "gone"
    async with serving(made) as served:
        assert "forward-unresolved" in served.rules()
        assert (await served.http.get("/proxy/x")).status_code == 404
        assert (await served.http.patch("/proxy/x")).status_code == 200


async def test_a_forwarded_body_that_breaks_off_ends_the_connection() -> None:
    async def half(served: Any, reader: Any, writer: Any) -> None:
        await served.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await writer.drain()

    async with upstream(half) as broken, serving(forwarding(broken.url)) as served:
        async with real(served.capability.rest_app()) as url, httpx.AsyncClient() as http:
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get(f"{url}/proxy/x")


async def test_a_client_of_a_forward_that_goes_away_ends_it_before_and_after_the_head() -> None:
    for head in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"):
        async with upstream(hanging(head)) as slow, serving(forwarding(slow.url)) as served:
            async with real(served.capability.rest_app()) as url:
                host, port = url.removeprefix("http://").split(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(b"GET /proxy/x HTTP/1.1\r\nHost: x\r\n\r\n")
                await wait_for(lambda: slow.requests)
                if head:
                    await reader.readuntil(b"half")
                writer.close()
                await gone(slow)


async def test_a_forwarded_answer_streams() -> None:
    more = asyncio.Event()

    async def slowly(served: Any, reader: Any, writer: Any) -> None:
        await served.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await more.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
        await writer.drain()

    async with upstream(slowly) as up, serving(forwarding(up.url)) as served:
        async with real(served.capability.rest_app()) as url, httpx.AsyncClient() as http:
            async with http.stream("GET", f"{url}/proxy/x") as answer:
                chunks = answer.aiter_raw()
                assert await anext(chunks) == b"one"
                more.set()
                assert b"".join([c async for c in chunks]) == b"two"


# -- credentials


@pytest.mark.parametrize(
    ("auth", "name", "expected"),
    [
        ({"type": "bearer", "token": "{{env.K}}"}, "authorization", "Bearer real"),
        ({"type": "bearer", "token": "{{K}}"}, "authorization", "Bearer real"),
        ({"type": "basic", "username": "u", "password": "{{env.K}}"}, "authorization", "Basic dTpyZWFs"),
        ({"type": "apikey", "key": "X-Api-Key", "value": "{{env.K}}"}, "x-api-key", "real"),
    ],
)
async def test_nothing_of_the_caller_replaces_configured_credentials(
    up: Stub, auth: Any, name: str, expected: str
) -> None:
    spellings = ["Authorization", "authorization", "AUTHORIZATION", "X-Api-Key", "x-api-key", "K", "env.K"]
    consumed = {"inputParameters": [param(n, "header") for n in spellings[:5]]}
    exposed = {"with": dict.fromkeys(spellings[:5], "rest.evil"), "inputParameters": [param(spellings[1], "header")]}
    made = document(api(up.url, consumed, authentication=auth), face(exposed, {"path": "/y"}), binds=binds("K"))
    headers = {"Authorization": "Bearer evil", "X-Api-Key": "evil", "K": "evil"}
    async with serving(made, {"K": "real"}) as served:
        for path in ("/x", "/y"):
            answer = await served.http.get(f"{path}?evil=evil&K=evil&env.K=evil&authorization=evil", headers=headers)
            assert answer.status_code == 200
            asked = up.only()
            assert asked.get(name) == expected
            assert asked.count(name) == 1


async def test_an_api_key_in_the_query_cannot_be_replaced(up: Stub) -> None:
    auth = {"type": "apikey", "key": "api_key", "value": "a b&{{env.K}}", "placement": "query"}
    made = document(api(up.url, {}, authentication=auth), face({}), binds=binds("K"))
    async with serving(made, {"K": "r"}) as served:
        for evil in ("api_key=evil", "API_KEY=evil", "api%5Fkey=evil", "+api-key=evil", "ok=1&api_key=evil&api_key=x"):
            await served.http.get(f"/x?{evil}")
            asked = up.only()
            assert asked.query["api_key"] == ["a b&r"]
            assert "evil" not in asked.target


async def test_the_callers_credentials_stay_here_unless_an_input_asks_for_them(up: Stub) -> None:
    headers = {"Authorization": "Bearer caller", "Cookie": "sid=1", "Proxy-Authorization": "x"}
    template = {"inputParameters": [param("X-T", "header", value="{{authorization}}{{sid2}}{{proxy-authorization}}")]}
    for consumed in ({}, template):
        async with serving(simple(up.url, consumed)) as served:
            await served.http.get("/x", headers=headers)
        asked = up.only()
        assert [asked.get(n) for n in ("authorization", "cookie", "x-t", "proxy-authorization")] == [None] * 4
    declared = {"inputParameters": [param("Authorization", "header")]}
    async with serving(simple(up.url, declared)) as served:
        await served.http.get("/x", headers=headers)
    assert up.only().get("authorization") == "Bearer caller"


async def test_the_key_of_this_server_does_not_travel_on(up: Stub) -> None:
    for placement in ("query", "header"):
        auth = {"type": "apikey", "key": "skey", "value": "ours", "placement": placement}
        consumed: Any = {} if placement == "query" else {"inputParameters": [param("skey", "header")]}
        server = face({}, {"path": "/p/{rest}"}, authentication=auth)
        server["resources"][1]["forward"] = {"targetNamespace": "up", "trustedHeaders": ["skey"]}
        async with serving(document(api(up.url, consumed), server)) as served:
            assert (await served.http.get("/x")).status_code == 401
            sent = {"params": {"skey": "ours", "a": "1"}} if placement == "query" else {"headers": {"skey": "ours"}}
            for method, path in (("GET", "/x"), ("PUT", "/p/q")):
                assert (await served.http.request(method, path, **sent)).status_code == 200
                asked = up.only()
                assert "ours" not in asked.target
                assert asked.get("skey") is None


async def test_two_apis_with_one_namespace_keep_their_own_credentials(up: Stub) -> None:
    first = api(up.url + "/1", {"name": "a"}, authentication={"type": "bearer", "token": "one"})
    second = api(up.url + "/2", {"name": "a"}, {"name": "b"}, authentication={"type": "bearer", "token": "two"})
    exposed = face({"path": "/a", "call": "up.a"}, {"path": "/b", "call": "up.b"})
    async with serving(document([first, second], exposed)) as served:
        await served.http.get("/a")
        await served.http.get("/b")
    assert [(a.target, a.get("authorization")) for a in up.asked] == [
        ("/1/thing", "Bearer one"),
        ("/2/thing", "Bearer two"),
    ]


# -- many at once


async def test_calls_at_the_same_time_do_not_mix(up: Stub) -> None:
    def echo(asked: Asked) -> Told:
        return Told(json.dumps({"id": asked.path.rpartition("/")[2], "h": asked.get("x-h")}).encode(), 200, JSON)

    up.answer = echo
    consumed = api(
        up.url,
        {"name": "one", "path": "/one/{id}", "inputParameters": [param("X-H", "header")]},
        {"name": "two", "path": "/two/{id}", "method": "POST", "body": {"type": "json", "data": {"v": "{{first.id}}"}}},
    )
    steps = {
        "path": "/s/{id}",
        "steps": [
            {"type": "call", "name": "first", "call": "up.one", "with": {"id": "rest.id", "X-H": "rest.h"}},
            {"type": "call", "name": "second", "call": "up.two", "with": {"id": "{{first.id}}-{{first.h}}"}},
        ],
        "mappings": [{"targetName": "out", "value": "$.second.id"}],
    }
    function = {
        "name": "f", "description": "d", "call": "up.one", "with": {"id": "agg.key", "X-H": "{{h}}"},
        "inputParameters": [{"name": "key"}],
    }  # fmt: skip
    other = {**function, "name": "g", "with": {"id": "g-{{key}}", "X-H": "agg.h"}}
    exposed = face(
        steps,
        {"path": "/f/{key}", "ref": "agg.f"},
        {"path": "/g/{key}", "ref": "agg.g"},
        {"path": "/w/{k}", "call": "up.one", "with": {"id": "{{k}}", "X-H": "{{h}}"}},
    )
    made = document(consumed, exposed, aggregates=[{"label": "A", "namespace": "agg", "functions": [function, other]}])
    async with serving(made) as served:

        async def one(number: int) -> None:
            kind = "sfgw"[number % 4]
            answer = await served.http.get(f"/{kind}/{number}?h=h{number}")
            assert answer.status_code == 200, answer.text
            expected: Any = {
                "s": {"out": f"{number}-h{number}"},
                "f": {"id": f"{number}", "h": f"h{number}"},
                "g": {"id": f"g-{number}", "h": f"h{number}"},
                "w": {"id": f"{number}", "h": f"h{number}"},
            }[kind]
            assert answer.json() == expected

        await asyncio.gather(*(one(n) for n in range(200)))
    for asked in up.asked:
        if asked.path.startswith("/two/"):
            assert json.loads(asked.body)["v"] == asked.path.removeprefix("/two/").partition("-")[0]


async def test_a_real_server_answers_with_clean_messages() -> None:
    async with upstream(answering(ok(b'{"a":1}', "Content-Type: application/json"), keep=True)) as up:
        async with serving(simple(up.url)) as served, real(served.capability.rest_app()) as url:
            async with httpx.AsyncClient(base_url=url) as http:
                for method, status in (("GET", 200), ("HEAD", 200), ("OPTIONS", 204), ("PUT", 405)):
                    answer = await http.request(method, "/x")
                    assert answer.status_code == status
                assert (await http.get("/x")).json() == {"a": 1}
