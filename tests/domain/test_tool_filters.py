"""Filters over upstream tools: five tests, joined by AND or OR, with and without regard to case."""

import time
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolcrib.domain.tool_filters import Approvals, Matcher, ToolFilter, check_filter, needs_approval, offered
from toolcrib.errors import Invalid

TOOL = {"name": "Get_Weather", "title": "Weather now", "description": "Tells the WEATHER of a place."}


@pytest.mark.parametrize(
    ("matcher", "loosely", "strictly"),
    [
        ({"exact": "get_weather"}, True, False),
        ({"exact": "Get_Weather"}, True, True),
        ({"exact": "Get_"}, False, False),
        ({"contains": "WEATH"}, True, False),
        ({"contains": "_Wea"}, True, True),
        ({"contains": ""}, True, True),
        ({"starts_with": "get"}, True, False),
        ({"starts_with": "Get"}, True, True),
        ({"starts_with": "Weather"}, False, False),
        ({"ends_with": "WEATHER"}, True, False),
        ({"ends_with": "Weather"}, True, True),
        ({"ends_with": "Get"}, False, False),
        ({"regex": "^get_w"}, True, False),
        ({"regex": "^Get_[A-Z]"}, True, True),
        ({"regex": "_W"}, True, True),
        ({"regex": "^Weather$"}, False, False),
        ({"starts_with": "get", "ends_with": "her"}, True, False),
        ({"starts_with": "Get", "contains": "zzz"}, False, False),
        ({"attribute": "title", "exact": "weather NOW"}, True, False),
        ({"attribute": "description", "regex": r"weather.*\.$"}, True, False),
        ({"attribute": "description", "contains": "Get_Weather"}, False, False),
    ],
)
def test_a_matcher_tests_one_attribute(matcher: dict[str, Any], loosely: bool, strictly: bool) -> None:
    attribute = matcher.get("attribute", "name")
    assert Matcher(**matcher).matches(TOOL[attribute]) is loosely
    assert Matcher(**matcher, case_sensitive=True).matches(TOOL[attribute]) is strictly


def test_case_is_ignored_beyond_ascii() -> None:
    assert Matcher(exact="STRASSE").matches("straße")
    assert Matcher(contains="Ä").matches("bär")
    assert Matcher(regex="ä").matches("Ä")
    assert not Matcher(exact="Ä", case_sensitive=True).matches("ä")


YES, NO = Matcher(contains="weather"), Matcher(contains="news")


@pytest.mark.parametrize(
    ("operator", "filters", "passes"),
    [
        ("and", (YES, YES), True),
        ("and", (YES, NO), False),
        ("or", (YES, NO), True),
        ("or", (NO, NO), False),
        ("and", (YES,), True),
        ("or", (NO,), False),
    ],
)
def test_matchers_are_joined_by_and_or_or(
    operator: Literal["and", "or"], filters: tuple[Matcher, ...], passes: bool
) -> None:
    chosen = ToolFilter(operator, filters)
    assert chosen.matches(**TOOL) is passes
    assert offered(chosen, None, **TOOL) is passes
    assert offered(None, chosen, **TOOL) is not passes
    assert offered(ToolFilter("or", (YES,)), chosen, **TOOL) is not passes
    assert needs_approval(Approvals(only=chosen), **TOOL) is passes
    assert needs_approval(Approvals(always=True, only=chosen), **TOOL)


@pytest.mark.parametrize("operator", ["and", "or"])
def test_a_filter_without_matchers_says_nothing(operator: Literal["and", "or"]) -> None:
    empty = ToolFilter(operator)
    assert offered(empty, empty, **TOOL)
    assert offered(empty, None, **TOOL)
    assert not needs_approval(Approvals(only=empty), **TOOL)
    assert not needs_approval(Approvals(), **TOOL)
    assert not needs_approval(None, **TOOL)
    assert needs_approval(Approvals(always=True), **TOOL)


@given(st.text(max_size=12), st.text(max_size=12), st.booleans())
def test_the_plain_tests_agree_with_what_python_says(text: str, part: str, sensitive: bool) -> None:
    a, b = (text, part) if sensitive else (text.casefold(), part.casefold())
    assert Matcher(exact=part, case_sensitive=sensitive).matches(text) == (a == b)
    assert Matcher(contains=part, case_sensitive=sensitive).matches(text) == (b in a)
    assert Matcher(starts_with=part, case_sensitive=sensitive).matches(text) == a.startswith(b)
    assert Matcher(ends_with=part, case_sensitive=sensitive).matches(text) == a.endswith(b)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*b", "(a|a)*$", "(x+x+)+y"])
def test_no_pattern_takes_more_than_linear_time(pattern: str) -> None:
    started = time.perf_counter()
    Matcher(regex=pattern).matches("a" * 50_000 + "!")
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    "pattern", ["(", "[a", "*", "(?=a)", r"(a)\1", "(?P<n", "a{2,1}", "(?i", "x" * 1001, "a{1000}{1000}"]
)
def test_a_pattern_that_cannot_work_is_refused_by_its_place(pattern: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_filter(ToolFilter("or", (YES, Matcher(regex=pattern))), "spec.includeTools")
    assert caught.value.field == "spec.includeTools.filters[1].matcher.regex"


def test_empty_matchers_and_long_lists_are_refused() -> None:
    with pytest.raises(Invalid) as caught:
        check_filter(ToolFilter("and", (Matcher(case_sensitive=True),)), "x")
    assert caught.value.field == "x.filters[0].matcher"
    check_filter(ToolFilter("and", (YES,) * 200), "x")
    with pytest.raises(Invalid, match="200"):
        check_filter(ToolFilter("and", (YES,) * 201), "x")
    check_filter(None, "x")
