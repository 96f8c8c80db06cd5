"""Servers that we start: the protocol over their pipes, and everything that can go wrong with a process."""

import asyncio
import base64
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.mcp_client.servers.launch import SERVERS, MakePool, running, stdio
from gateway.mcp_client.servers.raw_http import until
from toolcrib.gateway.mcp_client import McpEndpoint, McpResult, McpUpstreamError, McpUpstreams


def said(result: McpResult) -> Any:
    """What a raw server's tool returned."""
    return json.loads(json.loads(result.result)["content"][0]["text"])


async def call(pool: McpUpstreams, endpoint: McpEndpoint, name: str, timeout_s: float = 10, **arguments: Any) -> Any:
    return said(await pool.call_tool(endpoint, name, json.dumps(arguments).encode(), timeout_s=timeout_s))


async def failure(pool: McpUpstreams, endpoint: McpEndpoint, name: str, timeout_s: float = 10, **arguments: Any) -> Any:
    with pytest.raises(McpUpstreamError) as caught:
        await call(pool, endpoint, name, timeout_s, **arguments)
    return caught.value


# -- real servers ------------------------------------------------------------------------------------------------------


async def test_a_server_of_the_official_sdk_is_listed_and_called(pool: McpUpstreams) -> None:
    endpoint = stdio(script="sdk.py")
    listed = await pool.list_tools(endpoint, timeout_s=20)
    assert (listed.protocol_version, listed.server_name, listed.server_version) == ("2025-11-25", "sdk", "2.3")
    assert [tool["name"] for tool in listed.tools] == ["echo", "broken", "steps", "hang", "grow"]
    seen: list[bytes] = []
    done = await pool.call_tool(endpoint, "steps", b"{}", timeout_s=10, on_progress=seen.append)
    assert json.loads(done.result)["structuredContent"] == {"result": "done"}
    assert [json.loads(params)["progress"] for params in seen] == [0, 1, 2]
    broken = await pool.call_tool(endpoint, "broken", b"{}", timeout_s=10)
    assert broken.is_error
    quoted = await pool.call_tool(endpoint, "echo", b'{\n "value":\r\n "two\\nlines"}', timeout_s=10)
    assert json.loads(quoted.result)["content"][0]["text"] == "two\nlines"


async def test_the_reference_time_server_works(pool: McpUpstreams) -> None:
    args = ("-m", "mcp_server_time", "--local-timezone", "UTC")
    endpoint = McpEndpoint("time", "stdio", command=sys.executable, args=args)
    names = {tool["name"] for tool in (await pool.list_tools(endpoint, timeout_s=20)).tools}
    assert names == {"get_current_time", "convert_time"}
    answer = await pool.call_tool(endpoint, "get_current_time", b'{"timezone":"Asia/Tokyo"}', timeout_s=10)
    assert b"Asia/Tokyo" in answer.result
    assert not answer.is_error


