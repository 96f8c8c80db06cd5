"""A planned MCP server as clients see it: the official SDK in both eras over HTTP and stdio, and raw requests."""

import asyncio
import base64
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client, MCPError
from mcp.client.stdio import StdioServerParameters

from capability.mcp_plan import PIXEL, Upstreams, plan
from gateway.mcp_client.servers.launch import serving
from gateway.mcp_client.servers.raw_http import until
from toolcrib.capability.expose.mcp import McpApp, mcp_app

ERAS = ["auto", "legacy"]
DEADLINE_S = 20.0
BOTH = {"Accept": "application/json, text/event-stream"}
META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Static files, some of which must not be served."""
    root = tmp_path_factory.mktemp("static")
    docs = root / "docs"
    (docs / "sub").mkdir(parents=True)
    (docs / "b.md").write_text("# B\n")
    (docs / "a.json").write_text("{}")
    (docs / "sub" / "pixel.png").write_bytes(PIXEL)
    (docs / "with space.txt").write_text("hidden by its name")
    (docs / "unknown").write_text("plain")
    (root / "secret.txt").write_text("secret")
    (docs / "out.txt").symlink_to(root / "secret.txt")
    (docs / "inside.md").symlink_to(docs / "b.md")
    (docs / "loop").symlink_to(docs / "loop")
    os.mkfifo(docs / "pipe")
    (root / "prompt.txt").write_text("From a file: {{topic}}")
    return root


@pytest.fixture(scope="module")
def upstreams() -> Upstreams:
    return Upstreams()


@pytest.fixture(scope="module")
async def server(folder: Path, upstreams: Upstreams) -> AsyncIterator[tuple[McpApp, str]]:
    """The face over HTTP; yields it and its URL without a path."""
    app = mcp_app(plan(upstreams, folder), version="7")
    async with serving(app) as url:
        yield app, url
        app.close()


@pytest.fixture(params=["http auto", "http legacy", "stdio auto", "stdio legacy"])
def connect(request: pytest.FixtureRequest, server: tuple[McpApp, str], folder: Path) -> Client:
    """The official client, to be entered, in both eras over both transports."""
    transport, mode = request.param.split()
    return Client(f"{server[1]}/mcp" if transport == "http" else stdio_process(folder), mode=mode)


def stdio_process(folder: Path) -> StdioServerParameters:
    script = Path(__file__).with_name("mcp_plan.py")
    return StdioServerParameters(
        command=sys.executable, args=[str(script), str(folder)], env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )


class Raw:
    """Requests as bytes on the wire."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def post(self, body: Any, path: str = "/mcp", **headers: str) -> httpx.Response:
        async with httpx.AsyncClient(timeout=DEADLINE_S) as http:
            content = body if isinstance(body, str | bytes) else json.dumps(body)
            return await http.post(self.url + path, content=content, headers={**BOTH, **headers})

    async def rpc(self, method: str, params: dict[str, Any] | None = None, *, modern: bool = False) -> Any:
        """A whole answer."""
        params = {**(params or {}), **({"_meta": META} if modern else {})}
        headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method} if modern else {}
        if modern and (name := params.get("name") or params.get("uri")):
            headers["Mcp-Name"] = name
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return (await self.post(body, **headers)).json()

    async def call(self, name: str, arguments: Any) -> Any:
        """A tool result."""
        return (await self.rpc("tools/call", {"name": name, "arguments": arguments}))["result"]


@pytest.fixture
def raw(server: tuple[McpApp, str]) -> Raw:
    return Raw(server[1])


async def test_the_server_says_what_it_is(connect: Client) -> None:
    async with connect as client:
        assert client.protocol_version in {"2026-07-28", "2025-11-25"}
        assert (client.server_info.name, client.server_info.version) == ("weather", "7")
        assert client.instructions == "Knows the weather."


async def test_tools_are_listed_and_called(connect: Client) -> None:
    async with connect as client:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools[:2]] == ["weather", "reply"]
        assert tools[0].title == "Weather"
        assert tools[0].annotations
        assert tools[0].annotations.read_only_hint is True
        assert tools[0].input_schema["required"] == ["city"]
        result = await client.call_tool("weather", {"city": "Zürich"})
        assert result.structured_content == {"city": "Zürich", "degrees": 21.5}
        assert json.loads(result.content[0].text) == result.structured_content
        assert not result.is_error


