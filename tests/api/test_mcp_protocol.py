"""The MCP endpoints request by request: versions, headers, errors, batches, pages, origins."""

import json
from typing import Any

import httpx
import pytest

from serving import Crib
from toolcrib.api.mcp.listing import list_tools
from toolcrib.core.mcp_server.face import About
from toolcrib.core.mcp_server.wire import HANDSHAKE_VERSIONS, completed, event, handshake_result, modern_result

META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
BOTH = {"Accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
async def tools(crib: Crib) -> list[str]:
    """Seven HTTP tools; their upstream does not exist, which most tests do not mind."""
    tool_set = await crib.add_tool_set("Seven", {"http": {"baseUrl": "http://127.0.0.1:9"}})
    for i in range(7):
        await crib.add_http_tool(tool_set["metadata"]["id"], f"seven {i}", {"requestMethod": "GET", "path": "/"})
    return [f"seven_{i}" for i in range(7)]


async def modern(crib: Crib, method: str, params: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
    full = {**(params or {}), "_meta": META}
    named = {"Mcp-Name": full["name"]} if "name" in full else {}
    return await crib.http.post(
        "/mcp",
        json={"jsonrpc": "2.0", "id": "a", "method": method, "params": full},
        headers={**BOTH, "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method, **named, **headers},
    )


async def post(crib: Crib, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return await crib.http.post("/mcp", content=content, headers={**BOTH, **headers})


@pytest.mark.parametrize("version", HANDSHAKE_VERSIONS)
async def test_a_handshake_agrees_on_the_version_that_the_client_asks_for(crib: Crib, version: str) -> None:
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    response = await post(crib, {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params})
    assert response.json()["result"]["protocolVersion"] == version
    session = response.headers["mcp-session-id"]
    assert session.endswith(version)
    done = await post(crib, {"jsonrpc": "2.0", "method": "notifications/initialized"}, **{"Mcp-Session-Id": session})
    assert (done.status_code, done.content) == (202, b"")


async def test_a_handshake_with_an_unknown_version_gets_the_latest(crib: Crib) -> None:
    answer = await crib.rpc("initialize", {"protocolVersion": "1999-01-01"})
    assert answer["result"]["protocolVersion"] == HANDSHAKE_VERSIONS[-1]


async def test_any_process_answers_a_session_that_it_did_not_open(crib: Crib) -> None:
    answer = await crib.rpc("ping", **{"Mcp-Session-Id": "made-elsewhere"})
    assert answer == {"jsonrpc": "2.0", "id": 1, "result": {}}


async def test_the_modern_era_is_discovered(crib: Crib) -> None:
    response = await modern(crib, "server/discover")
    result = response.json()["result"]
    assert result["supportedVersions"] == ["2026-07-28"]
    assert result["resultType"] == "complete"
    assert result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "toolcrib"
    assert "mcp-session-id" not in response.headers


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Mcp-Method": "tools/list"}, -32020),
        ({"Mcp-Name": "other"}, -32020),
        ({"MCP-Protocol-Version": "2027-01-01"}, -32020),
    ],
)
@pytest.mark.usefixtures("tools")
async def test_headers_that_contradict_the_body_are_refused(crib: Crib, headers: dict[str, str], code: int) -> None:
    response = await modern(crib, "tools/call", {"name": "seven_0", "arguments": {}}, **headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)


async def test_an_unknown_version_is_told_what_is_supported(crib: Crib) -> None:
    meta = {**META, "io.modelcontextprotocol/protocolVersion": "2027-01-01"}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}
    response = await post(crib, body, **{"MCP-Protocol-Version": "2027-01-01", "Mcp-Method": "tools/list"})
    assert response.status_code == 400
    assert response.json()["error"]["data"] == {"supported": ["2026-07-28"], "requested": "2027-01-01"}


async def test_a_modern_request_without_its_envelope_is_refused(crib: Crib) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    response = await post(crib, body, **{"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/list"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, -32602)


async def test_an_unknown_method_is_told_so_in_both_eras(crib: Crib) -> None:
    assert (await crib.rpc("resources/list"))["error"]["code"] == -32601
    response = await modern(crib, "no/such")
    assert (response.status_code, response.json()["error"]["code"]) == (404, -32601)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("{", -32700),
        ("[]", -32600),
        ("[{", -32700),
        ("5", -32600),
        ('{"jsonrpc":"1.0","id":1,"method":"ping"}', -32600),
        ('{"jsonrpc":"2.0","id":1}', None),
        ('{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
        ('{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600),
        ('{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600),
        ('{"jsonrpc":"2.0","id":1,"method":7}', -32600),
        ("[" * 100_000, -32700),
        (b"\xff\xfe", -32700),
        ("", -32700),
    ],
)
async def test_what_is_no_request_gets_a_clear_error(crib: Crib, body: Any, code: int | None) -> None:
    response = await post(crib, body)
    if code is None:  # an answer to a question that was never asked
        assert response.status_code == 202
    else:
        assert (response.status_code, response.json()["error"]["code"]) == (400, code)


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"name": 5}, -32602),
        ({}, -32602),
        ({"name": "seven_0", "arguments": []}, None),
        ({"name": "seven_0", "arguments": "x"}, None),
        ({"name": "seven_0", "_meta": 5}, -32602),
        ({"name": "x" * 10_000}, -32602),
        ({"name": "a\u0000b"}, -32602),
    ],
)
@pytest.mark.usefixtures("tools")
async def test_a_call_with_wrong_parameters_gets_a_clear_error(crib: Crib, params: Any, code: int | None) -> None:
    answer = await crib.rpc("tools/call", params)
    if code is None:
        assert answer["result"]["isError"]
        assert "object" in answer["result"]["content"][0]["text"]
    else:
        assert answer["error"]["code"] == code
        assert len(answer["error"]["message"]) < 500


