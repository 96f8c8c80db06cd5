"""Uploaded capability files: no files, no environment, no forbidden addresses, and no more than their share."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from capability_shop import SHOP, TOKEN, Shop, answer, capability
from conftest import make_crib
from raw_upstream import hanging, upstream
from serving import Crib
from toolcrib.capability.capability import Capability
from upstream_app import App, Told, app

OURS = "0nly-0f-the-server"  # a value of the server's environment, or of a file on its machine

HEAD = """\
naftiko: 1.0.0-alpha2
capability:
"""
CONSUMES = """\
  consumes:
    - type: http
      namespace: api
      baseUri: {url}
      resources:
        - {{name: things, path: /things, operations: [{{name: get-things, method: GET{operation}}}]}}
"""
EXPOSES = """\
  exposes:
    - type: mcp
      namespace: tools
      port: 9091
      tools:
        - {{name: get-things, description: Things., call: api.get-things{tool}}}
"""


def small(url: str, *, operation: str = "", tool: str = "", more: str = "") -> str:
    """A capability with one tool."""
    return HEAD + CONSUMES.format(url=url, operation=operation) + EXPOSES.format(tool=tool) + more


@pytest.fixture(scope="module")
async def api() -> AsyncIterator[App]:
    """The shop's HTTP API."""
    async with app(answer) as served:
        yield served


async def refusal(crib: Crib, source: str, **members: Any) -> str:
    """What is said of a file that is not taken, and only of the file."""
    body = {"metadata": {"name": "refused"}, "spec": {"adapter": {"capability": {"source": source, **members}}}}
    response = await crib.http.post("/v1/tool_sets", json=body)
    assert response.status_code == 400, response.text
    assert OURS not in response.text
    return response.text


# ---- the server's environment and files ------------------------------------------------------------------------------


