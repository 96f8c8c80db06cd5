"""`toolcrib tools` against a real server, a real MCP server and a real HTTP API."""

import json
import socket
import sys
from pathlib import Path

import pytest

from clitools import MINI, Crib, Tools, Upstream, refusal

pytestmark = pytest.mark.usefixtures("crib")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


# ---- adding --------------------------------------------------------------------------------------------------------


def test_adding_a_command_waits_for_its_tools_and_lists_them_by_the_filters(crib: Crib, mini: Tools) -> None:
    found = mini.added
    assert (found["kind"], found["available"], found["filtered"]) == ("stdio", 5, 1)
    assert (found["labels"], found["external_id"], found["description"]) == ({"team": "x"}, "ext-1", "Small.")
    assert found["sync"]["outcome"] == "completed"
    assert {tool["name"] for tool in found["tools"] if tool["status"] == "filtered"} == {mini["delete_all"]}
    assert "Added mini" in mini.said
    listed = crib.run("tools", "list", "--tool-set", "ext-1").json
    assert {tool["name"] for tool in listed if tool["requires_approval"]} == {mini["sealed"]}


def test_adding_a_command_that_does_not_speak_mcp_tells_why_and_fails(crib: Crib) -> None:
    added = crib.run("tools", "add", "--stdio", f"{sys.executable} -c 'raise SystemExit(3)'", "--name", "dead")
    assert added.code == 1
    assert "Its tools were not read" in added.err
    found = json.loads(added.out)
    assert found["sync"]["outcome"] == "failed"
    assert found["sync"]["message"] in added.err


def test_adding_a_url_where_nothing_answers_tells_so(crib: Crib) -> None:
    added = crib.run("tools", "add", f"http://127.0.0.1:{free_port()}/mcp", "--name", "absent")
    assert added.code == 1
    assert "127.0.0.1" in added.err


def test_adding_without_waiting_leaves_at_once(crib: Crib) -> None:
    found = crib.run("tools", "add", f"http://127.0.0.1:{free_port()}/mcp", "--no-wait").json
    assert found["sync"] is None
    assert found["name"].startswith("127.0.0.1:")


def test_waiting_ends_when_somebody_had_enough(crib: Crib) -> None:
    added = crib.run("tools", "add", f"http://127.0.0.1:{free_port()}/mcp", "--name", "late", "--timeout", "0")
    assert added.code == 1
    assert json.loads(added.out)["sync"]["outcome"] == "no_outcome"


def test_a_command_that_names_a_file_here_runs_here(crib: Crib, tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text(MINI.read_text())
    tmp_path.chmod(0o755)
    added = crib.run("tools", "add", "--stdio", f"{sys.executable} here.py", "--env", "MINI_SECRET=s3", cwd=tmp_path)
    assert added.json["name"] == "here"
    assert f"runs in {tmp_path}" in added.err
    environment = Tools(added.json, "")["environment"]
    text = crib.run("tools", "call", environment).json["content"][0]["text"]
    assert text == f"s3 \x1b[31mred\x1b[0m in {tmp_path}"
    assert "s3" not in added.out
    shown = crib.on_terminal("tools", "call", environment)
    assert "\x1b[31m" not in shown.out, "a tool painted the terminal"
    assert "red" in shown.out


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["https://a.example", "--stdio", "x"],
        ["--stdio", ""],
        ["--stdio", "a 'b"],
        ["https://a.example", "--env", "A=b"],
        ["--http", "https://a.example", "--include", "x"],
        ["https://a.example", "--header", "no colon"],
        ["https://a.example", "--label", "x"],
        ["https://a.example", "--transport", "pigeon"],
    ],
)
def test_a_source_that_makes_no_sense_is_a_wrong_command_line(args: list[str]) -> None:
    code, said = refusal("tools", "add", *args)
    assert code == 2
    assert said


def test_what_the_server_does_not_take_is_refused_in_its_words(crib: Crib) -> None:
    done = crib.run("tools", "add", "ftp://example.org")
    assert (done.code, done.out) == (5, "")
    assert "http or https" in done.err


# ---- HTTP APIs -----------------------------------------------------------------------------------------------------


def test_an_http_api_gets_tools_that_send_what_they_say(crib: Crib, upstream: Upstream) -> None:
    added = crib.run("tools", "add", "--http", f"{upstream.url}/v2", "--name", "orders", "-H", "X-Key: sec:ret")
    assert added.json["kind"] == "http"
    assert "tools add-http orders" in added.err
    made = crib.run(
        *("tools", "add-http", "orders", "get_order", "--path", "/orders/{id}", "--query", "q={{ text }}"),
        *("--description", "One order."),
    ).json
    assert made["parameters"]["required"] == ["id"]
    result = crib.run("tools", "call", "get_order", "--arg", "id=a/b", "--arg", "text=x y").json
    assert result["structuredContent"]["path"] == "/v2/orders/a%2Fb?q=x+y"
    assert upstream.seen[-1]["headers"]["x-key"] == "sec:ret"

    schema = {"type": "object", "properties": {"id": {"type": "integer"}, "n": {"type": "integer"}}}
    noted = crib.run(
        *("tools", "add-http", "orders", "note", "-X", "post", "--path", "/orders/{id}/notes"),
        *("--body-template", '{"n": {{ n }}}', "--parameters", json.dumps(schema)),
    )
    assert noted.json["config"]["http"]["requestMethod"] == "POST"
    assert crib.run("tools", "call", "note", "-a", "id=7", "-a", "n=3").code == 0
    assert (upstream.seen[-1]["method"], upstream.seen[-1]["path"]) == ("POST", "/v2/orders/7/notes")
    assert upstream.seen[-1]["body"] == '{"n": 3}'

    assert crib.run("tools", "add-http", "nothing", "bad").code == 1
    code, said = refusal("tools", "add-http", "orders", "bad", "--path", "/x?y=1")
    assert code == 2
    assert "query" in said


