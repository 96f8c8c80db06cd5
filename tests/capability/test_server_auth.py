"""Who gets through to a face, over real HTTP: basic, digest, bearer, API key, OAuth 2 tokens, and CORS in front."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
import orjson
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from gateway.mcp_client.servers.launch import serving
from raw_upstream import client as outbound_client
from toolcrib.capability.expose import oauth
from toolcrib.capability.expose.cors import CorsRules, with_cors
from toolcrib.capability.expose.problem import prefers_text, status_of
from toolcrib.capability.expose.server_auth import guard
from toolcrib.capability.spec import Auth, Mark
from toolcrib.core.http import AddressRefused, Headers, OutboundClient, OutboundError, OutboundResponse
from toolcrib.errors import Invalid, RateLimited, Unavailable, Upstream

AT = Mark("naftiko.yaml", 1, 1)
RSA = RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig"})
RSA_NEXT = RSAKey.generate_key(2048, {"kid": "next", "use": "sig"})
EC = ECKey.generate_key("P-256", {"kid": "ec", "use": "sig"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed", "use": "sig"})


class Face:
    """What is guarded: says what reached it."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.scopes.append(scope)
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"access-control-allow-origin", b"evil")]}
        )
        await send({"type": "http.response.body", "body": b"in"})


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def secrets(values: Mapping[str, str | None]) -> Callable[[str], Callable[[], str]]:
    """Texts are themselves, `{{X}}` is the value of X, or unavailable."""

    def secret(text: str) -> Callable[[], str]:
        def value() -> str:
            if not text.startswith("{{"):
                return text
            found = values.get(text.strip("{}"))
            if found is None:
                raise Unavailable("bind.unresolved", f"the variable {text.strip('{}')} has no value")
            return found

        return value

    return secret


@contextlib.asynccontextmanager
async def guarded(
    fields: Mapping[str, Any], kind: str, *, values: Mapping[str, str | None] | None = None, clock: Clock | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, Face]]:
    face = Face()
    async with outbound_client() as outbound:
        app = made(fields, kind, outbound, face=face, values=values, clock=clock)
        async with serving(app) as url, httpx.AsyncClient(base_url=url) as http:
            yield http, face


def made(fields: Mapping[str, Any], kind: str, outbound: OutboundClient, **options: Any) -> Any:
    return guard(
        options.get("face") or Face(),
        Auth(kind, fields, AT),
        secrets(options.get("values") or {}),
        outbound=outbound,
        resource_path="/mcp",
        clock=options.get("clock") or Clock(),
    )


# -- basic, bearer, API key -------------------------------------------------------------------------------------------


async def test_basic_lets_in_who_knows_both_words_and_challenges_everybody_else():
    async with guarded({"username": "{{U}}", "password": "pä:ss"}, "basic", values={"U": "ann"}) as (http, face):
        assert (await http.get("/", auth=httpx.BasicAuth("ann", "pä:ss"))).text == "in"
        for auth in [("ann", "no"), ("bob", "pä:ss"), ("", "")]:
            refused = await http.get("/", auth=httpx.BasicAuth(*auth))
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == 'Basic realm="naftiko", charset="UTF-8"'
        for header in ["Basic !!!", "Basic", "basic " + base64.b64encode(b"ann").decode(), "Bearer x"]:
            assert (await http.get("/", headers={"Authorization": header})).status_code == 401
        assert len(face.scopes) == 1


async def test_two_authorization_headers_are_none():
    async with guarded({"token": "t0k"}, "bearer") as (http, _):
        both = [("Authorization", "Bearer t0k"), ("Authorization", "Bearer t0k")]
        assert (await http.get("/", headers=both)).status_code == 401


async def test_bearer_compares_the_token_and_answers_problems_or_text_as_the_client_prefers():
    async with guarded({"token": "{{T}}"}, "bearer", values={"T": "s3cret-token"}) as (http, _):
        assert (await http.get("/x", headers={"Authorization": "bearer s3cret-token"})).status_code == 200
        refused = await http.get("/x", headers={"Authorization": "Bearer {{T}}"})
        assert refused.status_code == 401
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["status"] == 401
        assert "s3cret" not in refused.text
        text = await http.get("/x", headers={"Accept": "text/plain"})
        assert (text.status_code, text.text) == (401, "Unauthorized")
        assert text.headers["www-authenticate"] == 'Bearer realm="naftiko"'


