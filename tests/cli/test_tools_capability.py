"""`toolcrib tools add FILE.yaml` against a real server and a real HTTP API."""

from pathlib import Path
from typing import Any

import pytest

from capability_shop import SHOP
from clitools import Crib, Done, Tools, Upstream, refusal

pytestmark = pytest.mark.usefixtures("crib")
TOKEN = "t0ken-0f-the-shop"

RELAY = """\
naftiko: 1.0.0-alpha2
capability:
  consumes:
    - import: store
      location: ./shared/store.yaml
  exposes:
    - type: mcp
      namespace: relay
      port: 9091
      tools:
        - {name: get-thing, description: A thing., call: store.get-thing}
"""
STORE = """\
naftiko: 1.0.0-alpha2
binds:
  - namespace: store-env
    location: file:///./secrets.yaml
    keys: {STORE_KEY: store-key}
consumes:
  - type: http
    namespace: store
    baseUri: https://store.example
    inputParameters:
      - {name: X-Key, in: header, value: "{{STORE_KEY}}"}
      - {name: X-Version, in: header, value: "1.10"}
    resources:
      - {name: thing, path: "/things/{thing_id}", operations: [{name: get-thing, method: GET}]}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The shop as a file."""
    path = tmp_path / "shop.naftiko.yaml"
    path.write_text(SHOP)
    return path


def sent(crib: Crib, upstream: Upstream, tool: str, *args: str) -> dict[str, Any]:
    """What the HTTP API saw of a call."""
    assert crib.run("tools", "call", tool, *args).json["isError"] is False
    return upstream.seen[-1]


def test_a_file_becomes_a_tool_set_whose_tools_can_be_called(crib: Crib, upstream: Upstream, shop: Path) -> None:
    added = crib.run(
        *("tools", "add", str(shop), "--env", "shop-token", "--base-uri", f"shop={upstream.url}"),
        *("--exclude", "delete-*", "--approve", "create-*"),
        **{"shop-token": TOKEN},
    )
    found = Tools(added.json, added.err)
    assert (found.added["name"], found.added["kind"], found.added["target"]) == ("shop", "capability", upstream.url)
    assert (found.added["available"], found.added["filtered"]) == (2, 1)
    assert found.added["sync"]["outcome"] == "completed"
    assert TOKEN not in added.out + added.err
    request = sent(crib, upstream, found["get-order"], "--arg", "id=a/b")
    assert (request["path"], request["headers"]["authorization"]) == ("/orders/a%2Fb", f"Bearer {TOKEN}")
    refused = crib.run("tools", "call", found["create-order"], "--arg", "article=tea")
    assert (refused.code, "approval" in refused.err) == (5, True)
    shown = crib.run("tools", "show", found["get-order"])
    assert (shown.json["title"], shown.json["config"]["capability"]["toolName"]) == ("One order", "get-order")
    table = crib.on_terminal("tools", "sets").out
    assert "capability" in table
    crib.run("tools", "remove", "shop", "--yes")


def replaced(crib: Crib, path: Path, *more: str) -> Done:
    return crib.run("tools", "add", str(path), "--replace", "versions", *more)


def test_a_new_version_keeps_id_secrets_and_addresses(crib: Crib, upstream: Upstream, shop: Path) -> None:
    added = crib.run(
        *("tools", "add", str(shop), "--name", "versions", "--env", f"shop-token={TOKEN}"),
        *("--base-uri", f"shop={upstream.url}", "--exclude", "delete-*"),
    ).json
    shop.write_text(SHOP.replace("Order something.", "Order a thing."))
    done = replaced(crib, shop)
    assert done.json["id"] == added["id"]
    assert done.json["sync"]["message"] == "3 tools: 0 new, 1 changed, 1 not offered, 0 gone"
    assert "has no value" not in done.err
    found = Tools(done.json, done.err)
    request = sent(crib, upstream, found["get-order"], "--arg", "id=1")
    assert request["headers"]["authorization"] == f"Bearer {TOKEN}"
    again = replaced(crib, shop, "--env", "shop-token=another-token")
    assert again.json["sync"]["outcome"] == "completed"
    request = sent(crib, upstream, found["get-order"], "--arg", "id=1")
    assert request["headers"]["authorization"] == "Bearer another-token"
    assert replaced(crib, shop).json["sync"]["outcome"] == "completed", "the same file once more"
    shop.write_text("naftiko: [")
    assert replaced(crib, shop).code == 1
    assert crib.run("tools", "call", found["get-order"], "--arg", "id=1").code == 0
    other = crib.run("tools", "add", str(shop), "--replace", "mini")
    assert other.code != 0
    crib.run("tools", "remove", "versions", "--yes")


