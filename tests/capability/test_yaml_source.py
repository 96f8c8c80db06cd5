"""YAML becomes plain values with places; hostile text is refused before it costs much."""

import contextlib
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from toolcrib.capability.findings import CapabilityInvalid
from toolcrib.capability.spec import Mark
from toolcrib.capability.yaml_source import LIMITS, Limits, Node, parse, plain, read_text


def value(text: str) -> object:
    return plain(parse(text, "f")[0])


def refusal(text: str, limits: Limits = LIMITS) -> CapabilityInvalid:
    with pytest.raises(CapabilityInvalid) as raised:
        parse(text, "f.yaml", limits)
    return raised.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("42", 42),
        ("-7", -7),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("yes", "yes"),
        ("on", "on"),
        ("2026-05-19", "2026-05-19"),
        ("12:30:45", "12:30:45"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("007", "007"),
        ("+1", "+1"),
        (".inf", ".inf"),
        ("1e999", "1e999"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("'42'", "42"),
        ('"true"', "true"),
        ("!!str 42", "42"),
        ("|\n  a\n  b\n", "a\nb\n"),
        ("{a: , b: ''}", {"a": None, "b": ""}),
        ("{1: x, true: y, null: z}", {"1": "x", "true": "y", "null": "z"}),
    ],
)
def test_scalars_are_what_json_can_say(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_a_number_keeps_how_it_was_written() -> None:
    root, _ = parse("version: 1.10", "f")
    assert isinstance(root.value, dict)
    assert root.value["version"].text == "1.10"


def test_json_is_read_with_its_surrogate_pairs_and_tabs() -> None:
    assert value('{\n\t"a": "\\ud83d\\ude00", "b": "\\\\ud83d", "c": "x\\/y"}') == {
        "a": "😀",
        "b": "\\ud83d",
        "c": "x/y",
    }


def test_every_value_knows_its_place() -> None:
    root, _ = parse("a: 1\nb:\n  - c: 2\n    d:\n      - 3\n", "f.yaml")
    assert isinstance(root.value, dict)
    assert root.value["a"].at == Mark("f.yaml", 1, 1)
    entries = root.value["b"].value
    assert isinstance(entries, list)
    assert entries[0].at == Mark("f.yaml", 3, 5)
    assert isinstance(entries[0].value, dict)
    assert entries[0].value["d"].at == Mark("f.yaml", 4, 5)


def test_a_duplicate_key_is_found_and_the_last_counts() -> None:
    root, findings = parse("a: 1\nb: 2\na: 3\n", "f")
    assert plain(root) == {"a": 3, "b": 2}
    assert [(finding.rule, finding.severity, finding.at.line) for finding in findings] == [
        ("yaml-duplicate-key", "error", 3)
    ]


def test_many_duplicate_keys_give_few_findings() -> None:
    _, findings = parse("a: 1\n" * 1000, "f")
    assert len(findings) == LIMITS.findings


def test_only_the_first_document_is_read() -> None:
    root, findings = parse("a: 1\n---\nb: 2\n---\n]]]", "f")
    assert plain(root) == {"a": 1}
    assert [finding.rule for finding in findings] == ["yaml-documents"]


def test_aliases_and_merge_keys_are_followed() -> None:
    text = "base: &b {x: 1, y: 2}\none: *b\ntwo: {<<: *b, y: 3}\nthree: {<<: [*b, {z: 4}]}\nfour: {'<<': 5}\n"
    found = value(text)
    assert found == {
        "base": {"x": 1, "y": 2},
        "one": {"x": 1, "y": 2},
        "two": {"x": 1, "y": 3},
        "three": {"x": 1, "y": 2, "z": 4},
        "four": {"<<": 5},
    }


def test_a_merge_of_no_map_is_found() -> None:
    root, findings = parse("a: {<<: 5, b: 1}", "f")
    assert plain(root) == {"a": {"b": 1}}
    assert [finding.rule for finding in findings] == ["yaml-merge"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "yaml-broken"),
        ("# only a comment", "yaml-broken"),
        ("a: [1, 2", "yaml-broken"),
        ("a: b: c", "yaml-broken"),
        ("a: 1\n\tb: 2", "yaml-broken"),
        ("a: @x", "yaml-broken"),
        ("a: *nowhere", "yaml-alias"),
        ("a: &x [*x]", "yaml-alias"),
        ("a: &x {b: {c: *x}}", "yaml-alias"),
        ("a: !!python/object/apply:os.system [ls]", "yaml-tag"),
        ("a: !custom 1", "yaml-tag"),
        ("a: !!binary aGk=", "yaml-tag"),
        ("!!set {a}", "yaml-tag"),
        ("? [a]\n: 1", "yaml-key"),
        ("path: {{x}}", "yaml-key"),
        ("a: &x [1]\n*x : 1", "yaml-key"),
        ("a: \x00", "yaml-encoding"),
        ('a: "\\0"', "yaml-encoding"),
        ("a: \ud800", "yaml-encoding"),
        ("a: \x07", "yaml-encoding"),
        ("%TAG !a! tag:x,2000:\n" * 50 + "---\na: 1", "yaml-directives"),
    ],
)
def test_what_is_no_plain_yaml_is_refused(text: str, rule: str) -> None:
    error = refusal(text)
    assert [finding.rule for finding in error.findings] == [rule]
    assert error.message.startswith("f.yaml:")