@pytest.mark.parametrize("value", [None, ""])
async def test_a_secret_that_is_not_there_refuses_everybody_and_names_its_variable(value: str | None):
    async with guarded({"token": "{{TOKEN}}"}, "bearer", values={"TOKEN": value}) as (http, face):
        for token in ["{{TOKEN}}", "None", "x"]:
            refused = await http.get("/", headers={"Authorization": f"Bearer {token}"})
            assert refused.status_code == 503
        if value is None:
            assert "TOKEN" in refused.json()["detail"]
        assert not face.scopes


async def test_an_api_key_in_a_header_stays_at_the_door():
    async with guarded({"key": "X-Key", "value": "k1"}, "apikey") as (http, face):
        assert (await http.get("/", headers={"x-key": "k1", "x-other": "o"})).status_code == 200
        names = [name for name, _ in face.scopes[0]["headers"]]
        assert b"x-key" not in names
        assert b"x-other" in names
        for headers in [{}, {"x-key": "k2"}, {"x-key": ""}]:
            assert (await http.get("/", headers=headers)).status_code == 401
        assert (await http.get("/", headers=[("x-key", "k1"), ("x-key", "k1")])).status_code == 401


async def test_an_api_key_in_the_query_is_taken_out_of_it():
    async with guarded({"key": "api key", "value": "ä&1", "placement": "query"}, "apikey") as (http, face):
        assert (await http.get("/?a=1&api%20key=%C3%A4%261&b=%20")).status_code == 200
        assert face.scopes[0]["query_string"] == b"a=1&b=%20"
        assert (await http.get("/?api+key=nope")).status_code == 401


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("basic", {"username": "a"}, "needs a text in password"),
        ("bearer", {}, "needs a text in token"),
        ("bearer", {"token": True}, "needs a text in token"),
        ("apikey", {"key": "k", "value": "v", "placement": "cookie"}, "placement is header or query"),
        ("magic", {}, "'magic' is not one of"),
        ("oauth2", {"resource": "https://r"}, "needs authorizationServerUri"),
        ("oauth2", {"authorizationServerUri": "https://a"}, "needs resource or audience"),
        ("oauth2", {"authorizationServerUri": "a", "audience": "x"}, "absolute URL"),
        (
            "oauth2",
            {"authorizationServerUri": "https://a", "audience": "x", "tokenValidation": "introspection"},
            "introspection is not supported",
        ),
    ],
)
async def test_settings_that_cannot_work_are_refused_when_the_face_is_built(kind, fields, message):
    async with outbound_client() as outbound:
        with pytest.raises(ValueError, match=message):
            made(fields, kind, outbound)


async def test_without_authentication_the_face_is_itself():
    async with outbound_client() as outbound:
        face = Face()
        assert guard(face, None, secrets({}), outbound=outbound) is face


# -- digest -----------------------------------------------------------------------------------------------------------

DIGEST = {"username": "ann", "password": "wörd"}


async def test_digest_serves_a_client_that_keeps_its_nonce():
    async with guarded(DIGEST, "digest") as (http, face):
        auth = httpx.DigestAuth("ann", "wörd")
        for path in ["/a?b=c%20d", "/a%2Fb", "/"]:
            assert (await http.get(path, auth=auth)).status_code == 200
        assert (await http.post("/", content=b"x", auth=auth)).status_code == 200
        assert len(face.scopes) == 4
        for wrong in [("ann", "word"), ("bob", "wörd")]:
            assert (await http.get("/", auth=httpx.DigestAuth(*wrong))).status_code == 401
        assert len(face.scopes) == 4


async def test_digest_offers_sha_256_before_md5():
    async with guarded(DIGEST, "digest") as (http, _):
        challenges = (await http.get("/")).headers.get_list("www-authenticate")
        assert ["SHA-256" in challenges[0], "algorithm=MD5" in challenges[1]] == [True, True]
        assert all('realm="naftiko"' in challenge and 'qop="auth"' in challenge for challenge in challenges)


