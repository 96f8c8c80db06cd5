"""The record of tool calls: one row for every call, whatever became of it, and no success without one."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from raw_upstream import Reader, Upstream, Writer, answering, hanging, ok, upstream
from serving import DEADLINE_S, Crib, crib_on
from toolcrib.core.db import Database
from toolcrib.core.postgres import EmbeddedPostgres
from toolcrib.domain.audit import prune_tool_calls
from toolcrib.queue.queue import enqueue

GET: dict[str, Any] = {"requestMethod": "GET"}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}
NEEDS_N = {**SCHEMA, "required": ["n"]}


async def add(crib: Crib, name: str, url: str, **spec: Any) -> str:
    """The id of an HTTP tool of this name, alone in a tool set."""
    tool_set = (await crib.add_tool_set(name, {"http": {"baseUrl": url}}))["metadata"]["id"]
    return str((await crib.add_http_tool(tool_set, name, GET, **spec))["metadata"]["id"])


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Poll the database, which announces nothing here."""
    async with asyncio.timeout(DEADLINE_S):
        while not (found := await condition()):
            await asyncio.sleep(0.01)
    return found


async def test_a_call_that_went_well_is_recorded_with_its_facts(crib: Crib) -> None:
    async with upstream(answering(ok(b'{"a": 1}'))) as served:
        tool = await add(crib, "well", served.url, parameters=SCHEMA)
        before = datetime.now(UTC)
        headers = {"X-Request-Id": "trace-7"}
        response = await crib.http.post("/api/tools/well/call", json={"arguments": {"n": 1}}, headers=headers)
    (row,) = await crib.audit(tool="well")
    assert (row["outcome"], row["error_code"], row["door"], row["request_id"]) == ("ok", None, "rest", "trace-7")
    assert (row["tool_id"], row["arguments"]) == (tool, {"n": 1})
    assert row["tool_set_id"].startswith("toolset_")
    assert row["principal"] == "first key"
    assert row["api_key_id"].startswith("apikey_")
    assert row["result_bytes"] == len(response.content) - len(b'{"data":}')
    assert 0 < row["duration_ms"] < 10_000
    called_at = datetime.fromisoformat(row["called_at"])
    assert before.timestamp() - 1 < called_at.timestamp() <= datetime.now(UTC).timestamp() + 1


@pytest.mark.parametrize(
    ("name", "answer", "outcome", "code"),
    [
        ("fails", b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "tool_error", ""),
        ("breaks", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "upstream_error", "outbound."),
    ],
)
async def test_what_an_upstream_made_of_a_call_is_recorded(
    crib: Crib, name: str, answer: bytes, outcome: str, code: str
) -> None:
    async with upstream(answering(answer)) as served:
        await add(crib, name, served.url)
        assert (await crib.call(name)).json()["data"]["isError"] is True
    (row,) = await crib.audit(tool=name)
    assert row["outcome"] == outcome
    assert (row["error_code"] or "").startswith(code)
    assert row["result_bytes"] > 0


async def test_every_refusal_is_recorded(crib: Crib) -> None:
    await add(crib, "strict", "http://127.0.0.1:9", parameters=NEEDS_N)
    await add(crib, "guarded", "http://127.0.0.1:9", requiresApproval=True)
    async with crib.as_(await crib.key("audit:read")) as http:
        for path in ("/api/tools/strict/call", "/v1/tool_sets/x/tools/y:call"):
            assert (await http.post(path, json={"arguments": {"n": 1}})).status_code == 403
    assert (await crib.call("strict", {"n": "one"})).status_code == 400
    assert (await crib.http.post("/api/tools/strict/call", json={"arguments": [1]})).status_code == 400
    assert (await crib.call("guarded")).status_code == 403
    assert (await crib.call("no such tool")).status_code == 404
    rows = (await crib.audit(outcome="refused", limit=6))[::-1]
    assert [(row["tool"], row["error_code"]) for row in rows] == [
        ("strict", "scope.missing"),
        ("y", "scope.missing"),
        ("strict", "arguments.invalid"),
        ("strict", "arguments.not_object"),
        ("guarded", "approval.required"),
        ("no such tool", "tool.unknown"),
    ]
    assert rows[0]["principal"] == "test"
    assert {row["result_bytes"] for row in rows} == {0}


async def test_the_door_is_recorded(crib: Crib) -> None:
    async with upstream(answering(ok(b"x"), keep=True)) as served:
        await add(crib, "doors", served.url)
        await crib.call("doors")
        await crib.rpc("tools/call", {"name": "doors", "arguments": {}})
    assert [row["door"] for row in await crib.audit(tool="doors")] == ["mcp", "rest"]


