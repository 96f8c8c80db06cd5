"""What a hostile client or upstream may send, and what must not come of it."""

import asyncio
import contextlib
import json
from urllib.parse import urlsplit

import pytest

from serving import DEADLINE_S, Crib
from toolcrib.core.db import Database
from toolcrib.core.mcp_server.tool_result import tool_result
from toolcrib.core.template import PathTemplate, TemplateError
from toolcrib.core.vault import Vault, new_vault_key
from toolcrib.domain import access, tool_sets
from toolcrib.domain.adapters import McpAdapter

DEEP = "[" * 300 + "]" * 300


@pytest.fixture(scope="module")
async def tool(crib: Crib) -> str:
    """An HTTP tool whose upstream must not be reached."""
    tool_set = await crib.add_tool_set("Refused", {"http": {"baseUrl": "http://127.0.0.1:9"}})
    await crib.add_http_tool(tool_set["metadata"]["id"], "never", {"requestMethod": "POST", "path": "/"})
    return "never"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ('{"path": "/etc/shadow", "path": "/tmp/x"}', "arguments.repeated"),
        ('{"a": [{"b": 1, "b": 2}]}', "arguments.repeated"),
        (r'{"a": 1, "\u0061": 2}', "arguments.repeated"),
        ('{"a": ' + DEEP + "}", "arguments.too_deep"),
    ],
)
async def test_arguments_that_upstreams_may_read_otherwise_are_refused_and_recorded(
    crib: Crib, tool: str, arguments: str, code: str
) -> None:
    before = len(await crib.audit(limit=200))
    response = await crib.http.post(f"/api/tools/{tool}/call", content=f'{{"arguments": {arguments}}}')
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)
    rows = await crib.audit(limit=200)
    assert (len(rows), rows[0]["error_code"]) == (before + 1, code)


async def test_arguments_may_be_written_with_blanks_and_escapes(crib: Crib, tool: str) -> None:
    content = json.dumps({"arguments": {"ä": [1.50, {"b": "\n"}], "c": 10**18}}, indent=2)
    response = await crib.http.post(f"/api/tools/{tool}/call", content=content)
    assert response.status_code == 200  # the upstream is not there, and that is a result


@pytest.mark.parametrize("value", ["../admin", "a/../../b", "a/..", "./a", "..\\admin"])
def test_a_path_value_cannot_climb_even_where_a_server_decodes_slashes(value: str) -> None:
    with pytest.raises(TemplateError, match="segments"):
        PathTemplate.compile("/users/{id}").render({"id": value})


@pytest.mark.parametrize("value", ["a..b", "...", "v1.2/x", ".hidden"])
def test_dots_inside_a_path_value_are_fine(value: str) -> None:
    PathTemplate.compile("/users/{id}").render({"id": value})


@pytest.mark.parametrize("charset", ["punycode", "PUNYCODE", "idna", "unicode-escape", "raw_unicode_escape"])
def test_a_body_in_an_encoding_that_only_python_knows_is_left_as_it_is(charset: str) -> None:
    body, _ = tool_result(200, f"text/plain; charset={charset}", b"a" * 500_000 + b"-" + b"b" * 500_000)
    assert b'"blob":' in body


async def test_a_head_without_end_is_cut_off(crib: Crib) -> None:
    port = urlsplit(crib.url).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")

    async def go_on() -> None:
        while not reader.at_eof():
            writer.write(b"X: " + b"a" * 1000 + b"\r\n")
            await writer.drain()

    async with asyncio.timeout(DEADLINE_S):
        with contextlib.suppress(ConnectionError):
            await go_on()
    writer.close()


async def test_a_server_that_always_says_that_its_tools_changed_is_heard_a_few_times_a_minute(
    database: Database,
) -> None:
    vault = Vault(new_vault_key(), ())
    async with database.tx() as tx:
        await access.install(tx, vault_key_id="v", admin_email="a@b.c", password_hash="x")
        admin = await access.find_admin(tx)
        assert admin
        draft = tool_sets.ToolSetDraft("Storm", adapter=McpAdapter(url="http://127.0.0.1:9/mcp"))
        tool_set = await tool_sets.create_tool_set(tx, admin, vault=vault, draft=draft)
        await tx.execute("DELETE FROM job")
    waits = []
    for _ in range(8):
        async with database.tx() as tx:
            await tool_sets.enqueue_sync_of(tx, tool_set_id=tool_set.identity.id)
            waits.append(await tx.fetchval("SELECT run_at > now() + interval '30 s' FROM job"))
            await tx.execute("DELETE FROM job")
            await tool_sets.add_event(tx, admin, tool_set_id=tool_set.identity.id, kind="sync_started", payload={})
    assert waits == [False] * 6 + [True] * 2


async def test_events_of_tool_sets_are_forgotten_after_their_time(database: Database) -> None:
    vault = Vault(new_vault_key(), ())
    async with database.tx() as tx:
        await access.install(tx, vault_key_id="v", admin_email="a@b.c", password_hash="x")
        admin = await access.find_admin(tx)
        assert admin
        tool_set = await tool_sets.create_tool_set(tx, admin, vault=vault, draft=tool_sets.ToolSetDraft("Old"))
        for _ in range(2):
            await tool_sets.add_event(tx, admin, tool_set_id=tool_set.identity.id, kind="sync_started", payload={})
        await tx.execute(
            "UPDATE tool_set_event SET created_at = now() - interval '91 days'"
            " WHERE id = (SELECT min(id) FROM tool_set_event)"
        )
        assert await tool_sets.prune_events(tx, older_than_days=90) == 1
        assert await tx.fetchval("SELECT count(*) FROM tool_set_event") == 1