async def test_a_batch_is_answered_member_by_member(crib: Crib) -> None:
    batch = [
        {"jsonrpc": "2.0", "id": 1, "method": "ping"},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": "two", "method": "nope"},
    ]
    answers = (await post(crib, batch)).json()
    assert [answer["id"] for answer in answers] == [1, "two"]
    assert (await post(crib, batch[1:2])).status_code == 202


@pytest.mark.usefixtures("tools")
async def test_pages_hold_while_tools_come_and_go(crib: Crib) -> None:
    view = await crib.parts.deps.catalog.view(crib.workspace_id)
    assert len(view.tools) >= 7
    first = json.loads(list_tools(view, "seven", None, 3, modern=False))
    second = json.loads(list_tools(view, "seven", first["nextCursor"], 3, modern=False))
    third = json.loads(list_tools(view, "seven", second["nextCursor"], 3, modern=True))
    names = [tool["name"] for page in (first, second, third) for tool in page["tools"]]
    assert names == [f"seven_{i}" for i in range(7)]
    assert "nextCursor" not in third
    assert third["cacheScope"] == "private"
    assert (await crib.rpc("tools/list", {"cursor": "%%%"}))["error"]["code"] == -32602


async def test_a_page_from_another_origin_is_refused(crib: Crib) -> None:
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    assert (await post(crib, ping, Origin="https://evil.example")).status_code == 403
    assert (await post(crib, ping, Origin=crib.url)).status_code == 200


async def test_sign_in_is_asked_for_before_anything_else(crib: Crib) -> None:
    async with crib.as_(None) as http:
        response = await http.post("/mcp", content="{")
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    async with crib.as_("tck_" + "x" * 38) as http:
        assert (await http.get("/mcp")).status_code == 401


async def test_methods_that_no_era_has_are_refused(crib: Crib) -> None:
    response = await crib.http.put("/mcp", content="{}")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, POST, DELETE")
    assert (await crib.http.get("/mcp")).status_code == 406
    assert (await crib.http.delete("/mcp", headers={"Mcp-Session-Id": "x"})).status_code == 204
    assert (await post(crib, {}, Accept="text/html")).status_code == 406


async def test_an_unknown_tool_set_is_not_found(crib: Crib) -> None:
    response = await crib.http.post("/mcp/no-such", json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
    assert response.status_code == 404


async def test_a_body_over_the_limit_is_refused(crib: Crib) -> None:
    response = await post(crib, b'{"x":"' + b"a" * 5_000_000 + b'"}')
    assert response.status_code == 413


def test_old_clients_get_kinds_of_content_that_they_know() -> None:
    blocks = [{"type": "resource_link", "uri": "file:///x"}, {"type": "audio", "data": "", "mimeType": "audio/wav"}]
    result = json.dumps({"content": blocks}).encode()
    assert [b["type"] for b in json.loads(handshake_result(result, "2024-11-05"))["content"]] == ["text", "text"]
    assert [b["type"] for b in json.loads(handshake_result(result, "2025-03-26"))["content"]] == ["text", "audio"]
    assert handshake_result(result, "2025-06-18") == result


def test_a_modern_result_is_completed_once() -> None:
    meta = About({"name": "x", "version": "1"}, {}, None).meta
    assert json.loads(modern_result(b" { } ", meta))["resultType"] == "complete"
    full = modern_result(b'{"content":[]}', meta)
    assert json.loads(full)["content"] == []
    assert modern_result(full, meta) == full
    assert completed(b'{"content":[]}', meta) == full
    assert json.loads(completed(b"{}", meta)) == json.loads(modern_result(b"{}", meta))


def test_an_event_is_one_line_whatever_the_upstream_wrote() -> None:
    assert event(b'{\n "a": "x\\ny"\r\n}').count(b"\n") == 3