async def test_nobody_knows_a_call_without_a_key(crib: Crib) -> None:
    before = (await crib.http.get("/api/tool-calls")).json()["meta"]["total"]
    async with crib.as_(None) as http:
        assert (await http.post("/api/tools/x/call", json={})).status_code == 401
    assert (await crib.http.get("/api/tool-calls")).json()["meta"]["total"] == before


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"password": "p", "n": 1}, {"password": "[hidden]", "n": 1}),
        (
            {"deep": [{"apiKey": "k", "Authorization": {"any": "thing"}}]},
            {"deep": [{"apiKey": "[hidden]", "Authorization": "[hidden]"}]},
        ),
        ({"text": "use Bearer abcdefgh at http://u:secret@h"}, {"text": "use Bearer [hidden] at http://u:[hidden]@h"}),
        ({"token": None, "none": None}, {"token": None, "none": None}),
        ({"nul": "a\0b", "ü": "\u2028"}, {"nul": "a\ufffdb", "ü": "\u2028"}),
        ({"long": "x" * 9000}, {"truncated": True, "bytes": 9011}),
        ({}, {}),
    ],
)
async def test_arguments_are_kept_without_secrets(crib: Crib, arguments: dict[str, Any], kept: dict[str, Any]) -> None:
    if (await crib.call("keeps")).status_code == 404:
        await add(crib, "keeps", "http://127.0.0.1:9")
    content = httpx.Request("POST", "http://x", json={"arguments": arguments}).content
    assert (await crib.http.post("/api/tools/keeps/call", content=content)).status_code == 200
    assert (await crib.audit(tool="keeps", limit=1))[0]["arguments"] == kept


async def test_a_key_in_arguments_is_nowhere_in_the_database(crib: Crib) -> None:
    await crib.call("whatever", {"note": f"my key is {crib.api_key}"})
    pool = crib.parts.deps.database.pool
    assert await pool.fetchval("SELECT count(*) FROM tool_call WHERE arguments::text LIKE '%my key is%'") == 1
    assert await pool.fetchval("SELECT count(*) FROM tool_call WHERE arguments::text LIKE $1", f"%{crib.api_key}%") == 0


async def test_two_hundred_calls_at_once_leave_two_hundred_rows(crib: Crib) -> None:
    async with upstream(answering(ok(b"x"), keep=True)) as served:
        await add(crib, "crowd", served.url)
        answers = await asyncio.gather(*(crib.call("crowd", {"i": i}) for i in range(200)))
    assert {answer.status_code for answer in answers} == {200}
    rows = await crib.audit(tool="crowd", limit=500)
    assert sorted(row["arguments"]["i"] for row in rows) == list(range(200))
    assert {row["outcome"] for row in rows} == {"ok"}
    assert len({row["request_id"] for row in rows}) == 200


