"""OAuth 1 signatures: the example of RFC 5849, and what a service can check with the public key."""

import base64
import hashlib
import re
from urllib.parse import unquote

import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from toolcrib.capability.spec import Auth, Mark
from toolcrib.capability.upstream import Upstream, UpstreamRequest, compile_auth
from toolcrib.capability.upstream.oauth1 import OAuth1, signature_base
from toolcrib.errors import Unavailable
from upstream_app import Asked, Told, app


def ok(_asked: Asked) -> Told:
    return Told(b"{}")


def fields_of(header: str) -> dict[str, str]:
    return {name: unquote(value) for name, value in re.findall(r'(\w+)="([^"]*)"', header)}


def test_the_signature_base_is_that_of_the_rfc() -> None:
    fields = {
        "oauth_consumer_key": "9djdj82h48djs9d2",
        "oauth_token": "kkk9d7dh3k39sjv7",
        "oauth_signature_method": "HMAC-SHA1",
        "oauth_timestamp": "137131201",
        "oauth_nonce": "7d8f3e4a",
        "c2": "",
        "a3": "2 q",
    }
    url = "http://EXAMPLE.com:80/request?b5=%3D%253D&a3=a&c%40=&a2=r%20b"
    assert signature_base("post", url, fields) == (
        "POST&http%3A%2F%2Fexample.com%2Frequest&a2%3Dr%2520b%26a3%3D2%2520q%26a3%3Da%26b5%3D%253D%25253D%26c%2540%3D"
        "%26c2%3D%26oauth_consumer_key%3D9djdj82h48djs9d2%26oauth_nonce%3D7d8f3e4a%26oauth_signature_method%3DHMAC-SHA1"
        "%26oauth_timestamp%3D137131201%26oauth_token%3Dkkk9d7dh3k39sjv7"
    )


async def test_a_shared_secret_signs_with_hmac() -> None:
    signer = OAuth1(
        lambda: "dpf43f3p2l4k3l03",
        consumer_secret=lambda: "kd94hf93k423kf44",
        token=lambda: "nnch734d00sl2jdk",
        token_secret=lambda: "pfkkdhi9sl3r4s00",
        clock=lambda: 1191242096.9,
        nonce=lambda: "kllo9940pd9333jh",
    )
    url = "http://photos.example.net/photos?file=vacation.jpg&size=original"
    ((name, value),) = (await signer.authorize("GET", url, None)).headers
    assert name == "Authorization"
    assert value.startswith("OAuth oauth_body_hash=")
    assert fields_of(value)["oauth_timestamp"] == "1191242096"
    assert len(base64.b64decode(fields_of(value)["oauth_signature"])) == 20


async def test_a_private_key_signs_what_arrives() -> None:
    key = generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode().replace("\n", "\\n")
    block = Auth("oauth1", {"consumerKey": "me", "signingKey": pem}, Mark("f", 1, 1))
    async with app(ok) as served:
        authenticator = compile_auth(block, lambda text: lambda: text, served.outbound)
        up = Upstream(served.outbound, "api", authenticator=authenticator)
        await up.send(UpstreamRequest("POST", f"{served.url}/pay?to=a%20b", [("authorization", "mine")], b'{"a":1}'))
        asked = served.asked[0]
    assert asked.count("authorization") == 1
    fields = fields_of(asked.get("authorization") or "")
    signature = base64.b64decode(fields.pop("oauth_signature"))
    assert fields["oauth_body_hash"] == base64.b64encode(hashlib.sha256(b'{"a":1}').digest()).decode()
    base = signature_base("POST", f"{served.url}/pay?to=a%20b", fields)
    key.public_key().verify(signature, base.encode(), PKCS1v15(), SHA256())


async def test_a_key_that_is_none_is_refused_without_showing_it() -> None:
    signer = OAuth1(lambda: "me", signing_key=lambda: "s3cret")
    with pytest.raises(Unavailable) as refused:
        await signer.authorize("GET", "http://h/", None)
    assert "s3cret" not in repr(refused.value) + str(refused.value.__context__)


def test_a_block_without_any_secret_is_incomplete() -> None:
    with pytest.raises(ValueError, match="signingKey"):
        OAuth1(lambda: "me")
