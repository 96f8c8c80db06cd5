"""Templates: what is a variable, what is refused, and what a place does to a value."""

import time
from typing import Any

import pytest

from toolcrib.capability.binds import Binds, Unresolved
from toolcrib.capability.names import match
from toolcrib.capability.spec import ABSENT, Bind, Mark
from toolcrib.capability.template_text import TemplateInvalid, parse, variables
from toolcrib.capability.templates import JsonText, PathTemplate, TextTemplate, as_text, header_text
from toolcrib.errors import Invalid

AT = Mark("f", 1, 1)
NONE = Binds((), {})
SOME = Binds(
    (Bind("env", AT, ".", keys={"K": "K", "GONE": "GONE"}), Bind("x", AT, ".", keys={"K": "L"})), {"K": "k", "L": "l"}
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []), ("plain", []), ("{{x}}", ["x"]), ("{{ x }}", ["x"]), ("{{{x}}}", ["x"]), ("{{&x}}", ["x"]),
        ("{{& x }}", ["x"]), ("{{!note}}", []), ("a{{x}}b{{y.z}}c{{x}}", ["x", "y.z"]), ("{x}", []), ("{{x-y_z}}", ["x-y_z"]),
        ("{{$this.ns.x}}", ["$this.ns.x"]), ("{{x}", []), ("{ {x} }", []), ('{"a":{"b":{{x}}}}', ["x"]),
    ],
)  # fmt: skip
def test_variables_of_a_text(text: str, names: list[str]) -> None:
    assert variables(text) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [("/{x}", ["x"]), ("/{{x}}", ["x"]), ("/{x}/{{y}}/{z-a}", ["x", "y", "z-a"]), ("/{a/b}", []), ("/{}", [])],
)
def test_variables_of_a_path(text: str, names: list[str]) -> None:
    assert variables(text, single=True) == names


@pytest.mark.parametrize("text", ["{{#x}}a{{/x}}", "{{^x}}", "{{>x}}", "{{=<% %>=}}", "{{}}", "{{ }}", "{{&}}"])
def test_what_is_more_than_a_variable_is_refused(text: str) -> None:
    with pytest.raises(TemplateInvalid):
        parse(text)


@pytest.mark.parametrize(
    "text", ["{{" + " " * 200_000, "{{{" * 60_000, "{{a" * 60_000, "{" * 200_000, "{{" + "a" * 200_000]
)
def test_parsing_takes_time_in_proportion(text: str) -> None:
    started = time.process_time()
    parse(text, single=True)
    assert time.process_time() - started < 2


def test_binds_are_put_in_while_compiling() -> None:
    template = TextTemplate.compile("{{K}}{{env.K}}{{x.K}}{{y}}", SOME)
    assert template.names == ("y",)
    assert template.render({"y": 1, "K": "no"}) == "kkl1"
    assert "kkl" not in repr(template)
    for text in ("{{GONE}}", "{{env.GONE}}", "{{env.NEVER}}"):
        with pytest.raises(Unresolved) as unresolved:
            TextTemplate.compile(text, SOME)
        assert unresolved.value.refusal().details["variables"] == [text.strip("{}")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (1, "1"),
        (1.5, "1.5"),
        (True, "true"),
        (None, ""),
        (ABSENT, ""),
        ([1, "a"], '[1,"a"]'),
        ({"k": None}, '{"k":null}'),
    ],
)
def test_values_as_text(value: Any, text: str) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize("text", ["/{a}{b}", "/.{a}", "/{a}.", "/x/{a}{b}/y"])
def test_values_together_do_not_make_a_dot_segment(text: str) -> None:
    template = PathTemplate.compile(text, NONE)
    with pytest.raises(Invalid) as refused:
        template.render({"a": ".", "b": "."})
    assert refused.value.code == "parameter.climbs"


def test_an_empty_path_value_is_missing() -> None:
    for value in ("", None, ABSENT):
        with pytest.raises(Invalid) as refused:
            PathTemplate.compile("/{a}/b", NONE).render({"a": value})
        assert refused.value.field == "a"


def test_a_header_stays_on_one_line() -> None:
    assert header_text("a\r\nX: y\x00\x7f") == "a  X: y"
    assert header_text(["a", 1]) == "a, 1"


def test_json_text_knows_strings_from_escapes() -> None:
    template = JsonText.compile('{"a\\"{{x}}":"\\\\{{x}}","b":{{x}}}', NONE)
    assert template.render({"x": 'q"'}) == b'{"a\\"q\\"":"\\\\q\\"","b":"q\\""}'


@pytest.mark.parametrize(
    ("name", "candidates", "found"),
    [
        ("a", ["a", "A"], "a"), ("a", ["A"], "A"), ("user_id", ["User-Id"], "User-Id"), ("userid", ["user-id", "user_id"], None),
        ("user_id", ["USER_ID", "user-id"], "USER_ID"), ("a", [], None), ("a", ["b"], None), ("x.y", ["xy"], "xy"),
        ("id", ["ID", "Id"], None),
    ],
)  # fmt: skip
def test_names_match_exactly_then_loosely_when_only_one_does(
    name: str, candidates: list[str], found: str | None
) -> None:
    assert match(name, candidates) == found
