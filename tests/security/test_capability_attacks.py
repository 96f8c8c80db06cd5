"""Hostile clients, upstreams and files against the capability engine and the web server below it: real sockets."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from capability.mcp_plan import Upstreams, plan
from toolcrib.capability.capability import Capability
from toolcrib.capability.expose.cors import CorsRules, with_cors
from toolcrib.capability.expose.mcp import mcp_app
from toolcrib.capability.formats import Format, open_format
from toolcrib.capability.routing import Router
from toolcrib.capability.upstream.pages import compile_pagination
from toolcrib.core import web_server
from toolcrib.core.exchange import read_body
from toolcrib.errors import Unavailable
from toolcrib.errors import Upstream as UpstreamFailed

DEADLINE_S = 20.0
ANSWER = b"x" * 32_000_000  # more than the system takes for a client that does not read

FILE = """
naftiko: 1.0.0-alpha2
capability:
  consumes:
  - type: http
    namespace: up
    baseUri: http://127.0.0.1:9
    resources:
    - name: r
      path: /r
      operations:
      - {name: get, method: GET}
  aggregates:
  - label: Loop
    namespace: loop
    functions:
    - {name: one, description: d, ref: loop.two}
    - {name: two, description: d, ref: loop.one}
CHAIN
  exposes:
  - type: mcp
    namespace: tools
    port: 0
    tools:
    - {name: round, description: d, ref: loop.one}
    - {name: long, description: d, ref: loop.c0}
    - name: twice
      description: d
      call: up.get
      inputParameters:
      - {name: id, type: string, description: d}
      - {name: id, type: string, description: d}
    resources:
    - {name: wide, label: l, description: d, uri: "x://WIDE", call: up.get}