async def test_no_variable_of_the_server_is_read(crib: Crib, api: App, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEAK", "NAFTIKO_BASE_URI", "NAFTIKO_BASE_URI_API", "shop-token"):
        monkeypatch.setenv(name, OURS if "URI" not in name else f"http://127.0.0.1:9/{OURS}")
    assert os.environ["LEAK"] == OURS
    binds = "binds:\n  - {namespace: env, keys: {DECLARED: LEAK}}\n"
    places = (
        "{name: X-Open, in: header, value: 'a{{env.LEAK}}'}",
        "{name: X-Declared, in: header, value: 'b{{DECLARED}}'}",
        "{name: X-Bare, in: header, value: 'c{{LEAK}}'}",
        "{name: LEAK, in: environment}",
        "{name: X-Dollar, in: header, value: '${LEAK} $LEAK {{env.HOME}}'}",
    )
    for place in places:
        source = small(api.url, operation=f", inputParameters: [{place}]").replace(
            "capability:", binds + "capability:", 1
        )
        made = await Shop.open(crib, "curious", {"capability": {"source": source}})
        before = len(api.asked)
        response = await made.ask("get-things", {})
        assert OURS not in response.text
        assert os.environ["HOME"] not in response.text
        for asked in api.asked[before:]:
            assert OURS not in str(asked)
            assert os.environ["HOME"] not in str(asked.headers)
        await made.delete()
    assert OURS not in json.dumps(await crib.audit())


async def test_no_file_of_the_server_is_read(crib: Crib, api: App, tmp_path: Path) -> None:
    (tmp_path / "secrets.yaml").write_text(f"leak: {OURS}\n")
    binds = f"binds:\n  - {{namespace: env, location: 'file://{tmp_path}/secrets.yaml', keys: {{LEAK: leak}}}}\n"
    header = ", inputParameters: [{name: X-Leak, in: header, value: '{{LEAK}}'}]"
    source = small(api.url, operation=header).replace("capability:", binds + "capability:", 1)
    made = await Shop.open(crib, "reading", {"capability": {"source": source}})
    before = len(api.asked)
    result = await made.call("get-things")
    assert result["isError"]
    assert "needs leak, which has no value" in result["content"][0]["text"]
    assert len(api.asked) == before
    assert (await made.replace(source=source, env={"leak": "given"}))["type"] == "sync_completed"
    await made.call("get-things")
    assert api.asked[-1].get("x-leak") == "given"
    await made.delete()


def other_files(folder: Path) -> dict[str, tuple[str, str]]:
    """Parts that need files, by what they are: more of the operation, and more of the file."""
    at = f"file://{folder}"
    tool = f"        - {{name: other, description: x, steps: [{{type: script, name: s, language: python, location: '{at}', file: s.py}}]}}\n"
    return {
        "avro": (f", outputRawFormat: avro, outputSchema: '{folder}/s.avsc'", ""),
        "protobuf": (f", outputRawFormat: protobuf, outputSchema: '{folder}/s.proto'", ""),
        "script": ("", tool),
        "resource": ("", f"      resources: [{{name: r, uri: 'x://r', label: r, description: r, location: '{at}'}}]\n"),
        "prompt": ("", f"      prompts: [{{name: p, description: p, location: '{at}/p.md'}}]\n"),
        "skill": ("", f"    - {{type: skill, namespace: s, port: 9093, skills: [{{name: k, description: k, location: '{at}'}}]}}\n"),
        "import": ("", "  aggregates: [{import: a, location: ./a.yaml}]\n"),
    }  # fmt: skip


@pytest.mark.parametrize("part", ["avro", "protobuf", "script", "resource", "prompt", "skill", "import"])
async def test_what_needs_files_is_left_out_and_said(crib: Crib, api: App, tmp_path: Path, part: str) -> None:
    for name in ("s.avsc", "s.proto", "s.py", "p.md", "a.yaml", "index.txt"):
        (tmp_path / name).write_text(OURS)
    operation, more = other_files(tmp_path)[part]
    two = small(api.url, operation=operation, more=more).replace(
        "operations: [", "operations: [{name: other-things, method: GET}, "
    ).replace("      tools:\n", "      tools:\n        - {name: plain, description: x, call: api.other-things}\n")  # fmt: skip
    made = await Shop.open(crib, f"needs {part}", {"capability": {"source": two}})
    events = (await crib.http.get(f"/v1/tool_sets/{made.id}/events")).text
    assert "which are not read here" in events
    assert OURS not in events
    tools = await made.tools()
    assert "plain" in tools
    assert "other" not in tools
    assert OURS not in json.dumps(tools)
    assert (await made.call("plain"))["isError"] is False
    await made.delete()


def test_no_collector_that_a_file_names_is_called() -> None:
    control = (
        "    - {type: control, port: 9099, observability: {exporters: {otlp: {endpoint: 'http://169.254.169.254/'}}}}\n"
    )
    loaded = Capability.load("x.yaml", text=small("http://127.0.0.1:9", more=control), environ={}, files=False)
    assert loaded.telemetry.settings.otlp_endpoint is None
    assert loaded.telemetry.metrics is None


# ---- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["169.254.169.254", "10.0.0.1", "[fd00:ec2::254]", "2852039166", "[::ffff:10.0.0.1]"])
async def test_forbidden_addresses_are_refused_as_for_http_tools(crib: Crib, host: str) -> None:
    url = f"http://{host}/latest"
    written = await Shop.open(crib, "written", {"capability": {"source": small(f"'{url}'")}})
    given = await Shop.open(
        crib, "given", {"capability": {"source": small("https://x.example"), "baseUris": {"api": url}}}
    )
    plain = await crib.add_tool_set("plain http", {"http": {"baseUrl": url}})
    http = await crib.add_http_tool(plain["metadata"]["id"], "plain", {"requestMethod": "GET"})
    wanted = await crib.call(http["info"]["callName"])
    for made in (written, given):
        answered = await made.ask("get-things", {})
        assert (answered.status_code, answered.json()["error"]["code"]) == (
            wanted.status_code,
            wanted.json()["error"]["code"],
        )
        await made.delete()
    assert wanted.json()["error"]["code"] in {"outbound.address_refused", "outbound.url_invalid"}


async def test_the_token_endpoint_is_judged_as_well(crib: Crib, api: App) -> None:
    auth = """\
      authentication:
        type: oauth2
        tokenEndpoint: http://169.254.169.254/token
        clientId: a
        clientSecret: "{{SECRET}}"
"""
    source = small(api.url).replace("      resources:\n", auth + "      resources:\n", 1)
    source = source.replace("capability:", "binds:\n  - {namespace: env, keys: {SECRET: SECRET}}\ncapability:", 1)
    made = await Shop.open(crib, "token", {"capability": {"source": source, "env": {"SECRET": TOKEN}}})
    before = len(api.asked)
    answered = await made.ask("get-things", {})
    assert "169.254.169.254" in answered.text
    assert TOKEN not in answered.text
    assert len(api.asked) == before
    await made.delete()


async def test_redirects_are_not_followed(crib: Crib, api: App) -> None:
    async with app(lambda _: Told(status=302, headers={"Location": f"{api.url}/orders/1"})) as moving:
        made = await Shop.open(crib, "moving", {"capability": {"source": small(moving.url)}})
        before = len(api.asked)
        await made.call("get-things")
        assert len(moving.asked) == 1
        assert len(api.asked) == before
        await made.delete()


# ---- what a file may cost --------------------------------------------------------------------------------------------


def many(count: int, *, description: str = "d") -> str:
    """A capability with that many tools."""
    operations = "".join(f"{{name: o{i}, method: GET}}," for i in range(count))
    tools = "".join(f"{{name: t{i}, description: {description}, call: a.o{i}}}," for i in range(count))
    api = f"  consumes:\n  - {{type: http, namespace: a, baseUri: 'http://127.0.0.1:9', resources: [{{name: r, path: '/r/{{id}}', operations: [{operations}]}}]}}\n"
    return f"{HEAD}{api}  exposes:\n  - {{type: mcp, namespace: m, tools: [{tools}]}}\n"


async def test_bombs_are_refused_at_once(crib: Crib) -> None:
    laughs = "".join(
        f"x-{c}: &{c} [{', '.join(f'*{p}' for _ in range(10))}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "aliases" in await refusal(crib, f"naftiko: 1.0.0-alpha2\nx-a: &a [x]\n{laughs}")
    long = many(5_000, description="*d").replace("capability:", f"x-d: &d '{'z' * 300_000}'\ncapability:", 1)
    assert "aliases" in await refusal(crib, long)
    assert "deep" in await refusal(crib, "naftiko: 1.0.0-alpha2\nx: " + "[" * 5_000)
    assert "1000000" in await refusal(crib, "#" * 1_000_001)
    wordy = many(2_000, description="*d").replace("capability:", f"x-d: &d '{'z' * 10_000}'\ncapability:", 1)
    assert "bytes to list" in await refusal(crib, wordy)


async def test_a_file_asks_for_no_more_memory_than_the_operator_allows(crib: Crib) -> None:
    for settings in ("{maxResponseBytes: 20000000}", "{cache: {maxBytes: 100000000}}"):
        consumed = small("http://127.0.0.1:9").replace(
            "      baseUri", f"      x-toolcrib: {settings}\n      baseUri", 1
        )
        assert "above the" in await refusal(crib, consumed)
    operation = small("http://127.0.0.1:9", operation=", x-toolcrib: {maxResponseBytes: 20000000}")
    assert "above the" in await refusal(crib, operation)


async def test_ten_thousand_tools_are_taken_while_others_are_served(crib: Crib, api: App) -> None:
    shop = await Shop.open(crib, "meanwhile", capability(api.url))
    loading = asyncio.create_task(crib.add_tool_set("ten thousand", {"capability": {"source": many(10_000)}}))
    served = 0
    while not loading.done():
        assert (await shop.call("get-order", id="1"))["isError"] is False
        served += 1
    made = loading.result()
    assert served > 5, "the process stood still"
    event = await crib.synced(made["metadata"]["id"])
    assert event["syncCompleted"]["toolsSynced"] == 10_000
    result = (await crib.call("t9999", {"id": "1"})).json()["data"]
    assert "127.0.0.1:9" in result["content"][0]["text"]
    await crib.http.delete(f"/v1/tool_sets/{made['metadata']['id']}")
    await shop.delete()


async def test_the_operators_time_limit_holds_whatever_a_file_says(postgres_dsn: str) -> None:
    async with make_crib(postgres_dsn, call_timeout_s=1) as crib, upstream(hanging(b"")) as silent:
        patient = SHOP.replace("      baseUri:", "      x-toolcrib: {timeout: 1h}\n      baseUri:")
        made = await Shop.open(crib, "patient", capability(silent.url, patient))
        result = await made.call("get-order", id="1")
        assert result["isError"]
        assert "within 1 seconds" in result["content"][0]["text"]
        assert (await crib.audit(limit=1))[0]["error_code"] == "upstream.timeout"
        await asyncio.wait_for(silent.peer_gone.wait(), 10)
