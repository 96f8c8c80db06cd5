"""What holds for any value: paths are encoded once, values stay in their places, bodies are relayed byte for byte."""

import email
import email.policy
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from capability.stub import api, document, face, loaded, param
from toolcrib.capability.binds import Binds
from toolcrib.capability.inputs import RestInputs
from toolcrib.capability.operation import Operation
from toolcrib.capability.routing import Router
from toolcrib.capability.sparql import sparql_text
from toolcrib.capability.spec import Bind, Mark
from toolcrib.capability.templates import JsonText, PathTemplate, RawBody, TextTemplate, form_text, multipart, xml_text
from toolcrib.errors import AppError, Invalid

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
NONE = Binds((), {})
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NASTY = st.lists(
    st.sampled_from(['"', "\\", "'", "{", "}", "{{", "}}", "\r\n", "\0", "%", "%2e", "/", "..", ".", "?", "#", "&", "=", ";", "<", ">",
                     "]]>", "--", ":", "@", "\u2028", "\u00e9", "\U0001f600", "a", " ", "+", ",", "<!--", "\\u0022"]),
    max_size=8,
).map("".join)  # fmt: skip
VALUES = TEXT | NASTY
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(VALUES, inner, max_size=3),
    max_leaves=6,
)


def climbs(text: str) -> bool:
    return not {".", ".."}.isdisjoint(text.replace("\\", "/").split("/"))


def operation(**consumed: Any) -> Operation:
    plan = loaded(document(api("http://up.test/base", {"method": "POST", **consumed}), face({"method": "POST"}))).plan
    made: Operation = plan.called["up.op"].operation
    assert made.broken is None
    return made


PATH = operation(path="/a/{v}/b", body={"type": "text", "data": ""})
EVERYWHERE = operation(
    path="/p/{v}",
    body={"type": "json", "data": {"k": "{{v}}"}},
    inputParameters=[param("v", "query"), param("X-V", "header", value="{{v}}"), param("c", "cookie", value="{{v}}")],
)


@QUICK
@given(VALUES)
@example("a/b")
@example("%2F")
@example("..%2f")
def test_a_path_value_is_encoded_exactly_once(value: str) -> None:
    assume(value != "")
    if climbs(value):
        with pytest.raises(Invalid):
            PATH.request({"v": value})
        return
    url = urlsplit(PATH.request({"v": value}).url)
    assert (url.netloc, url.query, url.fragment) == ("up.test", "", "")
    start, encoded, end = url.path.removeprefix("/base").partition("/a/")[2].partition("/b")
    assert (unquote(start, errors="strict"), encoded, end) == (value, "/b", "")
    assert start.isascii()


@QUICK
@given(VALUES)
def test_a_path_value_comes_through_a_route_as_it_was_sent(value: str) -> None:
    assume(value != "")
    router: Router[int] = Router()
    router.add("/v/{x}/w", 1)
    assert router.find(f"/v/{quote(value, safe='')}/w") == [(1, {"x": value})]


@QUICK
@given(VALUES)
def test_no_value_leaves_its_place_in_a_request(value: str) -> None:
    assume(value != "" and not climbs(value))
    request = EVERYWHERE.request({"v": value})
    url = urlsplit(request.url)
    assert (url.netloc, url.fragment) == ("up.test", "")
    assert url.path.count("/") == 3
    assert parse_qsl(url.query, keep_blank_values=True) == [("v", value)]
    assert request.body is not None
    assert json.loads(request.body) == {"k": value}
    names = [name for name, _ in request.headers]
    assert sorted(set(names)) == sorted(names)
    assert set(names) <= {"X-V", "Cookie", "Content-Type"}
    for _, text in request.headers:
        assert not any(ord(c) < 32 or ord(c) == 127 for c in text)
    cookie = dict(request.headers).get("Cookie", "c=")
    assert cookie.startswith("c=")
    assert not set(cookie) & set('; ,"\\')