def digest_header(
    nonce: str, *, uri: str = "/", nc: str = "00000001", algorithm: str = "SHA-256", **changed: str
) -> str:
    """An answer computed by hand."""
    name = {"SHA-256": "sha256", "MD5": "md5"}[algorithm]

    def h(text: str) -> str:
        return hashlib.new(name, text.encode()).hexdigest()

    response = h(f"{h('ann:naftiko:wörd')}:{nonce}:{nc}:cn:auth:{h(f'GET:{uri}')}")
    parts = {
        "username": "ann",
        "realm": "naftiko",
        "nonce": nonce,
        "uri": uri,
        "cnonce": "cn",
        "response": response,
        **changed,
    }
    quoted = ", ".join(f'{key}="{value}"' for key, value in parts.items())
    return f"Digest {quoted}, qop=auth, nc={nc}, algorithm={algorithm}"


async def nonce_of(http: httpx.AsyncClient) -> str:
    return (await http.get("/")).headers.get_list("www-authenticate")[0].partition('nonce="')[2].partition('"')[0]


@pytest.mark.parametrize("algorithm", ["SHA-256", "MD5"])
async def test_a_digest_answer_counts_once_and_counts_may_arrive_out_of_order(algorithm: str):
    async with guarded(DIGEST, "digest") as (http, _):
        nonce = await nonce_of(http)

        async def status(nc: str) -> int:
            header = digest_header(nonce, nc=nc, algorithm=algorithm)
            return (await http.get("/", headers={"Authorization": header.encode()})).status_code

        assert [await status(nc) for nc in ["00000001", "00000003", "00000002", "00000002", "00000001"]] == [
            200,
            200,
            200,
            401,
            401,
        ]
        assert await status("00000100") == 200
        assert await status("00000003") == 401  # out of the window


async def test_an_old_nonce_is_stale_a_foreign_one_wrong_and_another_path_refused():
    clock = Clock()
    async with guarded(DIGEST, "digest", clock=clock) as (http, face):
        nonce = await nonce_of(http)
        attempts = [
            digest_header(nonce, uri="/other"),
            digest_header(nonce[:-1] + ("0" if nonce[-1] != "0" else "1")),
            digest_header(nonce, realm="other"),
            digest_header(nonce, response="0" * 64),
            digest_header(nonce) + ', nonce="twice"',
            "Digest garbage",
            "Digest",
        ]
        for attempt in attempts:
            refused = await http.get("/", headers={"Authorization": attempt.encode()})
            assert refused.status_code == 401
            assert "stale" not in refused.headers["www-authenticate"]
        clock.now += 301
        refused = await http.get("/", headers={"Authorization": digest_header(nonce).encode()})
        assert (refused.status_code, "stale=true" in refused.headers["www-authenticate"]) == (401, True)
        assert not face.scopes


# -- OAuth 2 ----------------------------------------------------------------------------------------------------------


class Authority:
    """An authorization server: its metadata where it is told to put it, and its keys."""

    def __init__(self) -> None:
        self.url = ""
        self.tenant = ""
        self.keys: list[Any] = [RSA, EC, ED]
        self.extra: list[dict[str, Any]] = []
        self.places = {"/.well-known/oauth-authorization-server"}
        self.asked: list[str] = []
        self.issuer: str | None = None
        self.broken = False
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        self.asked.append(path)
        await self.go_on.wait()
        document: Any = None
        if path in self.places:
            document = {"issuer": self.issuer or self.url + self.tenant, "jwks_uri": f"{self.url}/keys"}
        elif path == "/keys":
            document = {"keys": [key.as_dict(private=False) for key in self.keys] + self.extra}
        status = 500 if self.broken else 200 if document else 404
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": orjson.dumps(document)})

    def token(self, key: Any = RSA, alg: str = "RS256", *, head: Mapping[str, Any] | None = None, **claims: Any) -> str:
        now = int(time.time())
        body = {"iss": self.url + self.tenant, "aud": RESOURCE, "exp": now + 600, "scope": "a b c", **claims}
        body = {name: value for name, value in body.items() if value is not None}
        return jwt.encode({"alg": alg, "kid": key.kid, **(head or {})}, body, key, algorithms=[alg])


RESOURCE = "https://crib.example/mcp"
SCOPES = {"resource": RESOURCE, "scopes": ["a", "b"]}


@contextlib.asynccontextmanager
async def protected(
    authority: Authority | None = None, **fields: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Authority, Clock]]:
    authority = authority or Authority()
    async with serving(authority) as url:
        authority.url = url
        clock = Clock()
        settings = {"authorizationServerUri": url + authority.tenant, **SCOPES, **fields}
        async with guarded(settings, "oauth2", clock=clock) as (http, _):
            yield http, authority, clock


