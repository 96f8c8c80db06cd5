"""OAuth2 client credentials against a real token endpoint."""

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import pytest

from toolcrib.capability.spec import Auth, Mark
from toolcrib.capability.upstream import Upstream, UpstreamRequest, compile_auth
from toolcrib.errors import Upstream as UpstreamFailure
from upstream_app import App, Asked, Time, Told, app


class Server:
    """A token endpoint, metadata, and an API that takes the tokens it gave and has not revoked."""

    def __init__(self, **answer: Any) -> None:
        self.answer: dict[str, Any] = {"token_type": "Bearer", "expires_in": 3600, **answer}
        self.given = 0
        self.valid: set[str] = set()
        self.requests: list[Asked] = []
        self.status = 200
        self.metadata: dict[str, dict[str, Any]] = {}
        self.gate: asyncio.Event | None = None

    async def __call__(self, asked: Asked) -> Told:
        if asked.path in self.metadata:
            return Told(json.dumps(self.metadata[asked.path]).encode())
        if asked.path.startswith("/.well-known"):
            return Told(status=404)
        if asked.path != "/token":
            return Told(b"{}") if asked.get("authorization") in self.valid else Told(status=401)
        self.requests.append(asked)
        if self.gate is not None:
            await self.gate.wait()
        if self.status != 200:
            return Told(json.dumps(self.answer).encode(), self.status)
        self.given += 1
        self.valid.add(f"Bearer token{self.given}")
        return Told(json.dumps({"access_token": f"token{self.given}", **self.answer}).encode())

    def form(self, index: int = -1) -> dict[str, list[str]]:
        return parse_qs(self.requests[index].body.decode())


def made(served: App, time: Time, **fields: Any) -> Upstream:
    chosen = {"tokenEndpoint": f"{served.url}/token", "clientId": "the id", "clientSecret": "s3cret:/", **fields}
    block = Auth("oauth2", {name: value for name, value in chosen.items() if value is not None}, Mark("f", 1, 1))
    authenticator = compile_auth(block, lambda text: lambda: text, served.outbound, clock=time.clock)
    return Upstream(served.outbound, "api", authenticator=authenticator, clock=time.clock)


def get(served: App) -> UpstreamRequest:
    return UpstreamRequest("GET", f"{served.url}/data", [("authorization", "Bearer mine")])


async def test_a_token_is_asked_for_once_and_serves_all_calls():
    server, time = Server(), Time()
    async with app(server) as served:
        up = made(served, time, scopes=["read", "write"], audience="aud", resource="https://r/")
        assert [(await up.send(get(served))).status for _ in range(5)] == [200] * 5
    assert len(server.requests) == 1
    assert server.form() == {
        "grant_type": ["client_credentials"],
        "scope": ["read write"],
        "audience": ["aud"],
        "resource": ["https://r/"],
    }
    sent = base64.b64decode((server.requests[0].get("authorization") or "").removeprefix("Basic ")).decode()
    assert sent == "the+id:s3cret%3A%2F"


async def test_credentials_go_into_the_body_where_that_is_asked():
    server = Server()
    async with app(server) as served:
        await made(served, Time(), clientAuthentication="post", scopes="a, b").send(get(served))
    assert server.requests[0].get("authorization") is None
    assert (server.form()["client_id"], server.form()["client_secret"]) == (["the id"], ["s3cret:/"])
    assert server.form()["scope"] == ["a b"]


async def test_a_thousand_calls_with_an_expired_token_ask_for_one():
    server, time = Server(), Time()
    async with app(server) as served:
        up = made(served, time)
        await up.send(get(served))
        time.now += 3601
        server.valid.clear()
        answers = await asyncio.gather(*(up.send(get(served)) for _ in range(1000)))
        assert {answer.status for answer in answers} == {200}
    assert len(server.requests) == 2


async def test_a_thousand_calls_with_a_revoked_token_ask_for_one_and_are_repeated_once():
    server, time = Server(), Time()
    async with app(server) as served:
        up = made(served, time)
        await up.send(get(served))
        server.valid.clear()
        answers = await asyncio.gather(*(up.send(get(served)) for _ in range(1000)))
        assert {answer.status for answer in answers} == {200}
    assert len(server.requests) == 2


async def test_a_token_is_renewed_before_it_expires_while_calls_go_on_with_the_old_one():
    server, time = Server(), Time()
    async with app(server) as served:
        up = made(served, time)
        await up.send(get(served))
        time.now += 3545
        server.gate = asyncio.Event()
        assert (await up.send(get(served))).status == 200  # the token request is held up, the call is not
        assert (await up.send(get(served))).status == 200
        server.gate.set()
        await until(lambda: server.given == 2)
        server.valid.discard("Bearer token1")
        assert (await up.send(get(served))).status == 200
    assert len(server.requests) == 2


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_a_failed_renewal_leaves_the_old_token_in_use():
    server, time = Server(), Time()
    async with app(server) as served:
        up = made(served, time)
        await up.send(get(served))
        time.now += 3545
        server.status = 503
        assert [(await up.send(get(served))).status for _ in range(3)] == [200] * 3
        await until(lambda: len(server.requests) == 2)
        time.now += 60
        with pytest.raises(UpstreamFailure, match=r"answered 503$"):
            await up.send(get(served))
        server.status = 200
        time.now += 2
        assert (await up.send(get(served))).status == 200


