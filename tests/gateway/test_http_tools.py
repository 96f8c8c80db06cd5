"""HTTP tools against a real httpbin, and a raw server where bytes matter: what is sent, and what the agent gets."""

import base64
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from httpbin import app as httpbin_app
from werkzeug.serving import make_server

from raw_upstream import answering, ok, upstream
from serving import Crib

GET: dict[str, Any] = {"requestMethod": "GET"}
POST: dict[str, Any] = {"requestMethod": "POST", "path": "/anything"}


@pytest.fixture(scope="module")
def httpbin() -> Iterator[str]:
    """The URL of an httpbin on loopback."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, httpbin_app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, name="httpbin")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Caller:
    """Makes a tool and calls it."""

    def __init__(self, crib: Crib, base_url: str, headers: dict[str, str] | None = None) -> None:
        self.crib, self.adapter = crib, {"http": {"baseUrl": base_url, "headers": headers or {}}}
        self.tool_set: str | None = None

    async def answer(self, http: dict[str, Any], arguments: dict[str, Any] | None = None, **spec: Any) -> Any:
        """The whole answer of a call of a new tool."""
        if self.tool_set is None:
            self.tool_set = (await self.crib.add_tool_set("bin", self.adapter))["metadata"]["id"]
        tool = await self.crib.add_http_tool(self.tool_set, "try", http, **spec)
        return await self.crib.call(tool["info"]["callName"], arguments)

    async def result(self, http: dict[str, Any], arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """The tool result of a call of a new tool."""
        response = await self.answer(http, arguments)
        assert response.status_code == 200, response.text
        return dict(response.json()["data"])

    async def seen(self, http: dict[str, Any], arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """What httpbin saw of the request."""
        result = await self.result(http, arguments)
        assert result["isError"] is False, result
        return dict(result["structuredContent"])


@pytest.fixture
def call(crib: Crib, httpbin: str) -> Caller:
    """Tools of httpbin, with a header of the whole tool set."""
    return Caller(crib, httpbin, {"X-Set": "of the set", "X-Both": "of the set"})


# ---- what is sent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_without_templates_arguments_go_where_the_method_has_room(call: Caller, method: str) -> None:
    arguments = {"text": "a b&c=d", "n": 1.5, "yes": True, "none": None, "list": ["x", 2], "deep": {"k": "ü"}}
    seen = await call.seen({"requestMethod": method, "path": "/anything"}, arguments)
    assert seen["method"] == method
    if method in {"GET", "DELETE"}:
        assert seen["args"] == {"text": "a b&c=d", "n": "1.5", "yes": "true", "list": ["x", "2"], "deep": '{"k":"ü"}'}
        assert seen["data"] == ""
        assert "Content-Type" not in seen["headers"]
    else:
        assert seen["json"] == arguments
        assert seen["args"] == {}
        assert seen["headers"]["Content-Type"] == "application/json"


async def test_a_call_without_arguments_sends_neither_query_nor_body(call: Caller) -> None:
    seen = await call.seen(POST)
    assert (seen["data"], seen["args"], seen["json"]) == ("", {}, None)
    assert "Content-Type" not in seen["headers"]
    assert (await call.seen({"requestMethod": "GET", "path": "/anything"}))["args"] == {}


async def test_what_the_path_takes_is_not_sent_again(call: Caller) -> None:
    path = "/anything/{id}/x-{{ user.name }}"
    seen = await call.seen({**GET, "path": path}, {"id": 7, "user": {"name": "ann"}, "q": "z"})
    assert seen["url"].endswith("/anything/7/x-ann?q=z")
    seen = await call.seen({**POST, "path": "/anything/{id}"}, {"id": 7, "q": "z"})
    assert seen["json"] == {"q": "z"}


async def test_a_query_template_says_what_the_query_is(call: Caller) -> None:
    http = {**GET, "path": "/anything", "query": "fixed=1&q={{ q }}&tag={{ tags }}&gone={{ gone }}&mixed=%20{{ q }}"}
    seen = await call.seen(http, {"q": "a&b=c ü", "tags": ["x", "y z"], "unused": 1})
    assert seen["args"] == {"fixed": "1", "q": "a&b=c ü", "tag": ["x", "y z"], "mixed": " a&b=c ü"}
    seen = await call.seen({**POST, "query": "q={{ q }}"}, {"q": 1, "rest": 2})
    assert (seen["args"], seen["json"]) == ({"q": "1"}, {"rest": 2})


async def test_headers_come_from_the_set_and_the_tool(call: Caller) -> None:
    templates = {"x-both": "of the tool", "X-Arg": "v {{ a }}", "X-Gone": "{{ gone }}", "X-Line": "{{ line }}"}
    seen = await call.seen({**POST, "headers": templates}, {"a": 1, "line": "one\r\nX-Evil: two\tthree"})
    headers = seen["headers"]
    assert (headers["X-Set"], headers["X-Both"], headers["X-Arg"]) == ("of the set", "of the tool", "v 1")
    assert headers["X-Line"] == "one  X-Evil: two\tthree"
    assert "X-Gone" not in headers
    assert "X-Evil" not in headers
    assert seen["json"] is None  # all went into headers
    assert headers["User-Agent"].startswith("toolcrib/")
    assert headers["Accept"].startswith("application/json")


async def test_a_header_value_beyond_latin_1_is_sent_as_utf_8(crib: Crib) -> None:
    async with upstream(answering(ok(b"{}"), keep=True)) as served:
        await Caller(crib, served.url).result({**GET, "headers": {"X-A": "{{ a }}"}}, {"a": "snow\u2603 é"})
    assert "X-A: snow\u2603 é\r\n".encode().lower() in served.requests[0].lower()


async def test_a_header_that_is_too_long_is_told_to_the_agent(call: Caller) -> None:
    result = await call.result({**GET, "path": "/anything", "headers": {"X-A": "{{ a }}"}}, {"a": "x" * 200_000})
    assert result["isError"] is True


async def test_the_callers_own_headers_go_nowhere(crib: Crib) -> None:
    async with upstream(answering(ok(b"{}"), keep=True)) as served:
        call = Caller(crib, served.url)
        call.crib.http.headers["X-Private"] = "p"
        call.crib.http.cookies["session"] = "c"
        try:
            await call.result(GET)
        finally:
            del call.crib.http.headers["X-Private"]
            call.crib.http.cookies.clear()
    names = {line.partition(b":")[0].lower() for line in served.requests[0].split(b"\r\n")[1:] if line}
    assert names == {b"host", b"accept", b"accept-encoding", b"user-agent"}


@pytest.mark.parametrize(
    ("media", "template", "wanted"),
    [
        (
            "application/json",
            '{"who": "Dr. {{ name }}", "n": {{ n }}, "gone": {{ gone }}}',
            {"who": 'Dr. "A" \\ B\n', "n": 5, "gone": None},
        ),
        ("application/vnd.api+json", '{"data": {{ all }}}', {"data": {"k": [1, None]}}),
        (
            "application/x-www-form-urlencoded",
            "name={{ name }}&n={{ n }}&gone={{ gone }}&f=1",
            {"name": '"A" \\ B\n', "n": "5", "f": "1"},
        ),
        ("text/plain; charset=utf-8", "hi {{ name }}!", 'hi "A" \\ B\n!'),
        ("application/xml", "<n>{{ name }}</n>", "<n>&quot;A&quot; \\ B\n</n>"),
    ],
)
async def test_a_body_template_is_written_in_its_syntax(call: Caller, media: str, template: str, wanted: Any) -> None:
    http = {**POST, "requestBodyContentType": media, "requestBodyTemplate": template}
    seen = await call.seen(http, {"name": '"A" \\ B\n', "n": 5, "all": {"k": [1, None]}})
    assert seen["headers"]["Content-Type"] == media
    assert (seen["json"] or seen["form"] or seen["data"]) == wanted


async def test_a_form_is_written_without_a_template_too(call: Caller) -> None:
    http = {**POST, "requestBodyContentType": "application/x-www-form-urlencoded"}
    assert (await call.seen(http, {"a": "x y", "b": [1, 2]}))["form"] == {"a": "x y", "b": ["1", "2"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "id"),
        ({"id": ""}, "id"),
        ({"id": None}, "id"),
        ({"id": ".."}, "segments"),
        ({"id": "a/../../b"}, "segments"),
    ],
)
async def test_a_path_without_its_value_is_refused(call: Caller, arguments: dict[str, Any], words: str) -> None:
    response = await call.answer({**GET, "path": "/anything/{id}"}, arguments)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


async def test_the_request_line_is_written_byte_for_byte(crib: Crib) -> None:
    async with upstream(answering(ok(b"{}", "Content-Type: application/json"), keep=True)) as served:
        call = Caller(crib, served.url + "/base/")
        http = {**GET, "path": "/a b/{x}/%2F", "query": "q={{ y }}&z=a b"}
        await call.result(http, {"x": "ü/%?#", "y": "\r\n&="})
        await call.result(GET, {})
        await call.result({"requestMethod": "PUT", "path": "p"}, {"k": "\u2028"})
    lines = [request.partition(b"\r\n")[0] for request in served.requests]
    assert lines[0] == b"GET /base/a%20b/%C3%BC%2F%25%3F%23/%2F?q=%0D%0A%26%3D&z=a%20b HTTP/1.1"
    assert lines[1:] == [b"GET /base/ HTTP/1.1", b"PUT /base/p HTTP/1.1"]
    assert served.requests[2].endswith('{"k":"\u2028"}'.encode())


# ---- what comes back -------------------------------------------------------------------------------------------------


async def test_a_json_object_is_text_and_structured_content(call: Caller) -> None:
    result = await call.result({**GET, "path": "/json"})
    assert result["structuredContent"]["slideshow"]["title"] == "Sample Slide Show"
    assert json.loads(result["content"][0]["text"]) == result["structuredContent"]
    assert result["isError"] is False


async def test_html_and_other_text_is_text(call: Caller) -> None:
    result = await call.result({**GET, "path": "/encoding/utf8"})
    assert "∮ E⋅da = Q" in result["content"][0]["text"]
    assert "structuredContent" not in result


async def test_an_image_is_an_image(call: Caller) -> None:
    block = (await call.result({**GET, "path": "/image/png"}))["content"][0]
    assert (block["type"], block["mimeType"]) == ("image", "image/png")
    assert base64.b64decode(block["data"])[:8] == b"\x89PNG\r\n\x1a\n"


async def test_other_bytes_are_a_resource(call: Caller) -> None:
    block = (await call.result({**GET, "path": "/stream-bytes/300", "query": "seed=1"}))["content"][0]
    assert (block["type"], block["resource"]["mimeType"]) == ("resource", "application/octet-stream")
    assert len(base64.b64decode(block["resource"]["blob"])) == 300


@pytest.mark.parametrize("status", [400, 401, 404, 418, 429, 500, 503])
async def test_a_status_that_says_no_is_an_error_result(call: Caller, status: int) -> None:
    result = await call.result({**GET, "path": f"/status/{status}"})
    assert result["isError"] is True
    assert result["content"][0]["text"].startswith(f"HTTP {status}")
    assert "structuredContent" not in result


@pytest.mark.parametrize("status", [200, 201, 204])
async def test_an_empty_body_is_an_empty_result(call: Caller, status: int) -> None:
    assert await call.result({**GET, "path": f"/status/{status}"}) == {"content": [], "isError": False}


async def test_a_redirect_is_not_followed(call: Caller) -> None:
    result = await call.result({**GET, "path": "/redirect-to", "query": "url=/json"})
    assert "slideshow" not in str(result)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_answer_is_read(call: Caller, encoding: str) -> None:
    assert (await call.result({**GET, "path": f"/{encoding}"}))["isError"] is False


@pytest.mark.parametrize(
    ("body", "media", "blocks", "structured"),
    [
        (b"[1, 2]", "application/json", ["[1, 2]"], None),
        (b' {"a": 1} ', "application/json", [' {"a": 1} '], {"a": 1}),
        (b'{"a": 1}', "text/plain", ['{"a": 1}'], {"a": 1}),
        (b'{"a": 1}', None, ['{"a": 1}'], {"a": 1}),
        (b'{"a": 1', "application/json", ['{"a": 1'], None),
        (b'{"a": NaN}', "application/json", ['{"a": NaN}'], None),
        (b'"text"', "application/json", ['"text"'], None),
        (b"5", "application/json", ["5"], None),
        ("ünï".encode("latin-1"), "text/plain; charset=ISO-8859-1", ["ünï"], None),
        ("ünï".encode("utf-16"), 'text/plain; charset="utf-16"', ["ünï"], None),
        ("ünï".encode(), "text/plain; charset=klingon", None, None),
        ("ünï".encode("latin-1"), "text/plain", None, None),
        (b"\xed\xa0\x80", "text/plain", None, None),
        (b"a\0b", "text/plain", None, None),
        (b"hex", "text/plain; charset=hex", None, None),
        (b"a-" + b"b" * 50_000, "text/plain; charset=punycode", None, None),
        (b"\xff\xd8", "image/jpeg; q=1", "image", None),
        (b"RIFF", "audio/wav", "audio", None),
        (b"<svg/>", "IMAGE/SVG+XML", "image", None),
    ],
)
async def test_a_body_becomes_what_it_is(
    crib: Crib, body: bytes, media: str | None, blocks: Any, structured: Any
) -> None:
    data = ok(body, *([f"Content-Type: {media}"] if media else []))
    async with upstream(answering(data, keep=True)) as served:
        result = await Caller(crib, served.url).result(GET)
    assert result["isError"] is False
    assert result.get("structuredContent") == structured
    block = result["content"][0]
    if blocks is None:
        assert block["type"] == "resource"
        assert base64.b64decode(block["resource"]["blob"]) == body
    elif isinstance(blocks, str):
        assert (block["type"], base64.b64decode(block["data"])) == (blocks, body)
        assert block["mimeType"] == (media or "").partition(";")[0].lower()
    else:
        assert [b["text"] for b in result["content"]] == blocks


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
    ],
)
async def test_an_answer_that_is_none_is_an_error_result_and_an_upstream_error(crib: Crib, data: bytes) -> None:
    async with upstream(answering(data)) as served:
        result = await Caller(crib, served.url).result(GET)
    assert result["isError"] is True
    assert result["content"][0]["text"]
    row = (await crib.audit(limit=1))[0]
    assert row["outcome"] == "upstream_error"
    assert row["error_code"].startswith("outbound.")


async def test_a_tool_set_without_a_base_url_says_so(crib: Crib) -> None:
    tool_set = (await crib.add_tool_set("nowhere", {"http": {}}))["metadata"]["id"]
    tool = await crib.add_http_tool(tool_set, "nowhere", GET)
    response = await crib.call(tool["info"]["callName"])
    assert (response.status_code, response.json()["error"]["code"]) == (400, "http.no_base_url")


async def test_a_changed_tool_set_is_called_at_its_new_address(crib: Crib) -> None:
    async with upstream(answering(ok(b"old"), keep=True)) as old, upstream(answering(ok(b"new"), keep=True)) as new:
        tool_set = (await crib.add_tool_set("moving", {"http": {"baseUrl": old.url}}))["metadata"]["id"]
        name = (await crib.add_http_tool(tool_set, "moving", GET))["info"]["callName"]
        assert (await crib.call(name)).json()["data"]["content"][0]["text"] == "old"
        change = {"spec": {"adapter": {"http": {"baseUrl": new.url}}}}
        assert (await crib.http.put(f"/v1/tool_sets/{tool_set}", json=change)).status_code == 200
        assert (await crib.call(name)).json()["data"]["content"][0]["text"] == "new"
