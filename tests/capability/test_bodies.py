"""Request bodies: every declared form, bodies of inputs, relayed bodies, and values that try to get out of their place."""

import email
import email.policy
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl
from xml.etree import ElementTree as ET

import pytest

from capability.stub import JSON, Stub, api, binds, document, face, param, serving, stub

EVIL = ['"', "\\", '","x":"y', "a\nb", "</a><b>", "]]>", "&x=1", "--b\r\nX: y", "{{env.K}}", "\u2028", "é", "'", "\x00"]


@pytest.fixture
async def up() -> AsyncIterator[Stub]:
    async with stub() as served:
        yield served


async def sent(up: Stub, consumed: Any, query: dict[str, Any] | None = None, **request: Any) -> Any:
    made = document(api(up.url, {"method": "POST", **consumed}), face({"method": "POST"}), binds=binds("K"))
    async with serving(made, {"K": "k&<\"'"}) as served:
        answer = await served.http.post("/x", params=query, **request)
        assert answer.status_code == 200, answer.text
    return up.only()


@pytest.mark.parametrize("value", EVIL)
@pytest.mark.parametrize(
    "body",
    ['{"a": "{{v}}", "b": {{v}}, "c": "-{{v}}-"}', {"type": "json", "data": '{"a":"{{v}}","b":{{ v }},"c":"-{{{v}}}-"}'},
     {"type": "json", "data": {"a": "{{v}}", "b": "{{v}}", "c": "-{{v}}-"}}],
)  # fmt: skip
async def test_a_value_stays_in_its_place_in_json(up: Stub, body: Any, value: str) -> None:
    asked = await sent(up, {"body": body}, {"v": value})
    assert json.loads(asked.body) == {"a": value, "b": value, "c": f"-{value}-"}
    assert asked.get("content-type") == "application/json"


@pytest.mark.parametrize("value", [1, 2.5, True, None, [1, "a"], {"k": ["v"]}, "text"])
async def test_a_lone_variable_is_the_value_itself(up: Stub, value: Any) -> None:
    for body in ({"type": "json", "data": {"v": "{{v}}", "gone": "{{none}}"}}, '{"v": {{v}}}'):
        assert json.loads((await sent(up, {"body": body}, json={"v": value})).body) == {"v": value}


async def test_an_absent_value_is_left_out_null_or_nothing(up: Stub) -> None:
    assert (await sent(up, {"body": {"type": "json", "data": {"a": "{{v}}", "b": ["{{v}}"], "c": 1}}})).body == (
        b'{"b":[],"c":1}'
    )
    assert (await sent(up, {"body": '{"a":{{v}},"b":"x{{v}}"}'})).body == b'{"a":null,"b":"x"}'


async def test_binds_stand_in_bodies_even_when_nothing_else_does(up: Stub) -> None:
    for body in (
        {"type": "json", "data": {"k": "{{env.K}}", "in": {"k": ["{{K}}"]}}},
        '{"k":"{{env.K}}","in":{"k":[{{K}}]}}',
    ):
        assert json.loads((await sent(up, {"body": body})).body) == {"k": "k&<\"'", "in": {"k": ["k&<\"'"]}}
    form = {"type": "formUrlEncoded", "data": {"k": "{{env.K}}"}}
    assert parse_qsl((await sent(up, {"body": form})).body.decode()) == [("k", "k&<\"'")]


async def test_constant_bodies_go_out_as_written(up: Stub) -> None:
    for body in ('{"a" :1.0 }', {"type": "json", "data": '{"a" :1.0 }'}):
        assert (await sent(up, {"body": body})).body == b'{"a" :1.0 }'
    assert (await sent(up, {"body": "{not json,"})).body == b"{not json,"
    assert (await sent(up, {"body": {"type": "json", "data": [1, None]}})).body == b"[1,null]"