@QUICK
@given(TREES)
def test_no_value_leaves_its_place_in_json(value: Any) -> None:
    text = value if isinstance(value, str) else None
    made = JsonText.compile('{"in":"<{{v}}>","out":{{v}},"end":[{{v}}]}', NONE).render({"v": value})
    found = json.loads(made)
    assert list(found) == ["in", "out", "end"]
    assert found["out"] == value
    assert found["end"] == [value]
    if text is not None:
        assert found["in"] == f"<{text}>"
    structured = EVERYWHERE.make_body
    assert structured is not None
    body, _ = structured({"v": value})
    assert body is not None
    assert json.loads(body) == {"k": value}


@QUICK
@given(VALUES)
def test_no_value_leaves_its_place_in_xml(value: str) -> None:
    template = TextTemplate.compile("<r a=\"{{v}}\" b='{{v}}'>{{v}}<e/><!--{{v}}--><![CDATA[{{v}}]]></r>", NONE)
    assume(not any((ord(c) < 32 and c not in "\t\n\r") or c in "\ufffe\uffff" for c in value))
    assume("--" not in value and not value.endswith("-"))  # no comment, but still inside of it
    tree = ET.fromstring(xml_text(template, {"v": value}))
    assert [e.tag for e in tree.iter()] == ["r", "e"]
    assert set(tree.attrib) == {"a", "b"}


@QUICK
@given(VALUES, st.lists(VALUES, max_size=3))
def test_no_value_leaves_its_place_in_a_form(value: str, several: list[str]) -> None:
    found = parse_qsl(form_text({"a": value, "l": several, "z": "end"}), keep_blank_values=True)
    assert found == [("a", value), *(("l", item) for item in several), ("z", "end")]


@QUICK
@given(VALUES, VALUES)
def test_no_value_leaves_its_part_of_multipart(value: str, name: str) -> None:
    body, media = multipart(
        [{"name": name, "value": value, "filename": value, "contentType": f"text/{value}"}, {"name": "z", "value": "e"}]
    )
    delimiter = b"--" + media.partition("boundary=")[2].encode()
    pieces = body.split(delimiter)
    assert (len(pieces), pieces[0], pieces[3]) == (4, b"", b"--\r\n")
    head, _, content = pieces[1].partition(b"\r\n\r\n")
    assert head.count(b"\r\n") == 2
    assert content == value.encode() + b"\r\n"
    message = email.message_from_bytes(pieces[2].lstrip(), policy=email.policy.HTTP)
    assert message.get_param("name", header="content-disposition") == "z"


@QUICK
@given(VALUES)
def test_no_value_leaves_its_place_in_sparql(value: str) -> None:
    text = sparql_text(TextTemplate.compile("\"{{v}}\" '''{{v}}''' <x{{v}}> {{v}} ;", NONE), {"v": value})
    first, rest = _string(text, '"')
    assert first == value
    second, rest = _string(rest.removeprefix(" "), "'''")
    assert second == value
    iri, _, rest = rest.removeprefix(" <x").partition(">")
    assert unquote(iri) == unquote(value)
    if rest.startswith(' "'):
        third, rest = _string(rest[1:], '"')
        assert third == value
        assert rest == " ;"
    else:
        assert rest == f" {value} ;"
        assert not set(value) & set(" \n\t{}<>\"'#;?$()")


def _string(text: str, quotes: str) -> tuple[str, str]:
    """The first string of a SPARQL text, and what follows it."""
    assert text.startswith(quotes)
    at, out = len(quotes), []
    while not text.startswith(quotes, at):
        if text[at] == "\\":
            out.append({"n": "\n", "r": "\r", "t": "\t"}.get(text[at + 1], text[at + 1]))
            at += 1
        else:
            out.append(text[at])
        at += 1
    return "".join(out), text[at + len(quotes) :]


