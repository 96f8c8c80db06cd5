"""Files and functions stay small enough to read; the list of exceptions may only get shorter."""

import ast
from pathlib import Path

import pytest

import toolcrib

ROOT = Path(toolcrib.__file__).parent
FILE_LINES = 600
FUNCTION_LINES = 60
TOO_LONG_FILES: set[str] = set()
TOO_LONG_FUNCTIONS: set[str] = set()

FILES = sorted(path for path in ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_and_its_functions_are_short(path: Path) -> None:
    text = path.read_text("utf-8")
    name = str(path.relative_to(ROOT))
    too_long = len(text.splitlines()) > FILE_LINES
    assert too_long == (name in TOO_LONG_FILES), f"{name} has {len(text.splitlines())} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            here = f"{name}:{node.name}"
            assert (lines > FUNCTION_LINES) == (here in TOO_LONG_FUNCTIONS), f"{here} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), f"{path.name} opens without a docstring"
