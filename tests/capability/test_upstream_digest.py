"""Digest authentication: the vectors of RFC 7616, and a server that verifies for itself."""

import asyncio
import hashlib
import re

import pytest

from toolcrib.capability.upstream import Upstream, UpstreamRequest
from toolcrib.capability.upstream.digest import Digest, answer, best_challenge
from upstream_app import Asked, Told, app


def response_of(value: str) -> str:
    return re.search(r'response="([0-9a-f]+)"', value)[1]  # type: ignore[index]


# -- RFC 7616, section 3.9 --------------------------------------------------------------------------------------------

CNONCE = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
OFFER = (
    'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={0}, '
    'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
    ],
)
def test_the_first_example_of_the_rfc_comes_out(algorithm, expected):
    challenge = best_challenge([OFFER.format(algorithm)], CNONCE)
    challenge.count = 1
    value = answer(challenge, "Mufasa", "Circle of Life", "GET", "/dir/index.html")
    assert response_of(value) == expected
    assert 'username="Mufasa"' in value
    assert "nc=00000001" in value
    assert "qop=auth," in value
    assert 'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"' in value


def test_the_example_with_a_hashed_name_comes_out():
    # What the RFC prints was made with a draft of SHA-512/256; erratum 4897 reports these.
    offer = (
        'Digest realm="api@example.org", qop="auth", algorithm=SHA-512-256, '
        'nonce="5TsQWLVdgBdmrQ0XsxbDODV+57QdFR34I9HAbC/RVvkK", '
        'opaque="HRPCssKJSGjCrkzDg8OhwpzCiGPChXYjwrI2QmXDnsOS", charset=UTF-8, userhash=true'
    )
    challenge = best_challenge([offer], "NTg6RKcb9boFIAS3KrFK9BGeh+iDa/sm6jUMp2wds69v")
    challenge.count = 1
    value = answer(challenge, "Jäsøn Doe", "Secret, or not?", "GET", "/doe.json")
    assert "userhash=true" in value
    assert 'username="793263caabb707a56211940d90411ea4a575adeccb7e360aeb624ed06ece9b0b"' in value
    assert response_of(value) == "3798d4131c277846293534c3edc11bd8a5e4cdcbff78b05db9d95eeb1cec68a5"


# -- challenges -------------------------------------------------------------------------------------------------------


def test_the_strongest_usable_challenge_is_taken_wherever_it_stands():
    chosen = best_challenge(
        [
            'Basic realm="a, b", Digest realm="r", nonce="n1", qop="auth", Bearer',
            'Negotiate abc==, Digest realm="q\\"r", algorithm=SHA-256-sess, nonce="n2", qop="auth-int,auth"',
            'Digest realm="r", algorithm=SHA-1024, nonce="n3", qop=auth',
        ],
        "c",
    )
    assert (chosen.nonce, chosen.algorithm, chosen.realm) == ("n2", "SHA-256-SESS", 'q"r')


@pytest.mark.parametrize(
    "value",
    ["Basic realm=x", "Digest", "Digest realm=r", 'Digest nonce="n", qop="auth-int"', "", ",,,", 'Digest nonce="n'],
)
def test_what_is_no_usable_challenge_gives_none(value):
    assert best_challenge([value], "c") is None


def test_without_qop_the_older_form_is_used():
    challenge = best_challenge(['Digest realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093"'], "c")
    value = answer(challenge, "Mufasa", "CircleOfLife", "GET", "/dir/index.html")
    assert response_of(value) == "1949323746fe6a43ef61f9606e7febea"  # RFC 2069 with its erratum
    assert "nc=" not in value


def test_a_name_beyond_ascii_uses_the_extended_form():
    challenge = best_challenge(['Digest realm="r", nonce="n", qop="auth"'], "c")
    assert "username*=UTF-8''J%C3%A4s%22" in answer(challenge, 'Jäs"', "p", "GET", "/")


# -- a server that verifies -------------------------------------------------------------------------------------------