async def test_wrong_arguments_are_a_result_that_names_them(connect: Client) -> None:
    async with connect as client:
        missing = await client.call_tool("weather", {})
        assert missing.is_error
        assert "city" in missing.content[0].text
        wrong = await client.call_tool("weather", {"city": 5})
        assert wrong.is_error
        assert "arguments.city" in wrong.content[0].text
        with pytest.raises(MCPError, match="Unknown tool: nope") as caught:
            await client.call_tool("nope", {})
        assert caught.value.error.code == -32602


async def test_resources_and_prompts_reach_the_client(connect: Client) -> None:
    async with connect as client:
        uris = [resource.uri for resource in (await client.list_resources()).resources]
        assert uris == [
            *("weather://today", "weather://slow", "docs://all/a.json", "docs://all/b.md", "docs://all/inside.md"),
            *("docs://all/sub/pixel.png", "docs://all/unknown"),
        ]
        templates = (await client.list_resource_templates()).resource_templates
        assert [template.uri_template for template in templates] == ["weather://{country}/{city}/now"]
        read = (await client.read_resource("weather://ch/St.%20Gallen/now")).contents[0]
        assert json.loads(read.text) == {"country": "ch", "city": "St. Gallen"}
        assert read.mime_type == "application/json"
        file = (await client.read_resource("docs://all/b.md")).contents[0]
        assert (file.text, file.mime_type) == ("# B\n", "text/markdown")
        image = (await client.read_resource("docs://all/sub/pixel.png")).contents[0]
        assert (base64.b64decode(image.blob), image.mime_type) == (PIXEL, "image/png")
        assert [prompt.name for prompt in (await client.list_prompts()).prompts] == ["ask", "filed"]
        prompt = await client.get_prompt("ask", {"city": "{{when}} Bern", "when": "today"})
        assert [message.content.text for message in prompt.messages] == [
            "Weather in {{when}} Bern today? {{unknown}}",
            "In {{when}} Bern:",
        ]
        assert (await client.get_prompt("filed", {"topic": "rain"})).messages[0].content.text == "From a file: rain"


async def test_outputs_that_a_schema_promises_are_always_there(connect: Client) -> None:
    async with connect as client:
        await client.list_tools()  # from now on the client checks results against their schemas
        shaped = await client.call_tool("number", {"text": '{"n": "5"}', "media": "application/json"})
        assert shaped.structured_content == {"n": 5}
        empty = await client.call_tool("number", {"status": 204})
        assert (empty.structured_content, empty.content, empty.is_error) == ({"n": None}, [], False)
        text = await client.call_tool("promised", {"text": "no JSON"})
        assert text.structured_content == {}
        latin = {"hex": '{"a": "é"}'.encode("latin-1").hex(), "media": "application/json; charset=latin-1"}
        for tool in ("reply", "promised"):
            assert (await client.call_tool(tool, latin)).structured_content == {"a": "é"}
        failed = await client.call_tool("number", {"status": 404, "text": "gone"})
        assert (failed.is_error, failed.structured_content) == (True, None)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"status": 204}, {"content": [], "isError": False}),
        ({"text": "hi"}, {"content": [{"type": "text", "text": "hi"}], "isError": False}),
        ({"text": "[1]"}, {"content": [{"type": "text", "text": "[1]"}], "isError": False}),
        ({"text": "{oops"}, {"content": [{"type": "text", "text": "{oops"}], "isError": False}),
        (
            {"text": ' {"a": 1e2}\n', "media": "application/json"},
            {
                "content": [{"type": "text", "text": ' {"a": 1e2}\n'}],
                "structuredContent": {"a": 100.0},
                "isError": False,
            },
        ),
        (
            {"status": 404, "text": '{"no": 1}'},
            {"content": [{"type": "text", "text": 'HTTP 404: {"no": 1}'}], "isError": True},
        ),
        ({"status": 502}, {"content": [{"type": "text", "text": "HTTP 502"}], "isError": True}),
        (
            {"hex": PIXEL.hex(), "media": "image/png"},
            {
                "content": [{"type": "image", "data": base64.b64encode(PIXEL).decode(), "mimeType": "image/png"}],
                "isError": False,
            },
        ),
        (
            {"hex": "ff00", "media": "application/zip"},
            {
                "content": [
                    {
                        "type": "resource",
                        "resource": {"uri": "response:body", "mimeType": "application/zip", "blob": "/wA="},
                    }
                ],
                "isError": False,
            },
        ),
    ],
)
async def test_a_reply_becomes_a_result(raw: Raw, arguments: dict[str, Any], expected: dict[str, Any]) -> None:
    assert await raw.call("reply", arguments) == expected


