"""Templates: a value can fill its place, and nothing beyond it."""

import json
import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree as ET

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from toolcrib.core.template import BodyTemplate, PathTemplate, QueryTemplate, TemplateError, TextTemplate, query_of

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NASTY = st.sampled_from(
    [
        "..",
        ".",
        "/",
        "a/../b",
        "%2F",
        "%252e",
        "a&b=c",
        "a#b",
        "a?b",
        "\r\nX: y",
        '","x":"',
        '"}',
        "\\",
        "\\u0041",
        "\x00",
        "{{ a }}",
        "{a}",
        "null",
        " ",
        "+",
        "é☃😀",
        "]]>",
        "<a>",
        "&amp;",
        "\u2028",
        "\x85",
    ]
)
VALUES = TEXTS | NASTY
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | VALUES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(VALUES, inner, max_size=4),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.sampled_from(["a", "b", "c"]), JSON, max_size=3)


def shown(value: Any) -> Any:
    """A value as it stands in text: scalars plain, null as nothing, the rest as JSON to be read again."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.loads(json.dumps(value))


def read(text: str, like: Any) -> Any:
    """What a text says, read as the kind of `like`."""
    return text if isinstance(like, str) else "" if like is None else json.loads(text)


# ---- path ------------------------------------------------------------------------------------------------------------


@given(VALUES, VALUES)
def test_a_path_value_is_encoded_once_and_stays_in_its_segment(a: str, b: str) -> None:
    assume(a and b and not {".", ".."}.intersection(re.split(r"[/\\]", a) + re.split(r"[/\\]", b)))
    path = PathTemplate.compile("/users/{a}/posts/{{ b }}.json").render({"a": a, "b": b})
    segments = path.split("/")
    assert [unquote(s) for s in segments] == ["", "users", a, "posts", b + ".json"]
    assert re.fullmatch(r"[A-Za-z0-9%._~/-]+", path)
    assert urlsplit("http://x" + path).path == path


@pytest.mark.parametrize("value", [None, "", ".", ".."])
def test_a_path_takes_no_value_that_would_change_its_shape(value: str | None) -> None:
    with pytest.raises(TemplateError, match="a"):
        PathTemplate.compile("/x/{a}").render({"a": value})
    with pytest.raises(TemplateError, match="a"):
        PathTemplate.compile("/x/{{ b.a }}").render({"b": {"a": value}})


@pytest.mark.parametrize(
    ("value", "text"),
    [(5, "5"), (1.5, "1.5"), (True, "true"), ([1, 2], "%5B1%2C2%5D"), ({"k": "v"}, "%7B%22k%22%3A%22v%22%7D")],
)
def test_a_path_value_that_is_no_text_is_written_as_json(value: Any, text: str) -> None:
    assert PathTemplate.compile("{a}").render({"a": value}) == text


@pytest.mark.parametrize(
    "text",
    ["/a?b", "/a#b", "/a/../b", "..", "/./a", "/a\\b", "/a\nb", "/{a", "/a}", "/{ a }", "/{a b}", "/{}", "/{{}}"],
)
def test_a_path_that_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(TemplateError):
        PathTemplate.compile(text)


def test_literals_of_a_path_are_made_safe_and_keep_their_encoding() -> None:
    assert PathTemplate.compile("/a b/ü/%2F/x:y@z").render({}) == "/a%20b/%C3%BC/%2F/x:y@z"


def test_a_variable_reaches_into_objects() -> None:
    template = PathTemplate.compile("/{{ user.address.city }}")
    assert template.names == {"user"}
    assert template.render({"user": {"address": {"city": "Köln"}}}) == "/K%C3%B6ln"
    for arguments in ({}, {"user": 5}, {"user": {"address": []}}, {"user": {"address": {"city": None}}}):
        with pytest.raises(TemplateError, match=r"user\.address\.city"):
            template.render(arguments)


# ---- query -----------------------------------------------------------------------------------------------------------


@given(ARGUMENTS)
def test_no_value_adds_or_changes_a_query_pair(arguments: dict[str, Any]) -> None:
    text = QueryTemplate.compile("fixed=1&a={{ a }}&mixed=%20b-{{ b }}&end").render(arguments)
    pairs = parse_qsl(text, keep_blank_values=True)
    wanted = [("fixed", "1")]
    a, b = arguments.get("a"), arguments.get("b")
    if a is not None:
        wanted += [("a", shown(item)) for item in (a if isinstance(a, list) else [a])]
    assert [name for name, _ in pairs] == [name for name, _ in wanted] + ["mixed"] * (b is not None) + ["end"]
    found = [
        read(value, like) if like is not None else value for (_, value), (_, like) in zip(pairs, wanted, strict=False)
    ]
    assert found[0] in {1, "1"}
    if b is not None:
        assert pairs[-2][1].startswith(" b-")
        assert read(pairs[-2][1][3:], b) == shown(b)
    assert re.fullmatch(r"[!-~]*", text)


@given(st.dictionaries(VALUES, JSON, max_size=4))
def test_arguments_without_a_template_are_one_pair_each(arguments: dict[str, Any]) -> None:
    pairs = parse_qsl(query_of(arguments), keep_blank_values=True, strict_parsing=bool(query_of(arguments)))
    wanted = [
        (n, v)
        for n, given_ in arguments.items()
        if given_ is not None
        for v in (given_ if isinstance(given_, list) else [given_])
    ]
    assert [name for name, _ in pairs] == [name for name, _ in wanted]
    for (_, text), (_, value) in zip(pairs, wanted, strict=True):
        assert text == "null" if value is None else read(text, value) == shown(value)


def test_literals_of_a_query_stay_as_they_were_written() -> None:
    template = QueryTemplate.compile("?a=1%2B1&flag&b[]=x&c=a b&d=ü&e=%7B{{ x }}%7D&f={{ x }}&f={{ y }}")
    assert template.render({"x": "1+1"}) == "a=1%2B1&flag&b[]=x&c=a%20b&d=%C3%BC&e=%7B1%2B1%7D&f=1%2B1"
    assert template.names == {"x", "y"}


def test_a_list_repeats_its_pair_only_when_it_is_the_whole_value() -> None:
    template = QueryTemplate.compile("tag={{ tags }}&all=[{{ tags }}]")
    assert template.render({"tags": ["a", "b"]}) == "tag=a&tag=b&all=[%5B%22a%22%2C%22b%22%5D]"
    assert template.render({"tags": []}) == "all=[%5B%5D]"
    assert template.render({}) == ""


@pytest.mark.parametrize("text", ["a=b#c", "a=b\r\nX: y", "{{ name }}=1", "a{{ x }}"])
def test_a_query_that_is_no_query_is_refused(text: str) -> None:
    with pytest.raises(TemplateError):
        QueryTemplate.compile(text)


# ---- headers ---------------------------------------------------------------------------------------------------------


@given(ARGUMENTS)
def test_no_value_adds_a_header_line(arguments: dict[str, Any]) -> None:
    text = TextTemplate.compile("tag {{ a }}; {{ b }}").header(arguments)
    if arguments.get("a") is None and arguments.get("b") is None:
        assert text is None
    else:
        assert text is not None
        assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text)
        assert text.startswith("tag")


def test_a_list_in_a_header_is_joined_with_commas() -> None:
    assert TextTemplate.compile("{{ a }}").header({"a": ["x", 1, True]}) == "x, 1, true"
    assert TextTemplate.compile("fixed").header({}) == "fixed"


# ---- bodies ----------------------------------------------------------------------------------------------------------


@given(ARGUMENTS)
def test_a_json_body_is_json_and_no_value_adds_a_member(arguments: dict[str, Any]) -> None:
    template = BodyTemplate.compile(
        '{"a": {{ a }}, "text": "<{{ b }}>", "list": [{{ c }}, 1]}', "application/json; charset=utf-8"
    )
    body = json.loads(template.render(arguments))
    assert list(body) == ["a", "text", "list"]
    assert body["a"] == arguments.get("a")
    assert body["list"] == [arguments.get("c"), 1]
    assert (body["text"][0], body["text"][-1]) == ("<", ">")
    assert read(body["text"][1:-1], arguments.get("b")) == shown(arguments.get("b"))


@given(
    st.lists(
        st.sampled_from(
            ['"', "\\", "{", "}", "[", "]", ":", ",", "a", "\\u12", "\\ud83d", "{{ a }}", "{{ b }}", " ", "1", "-"]
        ),
        max_size=12,
    ),
    ARGUMENTS,
)
def test_whatever_the_template_an_accepted_one_always_gives_json(pieces: list[str], arguments: dict[str, Any]) -> None:
    try:
        template = BodyTemplate.compile("".join(pieces), "application/json")
    except TemplateError:
        return
    json.loads(template.render(arguments))


SHAPES = st.recursive(
    st.sampled_from(
        ["{{ a }}", '"{{ a }}"', '"x{{ b }}\\n{{ a }}"', '"\\\\{{ a }}"', "1", "null", '"{{ c.d }}"', "{{ c.d }}"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: "[" + ",".join(parts) + "]")
        | st.lists(inner, max_size=3).map(
            lambda parts: "{" + ",".join(f'"k{i}{{{{ b }}}}":{v}' for i, v in enumerate(parts)) + "}"
        )
    ),
    max_leaves=6,
)


@given(SHAPES, ARGUMENTS)
def test_every_well_formed_json_template_gives_json_of_its_shape(text: str, arguments: dict[str, Any]) -> None:
    empty = json.loads(BodyTemplate.compile(text, "application/vnd.api+json").render({}))
    body = json.loads(BodyTemplate.compile(text, "application/vnd.api+json").render(arguments))
    if isinstance(empty, list | dict):
        assert type(body) is type(empty)
        assert len(body) == len(empty)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{{ a }}{{ b }}",
        '{"a": }',
        "{{{ a }}: 1}",
        '{"a": 1{{ a }}}',
        '"\\{{ a }}n"',
        '"\\u12{{ a }}34"',
        '"\\ud83d{{ a }}\\ude00"',
        "-{{ a }}",
        "not json",
    ],
)
def test_a_template_that_could_break_json_is_refused(text: str) -> None:
    with pytest.raises(TemplateError):
        BodyTemplate.compile(text, "application/json")


@given(ARGUMENTS)
def test_a_form_body_is_written_like_a_query(arguments: dict[str, Any]) -> None:
    text = "x=1&a={{ a }}&b={{ b }}"
    form = BodyTemplate.compile(text, "application/x-www-form-urlencoded; charset=utf-8")
    assert form.render(arguments).decode() == QueryTemplate.compile(text).render(arguments)
    assert form.names == {"a", "b"}


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), max_size=30))
def test_no_value_adds_an_element_to_an_xml_body(value: str) -> None:
    assume("\ufffe" not in value and "\uffff" not in value)
    body = BodyTemplate.compile('<a x="{{ a }}">{{ a }}</a>', "application/xml").render({"a": value})
    root = ET.fromstring(body)
    assert (root.tag, list(root), root.attrib["x"], root.text or "") == ("a", [], value, value)


def test_another_text_body_is_filled_as_it_is() -> None:
    assert BodyTemplate.compile("hello {{ a }}{{ b }}", "text/plain").render({"a": "<é>"}) == "hello <é>".encode()


def test_values_nested_too_deep_are_refused() -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    for render in (
        lambda: PathTemplate.compile("{a}").render({"a": deep}),
        lambda: QueryTemplate.compile("a={{ a }}x").render({"a": deep}),
        lambda: BodyTemplate.compile("{{ a }}", "application/json").render({"a": deep}),
        lambda: BodyTemplate.compile('"{{ a }}"', "application/json").render({"a": deep}),
        lambda: query_of({"a": {"b": deep}}),
    ):
        with pytest.raises(TemplateError, match="JSON"):
            render()
