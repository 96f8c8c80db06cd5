"""A real PostgreSQL for every test that asks for one.

One server per test process, started when the first test needs it; one fresh database per test, copied from a template
that the real migrations made. The server's folder lies in memory where there is room, and it does not sync to disk:
that changes what a power cut would lose, nothing that a test can see. `core/test_postgres.py` uses the real settings.
"""

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import settings

from serving import Crib, crib_on
from toolcrib.core.db import Database
from toolcrib.core.migrate import migrate
from toolcrib.core.postgres import EmbeddedPostgres

_TEMPLATE = "toolcrib_template"
_ROOM = 2_000_000_000  # bytes

settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")

MakeDatabase = Callable[[], Awaitable[Database]]


@contextlib.contextmanager
def _temporary_data_dir() -> Iterator[Path]:
    """A data folder that accounts other than root can pass through, in memory where there is room."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > _ROOM
    folder = Path(tempfile.mkdtemp(prefix="toolcrib-test-", dir=memory if roomy else None))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        for pointer in folder.rglob("postgres.location"):  # the cluster was put elsewhere
            cluster = Path(pointer.read_text("utf-8").splitlines()[0])
            shutil.rmtree(cluster, ignore_errors=True)
            cluster.with_name(cluster.name + ".lock").unlink(missing_ok=True)
        shutil.rmtree(folder)


def _dsn_of(dsn: str, database: str) -> str:
    """The same server, another database."""
    return dsn.replace("/toolcrib?", f"/{database}?")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty data folder; where an embedded server makes its cluster is removed with it."""
    with _temporary_data_dir() as folder:
        yield folder


@pytest.fixture(scope="session")
async def postgres_dsn() -> AsyncIterator[str]:
    """A running server that has the migrated template; the DSN names an empty database."""
    with _temporary_data_dir() as folder:
        server = EmbeddedPostgres(folder, settings={"fsync": "off", "full_page_writes": "off"})
        dsn = await server.start()
        try:
            conn = await asyncpg.connect(dsn)
            await conn.execute(f"CREATE DATABASE {_TEMPLATE}")
            await conn.close()
            await migrate(_dsn_of(dsn, _TEMPLATE))
            yield dsn
        finally:
            await server.stop()


@pytest.fixture
async def make_database(postgres_dsn: str) -> AsyncIterator[MakeDatabase]:
    """Make as many fresh, opened databases as a test needs."""
    made: list[tuple[str, Database]] = []

    async def make() -> Database:
        name = f"test_{len(made)}"
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE} STRATEGY FILE_COPY")
        database = Database(_dsn_of(postgres_dsn, name))
        made.append((name, database))
        await database.open()
        return database

    admin = await asyncpg.connect(postgres_dsn)
    try:
        yield make
    finally:
        for name, database in made:
            await database.close()
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


@pytest.fixture
async def database(make_database: MakeDatabase) -> Database:
    """A fresh, migrated, opened database."""
    return await make_database()


@pytest.fixture(scope="module")
async def crib(postgres_dsn: str) -> AsyncIterator[Crib]:
    """The shipped server on a fresh database, shared by the tests of a module; keep to your own tool sets in it."""
    async with make_crib(postgres_dsn) as running:
        yield running


@contextlib.asynccontextmanager
async def make_crib(postgres_dsn: str, **settings: Any) -> AsyncIterator[Crib]:
    """The shipped server on a fresh database, with settings."""
    name = f"crib_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(postgres_dsn)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE} STRATEGY FILE_COPY")
    try:
        with _temporary_data_dir() as folder:
            async with crib_on(_dsn_of(postgres_dsn, name), folder, **settings) as running:
                yield running
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


@pytest.fixture
async def fresh_dsn(postgres_dsn: str) -> AsyncIterator[str]:
    """The DSN of an empty database, for processes that migrate it themselves."""
    name = f"empty_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(postgres_dsn)
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        yield _dsn_of(postgres_dsn, name)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()
