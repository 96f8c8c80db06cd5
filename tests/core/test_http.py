"""What the outbound client sends and understands, and where it connects to."""

import asyncio
import contextlib
import datetime as dt
import gzip
import ipaddress
import socket
import ssl
import zlib
from collections.abc import Iterator, Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from raw_upstream import DEADLINE_S, Reader, Upstream, Writer, answering, client, gone, hanging, ok, resolver, upstream
from toolcrib.core import http
from toolcrib.core.http import AddressRefused, OutboundError
from toolcrib.errors import Invalid

# -- names ----------------------------------------------------------------------------------------------------------


async def test_a_connection_goes_to_the_address_that_was_checked_and_the_name_stays_in_host():
    resolve, asked = resolver(["127.0.0.1"])
    async with upstream(answering(ok(b"hi"))) as served, client(resolver=resolve) as c:
        answer = await c.request("GET", f"http://No-Such-Name.Test:{served.port}/")
        assert answer.body == b"hi"
        assert f"\r\nHost: no-such-name.test:{served.port}\r\n".encode() in served.requests[0]
    assert asked == ["no-such-name.test"]


async def test_an_international_name_is_resolved_in_its_ascii_form():
    resolve, asked = resolver(["127.0.0.1"])
    async with upstream(answering(ok(b""))) as served, client(resolver=resolve) as c:
        await c.request("GET", f"http://Bücher.test:{served.port}/")
    assert asked == ["xn--bcher-kva.test"]


async def test_a_name_that_changes_its_address_stays_where_it_was_while_the_answer_is_fresh():
    resolve, asked = resolver(["127.0.0.1"], ["127.0.0.2"])
    async with upstream(answering(ok(b"", "Connection: close"))) as served, client("127.0.0.1", resolver=resolve) as c:
        for _ in range(3):
            await c.request("GET", f"http://rebind.test:{served.port}/")
        assert served.connections == 3
    assert asked == ["rebind.test"]


async def test_a_name_that_changes_to_a_forbidden_address_is_refused_on_the_next_connection(monkeypatch):
    monkeypatch.setattr(http, "_DNS_S", 0.0)
    resolve, _ = resolver(["127.0.0.1"], ["127.0.0.2"])
    async with upstream(answering(ok(b"", "Connection: close"))) as served, client("127.0.0.1", resolver=resolve) as c:
        await c.request("GET", f"http://rebind.test:{served.port}/")
        with pytest.raises(AddressRefused, match=r"rebind\.test resolves to 127\.0\.0\.2"):
            await c.request("GET", f"http://rebind.test:{served.port}/")
        assert served.connections == 1


async def test_a_name_with_public_and_forbidden_addresses_is_refused_as_a_whole():
    resolve, _ = resolver(["93.184.216.34", "127.0.0.1"])
    async with client("10.0.0.0/8", resolver=resolve) as c:
        with pytest.raises(AddressRefused, match=r"127\.0\.0\.1, a loopback address"):
            await c.request("GET", "http://mixed.test/")


async def test_of_forbidden_and_allowed_addresses_the_allowed_one_is_used():
    resolve, _ = resolver(["::1", "127.0.0.1"])
    async with upstream(answering(ok(b"hi"))) as served, client("127.0.0.1", resolver=resolve) as c:
        assert (await c.request("GET", f"http://both.test:{served.port}/")).body == b"hi"


async def test_the_next_address_is_tried_when_the_first_does_not_answer():
    resolve, _ = resolver(["127.0.0.2", "127.0.0.1"])
    async with upstream(answering(ok(b"hi"))) as served, client(resolver=resolve) as c:
        assert (await c.request("GET", f"http://two.test:{served.port}/")).body == b"hi"


async def test_many_first_calls_share_one_lookup():
    resolve, asked = resolver(["127.0.0.1"])
    async with upstream(answering(ok(b""), keep=True)) as served, client(resolver=resolve) as c:
        await asyncio.gather(*(c.request("GET", f"http://shared.test:{served.port}/") for _ in range(20)))
    assert asked == ["shared.test"]


