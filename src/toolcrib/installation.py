"""From settings to a database that is ready: started, migrated, installed, and its vault key at hand.

Used by every command that needs the database. What the first start makes (vault key, administrator, first keys) is made
once, under a lock in the database, and kept: secrets in the data folder with mode 0600, the rest in tables.
"""

import asyncio
import fcntl
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from toolcrib.core.auth import ALL
from toolcrib.core.db import Database
from toolcrib.core.files import make_private_folder, read_private, write_private
from toolcrib.core.migrate import SchemaMismatch, migrate
from toolcrib.core.postgres import EmbeddedPostgres, PostgresError
from toolcrib.core.vault import Vault, new_vault_key
from toolcrib.domain import access
from toolcrib.settings import Settings

VAULT_FILE = "vault.key"


class NotReady(Exception):
    """The installation cannot be used; the message says what is wrong and how to mend it."""


@dataclass(frozen=True, slots=True)
class FirstStart:
    """What is told once, by the process that made the installation."""

    admin_password: str
    api_key: str
    cli_key: str


@dataclass(frozen=True, slots=True)
class Ready:
    """A database at the schema of this version, with an installation in it."""

    database: Database
    vault: Vault
    installation: access.Installation
    first_start: FirstStart | None
    postgres: EmbeddedPostgres | None


@asynccontextmanager
async def open_installation(settings: Settings, *, pool_size: int | None = None) -> AsyncIterator[Ready]:
    """Start or reach PostgreSQL, migrate, install if need be; close what was opened afterwards.

    Raises:
        NotReady: something stands in the way.
    """
    make_data_folder(settings.data)
    postgres: EmbeddedPostgres | None = None
    try:
        if settings.database_url is not None:
            dsn = settings.database_url.get_secret_value()
        else:
            postgres = EmbeddedPostgres(settings.data, bin_dir=settings.postgres_bin)
            dsn = await postgres.start()
        await _migrate(dsn, settings)
        database = Database(dsn, pool_size=pool_size or settings.database_pool_size)
        await database.open()
        try:
            vault, installation, first_start = await _install(database, settings)
            yield Ready(database, vault, installation, first_start, postgres)
        finally:
            await database.close()
    except PostgresError as error:
        raise NotReady(str(error)) from error
    finally:
        if postgres is not None:
            await postgres.stop()


def make_data_folder(folder: Path) -> None:
    """Create the data folder.

    Raises:
        NotReady: it cannot be made or written.
    """
    try:
        make_private_folder(folder, mode=0o711 if os.geteuid() == 0 else 0o700)
    except OSError as error:
        raise NotReady(
            f"The data folder {folder} cannot be made: {error.strerror}. Choose another with --data."
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise NotReady(f"The data folder {folder} cannot be written. Choose another with --data.")


async def _migrate(dsn: str, settings: Settings) -> None:
    where = "The embedded PostgreSQL" if settings.database_url is None else "The PostgreSQL at TOOLCRIB_DATABASE_URL"
    try:
        await migrate(dsn)
    except SchemaMismatch as error:
        raise NotReady(f"The database does not fit this version of Toolcrib: {error}") from error
    except asyncpg.InvalidPasswordError:
        raise NotReady(f"{where} refused the password.") from None
    except asyncpg.InvalidCatalogNameError as error:
        raise NotReady(f"{where} has no such database: {error}. Create it first.") from None
    except (OSError, TimeoutError) as error:
        raise NotReady(f"{where} cannot be reached: {error or 'no answer within 10 s'}.") from None
    except (asyncpg.InterfaceError, ValueError) as error:
        raise NotReady(f"{where} cannot be used: {error}.") from None
    except asyncpg.PostgresError as error:
        raise NotReady(f"{where} refused to migrate: {error}.") from error


def find_vault(settings: Settings) -> Vault | None:
    """The vault with the key from the settings, or from the data folder; None when neither has one.

    Raises:
        NotReady: a key is no key, or cannot be read.
    """
    try:
        if settings.vault_key is not None:
            return Vault(settings.vault_key.get_secret_value(), settings.vault_old_keys)
        text = read_private(settings.data / VAULT_FILE)
        return None if text is None else Vault(text, settings.vault_old_keys)
    except ValueError as error:
        raise NotReady(f"The vault key cannot be used: {error}.") from None
    except OSError as error:
        raise NotReady(f"The vault key cannot be read: {error.strerror}.") from None


def load_vault(settings: Settings) -> Vault:
    """As `find_vault`, but a missing key is made in the data folder."""
    if settings.vault_key is None:
        with (settings.data / ".vault.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (settings.data / VAULT_FILE).exists():
                write_private(settings.data / VAULT_FILE, new_vault_key() + "\n")
    vault = find_vault(settings)
    if vault is None:
        raise NotReady(f"The vault key {settings.data / VAULT_FILE} was removed while it was read.")
    return vault


async def _install(database: Database, settings: Settings) -> tuple[Vault, access.Installation, FirstStart | None]:
    vault = load_vault(settings)
    async with database.read() as tx:
        installation = await access.find_installation(tx)
    first_start = None
    if installation is None:
        password = settings.admin_password.get_secret_value() if settings.admin_password else secrets.token_urlsafe(12)
        password_hash = await asyncio.to_thread(access.hash_password, password)
        async with database.tx() as tx:
            installation = await access.install(
                tx, vault_key_id=vault.key_id, admin_email=settings.admin_email, password_hash=password_hash
            )
            if installation.first and (admin := await access.find_admin(tx)):
                _, key = await access.create_api_key(tx, admin, name="first key", scopes=[ALL])
                _, cli = await access.create_api_key(tx, admin, name="command line on the first host", scopes=[ALL])
                first_start = FirstStart(password, key.text, cli.text)
    if not vault.knows(installation.vault_key_id):
        raise NotReady(
            "The vault key of this process is not the one that sealed the secrets in the database. Set"
            f" TOOLCRIB_VAULT_KEY to the key of the first start (the file {VAULT_FILE} of that machine's data folder)."
        )
    if installation.vault_key_id != vault.key_id:
        async with database.tx() as tx:
            await access.note_vault_key(tx, vault_key_id=vault.key_id)
    return vault, installation, first_start
