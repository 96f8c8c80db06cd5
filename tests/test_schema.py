"""Facts about the schema that must stay true, and the rules of migrating to it."""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from conftest import MakeDatabase
from toolcrib.core import migrate as migrating
from toolcrib.core.db import Database
from toolcrib.core.migrate import Migration, SchemaMismatch, migrate, migrations, pending_migrations

# Tables without `workspace_id`, and why.
NO_WORKSPACE = {
    "account": "holds workspaces",
    "workspace": "is the workspace",
    "principal": "belongs to the account; joined to workspaces by workspace_member and api_key",
    "installation": "one row for the whole installation",
    "schema_migration": "about the database itself",
    "schedule_firing": "schedules of Toolcrib itself; a workspace's own ones will name theirs in schedule_id",
}
# Tables whose `workspace_id` may be null or points nowhere, and why.
LOOSE_WORKSPACE = {
    "tool_call": "the audit outlives what it tells of",
    "job": "some jobs are about no workspace, and finished ones outlive theirs",
}
# Foreign keys without an index that begins with them, and why a sequential scan never hurts.
KEPT = "principals are marked as deleted, never deleted"
UNINDEXED = {
    ("workspace_member", "principal_id"): KEPT,
    ("api_key", "principal_id"): KEPT,
    ("api_key", "created_by"): KEPT,
    ("tool_set", "created_by"): KEPT,
    ("tool", "created_by"): KEPT,
    ("tool_set_event", "created_by"): KEPT,
    ("tool_set_event", "workspace_id"): "workspaces are marked as deleted; events go with their tool set",
    ("principal", "account_id"): "accounts are never deleted",
}


async def tables(database: Database) -> dict[str, dict[str, Any]]:
    """The columns of every table, by name."""
    rows = await database.pool.fetch(
        "SELECT table_name, column_name, is_nullable = 'YES' AS nullable FROM information_schema.columns"
        " WHERE table_schema = 'public' ORDER BY 1, 2"
    )
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["table_name"], {})[row["column_name"]] = row
    return found


async def foreign_keys(database: Database) -> set[tuple[str, str, str]]:
    """Table, column and the table that it refers to."""
    rows = await database.pool.fetch(
        "SELECT conrelid::regclass::text AS t, attname, confrelid::regclass::text AS target FROM pg_constraint"
        " JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1] WHERE contype = 'f'"
    )
    return {(row["t"], row["attname"], row["target"]) for row in rows}


async def test_every_table_has_its_workspace_or_a_reason(database: Database) -> None:
    found = await tables(database)
    assert {name for name, columns in found.items() if "workspace_id" not in columns} == set(NO_WORKSPACE)


async def test_a_workspace_is_named_always_and_truly_or_there_is_a_reason(database: Database) -> None:
    pointing = {
        table
        for table, column, target in await foreign_keys(database)
        if (column, target) == ("workspace_id", "workspace")
    }
    for name, columns in (await tables(database)).items():
        if name not in NO_WORKSPACE and name not in LOOSE_WORKSPACE:
            assert name in pointing
            assert not columns["workspace_id"]["nullable"]


async def test_every_foreign_key_is_indexed_or_has_a_reason(database: Database) -> None:
    indexed = await database.pool.fetch(
        "SELECT indrelid::regclass::text AS t, attname FROM pg_index"
        " JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0] WHERE indpred IS NULL"
    )
    leading = {(row["t"], row["attname"]) for row in indexed}
    assert {(t, column) for t, column, _ in await foreign_keys(database)} - leading == set(UNINDEXED)


async def test_every_table_has_a_primary_key(database: Database) -> None:
    rows = await database.pool.fetch(
        "SELECT conrelid::regclass::text AS t FROM pg_constraint"
        " WHERE contype = 'p' AND connamespace = 'public'::regnamespace"
    )
    assert {row["t"] for row in rows} == set(await tables(database))


async def test_times_know_their_zone(database: Database) -> None:
    rows = await database.pool.fetch(
        "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
        " AND (data_type LIKE 'timestamp%' OR column_name LIKE '%\\_at')"
    )
    assert {row["data_type"] for row in rows} == {"timestamp with time zone"}
    assert [row["column_name"] for row in rows if not row["column_name"].endswith(("_at", "_until"))] == []


# ---- migrating -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def empty(postgres_dsn: str) -> Any:
    """The DSN of a database with nothing in it."""
    admin = await asyncpg.connect(postgres_dsn)
    await admin.execute("CREATE DATABASE empty")
    yield postgres_dsn.replace("/toolcrib?", "/empty?")
    await admin.execute("DROP DATABASE empty WITH (FORCE)")
    await admin.close()


async def test_an_empty_database_gets_every_migration_and_a_second_run_does_nothing(empty: str) -> None:
    assert await migrate(empty) == [m.name for m in migrations()]
    assert await migrate(empty) == []


async def test_processes_that_start_together_migrate_once(empty: str) -> None:
    applied = await asyncio.gather(*(migrate(empty) for _ in range(4)))
    assert sorted(map(len, applied)) == [0, 0, 0, len(migrations())]


async def test_a_changed_file_is_refused(make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    database = await make_database()
    known = migrations()
    changed = Migration(known[0].version, known[0].name, known[0].sql + "\n")
    monkeypatch.setattr(migrating, "migrations", lambda: [changed, *known[1:]])
    with pytest.raises(SchemaMismatch, match=changed.name):
        await migrate(database.dsn)


async def test_a_database_of_a_later_version_is_refused(make_database: MakeDatabase) -> None:
    database = await make_database()
    await database.pool.execute("INSERT INTO schema_migration (version, name, checksum) VALUES (9999, 'x', 'y')")
    with pytest.raises(SchemaMismatch, match="upgrade"):
        await migrate(database.dsn)


async def test_a_migration_that_fails_leaves_nothing_of_itself(
    make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await make_database()
    known = migrations()
    version = known[-1].version + 1
    bad = Migration(version, f"{version:04}_bad.sql", "CREATE TABLE half (id int); SELECT 1/0;")
    monkeypatch.setattr(migrating, "migrations", lambda: [*known, bad])
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(database.dsn)
    assert "half" not in await tables(database)
    async with database.pool.acquire() as conn:
        assert [m.name for m in await pending_migrations(conn)] == [bad.name]  # type: ignore[arg-type]


def test_migrations_are_numbered_one_after_the_other() -> None:
    assert [m.version for m in migrations()] == list(range(1, len(migrations()) + 1))
    for migration in migrations():
        assert Path(migration.name).stem[:4] == f"{migration.version:04}"