@pytest.mark.parametrize("how", ["invalid", "upstream", "unavailable", "forbidden"])
async def test_what_goes_wrong_in_a_tool_is_a_result_with_its_message(raw: Raw, how: str) -> None:
    result = await raw.call("refuse", {"how": how})
    assert result == {"content": [{"type": "text", "text": f"It is {how}."}], "isError": True}


async def test_a_bug_is_an_internal_error_without_a_word_of_it(raw: Raw) -> None:
    answer = await raw.rpc("tools/call", {"name": "refuse", "arguments": {"how": "bug"}})
    assert answer["error"] == {"code": -32603, "message": "Internal error"}


@pytest.mark.parametrize(
    ("uri", "word"),
    [
        ("docs://all/../prompt.txt", "segments"),
        ("docs://all/sub/../b.md", "segments"),
        ("docs://all//b.md", "segments"),
        ("docs://all/", "segments"),
        ("docs://all/%62.md", "segments"),
        ("docs://all/with space.txt", "segments"),
        ("docs://all/out.txt", "out of the folder"),
        ("docs://all/sub", "not a file"),
        ("docs://all/pipe", "not a file"),
        ("docs://all/loop", "cannot be read"),
        ("docs://all/b.md/x", "no such file"),
        ("docs://all/none", "no such file"),
        ("docs://all/" + "a" * 300, "cannot be read"),
        ("docs://all", "Unknown resource"),
        ("weather://ch/a/b/now", "Unknown resource"),
        ("weather://ch/%ff/now", "Unknown resource"),
        ("weather://ch/" + "a" * 9000 + "/now", "Unknown resource"),
        ("weather://ch//now", "Unknown resource"),
    ],
)
async def test_what_is_no_resource_is_refused(raw: Raw, uri: str, word: str) -> None:
    error = (await raw.rpc("resources/read", {"uri": uri}))["error"]
    assert error["code"] == -32602
    assert word in error["message"]


async def test_a_template_variable_may_hold_an_encoded_slash(raw: Raw) -> None:
    answer = await raw.rpc("resources/read", {"uri": "weather://ch/a%2Fb/now"})
    assert json.loads(answer["result"]["contents"][0]["text"])["city"] == "a/b"


async def test_prompts_want_their_required_arguments(raw: Raw) -> None:
    missing = (await raw.rpc("prompts/get", {"name": "ask"}))["error"]
    assert (missing["code"], "'city'" in missing["message"]) == (-32602, True)
    assert (await raw.rpc("prompts/get", {"name": "nope"}))["error"]["code"] == -32602
    assert (await raw.rpc("prompts/get", {"name": "ask", "arguments": []}))["error"]["code"] == -32602
    result = (await raw.rpc("prompts/get", {"name": "ask", "arguments": {"city": "Bern"}}))["result"]
    assert result["messages"][0]["content"]["text"] == "Weather in Bern {{when}}? {{unknown}}"


async def test_the_modern_era_is_told_how_long_to_keep_lists(raw: Raw) -> None:
    for method in ("tools/list", "resources/list", "resources/templates/list", "prompts/list"):
        result = (await raw.rpc(method, modern=True))["result"]
        assert (result["ttlMs"], result["cacheScope"], result["resultType"]) == (0, "private", "complete")
        assert "ttlMs" not in (await raw.rpc(method))["result"]
    read = await raw.rpc("resources/read", {"uri": "weather://today"}, modern=True)
    assert read["result"]["ttlMs"] == 0


async def test_hints_for_caches_come_from_the_file(upstreams: Upstreams) -> None:
    app = mcp_app(plan(upstreams, extension={"ttlMs": 5000, "cacheScope": "public"}), version="7")
    async with serving(app) as url:
        result = (await Raw(url).rpc("tools/list", modern=True))["result"]
    assert (result["ttlMs"], result["cacheScope"]) == (5000, "public")


async def test_huge_lists_come_in_pages(upstreams: Upstreams) -> None:
    async with serving(mcp_app(plan(upstreams, tools=2500), version="7")) as url, Client(f"{url}/mcp") as client:
        names, cursor = [], None
        while True:
            page = await client.list_tools(cursor=cursor)
            names += [tool.name for tool in page.tools]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert len(names) == len(set(names)) == 2506
        assert (await Raw(url).rpc("tools/list", {"cursor": "nonsense"}))["error"]["code"] == -32602