""".replace(
    "CHAIN", "\n".join(f"    - {{name: c{i}, description: d, ref: loop.c{i + 1}}}" for i in range(2000))
).replace("WIDE", "{a}" * 100_000)


# -- files


async def test_references_in_a_circle_inputs_declared_twice_and_endless_addresses_break_nothing_else() -> None:
    capability = Capability.load("x.yaml", text=FILE, environ={})
    assert any("leads back to itself" in finding.message for finding in capability.findings)
    assert capability.mcp_server("tools")
    for name in ("loop.one", "loop.c0"):
        with pytest.raises(Unavailable):
            await capability.call(name)
    await capability.close()


@pytest.mark.parametrize(
    "written",
    [
        "authentication: {type: oauth2, authorizationServerUri: 'http://a', audience: x, scopes: 5}",
        "x-toolcrib: {cors: {origins: ['http://a'], credentials: []}}",
        "x-toolcrib: {cors: {1: 2, x: 3}}",
    ],
)
async def test_a_lock_that_makes_no_sense_closes_its_server_and_stops_nothing(written: str) -> None:
    text = f"capability: {{exposes: [{{type: rest, namespace: api, port: 0, resources: [], {written}}}]}}"
    capability = Capability.load("x.yaml", text=f"naftiko: 1.0.0-alpha2\n{text}\n", environ={})
    assert capability.rest_app("api")
    await capability.close()


@pytest.mark.parametrize("way", [[], {}, ["link"]])
def test_a_way_of_paging_that_is_no_word_is_a_mistake_of_the_file(way: Any) -> None:
    with pytest.raises(ValueError, match=r"pagination\.type"):
        compile_pagination({"type": way})


# -- callers


async def test_a_path_that_almost_fits_a_pattern_is_refused_at_once() -> None:
    router: Router[int] = Router()
    router.add("/x/{{a}}-{{b}}-{{c}}-{{d}}.json", 1)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert router.find("/x/" + "-" * 20_000 + "!") == []
    assert router.find("/x/a-b\n-ü-d.json") == [(1, {"a": "a", "b": "b\n", "c": "ü", "d": "d"})]
    assert loop.time() - began < 5  # cubic, it took minutes


@dataclass
class Server:
    """The web server in front of an application that answers late, or much."""

    port: int
    server: web_server.WebServer
    go_on: asyncio.Event

    async def connect(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1024)
        writer.write(data)
        return reader, writer

    async def left(self) -> None:
        """Return when no connection is left."""
        async with asyncio.timeout(DEADLINE_S):
            while self.server.server_state.connections:
                await asyncio.sleep(0.02)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    for name in ("_HEAD_S", "_LOOK_S", "_STALLED_S"):
        monkeypatch.setattr(web_server, name, 0.3)
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(Unavailable):
            await read_body(receive, 1 << 30)
            if scope["path"] == "/late":
                await go_on.wait()
            body = ANSWER if scope["path"] == "/much" else b"ok"
            head = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": body})

    with web_server.web_server_socket("127.0.0.1", 0) as listening:
        made = web_server.web_server(app, grace_s=1)
        task = asyncio.create_task(made.serve(sockets=[listening]))
        async with asyncio.timeout(DEADLINE_S):
            while not made.started:
                await asyncio.sleep(0.01)
        yield Server(listening.getsockname()[1], made, go_on)
        go_on.set()
        made.should_exit = True
        await task


async def test_requests_cannot_be_piled_up_on_one_connection(server: Server) -> None:
    reader, writer = await server.connect(b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n" * 20_000)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b""
    writer.transport.abort()
    server.go_on.set()
    await server.left()


async def test_some_requests_behind_one_another_are_all_answered(server: Server) -> None:
    reader, writer = await server.connect(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(100):
            await reader.readuntil(b"\r\n\r\nok")
    writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nthe rest never comes",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n",  # and its answer is never read
    ],
    ids=["body", "chunks", "answer"],
)
async def test_who_neither_sends_nor_takes_is_let_go(server: Server, sent: bytes) -> None:
    _, writer = await server.connect(sent)
    async with asyncio.timeout(DEADLINE_S):
        while not server.server.server_state.connections:
            await asyncio.sleep(0.01)
    await server.left()
    writer.transport.abort()


async def test_an_empty_line_does_not_keep_a_connection_for_ever(server: Server) -> None:
    reader, writer = await server.connect(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await reader.readuntil(b"\r\n\r\nok")
    writer.write(b"\r\n")
    await server.left()
    writer.close()


async def test_a_body_that_arrives_slowly_but_steadily_is_taken(server: Server) -> None:
    reader, writer = await server.connect(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n")
    for _ in range(20):
        writer.write(b"x" * 10_000)
        await writer.drain()
        await asyncio.sleep(0.05)  # the pace of the client is what is tested
    async with asyncio.timeout(DEADLINE_S):
        await reader.readuntil(b"\r\n\r\nok")
    writer.close()


async def mcp_status(app: Any, **headers: str) -> int:
    """The status of a ping with these headers, over a socket of this machine."""
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += ["Content-Type: application/json", "Accept: application/json", f"Content-Length: {len(body)}"]
    with web_server.web_server_socket("127.0.0.1", 0) as listening:
        made = web_server.web_server(app, grace_s=1)
        task = asyncio.create_task(made.serve(sockets=[listening]))
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.getsockname()[1])
        writer.write("\r\n".join(["POST /mcp HTTP/1.1", *lines, "Connection: close", "", ""]).encode() + body)
        async with asyncio.timeout(DEADLINE_S):
            answer = await reader.read()
        writer.close()
        made.should_exit = True
        await task
    return int(answer.split()[1])


async def test_a_name_that_a_page_made_point_to_this_machine_is_not_ours(tmp_path: Path) -> None:
    app = mcp_app(plan(Upstreams(), tmp_path), version="1")
    assert await mcp_status(app, Host="evil.example:9090", Origin="http://evil.example:9090") == 403
    assert await mcp_status(app, Host="localhost:9090", Origin="http://localhost:9090") == 200
    assert await mcp_status(app, Host="tools.example") == 200  # no page, but a proxy on this machine
    assert await mcp_status(app, Host="a", Origin="http://[") == 403


async def test_pages_of_origins_that_the_file_permits_reach_an_mcp_server(tmp_path: Path) -> None:
    app = mcp_app(plan(Upstreams(), tmp_path), version="1")
    rules = CorsRules.read({"origins": ["https://app.example"]})
    assert await mcp_status(with_cors(app, rules), Host="tools.example", Origin="https://app.example") == 200
    assert await mcp_status(with_cors(app, rules), Host="tools.example", Origin="https://evil.example") == 403


class Drain:
    """Standard output: counts what is written to it."""

    def __init__(self) -> None:
        self.refused = asyncio.Semaphore(0)

    def write(self, data: bytes) -> None:
        if b"Too many batches" in data:
            self.refused.release()

    async def drain(self) -> None:
        """Nothing waits."""


async def test_batches_over_standard_streams_do_not_pile_up(tmp_path: Path) -> None:
    upstreams = Upstreams()
    app = mcp_app(plan(upstreams, tmp_path), version="1")
    reader, writer = asyncio.StreamReader(), Drain()
    call = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"slow","arguments":{}}}'
    reader.feed_data((b"[" + b",".join(call % i for i in range(50)) + b"]\n") * 100)
    serving = asyncio.create_task(app.serve_stdio(reader, writer))
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(80):
            await writer.refused.acquire()
    assert len(asyncio.all_tasks()) < 1200
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


# -- upstreams


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("csv", b"h" * 100_000 + b"\n" + b"a\n" * 50_000),
        ("psv", b"|".join([b"h" * 10_000] * 10) + b"\n" + b"a|a|a|a|a|a|a|a|a|a\n" * 5_000),
        ("html", b"<table><tr><th>" + b"h" * 30_000 + b"</th></tr>" + b"<tr><td>" * 4000),
        ("markdown", b"|" + b"h" * 16_000 + b"|\n|-|\n" + b"|a|\n" * 3900),
    ],
)
def test_a_long_header_over_many_rows_does_not_become_gigabytes(name: str, body: bytes) -> None:
    with pytest.raises(UpstreamFailed, match="repeat a header"):
        open_format(name, None, ()).decode(body)


def test_a_sparse_table_with_long_names_is_read() -> None:
    names = [f"a_rather_long_name_of_a_column_{i}" for i in range(100)]
    tree = open_format("csv", None, ()).decode(",".join(names).encode() + b"\n" + (b"1" + b"," * 99 + b"\n") * 3000)
    assert len(tree) == 3000
    assert tree[7][names[0]] == "1"


async def test_answers_that_take_long_to_read_hold_up_nothing_else() -> None:
    go_on = threading.Event()
    slow = Format("slow", False, lambda _body, _charset: go_on.wait(DEADLINE_S))
    reading = [asyncio.create_task(slow.decode_aside(b"")) for _ in range(50)]
    try:
        async with asyncio.timeout(DEADLINE_S / 2):
            assert await asyncio.get_running_loop().getaddrinfo("localhost", 80)
            assert await asyncio.to_thread(lambda: "elsewhere") == "elsewhere"
        for task in reading[25:]:
            task.cancel()
    finally:
        go_on.set()
    results = await asyncio.gather(*reading, return_exceptions=True)
    assert results[:25] == [True] * 25
