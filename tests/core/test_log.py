"""Logs: secrets never reach them, whatever they hang on."""

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from toolcrib.core.log import HIDDEN, configure_logging, hide_secrets, is_secret_name, redact

KEY = "tck_0123456789abcdefghijklmnopqrstuvABCDEF"  # fixed: it names a test


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "Authorization",
        "Proxy-Authorization",
        "cookie",
        "Set-Cookie",
        "password",
        "user_password",
        "passwd",
        "client_secret",
        "secretKey",
        "token",
        "access_token",
        "X-Auth-Token",
        "api_key",
        "apiKey",
        "API-KEY",
        "x-api-key",
        "credential",
        "credentials",
        "private_key",
        "privateKey",
        "X-Auth-User",
        "refreshToken",
    ],
)
def test_a_name_that_sounds_secret_is_secret(name: str) -> None:
    assert is_secret_name(name)
    assert redact({name: "value", "other": {name: ["value"]}}) == {name: HIDDEN, "other": {name: HIDDEN}}
    assert redact({name: None}) == {name: None}


@pytest.mark.parametrize(
    "name", ["name", "key_id", "api_key_id", "vault_key_id", "city", "author", "monkey", "key", "id", "pass"]
)
def test_an_ordinary_name_is_not(name: str) -> None:
    assert redact({name: "value"}) == {name: "value"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"key {KEY} used", f"key tck_{HIDDEN} used"),
        ("Authorization: Bearer abcdef.ghi-jkl", f"Authorization: Bearer {HIDDEN}"),
        ("basic dXNlcjpwYXNz", f"basic {HIDDEN}"),
        ("postgresql://user:hunter2@host:5432/db", f"postgresql://user:{HIDDEN}@host:5432/db"),
        ("https://u:p%40ss@host/x and https://v:w@y", f"https://u:{HIDDEN}@host/x and https://v:{HIDDEN}@y"),
        ("see https://host:8700/path?x=a@b", "see https://host:8700/path?x=a@b"),
        ("nothing to hide", "nothing to hide"),
        ("", ""),
    ],
)
def test_credentials_inside_text_are_hidden(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown
    assert redact([{"message": text}]) == [{"message": shown}]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(["token", "x"]), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(JSON)
def test_redaction_keeps_the_shape_of_everything_else(value: Any) -> None:
    def same(before: Any, after: Any) -> bool:
        if isinstance(before, dict):
            return list(before) == list(after) and all(
                after[k] == HIDDEN if is_secret_name(k) and v is not None else same(v, after[k])
                for k, v in before.items()
            )
        if isinstance(before, list):
            return len(before) == len(after) and all(map(same, before, after))
        return bool(before == after)

    assert same(value, redact(value))
    assert redact(redact(value)) == redact(value)


@pytest.fixture
def _logging() -> Iterator[None]:
    """Logging as it was before."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, structlog.get_config())
    yield
    root.handlers[:], root.level = before[0], before[1]
    structlog.configure(**before[2])


@pytest.mark.usefixtures("_logging")
@pytest.mark.parametrize("style", ["json", "text"])
def test_no_secret_gets_through_a_log_line(capfd: pytest.CaptureFixture[str], style: Any) -> None:
    configure_logging("debug", style)
    log = structlog.get_logger("test")
    try:
        raise ValueError(f"cannot use {KEY} with password=hunter2 at postgresql://u:hunter3@h/db")
    except ValueError:
        log.exception(
            "call.failed", api_key=KEY, headers={"Authorization": "Bearer abcdefgh"}, url="http://u:hunter4@h"
        )
    logging.getLogger("uvicorn.error").error("Bearer %s", "hunter5hunter5")
    logging.getLogger("asyncpg").warning("dsn postgresql://u:hunter6@h/db")
    out, err = capfd.readouterr()
    assert out == ""
    assert KEY not in err
    for number in (3, 4, 5, 6):
        assert f"hunter{number}" not in err
    assert "abcdefgh" not in err
    assert "call.failed" in err
    if style == "json":
        lines = [json.loads(line) for line in err.splitlines()]
        assert lines[0]["event"] == "call.failed"
        assert lines[0]["level"] == "error"
        assert lines[0]["api_key"] == HIDDEN
        assert "ValueError" in lines[0]["exception"]


@pytest.mark.usefixtures("_logging")
def test_logs_are_json_when_nobody_looks(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    configure_logging("info")
    structlog.get_logger("test").debug("not.shown")
    structlog.get_logger("test").info("shown", odd=object)
    event = json.loads(capfd.readouterr().err)
    assert event["event"] == "shown"
    assert event["timestamp"].endswith("Z")
