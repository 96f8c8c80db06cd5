"""Credentials: those of the file are sent and replaced by nobody, those of the caller stay here."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from capability.stub import (
    Stub,
    api,
    binds,
    document,
    face,
    param,
    serving,
    simple,
    stub,
    tools,
)


@pytest.fixture
async def up() -> AsyncIterator[Stub]:
    async with stub() as served:
        yield served


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


@pytest.mark.parametrize("spelling", ["X-Api-Key", "x-api-key", "X_API_KEY", "XApiKey"])
async def test_an_input_that_means_a_configured_credential_is_none(up: Stub, spelling: str) -> None:
    auth = {"type": "apikey", "key": "X-Api-Key", "value": "real"}
    consumed = api(up.url, {"inputParameters": [param(spelling, "header")]}, authentication=auth)
    async with serving(document(consumed, face({}), tools({"name": "t", "call": "up.op"}))) as served:
        await served.http.get("/x", headers={spelling: "evil"})
        tool = served.capability.plan.mcp["kit"].tools["t"]
        assert "properties" not in tool.input_schema
        await tool.run({spelling: "evil"})
    for asked in up.asked:
        assert asked.get("x-api-key") == "real"
        assert "evil" not in str(asked.headers)