class Verifier:
    """The server's half of RFC 7616 for one user."""

    def __init__(self, algorithm: str, *, uses: int = 1000) -> None:
        self.algorithm = algorithm
        self.uses = uses  # of a nonce, before it is stale
        self.nonce = 0
        self.counts: dict[str, set[int]] = {}
        self.stale = 0
        self.next_nonce = False

    def hashed(self, text: str) -> str:
        name = "md5" if self.algorithm.startswith("MD5") else "sha256"
        return hashlib.new(name, text.encode()).hexdigest()

    def challenge(self, *, stale: bool = False) -> Told:
        self.nonce += 1
        self.counts[f"nonce{self.nonce}"] = set()
        value = f'Digest realm="the realm", nonce="nonce{self.nonce}", qop="auth", algorithm={self.algorithm}'
        return Told(status=401, headers={"WWW-Authenticate": value + (", stale=true" if stale else "")})

    def __call__(self, asked: Asked) -> Told:
        value = asked.get("authorization")
        if value is None:
            return self.challenge()
        given = {k: q or p for k, q, p in re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]+))', value)}
        nonce, count = given["nonce"], int(given["nc"], 16)
        if nonce not in self.counts or count > self.uses:
            self.stale += 1
            return self.challenge(stale=True)
        assert count not in self.counts[nonce], "a count was used twice"
        assert given["uri"] == asked.target
        first = self.hashed("the user:the realm:the password")
        if self.algorithm.endswith("-sess"):
            first = self.hashed(f"{first}:{nonce}:{given['cnonce']}")
        second = self.hashed(f"{asked.method}:{given['uri']}")
        if given["response"] != self.hashed(f"{first}:{nonce}:{given['nc']}:{given['cnonce']}:auth:{second}"):
            return self.challenge()
        self.counts[nonce].add(count)
        if self.next_nonce:
            self.counts[f"next{count}{nonce}"] = set()
            return Told(asked.body, headers={"Authentication-Info": f'nextnonce="next{count}{nonce}", qop=auth'})
        return Told(asked.body)


def digest(password: str = "the password") -> Digest:
    return Digest(lambda: "the user", lambda: password)


@pytest.mark.parametrize("algorithm", ["MD5", "MD5-sess", "SHA-256", "SHA-256-sess"])
async def test_a_server_accepts_every_algorithm_and_a_nonce_serves_many_requests(algorithm):
    verifier = Verifier(algorithm)
    async with app(verifier) as served:
        up = Upstream(served.outbound, "api", authenticator=digest())
        for path in ("", "/ä b?q=ü&x=%2F", "?a=1", "/x#part"):
            answered = await up.send(UpstreamRequest("POST", served.url + path, [("Authorization", "no")], b"body"))
            assert (answered.status, answered.body) == (200, b"body")
    assert len(served.asked) == 5  # one challenge, with the body sent again, and then none
    assert served.asked[0].get("authorization") is None


async def test_a_stale_nonce_is_replaced_in_one_repetition():
    verifier = Verifier("SHA-256", uses=2)
    async with app(verifier) as served:
        up = Upstream(served.outbound, "api", authenticator=digest())
        assert [(await up.send(UpstreamRequest("GET", served.url))).status for _ in range(7)] == [200] * 7
    assert verifier.stale == 3


async def test_the_next_nonce_that_a_success_names_is_used():
    verifier = Verifier("SHA-256")
    verifier.next_nonce = True
    async with app(verifier) as served:
        up = Upstream(served.outbound, "api", authenticator=digest())
        assert [(await up.send(UpstreamRequest("GET", served.url))).status for _ in range(3)] == [200] * 3
    assert len(served.asked) == 4
    assert "next1next1nonce1" in (served.asked[-1].get("authorization") or "")


async def test_a_wrong_password_ends_after_one_repetition():
    verifier = Verifier("SHA-256")
    async with app(verifier) as served:
        up = Upstream(served.outbound, "api", authenticator=digest("wrong"))
        assert (await up.send(UpstreamRequest("GET", served.url))).status == 401
    assert len(served.asked) == 2


async def test_a_refusal_under_the_same_nonce_is_believed():
    refusal = Told(status=401, headers={"WWW-Authenticate": 'Digest realm="r", nonce="same", qop="auth"'})
    async with app(lambda _: refusal) as served:
        up = Upstream(served.outbound, "api", authenticator=digest())
        assert [(await up.send(UpstreamRequest("GET", served.url))).status for _ in range(3)] == [401] * 3
    assert len(served.asked) == 4  # without credentials, with them, and then once a call


async def test_many_at_once_never_use_a_count_twice():
    verifier = Verifier("SHA-256")
    async with app(verifier) as served:
        up = Upstream(served.outbound, "api", authenticator=digest())
        answers = await asyncio.gather(*(up.send(UpstreamRequest("GET", served.url)) for _ in range(50)))
        answers += await asyncio.gather(*(up.send(UpstreamRequest("GET", served.url)) for _ in range(50)))
    assert [one.status for one in answers] == [200] * 100
    assert len(served.asked) <= 150


async def test_a_stream_answers_the_challenge_too():
    async with app(Verifier("SHA-256")) as served:
        up = Upstream(served.outbound, "api", authenticator=digest())
        async with up.stream(UpstreamRequest("PUT", served.url, body=b"data")) as stream:
            assert (stream.status, await stream.read(100)) == (200, b"data")


async def test_a_nonce_is_not_shown_to_another_origin():
    async with app(Verifier("SHA-256")) as one, app(Verifier("SHA-256")) as two:
        up = Upstream(one.outbound, "api", authenticator=digest())
        await up.send(UpstreamRequest("GET", one.url))
        await up.send(UpstreamRequest("GET", two.url))
        assert two.asked[0].get("authorization") is None