async def ask(http: httpx.AsyncClient, token: str) -> httpx.Response:
    return await http.get("/mcp", headers={"Authorization": f"Bearer {token}"})


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
async def test_tokens_signed_with_a_published_key_pass_whatever_the_algorithm():
    async with protected() as (http, authority, _):
        for key, alg in [(RSA, "RS256"), (RSA, "RS512"), (RSA, "PS256"), (EC, "ES256"), (ED, "Ed25519"), (ED, "EdDSA")]:
            assert (await ask(http, authority.token(key, alg))).status_code == 200, alg
        assert (await ask(http, authority.token(head={"typ": "at+jwt"}))).status_code == 200
        assert authority.asked == ["/.well-known/oauth-authorization-server", "/keys"]


async def test_a_token_that_names_no_key_is_tried_with_those_of_its_kind():
    async with protected() as (http, authority, _):
        authority.keys = [RSA_NEXT, RSA]
        now = int(time.time())
        claims = {"iss": authority.url, "aud": [RESOURCE, "x"], "exp": now + 60, "scp": ["a", "b"]}
        assert (await ask(http, jwt.encode({"alg": "RS256"}, claims, RSA))).status_code == 200


async def test_without_a_token_the_challenge_leads_to_public_metadata():
    async with protected() as (http, authority, _):
        refused = await http.get("/mcp")
        assert refused.status_code == 401
        challenge = refused.headers["www-authenticate"]
        assert challenge == (
            'Bearer realm="naftiko", scope="a b", '
            'resource_metadata="https://crib.example/.well-known/oauth-protected-resource/mcp"'
        )
        for path in ["/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-protected-resource"]:
            metadata = await http.get(path)
            assert metadata.json() == {
                "resource": RESOURCE,
                "authorization_servers": [authority.url],
                "bearer_methods_supported": ["header"],
                "scopes_supported": ["a", "b"],
            }
        assert (await http.post(path)).headers["allow"] == "GET, HEAD, OPTIONS"
        assert (await http.get("/.well-known/oauth-protected-resource/other")).status_code == 401


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"exp": 1}, "expired"),
    ({"exp": None}, "when it expires"),
    ({"exp": True}, "when it expires"),
    ({"nbf": 99999999999}, "not valid yet"),
    ({"nbf": "soon"}, "not valid yet"),
    ({"iss": "https://elsewhere"}, "another issuer"),
    ({"iss": None}, "another issuer"),
    ({"aud": "https://elsewhere"}, "another audience"),
    ({"aud": None}, "another audience"),
    ({"head": {"typ": "logout+jwt"}}, "not an access token"),
    ({"key": RSA_NEXT}, "no key"),
    ({"key": RSAKey.generate_key(2048, {"kid": "rsa"})}, "signature"),
]


async def test_a_token_that_is_wrong_in_one_thing_is_refused():
    async with protected() as (http, authority, _):
        for change, detail in WRONG:
            refused = await ask(http, authority.token(**change))
            assert refused.status_code == 401, change
            assert 'error="invalid_token"' in refused.headers["www-authenticate"]
            assert detail in refused.headers["www-authenticate"]


async def test_a_missing_scope_is_403_and_says_which():
    async with protected() as (http, authority, _):
        refused = await ask(http, authority.token(scope="a"))
        assert refused.status_code == 403
        assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]
        assert "the scope b" in refused.json()["detail"]


async def test_neither_unsigned_tokens_nor_public_keys_used_as_shared_secrets_pass():
    async with protected() as (http, authority, _):
        authority.extra = [OctKey.import_key("shared-secret-shared-secret-shared").as_dict() | {"kid": "oct"}]
        good = authority.token().split(".")

        def part(value: Any) -> str:
            return base64.urlsafe_b64encode(orjson.dumps(value)).rstrip(b"=").decode()

        shared = OctKey.import_key("shared-secret-shared-secret-shared")
        claims = {"iss": authority.url, "aud": RESOURCE, "exp": int(time.time()) + 60, "scope": "a b"}
        forged = f"{part({'alg': 'HS256', 'kid': 'rsa'})}.{part(claims)}"

        def seal(text: str) -> str:
            mac = hmac.new(RSA.as_pem(private=False), text.encode(), hashlib.sha256).digest()
            return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()

        tokens = [
            f"{part({'alg': 'none', 'kid': 'rsa'})}.{good[1]}.",
            f"{part({'alg': 'None'})}.{good[1]}.{good[2]}",
            f"{forged}.{seal(forged)}",
            jwt.encode({"alg": "HS256", "kid": "oct"}, claims, shared, algorithms=["HS256"]),
            f"{good[0]}.{part({**claims, 'scope': 'a b admin'})}.{good[2]}",
            f"{good[0]}.{good[1]}.",
            "x.y.z",
            "..",
            "a.b.c.d.e",
            f"{part([1])}.{good[1]}.{good[2]}",
            f"{part({'alg': 'RS256', 'kid': 'rsa', 'crit': ['b64'], 'b64': False})}.{good[1]}.{good[2]}",
            f"{part({'alg': 7, 'kid': ['rsa']})}.{good[1]}.{good[2]}",
            f"{part({'alg': 'ES256', 'kid': 'rsa'})}.{good[1]}.{good[2]}",
            "A" * 20_000,
        ]
        for token in tokens:
            assert (await ask(http, token)).status_code == 401, token[:80]