async def test_a_fastmcp_server_works(pool: McpUpstreams, tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(
        "from fastmcp import FastMCP\nmcp = FastMCP('fast')\n"
        "@mcp.tool\ndef add(a: int, b: int) -> int:\n    return a + b\n"
        "mcp.run(show_banner=False)\n"
    )
    endpoint = McpEndpoint("fast", "stdio", command=sys.executable, args=(str(script),))
    answer = await pool.call_tool(endpoint, "add", b'{"a":2,"b":3}', timeout_s=30)
    assert json.loads(answer.result)["structuredContent"] == {"result": 5}


# -- both eras ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_every_handshake_version_is_accepted(pool: McpUpstreams, version: str) -> None:
    endpoint = stdio(f"version={version}")
    assert (await pool.list_tools(endpoint, timeout_s=10)).protocol_version == version
    assert await call(pool, endpoint, "echo", a=1) == {"a": 1}


async def test_a_server_of_the_modern_era_only_is_found_out(pool: McpUpstreams) -> None:
    endpoint = stdio("init=modern")
    listed = await pool.list_tools(endpoint, timeout_s=10)
    assert (listed.protocol_version, listed.server_name) == ("2026-07-28", "raw modern")
    meta = await call(pool, endpoint, "meta")
    assert meta["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
    assert meta["io.modelcontextprotocol/clientCapabilities"] == {}
    assert meta["io.modelcontextprotocol/clientInfo"] == {"name": "toolcrib", "version": "0.1"}


async def test_an_unknown_version_is_refused_by_name(pool: McpUpstreams) -> None:
    error = await failure(pool, stdio("version=1999-01-01"), "echo", 3)
    assert error.code == "mcp.protocol_error"
    assert "1999-01-01" in error.message


# -- many calls on one session -----------------------------------------------------------------------------------------


async def test_a_slow_call_does_not_hold_up_others(pool: McpUpstreams) -> None:
    endpoint = stdio()
    slow = asyncio.create_task(pool.call_tool(endpoint, "hang", b"{}", timeout_s=30))
    answers = await asyncio.gather(*[call(pool, endpoint, "echo", n=n) for n in range(100)])
    assert answers == [{"n": n} for n in range(100)]
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow


async def test_concurrent_first_calls_start_one_process(pool: McpUpstreams) -> None:
    endpoint = stdio()
    assert len(set(await asyncio.gather(*[call(pool, endpoint, "pid") for _ in range(5)]))) == 1


async def test_a_cancelled_call_and_a_late_one_are_cancelled_at_the_server(pool: McpUpstreams) -> None:
    endpoint = stdio()
    await call(pool, endpoint, "echo")
    slow = asyncio.create_task(pool.call_tool(endpoint, "hang", b"{}", timeout_s=30))
    await call(pool, endpoint, "echo")
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    error = await failure(pool, endpoint, "hang", 0.05)
    assert error.code == "mcp.timeout"
    assert len(await call(pool, endpoint, "cancelled")) == 2


async def test_progress_is_passed_on_as_it_came(pool: McpUpstreams) -> None:
    seen: list[bytes] = []
    await pool.call_tool(stdio(), "progress", b"{}", timeout_s=10, on_progress=seen.append)
    assert [json.loads(params)["note"] for params in seen] == ["kept"] * 3


async def test_a_failing_progress_callback_harms_nobody(pool: McpUpstreams) -> None:
    def fail(_: bytes) -> None:
        raise RuntimeError("the caller's bug")

    endpoint = stdio()
    assert said(await pool.call_tool(endpoint, "progress", b"{}", timeout_s=10, on_progress=fail)) == "done"


@pytest.mark.parametrize("method", ["sampling/createMessage", "elicitation/create", "roots/list"])
async def test_what_we_do_not_offer_is_refused(pool: McpUpstreams, method: str) -> None:
    answer = await call(pool, stdio(), "ask", method=method)
    assert answer["error"]["code"] == -32601


async def test_a_ping_is_answered(pool: McpUpstreams) -> None:
    assert (await call(pool, stdio(), "ask", method="ping"))["result"] == {}


async def test_changed_tools_are_told_once(make_pool: MakePool) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    pool = make_pool(on_tools_changed=told.put_nowait)
    endpoint = stdio()
    await call(pool, endpoint, "change")
    assert await asyncio.wait_for(told.get(), 10) == endpoint.key
    await call(pool, endpoint, "echo")
    assert told.empty()


# -- lists of tools ----------------------------------------------------------------------------------------------------


async def test_unknown_members_of_a_tool_are_kept(pool: McpUpstreams) -> None:
    listed = await pool.list_tools(stdio(), timeout_s=10)
    assert listed.tools == [{"name": "echo", "inputSchema": {"type": "object"}, "x-unknown": [1, {"deep": True}]}]
    assert (listed.server_name, listed.server_version, listed.problems) == ("raw", "7", [])


async def test_all_pages_are_read(pool: McpUpstreams) -> None:
    listed = await pool.list_tools(stdio("list=pages"), timeout_s=10)
    assert [tool["name"] for tool in listed.tools] == ["echo0", "echo1", "echo2", "echo3"]


async def test_pages_that_go_in_circles_are_refused(pool: McpUpstreams) -> None:
    with pytest.raises(McpUpstreamError, match="never end") as caught:
        await pool.list_tools(stdio("list=loop"), timeout_s=10)
    assert caught.value.code == "mcp.protocol_error"


async def test_bad_entries_are_left_out_and_named(pool: McpUpstreams) -> None:
    listed = await pool.list_tools(stdio("list=odd"), timeout_s=10)
    assert [tool["name"] for tool in listed.tools] == ["echo", "last"]
    assert listed.problems == [
        "a tool without a name was left out",
        "'bare' has no inputSchema and was left out",
        "'echo' is listed twice; the first one counts",
        "a tool without a name was left out",
    ]


async def test_a_server_without_tools_has_an_empty_list(pool: McpUpstreams) -> None:
    assert (await pool.list_tools(stdio("list=none"), timeout_s=10)).tools == []


async def test_too_many_tools_are_refused(make_pool: MakePool) -> None:
    with pytest.raises(McpUpstreamError) as caught:
        await make_pool(max_tools=3).list_tools(stdio("list=pages"), timeout_s=10)
    assert caught.value.code == "mcp.too_large"


async def test_a_list_that_never_comes_is_a_timeout(pool: McpUpstreams) -> None:
    with pytest.raises(McpUpstreamError, match="tools/list") as caught:
        await pool.list_tools(stdio("list=hang"), timeout_s=0.5)
    assert caught.value.code == "mcp.timeout"


# -- answers that are wrong --------------------------------------------------------------------------------------------


async def test_an_error_of_the_server_keeps_its_code_and_data(pool: McpUpstreams) -> None:
    error = await failure(pool, stdio(), "no such tool")
    assert (error.code, error.rpc_code, error.rpc_message) == ("mcp.rpc_error", -32602, "Unknown tool: no such tool")
    assert json.loads(error.rpc_data) == {"hint": 1}


async def test_an_answer_to_nobody_is_passed_over(pool: McpUpstreams) -> None:
    endpoint = stdio()
    assert (await failure(pool, endpoint, "wrong_id", 0.3)).code == "mcp.timeout"
    assert await call(pool, endpoint, "echo", a=1) == {"a": 1}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b'{"jsonrpc":"2.0","id":@ID@,"result":"text"}', "mcp.protocol_error"),
        (b'{"jsonrpc":"2.0","id":@ID@,"result":null}', "mcp.protocol_error"),
        (b'{"jsonrpc":"2.0","id":@ID@,"result":{"content":"text"}}', "mcp.protocol_error"),
        (b'{"jsonrpc":"2.0","id":@ID@,"result":{"content":[],"isError":"no"}}', "mcp.protocol_error"),
        (b'{"jsonrpc":"2.0","id":@ID@,"result":{"content":[{"text":"\xff\xfe"}]}}', "mcp.protocol_error"),
        (b'{"jsonrpc":"2.0","id":@ID@,"result":{"resultType":"input_required"}}', "mcp.protocol_error"),
        (b'{"jsonrpc":"2.0","id":@ID@,"error":{"code":5,"message":null}}', "mcp.rpc_error"),
    ],
)
async def test_a_malformed_answer_fails_its_call_only(pool: McpUpstreams, answer: bytes, code: str) -> None:
    endpoint = stdio()
    error = await failure(pool, endpoint, "raw", base64=base64.b64encode(answer).decode())
    assert error.code == code
    assert await call(pool, endpoint, "echo", a=1) == {"a": 1}


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (b'{"id":@ID@,"result":{"structuredContent":{"a":1}}}', b'{"content":[],"structuredContent":{"a":1}}'),
        (b'{"id":@ID@,"result":{}}', b'{"content":[]}'),
        (b'{"id":"@ID@","result":{"content":[], "isError":null}}', b'{"content":[], "isError":null}'),
        (b'[{"id":@ID@,"result":{"content":[]}}]', b'{"content":[]}'),
        (b'{"id":@ID@,"result":{"content":[]},"error":null}', b'{"content":[]}'),
    ],
)
async def test_small_sins_are_forgiven(pool: McpUpstreams, answer: bytes, result: bytes) -> None:
    arguments = json.dumps({"base64": base64.b64encode(answer).decode()}).encode()
    assert (await pool.call_tool(stdio(), "raw", arguments, timeout_s=10)).result == result