@pytest.mark.parametrize(
    "body", ['{"a":"\\{{v}}"}', '{"a":"\\u00{{v}}"}', '{"a":"{{v}}",}', '{"a":{{v}}1}', '{"{{v}}"']
)
async def test_a_json_text_in_which_a_value_could_do_harm_is_refused(up: Stub, body: str) -> None:
    made = document(api(up.url, {"method": "POST", "body": body}), face({"method": "POST"}))
    async with serving(made) as served:
        assert "operation-invalid" in served.rules()
        assert (await served.http.post("/x?v=1")).status_code == 502
    up.nothing()


@pytest.mark.parametrize("value", EVIL)
async def test_a_value_stays_in_its_pair_of_a_form(up: Stub, value: str) -> None:
    forms: list[Any] = [
        {
            "body": {
                "type": "formUrlEncoded",
                "data": {"a": "{{v}}", "b": "x-{{v}}", "n": "{{none}}", "l": ["{{v}}", "2"]},
            }
        },
        {"body": {"type": "formUrlEncoded", "data": "a={{v}}&b=x-{{v}}&n={{none}}&l={{v}}&l=2"}},
        {
            "body": "a={{v}}&b=x-{{v}}&n={{none}}&l={{v}}",
            "inputParameters": [param("Content-Type", "header", value="application/x-www-form-urlencoded")],
        },
    ]
    for consumed in forms[:1]:
        asked = await sent(up, consumed, {"v": value})
        expected = [("a", value), ("b", f"x-{value}"), ("l", value), ("l", "2")]
        assert parse_qsl(asked.body.decode(), keep_blank_values=True) == expected
        assert asked.get("content-type") == "application/x-www-form-urlencoded"
    for consumed in forms[1:]:
        pairs = parse_qsl((await sent(up, consumed, {"v": value})).body.decode(), keep_blank_values=True)
        assert pairs[:2] == [("a", value), ("b", f"x-{value}")]


@pytest.mark.parametrize("value", [e for e in EVIL if e != "\x00"])
async def test_a_value_stays_in_its_place_in_xml(up: Stub, value: str) -> None:
    text = '<a x="{{v}}"><b>{{v}}</b><c/></a>'
    for body in ({"type": "xml", "data": text}, text):
        asked = await sent(up, {"body": body}, {"v": value})
        tree = ET.fromstring(asked.body.decode())
        assert [e.tag for e in tree.iter()] == ["a", "b", "c"]
        assert list(tree.attrib) == ["x"]
        assert tree.find("b").text == value.replace("\r\n", "\n")
    declared = {"body": text, "inputParameters": [param("Content-Type", "header", value="text/xml; charset=utf-8")]}
    asked = await sent(up, declared, {"v": value})
    ET.fromstring(asked.body.decode())
    assert (asked.get("content-type"), asked.count("content-type")) == ("text/xml; charset=utf-8", 1)


async def test_text_and_sparql_have_their_content_types(up: Stub) -> None:
    asked = await sent(up, {"body": {"type": "text", "data": "hi {{v}}"}}, {"v": "\u00e9"})
    assert (asked.body, asked.get("content-type")) == ("hi \u00e9".encode(), "text/plain; charset=utf-8")
    asked = await sent(up, {"body": {"type": "sparql", "data": "SELECT {{v}}"}}, {"v": "?s"})
    assert asked.get("content-type") == "application/sparql-query"


@pytest.mark.parametrize(
    ("query", "value", "expected"),
    [
        ('?s ?p "{{v}}" .', '" } DROP ALL #', '?s ?p "\\" } DROP ALL #" .'),
        ("?s ?p '''{{v}}'''", "'''\\", "?s ?p '''\\'\\'\\'\\\\'''"),
        ("<http://x/{{v}}> ?p ?o", "> ; DROP <", "<http://x/%3E%20;%20DROP%20%3C> ?p ?o"),
        ("LIMIT {{v}}", "10", "LIMIT 10"),
        ("?s a {{v}}", "ex:Person", "?s a ex:Person"),
        ("FILTER(?x = {{v}})", "1) } DROP", 'FILTER(?x = "1) } DROP")'),
        ("FILTER(?x < {{v}})", "5", "FILTER(?x < 5)"),
        ('"a\\"{{v}}"', '"', '"a\\"\\""'),
        ("# it's\n{{v}}", "a b", '# it\'s\n"a b"'),
    ],
)
async def test_a_value_stays_in_its_place_in_sparql(up: Stub, query: str, value: str, expected: str) -> None:
    assert (await sent(up, {"body": {"type": "sparql", "data": query}}, {"v": value})).body.decode() == expected