async def test_an_upstream_that_refuses_every_token_does_not_make_us_ask_for_more_and_more():
    server, time = Server(), Time()
    async with app(server) as served:
        up = made(served, time)

        async def refusing(asked: Asked) -> Told:
            server.valid.clear()
            return await server(asked)

        async with app(refusing) as api:
            request = UpstreamRequest("GET", f"{api.url}/data")
            assert [(await up.send(request)).status for _ in range(10)] == [401] * 10
    assert len(server.requests) == 2


async def test_a_caller_that_goes_away_does_not_take_the_token_of_the_others_along():
    server, time = Server(), Time()
    server.gate = asyncio.Event()
    async with app(server) as served:
        up = made(served, time)
        first = asyncio.create_task(up.send(get(served)))
        second = asyncio.create_task(up.send(get(served)))
        await until(lambda: len(server.requests) == 1)
        first.cancel()
        server.gate.set()
        assert (await second).status == 200
        with pytest.raises(asyncio.CancelledError):
            await first
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (401, {"error": "invalid_client", "error_description": "s3cret:/ is wrong"}, r"answered 401 invalid_client$"),
        (500, {"error": "<script>"}, r"answered 500$"),
        (302, {}, r"answered 302$"),
        (200, {"access_token": ""}, "without a usable access_token"),
        (200, {"access_token": "a\nb"}, "without a usable access_token"),
        (200, {"token_type": "mac"}, "not of type Bearer"),
        (200, {"expires_in": 0}, "has expired"),
    ],
)
async def test_a_token_endpoint_that_gives_no_token_is_a_clear_failure_without_secrets(status, answer, message):
    server, time = Server(**answer), Time()
    server.status = status
    async with app(server) as served:
        up = made(served, time)
        for _ in range(3):
            with pytest.raises(UpstreamFailure, match=message) as caught:
                await up.send(get(served))
            assert caught.value.code == "upstream.token_failed"
            assert "s3cret" not in caught.value.message
    assert len(server.requests) == 1  # the failure is held for a second
    assert not [asked for asked in served.asked if asked.path == "/data"]


async def test_an_unreachable_token_endpoint_names_its_host():
    async with app(Server()) as gone:
        url = gone.url
    async with app(Server()) as served:
        up = made(served, Time(), tokenEndpoint=f"{url}/token?secret=1")
        with pytest.raises(
            UpstreamFailure, match=r"could not connect to 127\.0\.0\.1:\d+: connection refused$"
        ) as caught:
            await up.send(get(served))
        assert caught.value.code == "upstream.token_failed"


@pytest.mark.parametrize("expires", [None, "3600", "soon"])
async def test_expires_in_may_be_a_text_or_missing(expires):
    server, time = Server(expires_in=expires), Time()
    async with app(server) as served:
        up = made(served, time)
        await up.send(get(served))
        time.now += 3000
        await up.send(get(served))
    assert len(server.requests) == 1


# -- discovery --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["/.well-known/oauth-authorization-server/tenant", "/tenant/.well-known/openid-configuration"]
)
async def test_the_token_endpoint_is_found_from_the_metadata(place):
    server, time = Server(), Time()
    async with app(server) as served:
        issuer = f"{served.url}/tenant"
        server.metadata[place] = {
            "issuer": issuer,
            "token_endpoint": f"{served.url}/token",
            "token_endpoint_auth_methods_supported": ["client_secret_post"],
        }
        up = made(served, time, tokenEndpoint=None, authorizationServerUri=f"{issuer}/")
        assert (await up.send(get(served))).status == 200
        time.now += 3601  # the metadata is asked for again too
        assert (await up.send(get(served))).status == 200
    assert server.form()["client_secret"] == ["s3cret:/"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"issuer": "https://other.test"}, "is that of another issuer"),
        ({}, "is that of another issuer"),
        ({"issuer": "{url}"}, "names no token endpoint"),
    ],
)
async def test_metadata_that_does_not_belong_is_refused(metadata, message):
    server = Server()
    async with app(server) as served:
        server.metadata["/.well-known/oauth-authorization-server"] = {
            key: value.format(url=served.url) for key, value in metadata.items()
        }
        up = made(served, Time(), tokenEndpoint=None, authorizationServerUri=served.url)
        with pytest.raises(UpstreamFailure, match=message):
            await up.send(get(served))
    assert server.requests == []


async def test_a_server_without_metadata_is_a_clear_failure():
    async with app(Server()) as served:
        up = made(served, Time(), tokenEndpoint=None, authorizationServerUri=served.url)
        with pytest.raises(UpstreamFailure, match="has no authorization server metadata"):
            await up.send(get(served))
        up = made(served, Time(), tokenEndpoint=None, authorizationServerUri="ftp://x")
        with pytest.raises(UpstreamFailure, match="not an http or https URL"):
            await up.send(get(served))
