"""Credentials that never change: how they are sent, and that nothing is sent without them."""

import base64

import pytest
from opentelemetry import trace

from toolcrib.capability.spec import Auth, Mark
from toolcrib.capability.upstream import Upstream, UpstreamRequest, compile_auth
from toolcrib.capability.upstream.credentials import Secret
from toolcrib.errors import Unavailable
from upstream_app import Asked, Told, app

AT = Mark("file.yaml", 1, 1)


def literal(text: str) -> Secret:
    return lambda: text


def unresolved(_text: str) -> Secret:
    def refuse() -> str:
        raise Unavailable("bind.unresolved", "no value")

    return refuse


def ok(_asked: Asked) -> Told:
    return Told(b"{}")


def auth(type_: str, **fields: object) -> Auth:
    return Auth(type_, fields, AT)


async def sent_with(block: Auth, url: str = "/x", headers: list[tuple[str, str]] | None = None) -> Asked:
    async with app(ok) as served:
        up = Upstream(served.outbound, "api", authenticator=compile_auth(block, literal, served.outbound))
        await up.send(UpstreamRequest("GET", served.url + url, headers or []))
        return served.asked[0]


async def test_bearer_is_sent_and_wins_over_the_callers_in_any_spelling():
    asked = await sent_with(auth("bearer", token="s3cret"), headers=[("AUTHORIZATION", "Bearer mine"), ("X-A", "1")])
    assert asked.get("authorization") == "Bearer s3cret"
    assert asked.count("authorization") == 1
    assert asked.get("x-a") == "1"


async def test_basic_is_utf_8_and_may_have_an_empty_password():
    asked = await sent_with(auth("basic", username="jürgen", password="pässword:x"))
    assert asked.get("authorization") == "Basic " + base64.b64encode("jürgen:pässword:x".encode()).decode()
    asked = await sent_with(auth("basic", username="key", password=""))
    assert asked.get("authorization") == "Basic " + base64.b64encode(b"key:").decode()


async def test_an_api_key_is_a_header_unless_it_says_query():
    assert (await sent_with(auth("apikey", key="X-Key", value="a b"), headers=[("x-key", "z")])).get("x-key") == "a b"
    asked = await sent_with(auth("apikey", key="api key", value="a&b=c/ü", placement="query"), "/x?q=1%2F2#part")
    assert asked.target == "/x?q=1%2F2&api%20key=a%26b%3Dc%2F%C3%BC"


async def test_an_api_key_in_the_query_replaces_the_callers():
    asked = await sent_with(auth("apikey", key="key", value="ours", placement="query"), "/x?key=mine&a=&k%65y=other")
    assert asked.target == "/x?a=&key=ours"


async def test_an_api_key_joins_a_url_without_a_path():
    asked = await sent_with(auth("apikey", key="key", value="v", placement="query"), "?a=1")
    assert asked.target == "/?a=1&key=v"


@pytest.mark.parametrize(
    "block",
    [
        auth("bearer", token="t"),
        auth("basic", username="u", password="p"),
        auth("apikey", key="k", value="v"),
        auth("apikey", key="k", value="v", placement="query"),
        auth("digest", username="u", password="p"),
        auth("oauth2", tokenEndpoint="http://127.0.0.1:9/t", clientId="i", clientSecret="s"),
    ],
    ids=lambda block: block.type,
)
async def test_a_credential_without_a_value_stops_the_call_before_anything_is_sent(block):
    async with app(ok) as served:
        up = Upstream(served.outbound, "api", authenticator=compile_auth(block, unresolved, served.outbound))
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                await up.send(UpstreamRequest("GET", served.url))
            assert caught.value.code == "bind.unresolved"
            with pytest.raises(Unavailable):
                async with up.stream(UpstreamRequest("GET", served.url)):
                    pass
        assert served.raw.connections == 0