@pytest.mark.parametrize("value", EVIL)
async def test_a_value_stays_in_its_part_of_multipart(up: Stub, value: str) -> None:
    parts = [
        {"name": "a", "value": "{{v}}"},
        {"name": "f", "value": "data", "filename": "{{v}}", "contentType": "text/{{v}}"},
        {"name": "n", "value": "{{none}}"},
        {"name": "j", "value": "{{list}}"},
    ]
    body = {"type": "multipartForm", "data": parts}
    asked = await sent(up, {"body": body}, {"v": value, "list": ["1", "2"]})
    media = asked.get("content-type")
    assert media.startswith("multipart/form-data; boundary=")
    delimiter = b"--" + media.partition("boundary=")[2].encode()
    pieces = asked.body.split(delimiter)
    assert len(pieces) == 5
    assert pieces[-1] == b"--\r\n"
    _head, _, content = pieces[1].removesuffix(b"\r\n").partition(b"\r\n\r\n")
    assert content.decode() == value
    message = email.message_from_bytes(
        b"Content-Type: " + media.encode() + b"\r\n\r\n" + asked.body, policy=email.policy.HTTP
    )
    assert [p.get_param("name", header="content-disposition") for p in message.iter_parts()] == ["a", "f", "j"]
    assert pieces[2].count(b"\r\n") == 5  # start, two headers, empty line, value, end


async def test_a_body_input_is_the_body(up: Stub) -> None:
    one = {"inputParameters": [param("payload", "body", type="object")]}
    raw = b' {"a": 1.0}\n'
    asked = await sent(up, one, content=raw, headers={"Content-Type": "application/vnd.x+json"})
    assert (asked.body, asked.get("content-type")) == (raw, "application/vnd.x+json")
    asked = await sent(up, one)
    assert (asked.body, asked.get("content-type")) == (b"", None)
    given = {"inputParameters": [param("payload", "body", value={"q": "{{v}}", "n": 1})]}
    assert (await sent(up, given, {"v": "x"})).body == b'{"q":"x","n":1}'


async def test_several_body_inputs_are_members(up: Stub) -> None:
    inputs = [param("name", "body"), param("n", "body", type="number"), param("k", "body", value="{{env.K}}")]
    asked = await sent(up, {"inputParameters": inputs}, {"n": "5"}, json={"name": "a", "other": 1})
    assert json.loads(asked.body) == {"name": "a", "n": 5, "k": "k&<\"'"}


async def test_a_body_member_comes_from_the_body_before_the_path_and_never_from_headers(up: Stub) -> None:
    inputs = [param("name", "body"), param("from", "body"), param("session", "body")]
    consumed = api(up.url, {"method": "PUT", "path": "/i/{name}", "inputParameters": inputs})
    async with serving(document(consumed, face({"method": "PUT", "path": "/i/{name}"}))) as served:
        headers = {"From": "me@x", "Cookie": "session=s"}
        await served.http.put("/i/old", json={"name": "new"}, headers=headers)
    asked = up.only()
    assert (asked.path, asked.body) == ("/i/old", b'{"name":"new"}')


async def test_a_required_body_that_is_absent_is_400(up: Stub) -> None:
    for inputs in (
        [param("body", "body", required=True)], [param("a", "body", required=True), param("b", "body")],
    ):  # fmt: skip
        made = document(api(up.url, {"method": "POST", "inputParameters": inputs}), face({"method": "POST"}))
        async with serving(made) as served:
            refused = await served.http.post("/x")
        assert (refused.status_code, refused.json()["field"]) == (400, inputs[0]["name"])
    up.nothing()


