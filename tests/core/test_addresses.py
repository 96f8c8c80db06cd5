"""Which addresses may be called, in every spelling of a host."""

import ipaddress

import pytest

from raw_upstream import client
from toolcrib.core.addresses import AddressPolicy
from toolcrib.core.http import AddressRefused
from toolcrib.errors import Forbidden, Invalid


@pytest.mark.parametrize(
    ("address", "allow", "permitted"),
    [
        ("93.184.216.34", [], True),
        ("2606:4700::1111", [], True),
        ("127.0.0.1", [], False),
        ("127.9.9.9", ["loopback"], True),
        ("127.0.0.1", ["private"], False),
        ("::1", [], False),
        ("::1", ["loopback"], True),
        ("10.1.2.3", [], False),
        ("10.1.2.3", ["10.1.2.3"], True),
        ("10.1.2.4", ["10.1.2.3"], False),
        ("172.31.255.255", ["private"], True),
        ("192.168.1.1", [" Private "], True),
        ("100.64.0.1", [], False),
        ("100.64.0.1", ["private"], True),
        ("fd12::1", [], False),
        ("fd12::1", ["private"], True),
        ("169.254.169.254", [], False),
        ("169.254.169.254", ["private", "loopback", "128.0.0.0/1", "169.254.0.0/16"], False),
        ("169.254.169.254", ["169.254.169.254"], True),
        ("169.254.169.254", ["any"], True),
        ("169.254.1.1", ["128.0.0.0/1"], False),
        ("169.254.1.1", ["169.254.0.0/16"], True),
        ("fd00:ec2::254", ["private"], False),
        ("fd00:ec2::254", ["fd00:ec2::254"], True),
        ("100.100.100.200", ["private"], False),
        ("168.63.129.16", [], False),
        ("fe80::1", ["private"], False),
        ("224.0.0.1", ["private"], False),
        ("ff02::1", [], False),
        ("0.0.0.0", ["private", "loopback"], False),
        ("0.1.2.3", [], False),
        ("::", ["private", "loopback"], False),
        ("255.255.255.255", [], False),
        ("240.0.0.1", [], False),
        ("192.0.2.1", [], False),
        ("198.18.0.1", [], False),
        ("2001:db8::1", [], False),
        ("fec0::1", [], False),
        ("4000::1", [], False),
        ("::ffff:127.0.0.1", [], False),
        ("::ffff:127.0.0.1", ["loopback"], True),
        ("::ffff:93.184.216.34", [], True),
        ("::ffff:169.254.169.254", ["private"], False),
        ("::127.0.0.1", [], False),
        ("64:ff9b::7f00:1", [], False),
        ("64:ff9b::5db8:d822", [], True),
        ("64:ff9b:1::1", [], False),
        ("2002:7f00:1::", [], False),
        ("2002:a00:1::1", [], False),
        ("2002:5db8:d822::1", [], True),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", [], False),  # Teredo, client 127.0.0.1
        ("10.0.0.1", ["any"], True),
        ("::1", ["any"], True),
    ],
)
def test_only_public_addresses_and_named_exceptions_are_permitted(address, allow, permitted):
    assert AddressPolicy.parse(allow).permits(ipaddress.ip_address(address)) is permitted


@pytest.mark.parametrize("text", ["10.1.2.3/8", "localhost", "10.0.0", "privat", "10.0.0.0/33"])
def test_a_policy_entry_that_means_nothing_is_quoted(text):
    with pytest.raises(ValueError, match=repr(text).replace(".", r"\.")):
        AddressPolicy.parse([text])