async def test_a_call_whose_caller_went_away_is_recorded_as_cancelled(crib: Crib) -> None:
    async with upstream(hanging(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nha")) as served:
        await add(crib, "left", served.url)
        calling = asyncio.create_task(crib.call("left", {"n": 1}))
        await until(lambda: requested(served))
        calling.cancel()
        await asyncio.wait({calling})
        (row,) = await until(lambda: crib.audit(tool="left"))
        await asyncio.wait_for(served.peer_gone.wait(), DEADLINE_S)  # and the upstream was let go
    assert (row["outcome"], row["error_code"], row["arguments"]) == ("cancelled", "call.cancelled", {"n": 1})


async def requested(served: Upstream) -> bool:
    """Whether a request has arrived."""
    return bool(served.requests)


# ---- a database that fails -------------------------------------------------------------------------------------------


async def test_a_call_that_cannot_be_recorded_is_no_success(crib: Crib) -> None:
    pool = crib.parts.deps.database.pool

    async def spoil(served: Upstream, reader: Reader, writer: Writer) -> None:
        await served.request(reader)
        await pool.execute("ALTER TABLE tool_call RENAME TO tool_call_gone")
        writer.write(ok(b"done"))

    async with upstream(spoil) as served:
        await add(crib, "spoiled", served.url)
        try:
            response = await crib.call("spoiled")
            by_mcp = await crib.rpc("tools/call", {"name": "no such tool", "arguments": {}})
        finally:
            await pool.execute("ALTER TABLE tool_call_gone RENAME TO tool_call")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "audit.unavailable")
    assert "done" not in response.text
    assert "result" not in by_mcp
    assert await crib.audit(tool="spoiled") == []


async def test_a_database_killed_during_a_call_withholds_its_result(data_dir: Path, tmp_path: Path) -> None:
    postgres = EmbeddedPostgres(data_dir, settings={"fsync": "off"})
    dsn = await postgres.start()

    async def kill(served: Upstream, reader: Reader, writer: Writer) -> None:
        await served.request(reader)
        await postgres.stop()
        writer.write(ok(b"done"))

    try:
        async with crib_on(dsn, tmp_path / "crib") as crib, upstream(kill) as served:
            await add(crib, "killed", served.url)
            response = await crib.call("killed")
            assert (response.status_code, response.json()["error"]["code"]) == (503, "audit.unavailable")
            assert "done" not in response.text
            assert (await crib.call("killed")).status_code == 503
            listed = await crib.http.get("/v1/tool_sets")
            assert (listed.status_code, listed.json()["code"]) == (503, 14)
            assert (await crib.http.get("/api/health")).status_code == 503
    finally:
        await postgres.stop()


# ---- reading and forgetting ------------------------------------------------------------------------------------------


async def test_calls_are_found_by_tool_set_and_outcome_and_paged(crib: Crib) -> None:
    await add(crib, "found", "http://127.0.0.1:9", parameters=NEEDS_N)
    for i in range(3):
        await crib.call("found", {"n": i})
    await crib.call("found", {})
    newest_first = [row["arguments"] for row in await crib.audit(tool="found")]
    assert newest_first == [{}, {"n": 2}, {"n": 1}, {"n": 0}]
    page = (await crib.http.get("/api/tool-calls", params={"tool": "found", "limit": 2, "offset": 1})).json()
    assert [row["arguments"] for row in page["data"]] == [{"n": 2}, {"n": 1}]
    assert page["meta"] == {"total": 4, "limit": 2, "offset": 1}
    assert len(await crib.audit(tool="found", outcome="refused")) == 1
    assert len(await crib.audit(tool_set_id=page["data"][0]["tool_set_id"])) == 4
    for query in ({"outcome": "fine"}, {"limit": 0}, {"limit": 501}, {"offset": -1}, {"limit": "x"}, {"tool": "\0"}):
        assert (await crib.http.get("/api/tool-calls", params=query)).status_code == 400


async def test_calls_outlive_their_tool_and_belong_to_their_workspace(crib: Crib) -> None:
    tool = await add(crib, "outlived", "http://127.0.0.1:9")
    await crib.call("outlived")
    (row,) = await crib.audit(tool="outlived")
    await crib.http.delete(f"/v1/tool_sets/{row['tool_set_id']}")
    assert (await crib.audit(tool="outlived"))[0]["tool_id"] == tool
    async with crib.as_(await crib.other_workspace_key()) as http:
        assert (await http.get("/api/tool-calls")).json()["data"] == []
    async with crib.as_(await crib.key("tools:call")) as http:
        assert (await http.get("/api/tool-calls")).status_code == 403


_OLD_CALLS = (
    "INSERT INTO tool_call (workspace_id, principal_id, tool_name, door, outcome, request_id, called_at)"
    " SELECT 'w', 'p', 'old', 'rest', 'ok', i::text, now() - make_interval(days => i) FROM generate_series(1, 10) AS i"
)


async def test_calls_past_their_retention_are_forgotten_in_batches(database: Database) -> None:
    await database.pool.execute(_OLD_CALLS)
    deleted: list[int] = []
    while not deleted or deleted[-1]:
        async with database.tx() as tx:
            deleted.append(await prune_tool_calls(tx, older_than_days=5, batch=4))
    assert deleted == [4, 2, 0]
    kept = await database.pool.fetch("SELECT request_id FROM tool_call ORDER BY id")
    assert [row["request_id"] for row in kept] == ["1", "2", "3", "4"]


async def test_the_worker_forgets_them_when_the_keeper_asks(crib: Crib) -> None:
    pool: asyncpg.Pool = crib.parts.deps.database.pool
    await pool.execute(_OLD_CALLS.replace("days => i", "days => 89 + 2 * i"))
    async with crib.parts.deps.database.tx() as tx:
        await enqueue(tx, "audit.prune", {})
    await until(lambda: none_of(pool, "SELECT count(*) FROM tool_call WHERE tool_name = 'old'"))


async def none_of(pool: asyncpg.Pool, sql: str) -> bool:
    """Whether a count is zero."""
    return bool(await pool.fetchval(sql) == 0)