@pytest.mark.parametrize(
    ("path", "status"), [("/mcp", 200), ("/", 200), ("/mcp/", 200), ("/other", 404), ("/mcp/x", 404)]
)
async def test_it_is_served_at_two_paths_only(raw: Raw, path: str, status: int) -> None:
    answer = await raw.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, path)
    assert answer.status_code == status


async def test_what_the_protocol_refuses_is_refused_here_too(raw: Raw) -> None:
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    assert (await raw.post(ping, Origin="https://evil.example")).status_code == 403
    assert (await raw.post(ping, Origin=raw.url)).status_code == 200
    assert (await raw.post("{")).json()["error"]["code"] == -32700
    assert (await raw.post(b"x" * 5_000_000)).status_code == 413
    assert (await raw.rpc("completion/complete"))["error"]["code"] == -32601
    assert (await raw.post({"jsonrpc": "2.0", "method": "notifications/anything"})).status_code == 202
    assert [a["id"] for a in (await raw.post([ping, {**ping, "id": 2}])).json()] == [1, 2]


async def test_a_server_without_resources_and_prompts_promises_none(upstreams: Upstreams) -> None:
    full = plan(upstreams)
    app = mcp_app(type(full)(full.server, full.tools), version="7")
    async with serving(app) as url:
        answer = await Raw(url).rpc("initialize", {"protocolVersion": "2025-06-18"})
        assert answer["result"]["capabilities"] == {"tools": {"listChanged": True}}
        assert (await Raw(url).rpc("resources/list"))["result"] == {"resources": []}


@pytest.mark.parametrize("mode", ERAS)
async def test_a_cancelled_call_is_cancelled(server: tuple[McpApp, str], upstreams: Upstreams, mode: str) -> None:
    for event in (upstreams.started, upstreams.cancelled):
        event.clear()
    async with Client(f"{server[1]}/mcp", mode=mode) as client:
        call = asyncio.create_task(client.call_tool("slow", {}))
        await asyncio.wait_for(upstreams.started.wait(), DEADLINE_S)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await asyncio.wait_for(upstreams.cancelled.wait(), DEADLINE_S)
        await client.call_tool("weather", {"city": "Bern"})  # the client breaks if it leaves before the late answer


@pytest.mark.parametrize("mode", ERAS)
async def test_clients_hear_of_another_plan_and_then_see_it(upstreams: Upstreams, mode: str) -> None:
    app = mcp_app(plan(upstreams), version="7")
    heard: list[str] = []

    async def on_message(message: Any) -> None:
        heard.append(str(getattr(message, "method", "")))

    async with serving(app) as url, Client(f"{url}/mcp", mode=mode, message_handler=on_message) as client:
        before = len((await client.list_tools()).tools)
        async with contextlib.AsyncExitStack() as stack:
            if mode == "auto":
                subscription = await stack.enter_async_context(client.listen(tools_list_changed=True))
                news = asyncio.create_task(anext(aiter(subscription)))
                app.replace(plan(upstreams, tools=1))
                assert "ToolsListChanged" in type(await asyncio.wait_for(news, DEADLINE_S)).__name__
            else:
                await until(lambda: bool(app._face._listeners))
                app.replace(plan(upstreams, tools=1))
                await until(lambda: "notifications/tools/list_changed" in heard)
                app.notify_changed()
                await until(lambda: "notifications/prompts/list_changed" in heard)
        assert len((await client.list_tools()).tools) == before + 1
        app.close()


class Pipes:
    """The face over a pair of streams in this process."""

    def __init__(self, app: McpApp) -> None:
        self.reader = asyncio.StreamReader()
        self.written = bytearray()
        self.served = asyncio.create_task(app.serve_stdio(self.reader, self))

    def write(self, data: bytes, /) -> None:
        self.written += data

    async def drain(self) -> None:
        """Everything is written at once."""

    def send(self, *messages: Any) -> None:
        for message in messages:
            line = message if isinstance(message, bytes) else json.dumps({"jsonrpc": "2.0", **message}).encode()
            self.reader.feed_data(line + b"\n")

    def answers(self) -> list[Any]:
        return [json.loads(line) for line in self.written.splitlines()]

    async def answer(self, id_: Any) -> Any:
        await until(lambda: any(answer.get("id") == id_ for answer in self.answers()))
        return next(answer for answer in self.answers() if answer.get("id") == id_)

    async def end(self) -> None:
        self.reader.feed_eof()
        await asyncio.wait_for(self.served, DEADLINE_S)