async def test_a_last_answer_without_a_line_end_counts(pool: McpUpstreams) -> None:
    assert await call(pool, stdio(), "last_words") == "bye"


async def test_chatter_on_standard_output_is_passed_over(pool: McpUpstreams) -> None:
    endpoint = stdio("init=babble")
    assert await call(pool, endpoint, "babble", lines=500) == "ok"


async def test_endless_chatter_is_a_protocol_error_that_quotes_it(pool: McpUpstreams) -> None:
    endpoint = stdio()
    error = await failure(pool, endpoint, "babble", lines=5000)
    assert error.code == "mcp.protocol_error"
    assert "just saying" in error.message
    assert await call(pool, endpoint, "echo", a=1) == {"a": 1}


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id_last", [False, True])
async def test_a_message_over_the_limit_fails_its_call_and_the_server_lives_on(
    make_pool: MakePool, *, id_last: bool
) -> None:
    pool = make_pool(max_message_bytes=100_000)
    endpoint = stdio()
    pid = await call(pool, endpoint, "pid")
    other = asyncio.create_task(pool.call_tool(endpoint, "hang", b"{}", timeout_s=30))
    error = await failure(pool, endpoint, "big", size=1_000_000, id_last=id_last)
    assert error.code == "mcp.too_large"
    assert not other.done()
    assert await call(pool, endpoint, "pid") == pid
    other.cancel()
    await asyncio.wait({other})