SPACES = st.text(st.sampled_from(" \n\r\t"), max_size=3).map(str.encode)
RAW_JSON = st.recursive(
    TREES.map(lambda tree: json.dumps(tree, ensure_ascii=False).encode())
    | st.sampled_from([b"1.0", b"-0", b"1e5", b"123456789012345678901234567890", b'"\\u00e9\\/"', b'{"a":1,"a":2}']),
    lambda inner: (
        st.builds(lambda s, a, b: b"[" + s + a + s + b"," + b + s + b"]", SPACES, inner, inner)
        | st.builds(lambda s, a, b: b'{"k"' + s + b":" + a + b"," + s + b'"k":' + b + s + b"}", SPACES, inner, inner)
    ),
    max_leaves=4,
)


@QUICK
@given(SPACES, RAW_JSON, st.sampled_from([None, "application/json", "application/x+json; charset=utf-8"]))
def test_a_json_body_that_nothing_maps_is_relayed_byte_for_byte(space: bytes, raw: bytes, media: str | None) -> None:
    body = space + raw + space
    request = RELAY.request({"body": RawBody(body, media)})
    assert request.body == body
    assert ("Content-Type", media or "application/json") in request.headers


RELAY = operation()


@QUICK
@given(st.binary(max_size=20))
def test_a_body_that_calls_itself_json_and_is_not_is_refused(data: bytes) -> None:
    try:
        json.loads(data)
    except ValueError:
        with pytest.raises(Invalid):
            RELAY.request({"body": RawBody(data, "application/json")})
    assert RELAY.request({"body": RawBody(data, "application/octet-stream")}).body == data


@QUICK
@given(st.binary(max_size=40), st.sampled_from(["api_key", "apikey", "API-Key"]))
def test_no_query_of_a_caller_brings_a_credential_of_that_name(query: bytes, name: str) -> None:
    plan = loaded(
        document(api("http://up.test", {}, authentication={"type": "apikey", "key": "api_key", "value": "v", "placement": "query"}), face({}))
    ).plan  # fmt: skip
    inputs = RestInputs({}, query + b"&" + quote(name).encode() + b"=evil", [], None)
    inputs.passes_query = True
    url = urlsplit(plan.called["up.op"].operation.request({}, inputs.open_query()).url)
    assert "evil" not in url.query
    assert "#" not in inputs.open_query()
    assert inputs.open_query().isascii()


SECRETS: list[Callable[[str], dict[str, Any]]] = [
    lambda t: {"path": f"/{t}"},
    lambda t: {"inputParameters": [param("a", "query", value=t)]},
    lambda t: {"inputParameters": [param("a", "header", value=t)]},
    lambda t: {"inputParameters": [param("a", "cookie", value=t)]},
    lambda t: {"body": {"type": "json", "data": {"a": [t]}}},
    lambda t: {"body": {"type": "text", "data": t}},
    lambda t: {"body": {"type": "formUrlEncoded", "data": {"a": t}}},
]


@QUICK
@given(
    st.sampled_from(SECRETS),
    st.text("ab -{", max_size=4),
    st.text("ab -}", max_size=4),
    st.sampled_from(["K", "env.K", " env.K ", "env.Z"]),
)
def test_an_unresolved_secret_makes_no_request(make: Any, before: str, after: str, name: str) -> None:
    consumed = make(f"{before.rstrip('{')}{{{{{name}}}}}{after.lstrip('}')}")
    made = document(api("http://up.test", {"method": "POST", **consumed}), face({"method": "POST"}),
                    binds=[{"namespace": "env", "keys": {"K": "K"}}])  # fmt: skip
    broken = loaded(made).plan.called["up.op"].operation
    with pytest.raises(AppError) as refused:
        broken.request({"K": "evil", "env.K": "evil", name: "evil"})
    assert refused.value.code == "bind.unresolved"


def test_a_value_of_a_bind_is_encoded_once_in_a_path() -> None:
    some = Binds((Bind("env", Mark("f", 1, 1), ".", keys={"K": "K"}),), {"K": "a/b%20 é"})
    assert PathTemplate.compile("/x/{{env.K}}/{y}", some).render({"y": "1"}) == "/x/a%2Fb%2520%20%C3%A9/1"
