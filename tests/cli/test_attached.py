"""A server that attached to a PostgreSQL which another process started keeps working when that process ends."""

import asyncio
import time

import httpx

from clitools import data_folder, up
from toolcrib.core.postgres import EmbeddedPostgres

DEADLINE_S = 30


async def test_a_server_takes_over_the_database_from_the_process_that_started_it() -> None:
    with data_folder() as folder:
        postgres = EmbeddedPostgres(folder)
        await postgres.start()
        try:
            with up(folder) as crib:
                await postgres.stop()
                async with httpx.AsyncClient(base_url=crib.url, timeout=DEADLINE_S) as http:
                    until = time.monotonic() + DEADLINE_S
                    while (answer := await http.get("/api/ready")).status_code != 200:
                        assert time.monotonic() < until, answer.text
                        await asyncio.sleep(0.05)
                    made = await asyncio.to_thread(crib.run, "key", "create", "--name", "after")
                    assert made.json["api_key"]
        finally:
            await postgres.stop()