def test_imports_are_written_into_the_text(crib: Crib, upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "store.yaml").write_text(STORE)
    (tmp_path / "relay.yaml").write_text(RELAY)
    added = crib.run("tools", "add", "relay.yaml", "--base-uri", f"store={upstream.url}", cwd=tmp_path)
    assert added.code == 0, added.err
    assert "store.yaml" in added.err
    assert "STORE_KEY has no value" in added.err
    assert "--env store-key=VALUE" in added.err
    tool = Tools(added.json, added.err)["get-thing"]
    poor = crib.run("tools", "call", tool, "--arg", "thing_id=7")
    assert poor.code == 1
    assert "store-key" in poor.out
    given = crib.run("tools", "add", "relay.yaml", "--replace", "relay", "--env", "store-key=k3y-0f-it", cwd=tmp_path)
    assert given.code == 0, given.err
    headers = sent(crib, upstream, tool, "--arg", "thing_id=7")["headers"]
    assert (headers["x-key"], headers["x-version"]) == ("k3y-0f-it", "1.10")
    crib.run("tools", "remove", "relay", "--yes")


def test_an_import_that_is_not_there_is_named(crib: Crib, tmp_path: Path) -> None:
    (tmp_path / "relay.yaml").write_text(RELAY)
    added = crib.run("tools", "add", str(tmp_path / "relay.yaml"))
    assert added.code == 1
    assert "store.yaml" in added.err
    assert "relay.yaml:4:7" in added.err


def test_findings_are_said_with_their_line(crib: Crib, shop: Path) -> None:
    shop.write_text(SHOP.replace("- {name: get-order, method: GET}", "- {name: get-order, method: GET, colour: red}"))
    added = crib.run("tools", "add", str(shop), "--name", "coloured")
    assert added.code == 0
    assert "shop.naftiko.yaml:22:46: warning: " in added.err
    assert "[unknown-key]" in added.err
    assert "SHOP_TOKEN has no value" in added.err
    crib.run("tools", "remove", "coloured", "--yes")


def test_a_file_that_cannot_be_served_is_not_sent(crib: Crib, shop: Path) -> None:
    shop.write_text("naftiko: 1.0.0-alpha2\ncapability: [")
    refused = crib.run("tools", "add", str(shop))
    assert refused.code == 1
    assert f"{shop}:3:1: error: " in refused.err
    assert all(s["name"] != "shop" for s in crib.run("tools", "sets").json)


@pytest.mark.parametrize(
    "args",
    [
        ["no-such.yaml"],
        ["FILE", "--header", "A: b"],
        ["FILE", "--cwd", "."],
        ["FILE", "--env", "NO_SUCH_VARIABLE_HERE"],
        ["FILE", "--env", "=x"],
        ["FILE", "--base-uri", "shop"],
        ["FILE", "--base-uri", "store=https://a.example"],
        ["FILE", "--replace", "x", "--name", "y"],
        ["https://a.example/x.yaml", "--base-uri", "shop=https://a.example"],
        ["https://a.example/x.yaml", "--replace", "x"],
    ],
)
def test_options_that_make_no_sense_are_a_wrong_command_line(shop: Path, args: list[str]) -> None:
    code, said = refusal("tools", "add", *(str(shop) if arg == "FILE" else arg for arg in args))
    assert code == 2
    assert said