async def test_a_large_message_that_names_no_call_ends_the_server(make_pool: MakePool) -> None:
    pool = make_pool(max_message_bytes=100_000)
    endpoint = stdio()
    assert (await failure(pool, endpoint, "big", size=200_000, no_id=True)).code == "mcp.too_large"
    assert await call(pool, endpoint, "echo", a=1) == {"a": 1}


async def test_a_line_that_never_ends_is_given_up(make_pool: MakePool) -> None:
    pool = make_pool(max_message_bytes=100_000)
    endpoint = stdio()
    pid = await call(pool, endpoint, "pid")
    assert (await failure(pool, endpoint, "endless")).code == "mcp.too_large"
    await until(lambda: not running(pid))
    assert await call(pool, endpoint, "echo", a=1) == {"a": 1}


async def test_a_large_message_under_the_limit_arrives_whole(pool: McpUpstreams) -> None:
    answer = await pool.call_tool(stdio(), "big", b'{"size":5000000}', timeout_s=20)
    assert len(answer.result) > 5_000_000


# -- processes ---------------------------------------------------------------------------------------------------------


async def test_a_command_that_does_not_exist_is_named(pool: McpUpstreams) -> None:
    endpoint = McpEndpoint("none", "stdio", command="no-such-program-here", args=("--token", "s3cret"))
    error = await failure(pool, endpoint, "echo")
    assert error.code == "mcp.unreachable"
    assert error.message == "'no-such-program-here' cannot be started: there is no such program on this machine's PATH"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"command": "/nowhere/server"}, "No such file"),
        ({"command": str(SERVERS / "sdk.py")}, "Permission denied"),
        ({"command": sys.executable, "cwd": "/nowhere"}, "working directory /nowhere does not exist"),
        ({"command": sys.executable, "args": ("a\0b",)}, "null byte"),
        ({}, "no command"),
    ],
)
async def test_what_cannot_be_started_says_why(pool: McpUpstreams, fields: dict[str, Any], reason: str) -> None:
    error = await failure(pool, McpEndpoint("bad", "stdio", **fields), "echo")
    assert error.code == "mcp.unreachable"
    assert reason in error.message


