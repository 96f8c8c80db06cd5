"""How texts on the command line become arguments, filters, names and times."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from toolcrib.cli.arguments import allowed_types, parse_object, read_arguments, text_of
from toolcrib.cli.failure import CommandFailed
from toolcrib.cli.keys import expiry
from toolcrib.cli.tool_sources import _derived_schema, _name_of_command, _name_of_url, matcher_of

SCHEMA: dict[str, Any] = {
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "deep": {"type": "boolean"},
        "filters": {"type": "object"},
        "tags": {"type": "array"},
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "either": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
        "level": {"enum": [1, 2]},
        "mode": {"$ref": "#/$defs/Mode"},
        "names": {"type": ["array", "null"]},
        "both": {"allOf": [{"type": ["integer", "string"]}, {"type": ["integer", "null"]}]},
    },
    "$defs": {"Mode": {"enum": ["fast", "slow"]}},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("text=42", "42"),
        ("text=", ""),
        ("text=a=b", "a=b"),
        ("count=42", 42),
        ("ratio=1.5", 1.5),
        ("ratio=2", 2),
        ("deep=true", True),
        ('filters={"a": 1}', {"a": 1}),
        ('tags=["a"]', ["a"]),
        ("maybe=7", 7),
        ("maybe=null", None),
        ("either=7", "7"),
        ("level=2", 2),
        ("mode=fast", "fast"),
        ("names=null", None),
        ("both=3", 3),
        ("unknown=3", "3"),
        ("unknown:=3", 3),
        ('text:={"a": [1]}', {"a": [1]}),
    ],
)
def test_a_value_is_read_by_the_type_that_the_schema_asks_for(text: str, value: Any) -> None:
    name = text.partition("=")[0].rstrip(":")
    assert read_arguments([text], SCHEMA) == {name: value}


@pytest.mark.parametrize("text", ["count=many", "count=1.5", "deep=yes", "filters=[1]", "tags=a", "text", "=1", "a:=b"])
def test_a_value_of_another_type_is_a_wrong_command_line(text: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        read_arguments([text], SCHEMA)
    assert caught.value.code == 2


def test_a_schema_that_refers_to_itself_or_to_nothing_takes_anything() -> None:
    root = {"$defs": {"A": {"$ref": "#/$defs/A"}}}
    assert "string" in allowed_types({"$ref": "#/$defs/A"}, root)
    assert "string" in allowed_types({"$ref": "#/$defs/B"}, root)
    assert "string" in allowed_types({"$ref": "https://example.org/schema"}, root)
    assert "string" in allowed_types(True, root)


@pytest.mark.parametrize("text", ["[1]", "{", "1", ""])
def test_arguments_are_one_json_object(text: str) -> None:
    with pytest.raises(CommandFailed, match="--args"):
        parse_object(text, "--args")


def test_a_file_stands_for_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("ä")
    assert text_of(f"@{tmp_path}/a.json") == "ä"
    with pytest.raises(CommandFailed, match="cannot be read"):
        text_of(f"@{tmp_path}/b.json")


@pytest.mark.parametrize(
    ("pattern", "matcher"),
    [
        ("get_user", {"exact": "get_user"}),
        ("get_*", {"startsWith": "get_"}),
        ("*_file", {"endsWith": "_file"}),
        ("*user*", {"contains": "user"}),
        ("get_*_by_id", {"regex": "^get_.*_by_id$"}),
        ("v?.list", {"regex": r"^v.\.list$"}),
        ("*", {"regex": "^.*$"}),
        ("/^(get|list)_/", {"regex": "^(get|list)_"}),
    ],
)
def test_a_pattern_becomes_the_matcher_that_says_the_same(pattern: str, matcher: dict[str, str]) -> None:
    assert matcher_of(pattern) == matcher


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://mcp.deepwiki.com/mcp", "deepwiki"),
        ("https://www.example.org", "example"),
        ("https://api.mcp.example.com/x", "example"),
        ("https://example.com/mcp", "example"),
        ("http://127.0.0.1:9000/mcp", "127.0.0.1:9000"),
        ("http://localhost:9000", "localhost:9000"),
        ("http://[::1]:9000/mcp", "[::1]:9000"),
    ],
)
def test_a_url_gives_a_name(url: str, name: str) -> None:
    assert _name_of_url(url) == name


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("npx -y @modelcontextprotocol/server-filesystem /data", "server-filesystem"),
        ("npx -y mcp-thing@1.2.3", "mcp-thing"),
        ("uvx mcp-server-time --local-timezone Europe/Berlin", "mcp-server-time"),
        ("uv run server.py", "server"),
        ("python -m weather", "weather"),
        ("/usr/bin/python3.11 tools/server.py", "server"),
        ("./bin/serve.sh --x", "serve"),
        ("npx", "npx"),
    ],
)
def test_a_command_gives_a_name(command: str, name: str) -> None:
    assert _name_of_command(command.split()) == name


def test_templates_give_a_schema_in_which_only_the_path_is_required() -> None:
    schema = _derived_schema(
        "/a/{id}/{{ kind }}",
        "q={{ text }}&fixed=1",
        {"X-Trace": "{{ trace }}"},
        '{"n": {{ n }}, "city": "{{ address.city }}"}',
        "application/json",
    )
    text = {"type": "string"}
    assert schema == {
        "type": "object",
        "properties": {
            "id": text,
            "kind": text,
            "trace": text,
            "text": text,
            "n": text,
            "address": {"type": "object"},
        },
        "required": ["id", "kind"],
    }


def test_a_form_body_gives_its_variables_too() -> None:
    schema = _derived_schema("", None, {}, "a={{ a }}&b={{ b }}", "application/x-www-form-urlencoded")
    assert list(schema["properties"]) == ["a", "b"]
    assert "required" not in schema


@pytest.mark.parametrize(
    ("path", "query", "body"), [("/a/{id", None, None), ("", "a#b", None), ("", None, '{"a": {{ a }}')]
)
def test_a_template_that_cannot_work_is_a_wrong_command_line(path: str, query: str | None, body: str | None) -> None:
    with pytest.raises(CommandFailed) as caught:
        _derived_schema(path, query, {}, body, "application/json")
    assert caught.value.code == 2


NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("12h", NOW + timedelta(hours=12)),
        ("30d", NOW + timedelta(days=30)),
        ("4w", NOW + timedelta(weeks=4)),
        ("1y", NOW + timedelta(days=365)),
        ("2027-01-01", datetime(2027, 1, 1, tzinfo=UTC)),
        ("2027-01-01T06:00:00+02:00", datetime(2027, 1, 1, 4, tzinfo=UTC)),
    ],
)
def test_an_expiry_is_a_time_from_now_or_a_date(text: str, at: datetime) -> None:
    assert expiry(text, NOW) == at


@pytest.mark.parametrize("text", ["soon", "30", "d", "999999y", "2027-13-01", ""])
def test_an_expiry_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(CommandFailed, match="--expires"):
        expiry(text, NOW)