async def test_with_can_make_the_body(up: Stub) -> None:
    consumed = api(up.url, {"method": "POST", "inputParameters": [param("payload", "body")]})
    for key in ("payload", "body"):
        exposed = {"method": "POST", "with": {key: {"n": "rest.a", "fixed": 1, "none": "rest.none"}}}
        async with serving(document(consumed, face(exposed))) as served:
            await served.http.post("/x", json={"a": [1]})
        assert up.only().body == b'{"n":[1],"fixed":1}'


async def test_json_without_data_and_undescribed_writes_relay_the_body_but_reads_do_not(up: Stub) -> None:
    for method, consumed, expected in (
        ("POST", {"body": {"type": "json"}}, b"[1]"), ("POST", {}, b"[1]"), ("PUT", {}, b"[1]"), ("PATCH", {}, b"[1]"),
        ("DELETE", {}, b""), ("GET", {}, b""),
    ):  # fmt: skip
        made = document(api(up.url, {"method": method, **consumed}), face({"method": method}))
        async with serving(made) as served:
            assert (await served.http.request(method, "/x", content=b"[1]", headers=JSON)).status_code == 200
        assert up.only().body == expected


async def test_a_body_input_of_a_read_without_a_value_sends_nothing(up: Stub) -> None:
    for method in ("GET", "DELETE"):
        made = document(
            api(up.url, {"method": method, "inputParameters": [param("body", "body", required=False)]}),
            face({"method": method, "with": {"body": "rest.body"}}),
        )
        async with serving(made) as served:
            await served.http.request(method, "/x")
        asked = up.only()
        assert (asked.body, asked.get("content-length"), asked.get("content-type")) == (b"", None, None)


FORM = "application/x-www-form-urlencoded"
PARTS = (
    b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nAda\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n\0\xff\r\n--x--\r\n'
)


@pytest.mark.parametrize(("media", "body"), [(FORM, b"name=Ada&tag=a"), ("multipart/form-data; boundary=x", PARTS)])
async def test_the_fields_of_a_form_are_members_like_those_of_json(media: str, body: bytes) -> None:
    async with stub() as up:
        operation = {"name": "make", "method": "POST", "path": "/p", "body": '{"n": {{rest.name}}, "f": {{rest.file}}}'}
        made = document(api(up.url, operation), face({"method": "POST", "path": "/p", "call": "up.make"}))
        async with serving(made) as served:
            answer = await served.http.post("/p", content=body, headers={"content-type": media})
        assert (answer.status_code, up.only().body) == (200, b'{"n": "Ada", "f": null}')


async def test_a_form_that_nothing_takes_apart_goes_on_as_it_came() -> None:
    async with stub() as up:
        made = document(
            api(up.url, {"name": "make", "method": "POST", "path": "/p"}),
            face({"method": "POST", "path": "/p", "call": "up.make"}),
        )
        async with serving(made) as served:
            await served.http.post("/p", content=b"a=1&&b", headers={"content-type": FORM})
        asked = up.only()
        assert (asked.body, asked.get("content-type")) == (b"a=1&&b", FORM)


@pytest.mark.parametrize(
    ("options", "extension"), [({"relay_bodies": False}, {}), ({}, {"x-toolcrib": {"relayBody": False}})]
)
async def test_relaying_bodies_that_nothing_describes_can_be_switched_off(options: Any, extension: Any) -> None:
    async with stub() as up:
        made = document(
            api(up.url, {"name": "make", "method": "POST", "path": "/p", **extension}),
            face({"method": "POST", "path": "/p", "call": "up.make"}),
        )
        async with serving(made, **options) as served:
            await served.http.post("/p", json={"a": 1})
        assert up.only().body == b""