async def test_a_name_without_addresses_is_a_dns_failure():
    async def resolve(host: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    async with client(resolver=resolve) as c:
        with pytest.raises(OutboundError, match=r"^nowhere\.test could not be resolved$") as caught:
            await c.request("GET", "http://nowhere.test/secret?token=1")
    assert caught.value.code == "outbound.dns_failed"


async def test_a_resolver_that_hangs_counts_as_connecting():
    async def resolve(host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    async with client(resolver=resolve, connect_timeout_s=0.05) as c:
        with pytest.raises(OutboundError, match=r"^could not connect to slow\.test within 0\.05 s$") as caught:
            await c.request("GET", "http://slow.test/")
    assert caught.value.code == "outbound.timeout"


# -- connecting -----------------------------------------------------------------------------------------------------


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port that is listened on but takes no more connections: packets to it are dropped."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def test_connecting_has_a_limit_of_its_own(full_port):
    async with client(connect_timeout_s=0.1) as c:
        with pytest.raises(
            OutboundError, match=rf"^could not connect to 127\.0\.0\.1:{full_port} within 0\.1 s$"
        ) as caught:
            await c.request("GET", f"http://127.0.0.1:{full_port}/")
    assert caught.value.code == "outbound.timeout"


async def test_a_call_may_have_its_own_limit_for_connecting(full_port):
    url, said = f"http://127.0.0.1:{full_port}/", rf"^could not connect to 127\.0\.0\.1:{full_port} within 0\.1 s$"
    async with client(connect_timeout_s=30) as c:
        with pytest.raises(OutboundError, match=said):
            await c.request("GET", url, connect_timeout_s=0.1)
        with pytest.raises(OutboundError, match=said):
            async with c.stream("GET", url, connect_timeout_s=0.1):
                pass


async def test_an_address_that_swallows_packets_leaves_time_for_the_next(full_port):
    resolve, _ = resolver(["127.0.0.1", "127.0.0.2"])
    async with (
        upstream(hanging(b""), host="127.0.0.2", port=full_port),
        client(resolver=resolve, connect_timeout_s=0.4, timeout_s=0.6) as c,
    ):
        with pytest.raises(OutboundError, match=r"did not answer within 0\.6 s"):  # connected, that is
            await c.request("GET", f"http://two.test:{full_port}/")


async def test_a_call_cancelled_while_connecting_ends(full_port):
    async with client() as c:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(c.request("GET", f"http://127.0.0.1:{full_port}/"), 0.05)


async def test_a_closed_port_is_a_failure_to_connect():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        async with client() as c:
            with pytest.raises(OutboundError, match=f":{port}: connection refused$") as caught:
                await c.request("GET", f"http://127.0.0.1:{port}/")
    assert caught.value.code == "outbound.connect_failed"


# -- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ssl.SSLContext]:
    """A certificate authority as a file, and a server context with a certificate of it for files.test."""
    folder = tmp_path_factory.mktemp("tls")
    now = dt.datetime.now(dt.UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])

    def certificate(subject: x509.Name, public: ec.EllipticCurvePublicKey, extension: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder(issuer_name=ca_name, subject_name=subject, public_key=public)
        builder = builder.serial_number(x509.random_serial_number()).add_extension(extension, critical=True)
        builder = builder.not_valid_before(now - dt.timedelta(days=1))
        builder = builder.not_valid_after(now + dt.timedelta(days=1))
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    (folder / "ca.pem").write_bytes(certificate(ca_name, ca_key.public_key(), x509.BasicConstraints(True, None)))
    names = x509.SubjectAlternativeName([x509.DNSName("files.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    pem = certificate(x509.Name([]), key.public_key(), names) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return str(folder / "ca.pem"), context


async def test_tls_asks_for_and_verifies_the_name_while_connecting_to_the_checked_address(authority):
    ca_file, context = authority
    asked_for = []
    context.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    resolve, asked = resolver(["127.0.0.1"])
    handler = answering(ok(b"hi"), keep=True)
    async with upstream(handler, tls=context) as served, client(resolver=resolve, ca_file=ca_file) as c:
        for _ in range(2):
            answer = await c.request("POST", f"https://files.test.:{served.port}/", body=b"x" * 100_000)
            assert answer.body == b"hi"
        assert served.connections == 1
        assert f"\r\nHost: files.test:{served.port}\r\n".encode() in served.requests[0]
        assert (await c.request("GET", served.url)).body == b"hi"  # by address, which the certificate names
    assert (asked_for, asked) == (["files.test", None], ["files.test."])


@pytest.mark.parametrize(("host", "trusted"), [("other.test", True), ("files.test", False)])
async def test_a_certificate_that_does_not_fit_is_a_tls_failure(authority, host, trusted):
    ca_file, context = authority
    resolve, _ = resolver(["127.0.0.1"])
    trust = ca_file if trusted else None
    async with upstream(answering(ok(b"hi")), tls=context) as served, client(resolver=resolve, ca_file=trust) as c:
        with pytest.raises(OutboundError, match=rf"^no secure connection to {host}:\d+: ") as caught:
            await c.request("GET", f"https://{host}:{served.port}/")
    assert caught.value.code == "outbound.tls_failed"


async def test_tls_with_a_server_that_speaks_none_is_a_tls_failure():
    async def plain(served: Upstream, reader: Reader, writer: Writer) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with upstream(plain) as served, client() as c:
        with pytest.raises(OutboundError) as caught:
            await c.request("GET", f"https://127.0.0.1:{served.port}/")
    assert caught.value.code == "outbound.tls_failed"


async def test_a_cancelled_call_over_tls_closes_its_connection_at_once(authority):
    ca_file, context = authority
    async with upstream(hanging(b""), tls=context) as served, client(ca_file=ca_file) as c:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(c.request("GET", served.url), 0.2)
        await gone(served)


# -- what is sent ---------------------------------------------------------------------------------------------------


async def test_the_request_on_the_wire_is_exactly_what_was_asked_for():
    async with upstream(answering(ok(b""))) as served, client() as c:
        await c.request(
            "POST",
            f"{served.url}/a b/../ü?q=1&r=%20#fragment",
            headers=[("X-One", "1"), ("x-one", "grün"), ("Authorization", "Bearer t")],
            body=b"payload",
        )
        assert served.requests[0].decode() == (
            "POST /a%20b/../%C3%BC?q=1&r=%20 HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{served.port}\r\n"
            "Accept-Encoding: gzip, deflate\r\n"
            "X-One: 1\r\nx-one: grün\r\nAuthorization: Bearer t\r\n"
            "User-Agent: toolcrib\r\n"
            "Content-Length: 7\r\n\r\npayload"
        )


async def test_a_query_without_a_path_and_a_user_agent_of_the_caller_are_kept():
    async with upstream(answering(ok(b""))) as served, client(user_agent="other") as c:
        await c.request("GET", f"{served.url}?q", headers=[("User-Agent", "mine")])
        assert served.requests[0].startswith(b"GET /?q HTTP/1.1\r\n")
        assert served.requests[0].count(b"User-Agent") == 1
        assert b"User-Agent: mine\r\n" in served.requests[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("X", "a\r\nY: b"), ("X", "a\nY: b"), ("X", "a\rb"), ("X", "a\0b"), ("X", "a\x7fb"), ("X", "\ud800")),
        *(("X\r\nY", "b"), ("X\n", "b"), ("X: a", "b"), ("", "b"), ("X Y", "b"), ("X\0", "b"), ("Ü", "b")),
        *(("Host", "evil"), ("content-length", "5"), ("Transfer-Encoding", "chunked"), ("Connection", "close")),
        *(("Host: evil", ""), ("Expect", "100-continue"), ("Accept-Encoding", "br"), ("Upgrade", "h2c")),
    ],
)
async def test_headers_cannot_smuggle_anything(name, value):
    async with upstream(answering(ok(b""))) as served, client() as c:
        with pytest.raises(Invalid) as caught:
            await c.request("GET", served.url, headers=[("Accept", "*/*"), (name, value)])
        assert caught.value.code == "outbound.header_invalid"
        assert "evil" not in caught.value.message
        assert served.connections == 0


@pytest.mark.parametrize("method", ["GET\r\nX: y", "", "get", "GET /", "CONNECT", "TRACE"])
async def test_methods_that_are_none_are_refused(method):
    async with client() as c:
        with pytest.raises(Invalid) as caught:
            await c.request(method, "http://127.0.0.1/")
    assert caught.value.code == "outbound.method_invalid"


async def test_the_environment_has_no_say(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with upstream(answering(ok(b"direct"))) as served, client() as c:
        assert (await c.request("GET", served.url)).body == b"direct"


async def test_a_redirect_is_an_answer_and_a_cookie_is_forgotten():
    data = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"
    async with upstream(answering(data, keep=True)) as served, client() as c:
        answer = await c.request("GET", served.url)
        assert (answer.status, answer.headers.get("LOCATION")) == (302, "http://127.0.0.1:9/")
        await c.request("GET", served.url)
        assert len(served.requests) == 2
        assert b"ookie" not in served.requests[1]
        assert b"eferer" not in served.requests[1]


async def test_a_large_body_is_sent_whole():
    async def echo(served: Upstream, reader: Reader, writer: Writer) -> None:
        request = await served.request(reader)
        writer.write(ok(request.partition(b"\r\n\r\n")[2]))

    body = bytes(range(256)) * 16384
    async with upstream(echo) as served, client() as c:
        assert (await c.request("PUT", served.url, body=body)).body == body


# -- what comes back ------------------------------------------------------------------------------------------------


async def test_headers_of_the_answer_are_found_without_case_and_kept_in_order():
    async with upstream(answering(ok(b"x", "X-A: 1", "x-a: 2", "X-B: caf\xe9"))) as served, client() as c:
        headers = (await c.request("GET", served.url)).headers
    assert headers.get("X-a") == "1"
    assert headers.get("nothing") is None
    assert headers.items()[1:3] == [("x-a", "1"), ("x-a", "2")]
    assert "1" not in repr(headers)


@pytest.mark.parametrize(
    ("data", "status", "body"),
    [
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n",
            200,
            b"abcde",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, b"until the end"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", 200, b"ab"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, b""),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 418 No\r\nContent-Length: 1\r\n\r\nx", 418, b"x"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n", 200, b""),
    ],
)
async def test_every_way_to_frame_an_answer_is_understood(data, status, body):
    async with upstream(answering(data)) as served, client() as c:
        answer = await c.request("GET", served.url)
        assert (answer.status, answer.body) == (status, body)
        assert answer.headers.get("link") is None
        async with c.stream("GET", served.url) as stream:
            assert (stream.status, await stream.read(100)) == (status, body)


async def test_the_answer_to_head_has_no_body():
    async with (
        upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", keep=True)) as served,
        client() as c,
    ):
        for _ in range(2):
            answer = await c.request("HEAD", served.url)
            assert (answer.status, answer.body, answer.headers.get("content-length")) == (200, b"", "99999999")


def _raw_deflate(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(data) + deflate.flush()


TEXT = b"".join(b"%d," % number for number in range(50_000))


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("x-GZIP", gzip.compress(TEXT) + b"\0" * 10),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", _raw_deflate(TEXT)),
        ("identity", TEXT),
    ],
)
async def test_a_compressed_body_is_decoded(encoding, data):
    async with upstream(answering(ok(data, f"Content-Encoding: {encoding}"))) as served, client() as c:
        assert (await c.request("GET", served.url)).body == TEXT
        async with c.stream("GET", served.url) as stream:
            assert b"".join([chunk async for chunk in stream.chunks()]) == TEXT


@pytest.mark.parametrize(
    ("encoding", "data", "reason"),
    [
        ("gzip", b"not gzip at all", "does not decompress"),
        ("gzip", gzip.compress(TEXT)[:-9], "does not decompress"),
        ("gzip", gzip.compress(TEXT) + gzip.compress(TEXT), "does not decompress"),
        ("deflate", b"\xff\xff\xff", "does not decompress"),
        ("br", b"x", "content encoding"),
        ("gzip, gzip", b"x", "content encoding"),
    ],
)
async def test_a_body_that_cannot_be_decoded_is_a_protocol_error(encoding, data, reason):
    async with upstream(answering(ok(data, f"Content-Encoding: {encoding}"))) as served, client() as c:
        with pytest.raises(OutboundError, match=reason) as caught:
            await c.request("GET", served.url)
        assert caught.value.code == "outbound.protocol_error"
        with pytest.raises(OutboundError, match=reason):
            async with c.stream("GET", served.url) as stream:
                await stream.read(10**9)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "something that is not HTTP"),
        (b"<html>hello</html>", "something that is not HTTP"),
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "broke off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "broke off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n", "something that is not HTTP"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "something that is not HTTP",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "something that is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc", "transfer encoding"),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "another protocol"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", "of headers"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: abc\r\n" * 20_000 + b"\r\n", "of headers"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000, "of headers"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: abc\r\n" * 20_000, "of headers"),
    ],
)
async def test_an_answer_that_is_not_one_is_a_protocol_error(data, reason):
    async with upstream(answering(data)) as served, client() as c:
        with pytest.raises(OutboundError, match=reason) as caught:
            await c.request("POST", served.url + "/path?token=secret", headers=[("Authorization", "secret")])
        assert caught.value.code == "outbound.protocol_error"
        assert "secret" not in str(caught.value)
        assert f"127.0.0.1:{served.port}" in str(caught.value)


async def test_a_server_that_closes_before_the_request_is_a_protocol_error():
    async def slam(served: Upstream, reader: Reader, writer: Writer) -> None:
        writer.transport.abort()

    async with upstream(slam) as served, client() as c:
        with pytest.raises(OutboundError) as caught:
            await asyncio.wait_for(c.request("POST", served.url, body=b"x"), DEADLINE_S)
        assert caught.value.code in {"outbound.protocol_error", "outbound.connect_failed"}
