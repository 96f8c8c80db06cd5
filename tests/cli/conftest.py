"""A real `toolcrib up` in a process of its own, shared by the tests of the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clitools import STDIO, Crib, Tools, Upstream, data_folder, http_api, up


@pytest.fixture(scope="session")
def crib() -> Iterator[Crib]:
    """The server that all tests of the command line share; keep to your own tool sets in it."""
    with data_folder() as folder, up(folder) as running:
        yield running


@pytest.fixture(scope="session")
def mini(crib: Crib) -> Tools:
    """The small MCP server as a tool set that all tests share; `broken` needs approval, `delete_all` is not offered."""
    added = crib.run(
        *("tools", "add", "--stdio", STDIO, "--name", "mini", "--exclude", "delete_*", "--include", "*"),
        *("--approve", "sealed*", "--label", "team=x", "--external-id", "ext-1", "--description", "Small."),
    )
    return Tools(added.json, added.err)


@pytest.fixture
def nowhere(tmp_path: Path) -> Crib:
    """A data folder in which nothing was ever started."""
    return Crib(tmp_path / "data")


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """An HTTP API that tells what it was asked."""
    with http_api() as running:
        yield running
