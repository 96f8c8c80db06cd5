"""`toolcrib capability`: validate, show, call, import, export, examples, and how each of them fails."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import toolcrib
from clitools import Crib, Upstream, refusal
from toolcrib.capability.rules import every_rule

SHOP = """
naftiko: 1.0.0-alpha2
info: {label: Shop, description: A shop., tags: [shop], created: "2026-01-01", modified: "2026-01-01"}
binds:
  - {namespace: env, keys: {TOKEN: SHOP_TOKEN}}
capability:
  consumes:
    - type: http
      namespace: shop
      description: Orders.
      baseUri: %s
      authentication: {type: bearer, token: "{{env.TOKEN}}"}
      inputParameters: [{name: X-Tenant, in: header, value: acme}]
      resources:
        - name: orders
          path: /orders/{order_id}
          operations:
            - name: get
              method: GET
              inputParameters: [{name: order_id, in: path, type: string}, {name: deep, in: query, type: boolean}]
            - {name: put, method: POST}
  exposes:
    - type: rest
      namespace: shop-api
      description: Orders.
      port: 8080
      resources:
        - path: /v1/orders/{order-id}
          description: An order.
          operations:
            - {method: GET, name: get-order, description: An order., call: shop.get}
    - type: mcp
      namespace: shop-tools
      description: Orders.
      port: 9090
      tools:
        - {name: get-order, description: An order., hints: {readOnly: true}, call: shop.get}
