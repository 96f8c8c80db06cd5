"""PostgreSQL cuts every connection: calls are recorded again as soon as it answers again."""

import asyncio

from serving import DEADLINE_S, Crib


async def test_calls_go_on_after_every_connection_to_the_database_was_cut(crib: Crib) -> None:
    tool_set = await crib.add_tool_set("Cut", {"http": {"baseUrl": "http://127.0.0.1:9"}})
    await crib.add_http_tool(tool_set["metadata"]["id"], "cut", {"requestMethod": "GET", "path": "/"})
    assert (await crib.call("cut")).status_code == 200
    await crib.parts.deps.database.pool.fetch(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'toolcrib%'"
    )
    async with asyncio.timeout(DEADLINE_S):
        while (status := (await crib.call("cut")).status_code) != 200:
            assert status == 503
            await asyncio.sleep(0.02)
    assert len(await crib.audit(tool="cut")) >= 2