def test_blank_policy_entries_are_skipped():
    assert AddressPolicy.parse(["", "  "]) == AddressPolicy()


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1", "address_refused"),
        ("127.0.0.1.", "address_refused"),
        ("127.1", "url_invalid"),
        ("0x7f.1", "url_invalid"),
        ("0x7f000001", "url_invalid"),
        ("0X7F.0.0.1", "url_invalid"),
        ("2130706433", "url_invalid"),
        ("0177.0.0.1", "url_invalid"),
        ("127.0.0.01", "url_invalid"),
        ("1.2.3.4.5", "url_invalid"),
        ("256.1.1.1", "url_invalid"),
        ("foo.0x7f", "url_invalid"),
        ("\uff11\uff12\uff17.0.0.1", "address_refused"),
        ("①②⑦.0.0.1", "address_refused"),
        ("127。0。0。1", "address_refused"),
        ("%31%32%37.0.0.1", "url_invalid"),
        ("localhost", "address_refused"),
        ("LOCALHOST", "address_refused"),
        ("ⓛocalhost", "address_refused"),
        ("[::1]", "address_refused"),
        ("[0:0:0:0:0:0:0:1]", "address_refused"),
        ("[::ffff:127.0.0.1]", "address_refused"),
        ("[::ffff:7f00:1]", "address_refused"),
        ("[64:ff9b::127.0.0.1]", "address_refused"),
        ("[2002:7f00:1::]", "address_refused"),
        ("[fe80::1%25eth0]", "url_invalid"),
        ("[fe80::1%1]", "url_invalid"),
        ("[127.0.0.1]", "url_invalid"),
        ("[::1", "url_invalid"),
        ("[::1]x", "url_invalid"),
        ("::1", "url_invalid"),
        ("0.0.0.0", "address_refused"),
        ("0", "url_invalid"),
        ("169.254.169.254", "address_refused"),
        ("x..y", "url_invalid"),
        (".", "url_invalid"),
        ("a b", "url_invalid"),
        ("a\\b", "url_invalid"),
        ("evil.example\\@127.0.0.1", "url_invalid"),
        ("user@127.0.0.1", "url_invalid"),
        ("user:password@example.com", "url_invalid"),
        ("@example.com", "url_invalid"),
        ("example.com:0", "url_invalid"),
        ("example.com:65536", "url_invalid"),
        ("example.com:+80", "url_invalid"),
        ("example.com:\uff180", "url_invalid"),
        ("example.com:80:80", "url_invalid"),
        ("a\uff0fb", "url_invalid"),
        ("a\x00b", "url_invalid"),
        ("a\tb", "url_invalid"),
        ("a\r\nb", "url_invalid"),
        ("", "url_invalid"),
        ("x" * 400, "url_invalid"),
    ],
)
async def test_no_spelling_of_a_host_reaches_a_forbidden_address(host, code):
    async with client("10.0.0.0/8") as c:
        with pytest.raises((Invalid, AddressRefused)) as caught:
            await c.request("GET", f"http://{host}/")
    assert caught.value.code == f"outbound.{code}"


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "/path",
            "example.com",
            "ftp://example.com/",
            "file:///etc/passwd",
            "HTTP:example.com",
            "http:/example.com",
        ),
        *(
            "http:///x",
            "http:\\\\example.com",
            " http://example.com",
            "http://example.com/\r\nX: y",
            "http://e.com/\x00",
        ),
        *(
            "http://example.com/\n",
            "http://example.com\n",
            "http\u017f://example.com",
            "http://example.com#\n",
            "http://?x",
        ),
    ],
)
async def test_anything_but_a_plain_http_url_is_refused(url):
    async with client() as c:
        with pytest.raises(Invalid) as caught:
            await c.request("GET", url)
    assert caught.value.code == "outbound.url_invalid"


async def test_a_host_that_would_take_long_to_read_is_not_read():
    async with client() as c:
        with pytest.raises(Invalid, match="too long"):
            await c.request("GET", f"http://{'ü' * 400}/")


async def test_a_refusal_names_the_address_and_the_setting():
    async with client("10.0.0.0/8") as c:
        with pytest.raises(
            Forbidden, match=r"^127\.0\.0\.1 is a loopback address; allow it with TOOLCRIB_OUTBOUND_ALLOW$"
        ):
            await c.request("GET", "http://127.0.0.1/")
        with pytest.raises(Forbidden, match=r"^localhost resolves to \S+, a loopback address; allow it with"):
            await c.request("GET", "http://localhost/")
