"""Brings the database to the schema of this version: numbered SQL files, each in a transaction of its own.

One process migrates at a time (advisory lock); the others wait, then find nothing to do. A file that was applied and
has changed since is refused: a change of schema is a new file.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources

import asyncpg

OLDEST_POSTGRES = 15  # the first that knows UNIQUE ... NULLS NOT DISTINCT
_LOCK = 0x746F6F6C  # "tool"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `toolcrib/migrations`."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All files, in order."""
    folder = resources.files("toolcrib") / "migrations"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [Migration(int(f.name.partition("_")[0]), f.name, f.read_text("utf-8")) for f in files]


class SchemaMismatch(Exception):
    """The database was migrated by another version of these files."""


async def migrate(dsn: str) -> list[str]:
    """Apply what is missing; returns the names of the files applied.

    Raises:
        SchemaMismatch: a file applied earlier differs now, the database is newer than this version, or PostgreSQL is
            too old.
    """
    conn = await asyncpg.connect(dsn, timeout=10, server_settings={"application_name": "toolcrib migrate"})
    try:
        if (version := conn.get_server_version()).major < OLDEST_POSTGRES:
            raise SchemaMismatch(f"it is PostgreSQL {version.major}, and {OLDEST_POSTGRES} or newer is needed")
        await conn.execute("SELECT pg_advisory_lock($1)", _LOCK)
        await conn.execute("SET lock_timeout = '10s'")
        return await _apply(conn)
    finally:
        await conn.close()


async def pending_migrations(conn: asyncpg.Connection) -> list[Migration]:
    """The files that were not applied yet, in order; changes nothing.

    Raises:
        SchemaMismatch: as `migrate`.
    """
    done = {}
    if await conn.fetchval("SELECT to_regclass('schema_migration') IS NOT NULL"):
        done = {r["version"]: r for r in await conn.fetch("SELECT version, name, checksum FROM schema_migration")}
    known = migrations()
    if done and max(done) > max(m.version for m in known):
        raise SchemaMismatch(f"the database has migration {max(done)}, this version knows {known[-1].version}: upgrade")
    for migration in known:
        if (row := done.get(migration.version)) and row["checksum"] != migration.checksum:
            raise SchemaMismatch(f"{migration.name} was applied with another text")
    return [migration for migration in known if migration.version not in done]


async def _apply(conn: asyncpg.Connection) -> list[str]:
    await conn.execute(
        "CREATE TABLE IF NOT EXISTS schema_migration ("
        " version integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT now())"
    )
    applied = []
    for migration in await pending_migrations(conn):
        async with conn.transaction():
            await conn.execute(migration.sql)
            await conn.execute(
                "INSERT INTO schema_migration (version, name, checksum) VALUES ($1, $2, $3)",
                migration.version,
                migration.name,
                migration.checksum,
            )
        applied.append(migration.name)
    return applied
