"""What the documents promise is what the code has."""

import re
from pathlib import Path

import pytest

from toolcrib.core.auth import SCOPES
from toolcrib.settings import Settings

REPOSITORY = Path(__file__).parent.parent
SETTINGS = (REPOSITORY / "docs" / "settings.md").read_text("utf-8")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_description(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description, f"{name} has no description"
    assert f"| `TOOLCRIB_{name.upper()}` |" in SETTINGS
    assert description.replace("|", "\\|") in SETTINGS


def test_no_setting_is_documented_that_does_not_exist() -> None:
    documented = {name.lower() for name in re.findall(r"^\| `TOOLCRIB_([A-Z_]+)`", SETTINGS, re.MULTILINE)}
    assert documented == set(Settings.model_fields)


def test_every_scope_is_documented() -> None:
    for scope, meaning in SCOPES.items():
        assert f"| `{scope}` | {meaning} |" in SETTINGS


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = sorted(int(path.name[:4]) for path in (REPOSITORY / "docs" / "decisions").glob("[0-9]*.md"))
    assert numbers == list(range(1, len(numbers) + 1))