# ---- seeing and calling --------------------------------------------------------------------------------------------


def test_tools_are_listed_and_shown(crib: Crib, mini: Tools) -> None:
    table = crib.on_terminal("tools", "list", "--tool-set", "mini").out
    for text in ("NAME", "Add two numbers.", "required", "filtered"):
        assert text in table
    assert mini.added["id"] in crib.on_terminal("tools", "sets").out
    assert crib.run("tools", "show", mini["add"]).json["parameters"]["required"] == ["a"]
    assert "integer|null" in crib.on_terminal("tools", "show", mini["add"]).out
    assert crib.run("tools", "show", "nothing").code == 1


def test_a_tool_is_called_with_arguments_of_the_types_it_asks_for(crib: Crib, mini: Tools) -> None:
    result = crib.run("tools", "call", mini["add"], "--arg", "a=20", "--arg", "b=22", "--arg", "exact=false").json
    assert result["content"][0]["text"] == "42 False"
    assert crib.on_terminal("tools", "call", mini["add"], "--arg", "a=1").out == "1 True\n"
    result = crib.run("tools", "call", mini["describe"], "--args", '{"value": {"x": 1}}', "--arg", "name=7").json
    assert result["content"][0]["text"] == "7:['x']"
    result = crib.run("tools", "call", mini["describe"], "--args", "-", stdin='{"value": {"y": 1}}').json
    assert result["content"][0]["text"] == ":['y']"


def test_a_tool_that_reports_an_error_ends_with_1_and_its_result(crib: Crib, mini: Tools) -> None:
    done = crib.run("tools", "call", mini["broken"])
    assert done.code == 1
    assert json.loads(done.out)["isError"] is True
    assert "reports an error" in done.err


@pytest.mark.parametrize(
    ("tool", "args", "said"),
    [
        ("nothing", [], "no tool 'nothing'"),
        ("sealed", [], "approval"),
        ("delete_all", [], "no tool"),
        ("add", ["--args", '{"a": "x"}'], "arguments.a"),
    ],
)
def test_a_call_that_is_refused_ends_with_5(crib: Crib, mini: Tools, tool: str, args: list[str], said: str) -> None:
    done = crib.run("tools", "call", tool if tool == "nothing" else mini[tool], *args)
    assert (done.code, done.out) == (5, "")
    assert said in done.err


def test_an_argument_of_another_type_is_a_wrong_command_line(crib: Crib, mini: Tools) -> None:
    done = crib.run("tools", "call", mini["add"], "--arg", "a=x")
    assert (done.code, done.out) == (2, "")
    assert "integer" in done.err


# ---- syncing and removing ------------------------------------------------------------------------------------------


def test_a_sync_tells_what_came_of_it(crib: Crib, mini: Tools) -> None:
    before = len(crib.run("tools", "events", "mini", "--limit", "200").json)
    outcome = crib.run("tools", "sync", mini.added["id"]).json[0]
    assert outcome["outcome"] == "completed"
    assert outcome["message"].startswith("6 tools: 0 new")
    events = crib.run("tools", "events", "mini", "--limit", "200").json
    assert [event["event"] for event in events[: len(events) - before]] == ["sync_completed", "sync_started"]
    assert crib.run("tools", "sync", "mini", "--no-wait").json[0]["outcome"] == "asked"


def test_a_sync_needs_one_tool_set_that_exists(crib: Crib) -> None:
    assert refusal("tools", "sync")[0] == 2
    assert refusal("tools", "sync", "mini", "--all")[0] == 2
    assert crib.run("tools", "sync", "nothing").code == 1


def test_removing_asks_first_and_tells_names_apart(crib: Crib) -> None:
    first, second = (crib.run("tools", "add", "--http", "http://127.0.0.1:9", "--name", "twin").json for _ in range(2))
    ambiguous = crib.run("tools", "remove", "twin", "--yes")
    assert ambiguous.code == 1
    assert first["id"] in ambiguous.err

    unasked = crib.run("tools", "remove", first["id"])
    assert unasked.code == 2
    assert "--yes" in unasked.err
    kept = crib.on_terminal("tools", "remove", first["id"], keys="n\n")
    assert kept.code == 1
    assert "Nothing was removed" in kept.err
    assert crib.on_terminal("tools", "remove", first["id"], keys="y\n").code == 0

    tool = crib.run("tools", "add-http", second["slug"], "lonely", "--path", "/x").json
    assert crib.run("tools", "remove", tool["name"], "-y").code == 0
    assert crib.run("tools", "list", "--tool-set", "twin").json == []


# ---- the record ----------------------------------------------------------------------------------------------------


def test_the_audit_shows_calls_and_takes_filters(crib: Crib, mini: Tools) -> None:
    crib.run("tools", "call", mini["add"], "-a", "a=77")
    crib.run("tools", "call", mini["add"])
    calls = crib.run("audit", "--tool", mini["add"], "--limit", "2").json
    assert [call["outcome"] for call in calls] == ["refused", "ok"]
    assert calls[1]["arguments"] == {"a": 77}
    good = crib.run("audit", "--tool-set", "mini", "--outcome", "ok", "--limit", "1").json
    assert [call["outcome"] for call in good] == ["ok"]
    assert "refused: arguments.invalid" in crib.on_terminal("audit", "--tool", mini["add"]).out
    assert refusal("audit", "--outcome", "odd")[0] == 2