@pytest.mark.parametrize(
    "block",
    [
        auth("bearer", token="to\nken"),
        auth("bearer", token="token\r\n"),
        auth("bearer", token=""),
        auth("bearer", token="\ud800"),
        auth("basic", username="a:b", password="p"),
        auth("basic", username="", password=""),
        auth("basic", username="u", password="p\x00"),
        auth("apikey", key="X Key", value="v"),
        auth("apikey", key="X-Key", value="v\x7f"),
        auth("apikey", key="key", value="", placement="query"),
        auth("digest", username="u", password="p\n"),
    ],
)
async def test_a_credential_that_cannot_be_sent_as_it_is_refuses_the_call_without_showing_it(block):
    async with app(ok) as served:
        up = Upstream(served.outbound, "api", authenticator=compile_auth(block, literal, served.outbound))
        with pytest.raises(Unavailable) as caught:
            await up.send(UpstreamRequest("GET", served.url))
        assert caught.value.code == "upstream.credential_invalid"
        assert "token\r" not in caught.value.message
        assert served.raw.connections == 0


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (auth("bearer"), "authentication.token is missing"),
        (auth("basic", username="u"), "authentication.password is missing"),
        (auth("bearer", token=["x"]), "authentication.token must be a text"),
        (
            auth("apikey", key="k", value="v", placement="body"),
            "authentication.placement must be one of header, query, cookie",
        ),
        (auth("kerberos"), "'kerberos' is unknown"),
        (auth("oauth2", clientId="i", clientSecret="s"), "authentication.tokenEndpoint is missing"),
        (auth("oauth2", tokenEndpoint="http://x", clientSecret="s"), "authentication.clientId is missing"),
        (auth("oauth2", tokenEndpoint="http://x", clientId="i", clientSecret="s", scopes=3), "authentication.scopes"),
    ],
)
async def test_a_block_that_is_incomplete_is_refused_with_the_field(block, reason):
    async with app(ok) as served:
        with pytest.raises(ValueError, match=reason):
            compile_auth(block, literal, served.outbound)


async def test_no_block_is_no_authenticator_and_the_callers_header_stays():
    async with app(ok) as served:
        assert compile_auth(None, literal, served.outbound) is None
        up = Upstream(served.outbound, "api")
        await up.send(UpstreamRequest("GET", served.url, [("Authorization", "Bearer mine")]))
        assert served.asked[0].get("authorization") == "Bearer mine"


async def test_nothing_prints_a_secret():
    block = auth("bearer", token="s3cret")
    async with app(ok) as served:
        authenticator = compile_auth(block, literal, served.outbound)
        assert authenticator is not None
        used = await authenticator.authorize("GET", served.url, None)
        assert "s3cret" not in repr(used) + repr(authenticator) + repr(Upstream(served.outbound, "api"))


async def test_an_active_span_is_passed_on_and_replaces_the_callers():
    context = trace.SpanContext(
        0x0AF7651916CD43DD8448EB211C80319C,
        0xB7AD6B7169203331,
        True,
        trace.TraceFlags(1),
        trace.TraceState([("a", "b")]),
    )
    async with app(ok) as served:
        up = Upstream(served.outbound, "api")
        request = UpstreamRequest("GET", served.url, [("traceparent", "00-other")])
        await up.send(request)
        with trace.use_span(trace.NonRecordingSpan(context)):
            await up.send(request)
        await Upstream(served.outbound, "api", trace_headers=lambda: (("b3", "1-2-1"),)).send(request)
    first, second, third = served.asked
    assert first.get("traceparent") == "00-other"
    assert second.get("traceparent") == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert second.count("traceparent") == 1
    assert second.get("tracestate") == "a=b"
    assert (third.get("traceparent"), third.get("b3")) == (None, "1-2-1")


async def test_every_exchange_is_told_with_its_status_or_its_error():
    told: list[tuple[str, str, str, int | str]] = []
    async with app(lambda _: Told(status=404)) as served:
        up = Upstream(served.outbound, "api", on_exchange=lambda *of: told.append(of[:4]))
        await up.send(UpstreamRequest("GET", f"{served.url}/a?secret=1"))
        async with up.stream(UpstreamRequest("POST", served.url)) as stream:
            await stream.read(10)
        host = f"127.0.0.1:{served.raw.port}"
    with pytest.raises(Exception, match="closed"):
        await up.send(UpstreamRequest("GET", served.url))
    assert told == [
        ("api", "GET", host, 404),
        ("api", "POST", host, 404),
        ("api", "GET", host, "outbound.closed"),
    ]
