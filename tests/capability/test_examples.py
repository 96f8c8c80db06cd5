"""The capability files that come with Toolcrib, and the tutorial's commands as a newcomer types them."""

import contextlib
import hashlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

import toolcrib
from capability.observatory import EXAMPLES, STEPS, Observatory, copied, observing
from capability.recording_upstream import served
from toolcrib.capability.capability import Capability
from toolcrib.capability.expose import cors
from toolcrib.capability.formats import _MODULES
from toolcrib.capability.upstream import pages
from toolcrib.capability.upstream.policy import (
    _BREAKER,
    _CACHE,
    _RATE,
    _RETRY,
    POLICY_KEYS,
    Cache,
    CircuitBreaker,
    Policy,
    Retry,
)
from toolcrib.core.http import OutboundClient

SHIPPED = Path(str(files("toolcrib.capability") / "examples"))
REPOSITORY = EXAMPLES.parent
PATIENCE_S = 60
# As published: read leniently, never rewritten.
CONTRACTS = {
    "togai-customers.yaml": "edc7d6f06bb7e647d0f1753a294b68fafdee9e9f1b59bb2013729d29cac60fbb",
    "toolhouse-backoffice.yaml": "892e4a31547566a2e03a69a35f5bca7b4497d4a6634879eb9a1d5646d50293db",
}


def test_the_files_are_part_of_the_package() -> None:
    data = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    assert "capability/examples/*.yaml" in data["toolcrib"]
    assert {path.name for path in SHIPPED.iterdir()} == {"hello.yaml", *CONTRACTS}


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_contract_file_is_as_published(name: str) -> None:
    assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() == CONTRACTS[name]


@pytest.mark.parametrize("name", CONTRACTS)
async def test_nothing_of_a_contract_file_is_an_error(name: str) -> None:
    environ = {"TOGAI_API_KEY": "k", "TOOLHOUSE_API_KEY": "k"}
    capability = Capability.load(SHIPPED / name, environ=environ)
    worse = {finding.rule for finding in capability.findings if finding.severity != "note"}
    assert worse == ({"base-uri-empty"} if name.startswith("toolhouse") else set())
    await capability.close()


async def test_hello_greets_over_both_faces_without_anything_around_it() -> None:
    async with served(SHIPPED / "hello.yaml", environ={}, strict=True) as running:
        assert running.capability.findings == ()
        answer = await running.rest.get("/hello/J%C3%BCrg%20%22J%22")
        assert (answer.status_code, answer.json()) == (200, {"greeting": 'Hello, Jürg "J"!'})
        result = await running.call("greet", {"name": "you"})
        assert result["structuredContent"] == {"greeting": "Hello, you!"}
        assert (await running.call("greet", {}))["isError"] is True


def test_the_tutorial_keeps_no_secret_and_no_port_of_its_steps_differs() -> None:
    assert (EXAMPLES / ".gitignore").read_text("utf-8").split() == ["shared/secrets.yaml"]
    for path in STEPS:
        text = path.read_text("utf-8")
        assert "demo" not in text
        assert {line.split()[-1] for line in text.splitlines() if line.strip().startswith("port:")} <= {
            "9401", "9402", "9403", "9404",
        }  # fmt: skip


# -- the reference


REFERENCE = (REPOSITORY / "docs" / "capabilities.md").read_text("utf-8")


def test_the_reference_names_every_setting_of_ours() -> None:
    for key in (
        *POLICY_KEYS,
        *_RETRY,
        *_BREAKER,
        *_RATE,
        *_CACHE,
        *frozenset().union(*pages._KEYS.values()),
        *cors._KEYS,
    ):
        assert f"`{key}`" in REFERENCE, key


def test_the_reference_has_the_defaults_that_count() -> None:
    policy, retry, cache = Policy(), Retry(), Cache()
    assert f"| `timeout` *o* | {policy.timeout_s:g} s |" in REFERENCE
    assert f"`attempts` {retry.attempts} (the first included), `statuses` {sorted(retry.statuses)}" in REFERENCE
    assert f"`backoff` {retry.backoff_s:g} s" in REFERENCE
    assert f"`maxBackoff` {retry.max_backoff_s:g} s, `budget` {retry.budget:g}" in REFERENCE
    assert f"`maxEntries` {cache.max_entries}, `maxBytes` {cache.max_bytes >> 20} MiB" in REFERENCE
    breaker = CircuitBreaker()
    assert f"`failures` {breaker.failures} within `window` {breaker.window_s:g} s" in REFERENCE
    outbound = inspect.signature(OutboundClient).parameters
    assert f"| `connectTimeout` | {outbound['connect_timeout_s'].default:g} s |" in REFERENCE
    assert f"| `maxResponseBytes` *o* | {outbound['max_bytes'].default >> 20} MiB |" in REFERENCE


def test_the_reference_names_every_format_and_links_lead_somewhere() -> None:
    for name in ("json", *_MODULES):
        assert f"`{name}`" in REFERENCE
    for target in re.findall(r"\]\(([^)#:]+)\)", REFERENCE):
        assert (REPOSITORY / "docs" / target).exists(), target


# -- the commands themselves


@pytest.fixture(scope="module")
def observatory() -> Iterator[Observatory]:
    with observing() as running:
        yield running


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOOLCRIB_", "DESK_"))}
    return {**kept, "PYTHONPATH": str(Path(toolcrib.__file__).parents[1])}


@contextlib.contextmanager
def serving(folder: Path, *args: str) -> Iterator[dict[str, str]]:
    """`toolcrib capability serve` in a process of its own; yields what it prints: the URL of each kind of server."""
    ports = ("--rest-port", "0", "--mcp-port", "0", "--skill-port", "0", "--control-port", "0")
    command = [sys.executable, "-m", "toolcrib", "capability", "serve", *args, *ports, "--json"]
    with (folder / "serve.err").open("w") as errors:
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "serve.err").read_text("utf-8")
        yield {server["type"]: server["url"] for server in json.loads(line)["servers"]}
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)


def test_a_step_is_served_and_called_from_the_command_line(observatory: Observatory, tmp_path: Path) -> None:
    copied(tmp_path)
    bases = [f"archive={observatory.url}/v1", f"vault={observatory.url}/vault"]
    options = [word for base in bases for word in ("--base-uri", base)]
    with serving(tmp_path, "examples/step-11-night-report.yaml", *options) as urls:
        assert set(urls) == {"mcp", "skill", "rest", "control"}

        def call(*args: str, **more: str) -> str:
            done = subprocess.run(
                [sys.executable, "examples/call.py", *args], cwd=tmp_path, capture_output=True, text=True, check=True,
                env={**environment(), "DESK_URL": urls["mcp"], **more}, timeout=PATIENCE_S,
            )  # fmt: skip
            return done.stdout.strip()

        assert call("list-telescopes") == "refused: 401 Unauthorized"
        shown = call("night-report", "session=S-1", "decade=1950s", DESK_TOKEN="night-desk-demo")
        assert json.loads(shown)["plates"] == ["2050"]


def test_validate_finds_nothing_in_the_tutorial(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    command = [sys.executable, "-m", "toolcrib", "capability", "validate", "--json", *(folder.glob("step-*.yaml"))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (len(found["files"]), found["findings"]) == (11, [])