"""
PETS = {
    "openapi": "3.0.3",
    "info": {"title": "Pets", "version": "1"},
    "servers": [{"url": "https://pets.toolcrib.dev/v1"}],
    "paths": {
        "/pets/{id}": {
            "get": {
                "operationId": "getPet",
                "summary": "A pet.",
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
                "responses": {"200": {"description": "It."}},
            }
        }
    },
}


@pytest.fixture
def shop(tmp_path: Path, upstream: Upstream) -> Path:
    """A file whose API is the upstream of the test."""
    path = tmp_path / "shop.yaml"
    path.write_text(SHOP % upstream.url)
    return path


# -- validate


def test_findings_are_listed_with_place_rule_effect_and_remedy(nowhere: Crib, shop: Path) -> None:
    done = nowhere.run("capability", "validate", str(shop), "--json")
    (found,) = [f for f in done.json["findings"] if f["rule"] == "bind-unresolved"]
    assert (found["file"], found["line"], found["severity"]) == (str(shop), 5, "warning")
    assert "SHOP_TOKEN" in found["message"]
    assert found["effect"]
    assert found["mend"]
    assert done.json["ok"] is True
    assert "1 warning" in done.err
    assert nowhere.run("capability", "validate", str(shop), SHOP_TOKEN="s").json["counts"]["warning"] == 0


def test_strict_counts_warnings(nowhere: Crib, shop: Path) -> None:
    assert nowhere.run("capability", "validate", str(shop), "--strict").code == 1
    assert nowhere.run("capability", "validate", str(shop), "--strict", SHOP_TOKEN="s").code == 0


def test_a_folder_is_searched_and_what_is_no_capability_is_skipped(nowhere: Crib, shop: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "broken.yml").write_text("naftiko: 1.0.0-alpha2\ncapability: [\n")
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.yaml").write_text("naftiko: [")
    done = nowhere.run("capability", "validate", str(tmp_path))
    shown = json.loads(done.out)
    assert done.code == 1
    assert shown["files"] == [str(tmp_path / "deep" / "broken.yml"), str(shop)]
    assert shown["skipped"] == [str(tmp_path / "compose.yaml")]
    assert "yaml-broken" in {f["rule"] for f in shown["findings"]}
    assert "compose.yaml is no capability file" in done.err
    assert "Traceback" not in done.err


def test_sarif_is_for_code_hosts(nowhere: Crib, shop: Path) -> None:
    done = nowhere.run("capability", "validate", str(shop), "--sarif")
    sarif = done.json
    assert sarif["version"] == "2.1.0"
    (result,) = [r for r in sarif["runs"][0]["results"] if r["ruleId"] == "bind-unresolved"]
    assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 5, "startColumn": 5}


def test_people_read_findings_by_file(nowhere: Crib, shop: Path) -> None:
    done = nowhere.on_terminal("capability", "validate", str(shop))
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.out)
    assert f"! {shop}:5:5  The variable TOKEN has no value" in text
    assert "[bind-unresolved]" in text
    assert "Mend: set SHOP_TOKEN" in text


def test_every_rule_that_the_engine_names_is_listed(nowhere: Crib) -> None:
    shown = nowhere.run("capability", "validate", "--rules").json
    assert shown == every_rule()
    assert all(text.endswith(".") for text in shown.values())
    for path in (Path(toolcrib.__file__).parent / "capability").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            rule = node.args[0].value
            says = called in {"Finding", "error", "warning", "warn", "fatal", "note", "refusal", "refuse", "unusable"}
            if says and isinstance(rule, str) and re.fullmatch(r"[a-z]+(-[a-z0-9]+)+", rule):
                assert rule in shown, f"{path.name}:{node.lineno} names the rule {rule}, which is not listed"


# -- show


def test_show_tells_how_each_value_is_bound_and_what_is_sent_but_no_secret(nowhere: Crib, shop: Path) -> None:
    done = nowhere.run("capability", "show", str(shop), SHOP_TOKEN="sesame-4711")
    rest, mcp = done.json["servers"]
    assert rest["url"] == "http://127.0.0.1:8080"
    assert mcp["url"] == "http://127.0.0.1:9090/mcp"
    (operation,) = rest["operations"]
    bound = {b["name"]: (b["goes_to"], b["comes_from"]) for b in operation["bound"]}
    assert bound["order_id"] == ("path", "path variable {order-id}")
    assert bound["deep"][0] == "query"
    (sent,) = operation["sends"]
    assert sent["method"] == "GET"
    assert sent["url"].endswith("/orders/{order_id}")
    assert (sent["headers"], sent["authentication"]) == (["X-Tenant"], "bearer")
    (tool,) = mcp["tools"]
    assert set(tool["input_schema"]["properties"]) == {"order_id", "deep"}
    assert tool["annotations"]["readOnlyHint"] is True
    assert done.json["binds"] == [
        {"variable": "env.TOKEN", "source": "SHOP_TOKEN in the environment", "resolved": True}
    ]
    assert "sesame" not in done.out + done.err
    shown = nowhere.on_terminal("capability", "show", str(shop), "--base-uri", "shop=https://other.toolcrib.dev/v2")
    assert "sends GET https://other.toolcrib.dev/v2/orders/{order_id}" in shown.out
    assert "MISSING" in shown.out


# -- call


def test_call_prints_the_body_and_tells_the_status(nowhere: Crib, shop: Path, upstream: Upstream) -> None:
    done = nowhere.run(
        *("capability", "call", str(shop), "shop-tools.get-order", "order_id=a/b", "deep=true"), SHOP_TOKEN="s3same"
    )
    assert done.json["path"] == "/orders/a%2Fb?deep=true"
    assert upstream.seen[0]["headers"]["authorization"] == "Bearer s3same"
    assert done.err.strip() == "200 application/json"
    body = '{"order_id": "7", "body": {"a": [1, null]}}'
    done = nowhere.run("capability", "call", str(shop), "shop.put", "--json", body, SHOP_TOKEN="s3same")
    assert json.loads(done.json["body"]) == {"a": [1, None]}


def test_a_call_that_cannot_be_made_says_why_in_a_sentence(nowhere: Crib, shop: Path) -> None:
    missing = nowhere.run("capability", "call", str(shop), "shop.get", "order_id=1")
    assert missing.code == 1
    assert "env.TOKEN, which has no value" in missing.err
    unknown = nowhere.run("capability", "call", str(shop), "shop.nothing")
    assert unknown.code == 2
    assert "shop-api.get-order" in unknown.err
    unbound = nowhere.run("capability", "call", str(shop), "shop.get", SHOP_TOKEN="s")
    assert unbound.code == 1
    assert "order_id" in unbound.err
    down = nowhere.run(
        *("capability", "call", str(shop), "shop.get", "order_id=1", "--base-uri", "shop=http://127.0.0.1:9"),
        SHOP_TOKEN="s",
    )
    assert down.code == 1
    for done in (missing, unknown, unbound, down):
        assert done.out == ""
        assert "Traceback" not in done.err


def test_addresses_that_are_not_allowed_are_not_called(nowhere: Crib, shop: Path, upstream: Upstream) -> None:
    done = nowhere.run(
        *("capability", "call", str(shop), "shop.get", "order_id=1", "--allow-address", "public"), SHOP_TOKEN="s"
    )
    assert done.code == 1
    assert "127.0.0.1" in done.err
    assert not upstream.seen


# -- OpenAPI


def test_an_api_becomes_a_file_that_can_be_called_and_goes_back(
    nowhere: Crib, tmp_path: Path, upstream: Upstream
) -> None:
    source, target = tmp_path / "pets.json", tmp_path / "pets.yaml"
    source.write_text(json.dumps(PETS))
    made = nowhere.run("capability", "import", "openapi", str(source), "-o", str(target))
    assert made.code == 0, made.err
    again = nowhere.run("capability", "import", "openapi", str(source), "-o", str(target))
    assert (again.code, "--force" in again.err) == (2, True)
    (tool,) = nowhere.run("capability", "show", str(target)).json["servers"][1]["tools"]
    called = nowhere.run(
        *(
            "capability",
            "call",
            str(target),
            tool["sends"][0]["operation"],
            "id=rex",
            "--base-uri",
            f"pets={upstream.url}",
        )
    )
    assert called.json["path"] == "/pets/rex"
    for version, key in (("3.1", "openapi"), ("3.0", "openapi"), ("2.0", "swagger")):
        out = nowhere.run("capability", "export", "openapi", str(target), "--version", version)
        document = yaml.safe_load(out.out)
        assert document[key].startswith(version)
        assert "/pets/{id}" in document["paths"]
    as_json = nowhere.run("capability", "export", "openapi", str(target), "--format", "json", "--server", "pets")
    assert as_json.json["servers"] == [{"url": "https://pets.toolcrib.dev/v1"}]


def test_an_api_is_fetched_from_its_address(nowhere: Crib, upstream: Upstream) -> None:
    done = nowhere.run("capability", "import", "openapi", f"{upstream.url}/openapi.json?key=sesame")
    assert done.code == 1  # the upstream answers with something else
    assert "openapi-not-openapi" in done.err
    assert "sesame" not in done.err
    assert upstream.seen[0]["path"] == "/openapi.json?key=sesame"


# -- examples and refusals


def test_every_example_is_listed_and_can_be_served(nowhere: Crib, tmp_path: Path) -> None:
    listed = nowhere.run("capability", "examples").json
    assert "hello" in {example["name"] for example in listed}
    for example in listed:
        assert example["label"], example
        path = tmp_path / f"{example['name']}.yaml"
        path.write_text(nowhere.run("capability", "examples", example["name"]).out)
    checked: Any = json.loads(nowhere.run("capability", "validate", str(tmp_path)).out)
    assert [f for f in checked["findings"] if f["severity"] == "error"] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["validate", "nothing.yaml"], "There is no nothing.yaml"),
        (["validate"], "Name a capability file"),
        (["serve", "nothing.yaml"], "There is no nothing.yaml"),
        (["show", "{file}", "--base-uri", "shop"], "not name=value"),
        (["show", "{file}", "--base-uri", "shop=example"], "no http or https URL"),
        (["show", "{file}", "--base-uri", "shpo=http://x"], "no file consumes an API of that name; shop"),
        (["show", "{file}", "--env-file", "nothing.env"], "--env-file nothing.env cannot be read"),
        (["serve", "{file}", "--allow-address", "everywhere"], "'everywhere' is not an address"),
        (["serve", "{file}", "--stdio", "--json"], "leave --json out"),
        (["export", "openapi", "{file}", "--version", "4"], "3.1, 3.0, 2.0"),
        (["examples", "none-such"], "There is no example"),
    ],
)
def test_a_wrong_command_line_is_refused_in_words(tmp_path: Path, arguments: list[str], says: str) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(SHOP % "http://127.0.0.1:9")
    code, words = refusal("capability", *(argument.replace("{file}", str(path)) for argument in arguments))
    assert code == 2
    assert says in re.sub(r"[│\s]+", " ", words)
