"""Resources that pass on what no operation takes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from capability.stub import (
    Stub,
    api,
    binds,
    document,
    face,
    param,
    raw_get,
    real,
    serving,
    stub,
    wait_for,
)
from raw_upstream import gone, hanging, upstream
from upstream_app import Told


@pytest.fixture
async def up() -> AsyncIterator[Stub]:
    async with stub() as served:
        yield served


def forwarding(url: str, *, trusted: tuple[str, ...] = (), path: str = "/proxy/{rest}", **more: Any) -> dict[str, Any]:
    server = face({"path": path, "method": "PATCH"})
    server["resources"][0]["forward"] = {"targetNamespace": "up", "trustedHeaders": list(trusted)}
    return document(api(url, {"method": "PATCH"}, **more), server)


async def test_forwarding_keeps_method_path_query_and_body(up: Stub) -> None:
    up.answer = Told(b"raw", 418, {"Content-Type": "x/y", "Set-Cookie": "a=b", "Location": "/l", "X-Internal": "i"})
    async with serving(forwarding(up.url + "/base")) as served:
        answer = await served.http.put(
            "/proxy/a%2Fb/c%20d/?q=1&q=2%20", content=b"\x00", headers={"Content-Type": "m/n"}
        )
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


@pytest.mark.parametrize(
    "path", ["/proxy/../secret", "/proxy/%2e%2e/secret", "/proxy/a/..%2f..%2fb", "/proxy/a%5c..%5cb"]
)
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

    async with (
        upstream(half) as broken,
        serving(forwarding(broken.url)) as served,
        real(served.capability.rest_app()) as url,
        httpx.AsyncClient() as http,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(f"{url}/proxy/x")


async def test_a_client_of_a_forward_that_goes_away_ends_it_before_and_after_the_head() -> None:
    for head in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"):
        async with (
            upstream(hanging(head)) as slow,
            serving(forwarding(slow.url)) as served,
            real(served.capability.rest_app()) as url,
        ):
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

    async with (
        upstream(slowly) as up,
        serving(forwarding(up.url)) as served,
        real(served.capability.rest_app()) as url,
        httpx.AsyncClient() as http,
        http.stream("GET", f"{url}/proxy/x") as answer,
    ):
        chunks = answer.aiter_raw()
        assert await anext(chunks) == b"one"
        more.set()
        assert b"".join([c async for c in chunks]) == b"two"
