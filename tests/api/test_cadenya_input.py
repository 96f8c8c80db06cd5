"""Input that must be refused with an error that names the place, and stores nothing."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from api.cadenya_calls import ROOT, TOOL_SPEC, Cadenya, check_contract
from conftest import make_crib
from serving import Crib
from toolcrib.domain.tool_sets import CATALOG_NEWS

NAMED: dict[str, Any] = {"metadata": {"name": "x"}}


def http(**adapter: Any) -> dict[str, Any]:
    return {**NAMED, "spec": {"adapter": {"http": adapter}}}


def mcp(**adapter: Any) -> dict[str, Any]:
    return {**NAMED, "spec": {"adapter": {"mcp": adapter}}}


def matching(**matcher: Any) -> dict[str, Any]:
    return {"operator": "OPERATOR_AND", "filters": [{"attribute": "ATTRIBUTE_NAME", "matcher": matcher}]}


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"{}" + b"}" * depth


URL = "https://mcp.example.com/mcp"
HTTP_AT, MCP_AT = "spec.adapter.http", "spec.adapter.mcp"

BAD_TOOL_SETS: list[tuple[str, Any]] = [
    ("body", []),
    ("body", "text"),
    ("metadata", {}),
    ("metadata", {"spec": {}}),
    ("spec", NAMED),
    ("metadata", {"metadata": [], "spec": {}}),
    ("metadata.name", {"metadata": {}, "spec": {}}),
    ("metadata.name", {"metadata": {"name": 5}, "spec": {}}),
    ("metadata.name", {"metadata": {"name": None}, "spec": {}}),
    ("metadata.name", {"metadata": {"name": ""}, "spec": {}}),
    ("metadata.name", {"metadata": {"name": " \t "}, "spec": {}}),
    ("metadata.name", {"metadata": {"name": "a\nb"}, "spec": {}}),
    ("metadata.name", {"metadata": {"name": "a\x7f"}, "spec": {}}),
    ("metadata.name", {"metadata": {"name": "x" * 256}, "spec": {}}),
    ("metadata.externalId", {"metadata": {"name": "x", "externalId": 7}, "spec": {}}),
    ("metadata.externalId", {"metadata": {"name": "x", "externalId": "x" * 256}, "spec": {}}),
    ("metadata.labels", {"metadata": {"name": "x", "labels": ["a"]}, "spec": {}}),
    ("metadata.labels.a", {"metadata": {"name": "x", "labels": {"a": 1}}, "spec": {}}),
    ("metadata.labels", {"metadata": {"name": "x", "labels": {"": "a"}}, "spec": {}}),
    ("metadata.labels", {"metadata": {"name": "x", "labels": {"a": "x" * 256}}, "spec": {}}),
    ("metadata.labels", {"metadata": {"name": "x", "labels": {str(i): "" for i in range(65)}}, "spec": {}}),
    ("metadata.id", {"metadata": {"name": "x", "id": "toolset_mine"}, "spec": {}}),
    ("info", {**NAMED, "spec": {}, "info": {}}),
    ("spec.descripton", {**NAMED, "spec": {"descripton": "typing error"}}),
    ("spec.description", {**NAMED, "spec": {"description": 5}}),
    ("spec.description", {**NAMED, "spec": {"description": "x" * 20_001}}),
    ("spec.adapter", {**NAMED, "spec": {"adapter": "http"}}),
    ("spec.adapter.ftp", {**NAMED, "spec": {"adapter": {"ftp": {}}}}),
    (f"{HTTP_AT}.url", http(url=URL)),
    (f"{HTTP_AT}.baseUrl", http(baseUrl=1)),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="api.example.com/v1")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="//api.example.com")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="ftp://api.example.com")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="file:///etc/passwd")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="https://")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="https://user:password@api.example.com")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="https://user@api.example.com")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="https://@api.example.com")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="https://api.example.com/#part")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="https://api.example.com/?a=b")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="https://api.example.com:port")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="https://api.example.com:99999")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="https://api.example.com/a b")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="https://api.example.com/\r\nX: y")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="https://api.example.com\\@evil.example.com")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="https://[::1")),
    (f"{HTTP_AT}.baseUrl", http(baseUrl="https://api.example.com/" + "x" * 2048)),
    (f"{HTTP_AT}.headers", http(headers=["X-A"])),
    (f"{HTTP_AT}.headers.X-A", http(headers={"X-A": 1})),
    (f"{HTTP_AT}.headers.X-A", http(headers={"X-A": "a\r\nX-B: b"})),
    (f"{HTTP_AT}.headers.X-A", http(headers={"X-A": "a\nb"})),
    (f"{HTTP_AT}.headers.X-A", http(headers={"X-A": "snow\u2603man"})),
    (f"{HTTP_AT}.headers.X-A", http(headers={"X-A": "x" * 8193})),
    (f"{HTTP_AT}.headers.X A", http(headers={"X A": "a"})),
    (f"{HTTP_AT}.headers.X:A", http(headers={"X:A": "a"})),
    (f"{HTTP_AT}.headers.", http(headers={"": "a"})),
    (f"{HTTP_AT}.headers.X-A\r\nX-B", http(headers={"X-A\r\nX-B": "a"})),
    (f"{HTTP_AT}.headers.Host", http(headers={"Host": "other.example.com"})),
    (f"{HTTP_AT}.headers.content-LENGTH", http(headers={"content-LENGTH": "0"})),
    (f"{HTTP_AT}.headers.Transfer-Encoding", http(headers={"Transfer-Encoding": "chunked"})),
    (f"{HTTP_AT}.headers", http(headers={f"X-{i}": "" for i in range(101)})),
    (f"{HTTP_AT}.headers.X-A", http(headers={"X-A": "********"})),
    (f"{MCP_AT}.url", mcp()),
    (f"{MCP_AT}.url", mcp(headers={})),
    (f"{MCP_AT}.url", mcp(url="mcp.example.com")),
    (f"{MCP_AT}.url", mcp(url="https://user:password@mcp.example.com/mcp")),
    (f"{MCP_AT}.url", mcp(url="ws://mcp.example.com")),
    (f"{MCP_AT}.url", mcp(url=URL, command="true")),
    (f"{MCP_AT}.transport", mcp(url=URL, transport="stdio")),
    (f"{MCP_AT}.transport", mcp(url=URL, transport="carrier pigeon")),
    (f"{MCP_AT}.command", mcp(command="")),
    (f"{MCP_AT}.command", mcp(command=" ")),
    (f"{MCP_AT}.args", mcp(command="true", args="-x")),
    (f"{MCP_AT}.args[0]", mcp(command="true", args=[1])),
    (f"{MCP_AT}.args", mcp(command="true", args=["x" * 100_001])),
    (f"{MCP_AT}.env", mcp(command="true", env={"A=B": "c"})),
    (f"{MCP_AT}.env", mcp(command="true", env={"": "c"})),
    (f"{MCP_AT}.env.A", mcp(command="true", env={"A": 1})),
    (f"{MCP_AT}.env.A", mcp(command="true", env={"A": "********"})),
    (f"{MCP_AT}.headers.X-A", mcp(url=URL, headers={"X-A": "a\r\nb: c"})),
    (f"{MCP_AT}.includeTools.operator", mcp(url=URL, includeTools={})),
    (f"{MCP_AT}.includeTools.operator", mcp(url=URL, includeTools={"operator": "OPERATOR_XOR"})),
    (f"{MCP_AT}.excludeTools.filters[0].attribute", mcp(url=URL, excludeTools={"operator": "OPERATOR_OR", "filters": [{}]})),
    (f"{MCP_AT}.includeTools.filters[0].matcher", mcp(url=URL, includeTools=matching())),
    (f"{MCP_AT}.includeTools.filters[0].matcher", mcp(url=URL, includeTools=matching(caseSensitive=True))),
    (f"{MCP_AT}.includeTools.filters[0].matcher.regex", mcp(url=URL, includeTools=matching(regex="("))),
    (f"{MCP_AT}.includeTools.filters[0].matcher.regex", mcp(url=URL, includeTools=matching(regex="(?=x)"))),
    (f"{MCP_AT}.includeTools.filters[0].matcher.regex", mcp(url=URL, includeTools=matching(regex="x" * 1001))),
    (f"{MCP_AT}.includeTools.filters[0].matcher.glob", mcp(url=URL, includeTools=matching(glob="*"))),
    (f"{MCP_AT}.excludeTools.filters", mcp(url=URL, excludeTools={**matching(exact="a"), "filters": matching(exact="a")["filters"] * 201})),
    (f"{MCP_AT}.toolApprovals.only.filters[0].matcher.regex", mcp(url=URL, toolApprovals={"only": matching(regex="[")})),
    (f"{MCP_AT}.toolApprovals.always", mcp(url=URL, toolApprovals={"always": "yes"})),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "body"), BAD_TOOL_SETS, ids=[f"{i}-{field}"[:60] for i, (field, _) in enumerate(BAD_TOOL_SETS)]
)
async def test_a_tool_set_that_breaks_a_rule_is_refused_by_name_of_the_field(
    cadenya: Cadenya, field: str, body: Any
) -> None:
    error = await cadenya.refused("POST", "", body)
    named = [v["field"] for d in error["details"] for v in d.get("fieldViolations", [])]
    assert named[0] == field, error
    assert error["code"] == 3
    assert len(error["message"]) < 1000


async def test_refused_tool_sets_are_not_stored(crib: Crib) -> None:
    async with crib.as_(await crib.other_workspace_key()) as client:
        for _, body in BAD_TOOL_SETS[:40]:
            await client.post(ROOT, json=body)
        assert (await client.get(ROOT)).json()["pagination"]["total"] == 0


def tool(**spec: Any) -> dict[str, Any]:
    return {**NAMED, "spec": {**TOOL_SPEC, **spec}}


def call_by(**config: Any) -> dict[str, Any]:
    return tool(config={"http": {"requestMethod": "GET", **config}})


AT = "spec.config.http"

BAD_TOOLS: list[tuple[str, Any]] = [
    ("spec", NAMED),
    *((f"spec.{name}", {**NAMED, "spec": {k: v for k, v in TOOL_SPEC.items() if k != name}}) for name in TOOL_SPEC),
    ("spec.status", tool(status="AVAILABLE")),
    ("spec.status", tool(status=1)),
    ("spec.requiresApproval", tool(requiresApproval="no")),
    ("spec.description", tool(description=None)),
    ("spec.description", tool(description="x" * 20_001)),
    ("spec.parameters", tool(parameters=[])),
    ("spec.parameters", tool(parameters={"properties": 5})),
    ("spec.parameters", tool(parameters={"type": "object", "required": "id"})),
    ("spec.parameters.type", tool(parameters={"type": "string"})),
    ("spec.parameters", tool(parameters={"$ref": "http://127.0.0.1:1/schema.json"})),
    ("spec.parameters", tool(parameters={"$ref": "file:///etc/passwd"})),
    ("spec.parameters", tool(parameters={"$ref": "#/nowhere"})),
    ("spec.parameters", tool(parameters={"properties": {"a": {"pattern": "("}}})),
    ("spec.parameters", tool(parameters={"description": "x" * 270_000})),
    ("spec.config", tool(config={"http": {"requestMethod": "GET"}, "mcp": {}})),
    ("spec.config.mcp", tool(config={"mcp": {"toolName": "x"}})),
    ("spec.config.inline", tool(config={"inline": {}})),
    (f"{AT}.requestMethod", tool(config={"http": {}})),
    (f"{AT}.requestMethod", call_by(requestMethod="get")),
    (f"{AT}.requestMethod", call_by(requestMethod="TRACE")),
    (f"{AT}.path", call_by(path="/a?b=c")),
    (f"{AT}.path", call_by(path="/a#b")),
    (f"{AT}.path", call_by(path="/a/../b")),
    (f"{AT}.path", call_by(path="/a\r\nb")),
    (f"{AT}.path", call_by(path="/a\\b")),
    (f"{AT}.path", call_by(path="/{a")),
    (f"{AT}.path", call_by(path="/{ a b }")),
    (f"{AT}.path", call_by(path="/{{ a-")),
    (f"{AT}.query", call_by(query="a=b#c")),
    (f"{AT}.query", call_by(query="a=b\r\nX: y")),
    (f"{AT}.query", call_by(query="{{ name }}=b")),
    (f"{AT}.headers.X-A", call_by(headers={"X-A": "a\r\nb"})),
    (f"{AT}.headers.Host", call_by(headers={"Host": "x"})),
    (f"{AT}.requestBodyTemplate", call_by(requestBodyTemplate="{}")),
    (f"{AT}.requestBodyTemplate", call_by(requestMethod="DELETE", requestBodyTemplate="{}")),
    (f"{AT}.requestBodyTemplate", call_by(requestMethod="POST", requestBodyTemplate='{"a": {{ a }')),
    (f"{AT}.requestBodyTemplate", call_by(requestMethod="POST", requestBodyTemplate="{{ a }}{{ b }}")),
    (f"{AT}.requestBodyTemplate", call_by(requestMethod="POST", requestBodyTemplate='{"a": "\\{{ a }}n"}')),
    (f"{AT}.requestBodyTemplate", call_by(requestMethod="POST", requestBodyTemplate='{"a": "\\u12{{ a }}34"}')),
    (f"{AT}.requestBodyContentType", call_by(requestMethod="POST", requestBodyContentType="text/plain\r\nX: y")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "body"), BAD_TOOLS, ids=[f"{i}-{field}"[:60] for i, (field, _) in enumerate(BAD_TOOLS)]
)
async def test_a_tool_that_breaks_a_rule_is_refused_by_name_of_the_field(
    cadenya: Cadenya, field: str, body: Any
) -> None:
    if (await cadenya.send("GET", "/external_id:strict")).status_code == 404:
        await cadenya.create("strict", {"http": {"baseUrl": "https://api.example.com"}}, externalId="strict")
    error = await cadenya.refused("POST", "/external_id:strict/tools", body)
    named = [v["field"] for d in error["details"] for v in d.get("fieldViolations", [])]
    assert named[0] == field, error
    assert len(error["message"]) < 2000


@pytest.mark.parametrize("depth", [240, 254, 256, 500, 900, 990, 1010])
async def test_deep_nesting_is_refused_not_fatal(cadenya: Cadenya, depth: int) -> None:
    spec = b'{"config":{},"description":"","status":"TOOL_STATUS_AVAILABLE","parameters":' + nested(depth) + b"}"
    tool_set = await cadenya.create("deep")
    await cadenya.refused(
        "POST", f"/{tool_set}/tools", b'{"metadata":{"name":"x"},"spec":' + spec + b"}", field="spec.parameters"
    )
    await cadenya.refused("POST", "", b'{"metadata":{"name":"x"},"spec":' + nested(depth) + b"}", field="spec.a")
    await cadenya.refused("PUT", f"/{tool_set}", b'{"metadata":' + nested(depth) + b"}", field="metadata.name")
    await cadenya.refused("PUT", f"/{tool_set}", b'{"spec":' + nested(depth) + b"}", field="spec.a")


# ---- bodies that are no such thing -----------------------------------------------------------------------------------

GOOD = b'{"metadata":{"name":"x"},"spec":{}}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nope",
        GOOD + b"x",
        b"\xff\xfe",
        b'{"metadata":{"name":"\xff"},"spec":{}}',
        b'{"metadata": NaN}',
        b'{"metadata":{"name":"\\ud800"},"spec":{}}',
        b'{"metadata":{"name":"\\udc00\\ud800"},"spec":{}}',
        b'{"metadata":{"name":"\\u0000"},"spec":{}}',
        b'{"metadata":{"name":"x","labels":{"\\u0000":"a"}},"spec":{}}',
        b'{"metadata":{"name":"x"},"spec":{"description":"a\\u0000b"}}',
        b"[" * 2000,
        b'{"a":' * 2000,
        b"\xef\xbb\xbf" + GOOD,
        b'{"metadata":{"name":"\\u0000"},"spec":' + nested(990) + b"}",
        b'{"a":1e999}',
        b"1" * 5000,
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", ""), ("PUT", "/external_id:any"), ("POST", "/external_id:any/tools")]
)
async def test_a_body_that_is_not_our_json_is_refused(cadenya: Cadenya, method: str, path: str, body: bytes) -> None:
    response = await cadenya.http.request(
        method, ROOT + path, content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400, response.text
    assert response.json()["details"][1]["fieldViolations"][0]["field"] == "body"


@pytest.mark.parametrize(
    "media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/xml", "json"]
)
async def test_another_content_type_is_refused(cadenya: Cadenya, media: str) -> None:
    response = await cadenya.http.post(ROOT, content=GOOD, headers={"Content-Type": media})
    assert response.status_code == 400
    assert "Content-Type: application/json" in response.json()["message"]


@pytest.mark.parametrize(
    "media", [None, "application/json; charset=utf-8", "APPLICATION/JSON", "application/merge-patch+json"]
)
async def test_every_json_content_type_is_taken(crib: Crib, media: str | None) -> None:
    headers = {"Authorization": f"Bearer {crib.api_key}", **({"Content-Type": media} if media else {})}
    async with httpx.AsyncClient(base_url=crib.url) as client:
        response = await client.post(ROOT, content=GOOD, headers=headers)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused(postgres_dsn: str, chunked: bool) -> None:
    async def pieces() -> Any:
        for _ in range(64):
            yield b" " * 65536

    async with make_crib(postgres_dsn, max_request_bytes=1024 * 1024) as crib:
        content = pieces() if chunked else b" " * (4 * 1024 * 1024)
        response = await crib.http.post(ROOT, content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        check_contract("Status", response.json())
        assert response.json()["code"] == 3
        fits = GOOD + b" " * (1024 * 1024 - len(GOOD))
        assert (await crib.http.post(ROOT, content=fits)).status_code == 200
        assert (await crib.http.post(ROOT, content=fits + b" ")).status_code == 413


async def test_a_stranger_is_turned_away_before_the_body_is_read(crib: Crib) -> None:
    async with httpx.AsyncClient(base_url=crib.url) as client:
        assert (await client.post(ROOT, content=b"nonsense")).status_code == 401


async def test_a_server_that_runs_no_commands_runs_none_of_those_it_knows_either(
    postgres_dsn: str, tmp_path: Path
) -> None:
    async with make_crib(postgres_dsn, stdio=False) as crib:
        cadenya = Cadenya(crib)
        at = "spec.adapter.mcp.command"
        assert "TOOLCRIB_STDIO" in (await cadenya.refused("POST", "", mcp(command="true"), field=at))["message"]
        tool_set = await cadenya.create("changes", {"mcp": {"url": "http://127.0.0.1:9/mcp"}})
        await cadenya.create_tool(tool_set, "known", config={"mcp": {"toolName": "known"}})
        await crib.synced(tool_set)
        body = {"spec": {"adapter": {"mcp": {"command": "true", "url": None}}}}
        await cadenya.refused("PUT", f"/{tool_set}", body, field=at)
        # as an earlier start left it, with commands on
        trace = tmp_path / "ran"
        config = {"command": "touch", "args": [str(trace)]}
        await crib.parts.deps.database.pool.execute(
            "UPDATE tool_set SET config = $1, revision = revision + 1 WHERE id = $2", config, tool_set
        )
        async with crib.parts.deps.database.tx() as tx:
            await tx.publish(CATALOG_NEWS, crib.workspace_id)
        result = (await crib.call("known")).json()["data"]
        assert result["isError"] is True
        assert "TOOLCRIB_STDIO" in result["content"][0]["text"]
        event = await cadenya.resync(tool_set)
        assert "TOOLCRIB_STDIO" in event["syncFailed"]["message"]
        assert not trace.exists()


@pytest.mark.parametrize("path", ["/a%00b", "/%00/tools", "/x/tools/%00", "/external_id:%00", "/x%00:sync"])
async def test_an_id_with_a_nul_names_nothing(cadenya: Cadenya, path: str) -> None:
    await cadenya.refused("POST" if "sync" in path else "GET", path, status=404)


@pytest.mark.parametrize(
    "path", ["/%ff", "/%ED%A0%80", "/%2e%2e", "/" + "x" * 3000, "/%25", "/%252F", "/'; DROP TABLE tool;--"]
)
async def test_an_odd_id_names_nothing(cadenya: Cadenya, path: str) -> None:
    await cadenya.refused("GET", path, status=404)
