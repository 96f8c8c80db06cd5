"""News that comes at a bad moment, or not at all: a revoked key stays revoked, a dead connection is found."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from toolcrib.api.sign_in import SignIn
from toolcrib.core.bus import RESYNC, Bus
from toolcrib.core.db import Database
from toolcrib.domain import access
from toolcrib.errors import Unauthenticated

DEADLINE_S = 10.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_look_up_that_began_before_a_revocation_is_not_kept_after_it(database: Database) -> None:
    async with database.tx() as tx:
        await access.install(tx, vault_key_id="v", admin_email="a@b.c", password_hash="x")
        admin = await access.find_admin(tx)
        assert admin
        key, secret = await access.create_api_key(tx, admin, name="k", scopes=["*"])
    sign_in = SignIn(database)
    async with database.tx() as tx:
        await access.revoke_api_key(tx, admin, key_id=key.id)
        # sees the key as it was, then waits for the row to note its use
        look_up = asyncio.create_task(sign_in.actor(f"Bearer {secret.text}", None))
        async with asyncio.timeout(DEADLINE_S):
            while not await database.pool.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ):
                await asyncio.sleep(0.005)
    await look_up  # began before the revocation
    with pytest.raises(Unauthenticated):
        await sign_in.actor(f"Bearer {secret.text}", None)


class _Wire:
    """A socket in front of PostgreSQL that can fall silent without closing, as a lost network path does."""

    def __init__(self) -> None:
        self.connections = 0
        self.silent_until = 0  # connections up to this one pass nothing on


@contextlib.asynccontextmanager
async def wire_to(dsn: str) -> AsyncIterator[tuple[str, _Wire]]:
    query = parse_qs(urlsplit(dsn).query)
    behind = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
    wire = _Wire()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    if number > wire.silent_until:
                        writer.write(data)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire.connections += 1
        number = wire.connections
        there, back = await asyncio.open_unix_connection(behind)
        for pair in ((reader, back), (there, writer)):
            task = asyncio.create_task(pump(number, *pair))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    with tempfile.TemporaryDirectory() as folder:
        server = await asyncio.start_unix_server(accept, Path(folder) / ".s.PGSQL.5432")
        try:
            yield dsn.replace(query["host"][0], folder).replace(f"port={query['port'][0]}", "port=5432"), wire
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_connection_for_news_that_fell_silent_is_replaced(database: Database) -> None:
    async with wire_to(database.dsn) as (dsn, wire):
        bus = Bus(dsn, quiet_s=0.02, answer_s=0.2)
        heard: list[str] = []
        bus.subscribe("topic", heard.append)
        await bus.start()
        try:
            assert bus.connected
            heard.clear()
            wire.silent_until = wire.connections
            await until(lambda: heard == [RESYNC])
            assert bus.connected
            async with database.tx() as tx:
                await tx.publish("topic", "again")
            await until(lambda: heard[-1] == "again")
        finally:
            await bus.stop()
