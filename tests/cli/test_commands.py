"""What the command line says of itself, and how little it loads to say it."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from toolcrib.cli.app import COMMANDS, load


def _walk() -> Iterator[tuple[str, Any]]:
    for name in COMMANDS:
        found = load(name)
        yield name, found
        for inner, command in getattr(found, "commands", {}).items():
            yield f"{name} {inner}", command


EVERY_COMMAND = dict(_walk())
every_command = pytest.mark.parametrize("name", EVERY_COMMAND)


@every_command
def test_the_help_of_every_command_has_an_example_that_calls_it(name: str) -> None:
    examples = (EVERY_COMMAND[name].help or "").partition("Examples:")[2]
    assert f"toolcrib {name}" in examples, f"toolcrib {name} --help has no example"


@every_command
def test_every_option_says_what_it_is_for(name: str) -> None:
    for parameter in EVERY_COMMAND[name].params:
        if parameter.name not in {"install_completion", "show_completion"}:
            assert parameter.help, f"toolcrib {name}: {parameter.name} has no help"


def test_the_root_and_the_tools_commands_leave_the_web_framework_alone() -> None:
    program = (
        "import sys\n"
        "import toolcrib.cli.app\n"
        "assert not {'pydantic', 'rich', 'asyncio'} & set(sys.modules), 'the root is heavy'\n"
        "import toolcrib.cli.tools, toolcrib.cli.audit\n"
        "heavy = {'fastapi', 'starlette', 'uvicorn', 'asyncpg', 'uvloop', 'structlog', 'toolcrib.wiring'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_mistyped_command_is_a_wrong_command_line_and_gets_a_suggestion() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "toolcrib", "tols"], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 2
    assert "tools" in done.stderr


def test_the_version_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "toolcrib", "--version"], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.startswith("toolcrib ")
