"""Callable names: what every model provider accepts, unique where they are used, given once."""

import re

from hypothesis import given
from hypothesis import strategies as st

from toolcrib.domain.names import MAX_NAME, MAX_SLUG, call_name, callable_name, local_name, slug_of

TEXTS = st.text(max_size=90) | st.text(st.sampled_from("aZ9_-. ü"), max_size=90)
CALLABLE = re.compile(r"[A-Za-z0-9_-]{1,64}")


@given(TEXTS)
def test_every_text_gives_a_callable_name(text: str) -> None:
    assert CALLABLE.fullmatch(callable_name(text))
    assert callable_name(text) == callable_name(text)


@given(st.from_regex(r"[A-Za-z0-9-][A-Za-z0-9_-]{0,62}[A-Za-z0-9-]", fullmatch=True))
def test_a_name_that_is_callable_already_is_kept(text: str) -> None:
    assert callable_name(text) == text
    assert local_name(text, ()) == text


@given(st.text("ab", min_size=65, max_size=90), st.text("ab", min_size=65, max_size=90))
def test_long_names_stay_distinct_after_the_cut(one: str, other: str) -> None:
    assert len(callable_name(one)) == MAX_NAME
    assert (callable_name(one) == callable_name(other)) == (one == other)


@given(st.lists(TEXTS, max_size=25))
def test_names_given_one_after_the_other_are_unique(texts: list[str]) -> None:
    local: set[str] = set()
    for text in texts:
        name = local_name(text, local)
        assert CALLABLE.fullmatch(name)
        assert name not in local
        local.add(name)


@given(TEXTS, st.integers(0, 1200))
def test_a_slug_has_no_separator_inside_whatever_is_taken(text: str, taken: int) -> None:
    first = slug_of(text, ())
    numbered = {first} | {first[: MAX_SLUG - len(f"_{n}")] + f"_{n}" for n in range(2, taken + 2)}
    numbered |= {first[: MAX_SLUG - len(f"_{n}")].rstrip("_") + f"_{n}" for n in range(2, taken + 2)}
    slug = slug_of(text, numbered)
    assert re.fullmatch(r"[a-z0-9_-]{1,30}", slug)
    assert "__" not in slug
    assert slug not in numbered


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=25))
def test_call_names_are_unique_in_a_workspace_and_lead_back_to_their_tool(pairs: list[tuple[str, str]]) -> None:
    slugs: dict[str, set[str]] = {}
    taken: set[str] = set()
    for tool_set, tool in pairs:
        slug = slug_of(tool_set, set(slugs))
        local = local_name(tool, slugs.setdefault(slug, set()))
        slugs[slug].add(local)
        name = call_name(slug, local, taken)
        assert CALLABLE.fullmatch(name)
        assert name not in taken
        taken.add(name)


def test_the_first_tool_keeps_its_name_and_the_next_is_qualified() -> None:
    assert call_name("weather", "get", ()) == "get"
    assert call_name("weather", "get", {"get"}) == "weather__get"
    assert call_name("weather", "get", {"get", "weather__get"}) == "weather__get_2"
    assert len(call_name("w" * 30, "g" * 64, {"g" * 64})) == MAX_NAME


def test_names_without_any_usable_character_get_a_word() -> None:
    assert callable_name("日本語") == "tool"
    assert slug_of("☃", ()) == "tools" or slug_of("☃", ()) == "tool"
    assert local_name("☃", {"tool"}) == "tool_2"