async def test_a_server_that_dies_at_once_is_quoted_without_its_secrets_and_left_alone(make_pool: MakePool) -> None:
    pool = make_pool(backoff_s=60)
    endpoint = stdio("init=die", env=(("SECRET", "tr0ub4dor"),))
    errors = await asyncio.gather(*[failure(pool, endpoint, "echo") for _ in range(3)])
    for error in [*errors, await failure(pool, endpoint, "echo")]:
        assert error.code == "mcp.process_exited"
        assert error.message.endswith("exited with status 3: cannot find the token ***")
        assert error.details == {"status": 3}


async def test_after_the_back_off_a_dead_server_is_tried_again(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(backoff_s=0.01)
    flag = tmp_path / "ready"
    code = (
        f"import os, sys\nif not os.path.exists({str(flag)!r}): sys.exit('not ready')\nexec(open(sys.argv[1]).read())"
    )
    endpoint = McpEndpoint("later", "stdio", command=sys.executable, args=("-c", code, str(SERVERS / "raw_stdio.py")))
    assert "not ready" in (await failure(pool, endpoint, "echo")).message
    flag.touch()
    async with asyncio.timeout(10):
        while True:
            try:
                assert await call(pool, endpoint, "echo", a=1) == {"a": 1}
                break
            except McpUpstreamError:
                await asyncio.sleep(0.01)


async def test_a_server_that_hangs_while_starting_is_a_timeout(make_pool: MakePool) -> None:
    pool = make_pool(open_timeout_s=0.5)
    endpoint = stdio("init=hang")
    error = await failure(pool, endpoint, "echo", 0.1)
    assert (error.code, "still starting" in error.message) == ("mcp.timeout", True)
    error = await failure(pool, endpoint, "echo", 5)
    assert (error.code, "initialize" in error.message) == ("mcp.timeout", True)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("die", "exited with status 4: the disk is full"),
        ("killed", "was killed by SIGKILL without a word on standard error"),
        ("close_stdout", "closed its standard output without a word on standard error"),
    ],
)
async def test_a_death_fails_every_call_in_flight_and_the_next_call_starts_anew(
    make_pool: MakePool, way: str, words: str
) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    pool = make_pool(on_tools_changed=told.put_nowait)
    endpoint = stdio()
    await call(pool, endpoint, "echo")
    waiting = asyncio.create_task(failure(pool, endpoint, "hang", 30))
    await call(pool, endpoint, "echo")
    for error in [await failure(pool, endpoint, way), await waiting]:
        assert error.code == "mcp.process_exited"
        assert error.message.endswith(words)
    assert await call(pool, endpoint, "echo", a=1) == {"a": 1}
    assert await asyncio.wait_for(told.get(), 10) == endpoint.key  # another process may have other tools


async def test_a_server_that_answers_nothing_any_more_is_replaced(make_pool: MakePool) -> None:
    pool = make_pool(liveness_s=0.2)
    endpoint = stdio()
    pid = await call(pool, endpoint, "pid")
    os.kill(pid, signal.SIGSTOP)
    assert (await failure(pool, endpoint, "echo", 0.2)).code == "mcp.timeout"
    await until(lambda: any(task.get_name().startswith("stop ") for task in asyncio.all_tasks()))
    os.kill(pid, signal.SIGCONT)
    assert await call(pool, endpoint, "pid") != pid


async def test_a_call_that_takes_too_long_does_not_end_a_server_that_still_answers(make_pool: MakePool) -> None:
    pool = make_pool(liveness_s=5)
    endpoint = stdio()
    pid = await call(pool, endpoint, "pid")
    assert (await failure(pool, endpoint, "hang", 0.05)).code == "mcp.timeout"
    await until(lambda: not any(task.get_name().startswith("check ") for task in asyncio.all_tasks()))
    assert await call(pool, endpoint, "pid") == pid