async def test_a_new_key_is_fetched_when_a_token_names_it_but_not_more_often_than_every_half_minute():
    async with protected() as (http, authority, clock):
        assert (await ask(http, authority.token())).status_code == 200
        authority.keys = [RSA, RSA_NEXT]
        assert (await ask(http, authority.token(RSA_NEXT))).status_code == 401
        assert authority.asked.count("/keys") == 1
        clock.now += 31
        answers = await asyncio.gather(*(ask(http, authority.token(RSA_NEXT, exp=clock.now + 60)) for _ in range(8)))
        assert {answer.status_code for answer in answers} == {200}
        assert authority.asked.count("/keys") == 2
        assert (await ask(http, authority.token(RSAKey.generate_key(2048, {"kid": "none"})))).status_code == 401
        assert authority.asked.count("/keys") == 2


async def test_keys_are_fetched_again_after_five_minutes_and_old_ones_serve_while_the_server_is_down():
    async with protected() as (http, authority, clock):
        assert (await ask(http, authority.token())).status_code == 200
        clock.now += 301
        authority.broken = True
        assert (await ask(http, authority.token(exp=clock.now + 60))).status_code == 200
        authority.broken, authority.keys = False, [EC]
        clock.now += 31
        assert (await ask(http, authority.token(exp=clock.now + 60))).status_code == 401


async def test_whom_the_old_keys_serve_does_not_wait_for_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(oauth, "_PATIENCE_S", 0.05)
    async with protected() as (http, authority, clock):
        assert (await ask(http, authority.token())).status_code == 200
        clock.now += 301
        authority.go_on.clear()
        try:
            async with asyncio.timeout(5):
                assert (await ask(http, authority.token(exp=clock.now + 60))).status_code == 200
        finally:
            authority.go_on.set()


async def test_keys_without_tls_are_not_believed_of_an_issuer_with_it():
    async def answer(url: str) -> OutboundResponse:
        document = {"issuer": "https://issuer.example", "jwks_uri": "http://issuer.example/keys", "keys": []}
        return OutboundResponse(200, Headers([]), orjson.dumps(document))

    async with outbound_client() as outbound:
        source = oauth._KeySource(outbound, Clock())
        source._get = answer  # type: ignore[method-assign]  # TLS to a name of ours is nothing a test can have
        with pytest.raises(Unavailable, match="without TLS"):
            await source._published("https://issuer.example")


async def test_while_no_key_can_be_had_nobody_is_let_in_and_the_server_is_left_in_peace():
    async with protected() as (http, authority, clock):
        authority.broken = True
        refused = await ask(http, authority.token())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        asked = len(authority.asked)
        assert (await ask(http, authority.token())).status_code == 503
        assert len(authority.asked) == asked
        authority.broken = False
        clock.now += 6
        assert (await ask(http, authority.token())).status_code == 200


@pytest.mark.parametrize(
    "place",
    [
        "/.well-known/oauth-authorization-server/t/1",
        "/.well-known/openid-configuration/t/1",
        "/t/1/.well-known/openid-configuration",
    ],
)
async def test_metadata_of_an_issuer_with_a_path_is_found_where_the_standards_put_it(place: str):
    authority = Authority()
    authority.tenant, authority.places = "/t/1", {place}
    async with protected(authority) as (http, _, _clock):
        assert (await ask(http, authority.token())).status_code == 200


