"""The REST face when upstreams fail, clients leave, and many call at once."""

import asyncio
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
    real,
    serving,
    simple,
    stub,
    wait_for,
)
from raw_upstream import answering, gone, hanging, ok, upstream
from upstream_app import Asked, Told

MAPPED = {"outputParameters": [{"type": "object", "properties": {"n": {"type": "string", "mapping": "$.name"}}}]}
WHOLE = {"outputParameters": [{"type": "object", "mapping": "$."}]}


@pytest.fixture
async def up() -> AsyncIterator[Stub]:
    async with stub() as served:
        yield served


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
        made = simple(slow.url, **{"x-toolcrib": {"timeout": 0.05}})
        async with serving(made) as served:
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

    async with upstream(endless) as never_ends, serving(simple(never_ends.url)) as served:
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
    async with (
        upstream(hanging(b"")) as slow,
        serving(simple(slow.url)) as served,
        real(served.capability.rest_app()) as url,
    ):
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
        await wait_for(lambda: slow.requests)
        writer.close()
        await gone(slow)
        del reader


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
    async with (
        upstream(answering(ok(b'{"a":1}', "Content-Type: application/json"), keep=True)) as up,
        serving(simple(up.url)) as served,
        real(served.capability.rest_app()) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        for method, status in (("GET", 200), ("HEAD", 200), ("OPTIONS", 204), ("PUT", 405)):
            answer = await http.request(method, "/x")
            assert answer.status_code == status
        assert (await http.get("/x")).json() == {"a": 1}