def test_broken_yaml_is_refused_at_its_line_and_column() -> None:
    finding = refusal("naftiko: x\ncapability:\n  a: b: c\n").findings[0]
    assert (finding.at.line, finding.at.column) == (3, 7)


def test_a_tab_is_explained() -> None:
    assert "tabs" in refusal("a:\n\t- b").findings[0].mend


@pytest.mark.parametrize("text", ["[" * 5000, "- " * 5000, "{a: " * 5000, "[" * 5000 + "]" * 5000])
def test_deep_nesting_is_refused_at_the_limit(text: str) -> None:
    error = refusal(text)
    assert error.findings[0].rule == "yaml-too-deep"
    assert error.findings[0].at.column <= 4 * (LIMITS.depth + 1)


def test_depth_counts_through_aliases() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 150)]
    assert refusal("\n".join(lines)).findings[0].rule == "yaml-too-deep"


def bomb(levels: int, width: int) -> str:
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


def test_an_alias_bomb_is_refused_by_counting() -> None:
    error = refusal(bomb(levels=30, width=9))
    assert error.findings[0].rule == "yaml-too-many-nodes"
    assert error.findings[0].at.line <= 7  # 9 to the 6th is more than is allowed


def test_shared_nodes_are_not_copied() -> None:
    root, _ = parse(bomb(levels=4, width=9), "f")
    assert isinstance(root.value, dict)
    last = root.value["a3"].value
    assert isinstance(last, list)
    assert all(child is last[0] for child in last)


def test_the_number_of_nodes_is_limited() -> None:
    limits = Limits(nodes=10)
    assert parse("[" + "1," * 9 + "]", "f", limits)[0].size == 10
    assert refusal("[" + "1," * 10 + "]", limits).findings[0].rule == "yaml-too-many-nodes"


def test_the_parser_stops_where_a_limit_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    real = yaml.parse

    def counting(*args: object, **kwargs: object) -> object:
        nonlocal taken
        for event in real(*args, **kwargs):  # type: ignore[arg-type]
            taken += 1
            yield event

    monkeypatch.setattr(yaml, "parse", counting)
    refusal("- x\n" * 100_000, Limits(nodes=1000))
    assert taken < 1100


def test_a_long_text_is_refused_unread() -> None:
    assert refusal("x" * (LIMITS.size + 1)).findings[0].rule == "file-too-large"


def test_a_huge_file_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(CapabilityInvalid) as raised:
        read_text(str(path), "huge.yaml")
    assert raised.value.findings[0].rule == "file-too-large"


@pytest.mark.parametrize("name", ["missing.yaml", ".", "a\0b", "pipe"])
def test_what_is_no_readable_file_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CapabilityInvalid) as raised:
        read_text(f"{tmp_path}/{name}", name)
    assert raised.value.findings[0].rule == "file-unreadable"


def test_what_is_not_utf8_is_refused_at_its_place(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(CapabilityInvalid) as raised:
        read_text(str(path), "latin.yaml")
    finding = raised.value.findings[0]
    assert (finding.rule, finding.at.line, finding.at.column) == ("yaml-encoding", 2, 7)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert value(read_text(str(path), "bom.yaml")) == {"a": 1}
    assert value("\ufeffa: 1") == {"a": 1}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc<$. ", max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=150, deadline=None)
def test_what_yaml_writes_is_read_back(tree: object) -> None:
    assert value(yaml.safe_dump(tree, default_style='"', allow_unicode=False)) == tree
    assert value(yaml.safe_dump(tree)) == tree


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@ \n\t,?<1~", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_tree_or_a_refusal(text: str) -> None:
    with contextlib.suppress(CapabilityInvalid):
        assert isinstance(parse(text, "f")[0], Node)