async def test_metadata_that_speaks_for_another_issuer_is_not_believed():
    authority = Authority()
    authority.issuer = "https://elsewhere"
    async with protected(authority) as (http, _, _clock):
        assert (await ask(http, authority.token())).status_code == 503


async def test_the_audience_setting_wins_over_the_resource_and_a_late_variable_is_awaited():
    authority = Authority()
    values: dict[str, str | None] = {"AS": None}
    async with serving(authority) as url:
        authority.url = url
        fields = {"authorizationServerUri": "{{AS}}", "audience": "aud-1"}
        async with guarded(fields, "oauth2", values=values) as (http, _):
            assert (await ask(http, authority.token(aud="aud-1"))).status_code == 503
            assert (await http.get("/.well-known/oauth-protected-resource/mcp")).status_code == 503
            values["AS"] = url
            assert (await ask(http, authority.token(aud="aud-1"))).status_code == 200
            assert (await ask(http, authority.token())).status_code == 401
            metadata = (await http.get("/.well-known/oauth-protected-resource/mcp")).json()
            assert metadata["resource"] == f"{str(http.base_url).rstrip('/')}/mcp"


# -- CORS and problems ------------------------------------------------------------------------------------------------


async def test_a_preflight_needs_no_credentials_and_a_refusal_can_be_read_by_the_page():
    face = Face()
    rules = CorsRules.read(
        {"origins": ["https://app.example.org"], "exposeHeaders": ["X-Total"], "credentials": True, "maxAge": 60}
    )
    async with outbound_client() as outbound:
        app = with_cors(made({"token": "t"}, "bearer", outbound, face=face), rules)
        async with serving(app) as url, httpx.AsyncClient(base_url=url) as http:
            asked = {
                "Origin": "https://app.example.org",
                "Access-Control-Request-Method": "PATCH",
                "Access-Control-Request-Headers": "authorization, x-a",
            }
            allowed = await http.options("/x", headers=asked)
            assert allowed.status_code == 204
            assert allowed.headers["access-control-allow-origin"] == "https://app.example.org"
            assert allowed.headers["access-control-allow-headers"] == "authorization, x-a"
            assert "PATCH" in allowed.headers["access-control-allow-methods"]
            assert allowed.headers["access-control-max-age"] == "60"
            assert (
                await http.options("/x", headers={**asked, "Origin": "https://evil.example.org"})
            ).status_code == 403
            assert (await http.options("/x", headers={"Origin": "https://app.example.org"})).status_code == 401
            refused = await http.get("/x", headers={"Origin": "https://app.example.org"})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == "https://app.example.org"
            passed = await http.get("/x", headers={"Origin": "https://evil.example.org", "Authorization": "Bearer t"})
            assert "access-control-allow-origin" not in passed.headers
            assert passed.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "settings",
    [
        {"origins": "*", "credentials": True},
        {"origins": []},
        {"origins": ["example.org"]},
        {"origins": ["https://a.example/path"]},
        {"origins": "*", "maxAge": "long"},
        {"origins": "*", "methods": ["GET\r\n"]},
        {"origin": "*"},
    ],
)
def test_cors_settings_that_open_too_much_or_mean_nothing_are_refused(settings):
    with pytest.raises(ValueError, match="cors"):
        CorsRules.read(settings)


def test_a_kind_of_failure_has_one_status():
    for error, status in [
        (Invalid("input.invalid", "m"), 400),
        (Invalid("outbound.url_invalid", "m"), 502),
        (Invalid("body.too_large", "m"), 413),
        (AddressRefused("outbound.address_refused", "m"), 502),
        (OutboundError("outbound.timeout", "m"), 504),
        (Upstream("upstream.timeout", "m"), 504),
        (Upstream("upstream.garbage", "m"), 502),
        (Unavailable("bind.unresolved", "m"), 503),
        (RateLimited("rate.exceeded", "m"), 429),
    ]:
        assert status_of(error) == status, error.code


@pytest.mark.parametrize(
    ("accept", "text"),
    [
        ("text/plain", True),
        ("", False),
        ("*/*", False),
        ("application/json, text/plain;q=0.5", False),
        ("text/*;q=0.9, application/json;q=0.1", True),
        ("text/html", False),
        ("text/plain;q=x", False),
    ],
)
def test_text_is_sent_to_those_who_prefer_it(accept: str, text: bool):
    assert prefers_text(accept) is text