async def test_a_server_that_does_not_read_is_a_timeout(make_pool: MakePool) -> None:
    pool = make_pool(liveness_s=60)
    endpoint = stdio()
    pid = await call(pool, endpoint, "pid")
    os.kill(pid, signal.SIGSTOP)
    arguments = json.dumps({"x": "y" * 2_000_000}).encode()
    calls = [pool.call_tool(endpoint, "echo", arguments, timeout_s=0.3) for _ in range(3)]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [getattr(error, "code", error) for error in errors] == ["mcp.timeout"] * 3
    os.kill(pid, signal.SIGCONT)


async def test_an_idle_server_is_stopped_with_all_it_started(make_pool: MakePool) -> None:
    pool = make_pool(idle_s=0.1)
    endpoint = stdio()
    pids = await call(pool, endpoint, "pids")
    await until(lambda: not any(map(running, pids)))
    assert (await call(pool, endpoint, "pids"))[0] != pids[0]


async def test_a_server_in_use_is_not_idle(make_pool: MakePool) -> None:
    pool = make_pool(idle_s=0.02)
    endpoint = stdio()
    pid = await call(pool, endpoint, "pid")
    slow = asyncio.create_task(failure(pool, endpoint, "hang", 0.4))
    assert (await slow).code == "mcp.timeout"
    assert pid


async def test_dropping_an_endpoint_ends_its_server_and_fails_its_calls(pool: McpUpstreams) -> None:
    endpoint = stdio()
    pids = await call(pool, endpoint, "pids")
    waiting = asyncio.create_task(failure(pool, endpoint, "hang", 30))
    await call(pool, endpoint, "echo")
    await pool.drop(endpoint.key)
    assert (await waiting).code == "mcp.closed"
    assert not any(map(running, pids))


async def test_dropping_an_endpoint_while_it_starts_ends_that(pool: McpUpstreams) -> None:
    endpoint = stdio("init=hang")
    waiting = asyncio.create_task(failure(pool, endpoint, "echo", 30))
    await until(lambda: any(task.get_name().startswith("open ") for task in asyncio.all_tasks()))
    await pool.drop(endpoint.key)
    assert (await waiting).code == "mcp.closed"


async def test_after_closing_nothing_is_started(pool: McpUpstreams) -> None:
    await pool.close()
    assert (await failure(pool, stdio(), "echo")).code == "mcp.closed"


async def test_a_stubborn_server_is_killed_with_its_children(make_pool: MakePool) -> None:
    pool = make_pool()
    pids = await call(pool, stdio("stubborn"), "pids")
    await pool.close()
    assert not any(map(running, pids))


async def test_cancelling_the_first_caller_does_not_fail_the_second(pool: McpUpstreams) -> None:
    endpoint = stdio()
    first = asyncio.create_task(pool.call_tool(endpoint, "echo", b"{}", timeout_s=10))
    second = asyncio.create_task(call(pool, endpoint, "echo", a=1))
    await until(lambda: any(task.get_name().startswith("open ") for task in asyncio.all_tasks()))
    first.cancel()
    assert await second == {"a": 1}


async def test_a_server_sees_only_what_it_needs_of_our_environment(make_pool: MakePool) -> None:
    ours = {
        "PATH": os.environ["PATH"],
        "LC_TIME": "C",
        "XDG_CACHE_HOME": "/x",
        "https_proxy": "http://proxy",
        "AWS_SECRET_ACCESS_KEY": "s",
        "TOOLCRIB_DATABASE_DSN": "s",
        "LANG": "() { evil; }",
    }
    pool = make_pool(environment=ours, stdio_env_allow=("PATH", "LC_*", "XDG_*", "HTTPS_PROXY", "LANG", "TOOLCRIB_*"))
    seen = await call(pool, stdio(env=(("TOKEN", "given"), ("LC_TIME", "de"))), "env")
    seen = {name: value for name, value in seen.items() if name != "LC_CTYPE"}  # Python's own doing
    assert seen == {
        "PATH": f"{ours['PATH']}:{Path(sys.executable).parent}",
        "LC_TIME": "de",
        "XDG_CACHE_HOME": "/x",
        "https_proxy": "http://proxy",
        "TOKEN": "given",
    }