async def test_requests_on_standard_streams_run_side_by_side_and_end_with_the_input(folder: Path) -> None:
    upstreams = Upstreams()
    pipes = Pipes(mcp_app(plan(upstreams, folder), version="7"))
    pipes.send({"id": 1, "method": "tools/call", "params": {"name": "slow"}}, {"id": "p", "method": "ping"})
    assert (await pipes.answer("p"))["result"] == {}
    assert [answer["id"] for answer in pipes.answers()] == ["p"]
    pipes.reader.feed_eof()
    await asyncio.wait_for(upstreams.started.wait(), DEADLINE_S)
    upstreams.go_on.set()
    await asyncio.wait_for(pipes.served, DEADLINE_S)
    assert pipes.answers()[-1]["result"]["structuredContent"] == {"slow": True}


async def test_a_request_cancelled_on_standard_streams_is_not_answered(folder: Path) -> None:
    upstreams = Upstreams()
    pipes = Pipes(mcp_app(plan(upstreams, folder), version="7"))
    pipes.send({"id": 1, "method": "tools/call", "params": {"name": "slow"}})
    await asyncio.wait_for(upstreams.started.wait(), DEADLINE_S)
    pipes.send({"method": "notifications/cancelled", "params": {"requestId": 1}})
    await asyncio.wait_for(upstreams.cancelled.wait(), DEADLINE_S)
    await pipes.end()
    assert pipes.answers() == []


async def test_lines_that_are_no_requests_get_an_error_and_the_next_is_served(folder: Path) -> None:
    pipes = Pipes(mcp_app(plan(Upstreams(), folder), version="7", max_message_bytes=1000))
    pipes.send(b"{", b"", b"\xff", b"x" * 70_000, b"[]", {"id": {}, "method": "ping"}, {"id": 5, "result": {}})
    pipes.send({"id": 2, "method": "ping"}, {"id": 3, "method": "nope"})
    pipes.send(b'[{"jsonrpc":"2.0","id":4,"method":"ping"}]')
    assert (await pipes.answer(3))["error"]["code"] == -32601
    await pipes.end()
    answers = pipes.answers()
    codes = sorted(a["error"]["code"] for a in answers if isinstance(a, dict) and a.get("id") is None)
    assert codes == [-32700, -32700, -32600, -32600, -32600]
    assert [{"jsonrpc": "2.0", "id": 4, "result": {}}] in answers


async def test_a_body_of_many_lines_is_one_line_on_standard_streams(folder: Path) -> None:
    pipes = Pipes(mcp_app(plan(Upstreams(), folder), version="7"))
    arguments = {"text": '{\n  "a": "x"\n}', "media": "application/json"}
    pipes.send({"id": 1, "method": "tools/call", "params": {"name": "reply", "arguments": arguments}})
    assert (await pipes.answer(1))["result"]["structuredContent"] == {"a": "x"}
    await pipes.end()
    assert pipes.written.count(b"\n") == 1


async def test_changes_are_told_on_standard_streams_in_both_eras(folder: Path) -> None:
    app = mcp_app(plan(Upstreams(), folder), version="7")
    pipes = Pipes(app)
    listen = {"notifications": {"toolsListChanged": True}, "_meta": META}
    pipes.send({"id": 9, "method": "subscriptions/listen", "params": listen}, {"method": "notifications/initialized"})
    await until(lambda: len(app._face._listeners) == 2)
    app.replace(plan(Upstreams(), folder, tools=1))
    await until(lambda: len(pipes.answers()) == 3)
    await pipes.end()
    acknowledged, *changes = pipes.answers()
    assert acknowledged["params"]["notifications"] == {"toolsListChanged": True}
    assert [change["method"] for change in changes] == ["notifications/tools/list_changed"] * 2
    ids = [change["params"].get("_meta", {}).get("io.modelcontextprotocol/subscriptionId") for change in changes]
    assert sorted(ids, key=str) == [9, None]
    assert not app._face._listeners


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_a_process_keeps_its_standard_output_clean_and_ends_with_its_input(folder: Path, size: int) -> None:
    parameters = stdio_process(folder)
    process = await asyncio.create_subprocess_exec(
        *(parameters.command, *parameters.args),
        env={**os.environ, **(parameters.env or {})},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    call = {"name": "reply", "arguments": {"text": "x" * size}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}).encode()
    out, err = await asyncio.wait_for(process.communicate(body + b"\n"), DEADLINE_S)
    assert process.returncode == 0
    (line,) = out.splitlines()
    assert len(json.loads(line)["result"]["content"][0]["text"]) == size
    assert b"a stray line" in err
    assert b"the protocol has ended" in err
