"""The installation's first rows, and API keys: made, listed, revoked, and turned into actors.

The text of a key exists once, when it is made; afterwards only its hash is kept. Each key is a principal of its own, so
that what a key did is told apart from what its maker did.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from argon2 import PasswordHasher

from toolcrib.core.auth import ALL, Actor, check_scopes
from toolcrib.core.db import ReadTx, Row, Tx
from toolcrib.core.ids import new_id
from toolcrib.core.paging import Page
from toolcrib.core.vault import NewApiKey, new_api_key
from toolcrib.errors import Conflict, Invalid, NotFound

KEY_NEWS = "api_key"
_INSTALL_LOCK = 0x63726962  # "crib"
_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Installation:
    """What every process needs to know of the installation; `first` only for the one that made it."""

    workspace_id: str
    admin_email: str
    vault_key_id: str
    first: bool


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key without its text; `hint` shows its first and last characters."""

    id: str
    workspace_id: str
    principal_id: str
    name: str
    description: str | None
    scopes: list[str]
    hint: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


def hash_password(password: str) -> str:
    """Argon2id with the library's current parameters; takes tens of milliseconds, so not for the event loop."""
    return PasswordHasher().hash(password)


async def find_installation(tx: ReadTx) -> Installation | None:
    """The installation, or None before the first start."""
    row = await tx.fetchrow(
        "SELECT i.vault_key_id, w.id AS workspace_id, p.email FROM installation i"
        " CROSS JOIN LATERAL (SELECT id, account_id FROM workspace WHERE deleted_at IS NULL ORDER BY id LIMIT 1) w"
        " LEFT JOIN LATERAL (SELECT email FROM principal WHERE account_id = w.account_id AND kind = 'user'"
        "   AND role = 'admin' AND deleted_at IS NULL ORDER BY number LIMIT 1) p ON true"
    )
    return Installation(row["workspace_id"], row["email"] or "", row["vault_key_id"], first=False) if row else None


async def install(tx: Tx, *, vault_key_id: str, admin_email: str, password_hash: str) -> Installation:
    """Make the account, its first workspace and administrator, unless another process just did."""
    await tx.execute("SELECT pg_advisory_xact_lock($1)", _INSTALL_LOCK)
    if found := await find_installation(tx):
        return found
    account, workspace, admin = new_id("account"), new_id("workspace"), new_id("profile")
    await tx.execute("INSERT INTO account (id, name) VALUES ($1, 'Default')", account)
    await tx.execute(
        "INSERT INTO workspace (id, account_id, name, slug) VALUES ($1, $2, 'Default', 'default')", workspace, account
    )
    await tx.execute(
        "INSERT INTO principal (id, account_id, kind, name, email, password_hash, role) VALUES"
        " ($1, $2, 'user', 'Administrator', $3, $4, 'admin'), ($5, $2, 'system', 'Toolcrib', NULL, NULL, 'member')",
        admin,
        account,
        admin_email,
        password_hash,
        new_id("profile"),
    )
    await tx.execute(
        "INSERT INTO workspace_member (workspace_id, principal_id, role) VALUES ($1, $2, 'owner')", workspace, admin
    )
    await tx.execute(
        "INSERT INTO installation (id, vault_key_id) VALUES ($1, $2)", new_id("installation"), vault_key_id
    )
    return Installation(workspace, admin_email, vault_key_id, first=True)


async def note_vault_key(tx: Tx, *, vault_key_id: str) -> None:
    """Record that secrets are sealed with another key from now on."""
    await tx.execute("UPDATE installation SET vault_key_id = $1", vault_key_id)


async def find_admin(tx: ReadTx, *, workspace_id: str | None = None) -> Actor | None:
    """The administrator acting in a workspace (the first one by default), for commands run on the host itself."""
    row = await tx.fetchrow(
        "SELECT w.id, w.account_id, p.id AS principal_id FROM workspace w"
        " JOIN principal p ON p.account_id = w.account_id AND p.kind = 'user' AND p.role = 'admin'"
        " AND p.deleted_at IS NULL"
        " WHERE w.deleted_at IS NULL AND ($1::text IS NULL OR w.id = $1) ORDER BY w.id, p.number LIMIT 1",
        workspace_id,
    )
    return Actor(row["id"], row["account_id"], row["principal_id"], frozenset({ALL})) if row else None


async def find_system_actor(tx: ReadTx, *, workspace_id: str) -> Actor | None:
    """Toolcrib itself acting in a workspace, for work that no caller waits for; None if the workspace is gone."""
    row = await tx.fetchrow(
        "SELECT w.account_id, p.id FROM workspace w JOIN principal p ON p.account_id = w.account_id"
        " AND p.kind = 'system' WHERE w.id = $1 AND w.deleted_at IS NULL ORDER BY p.number LIMIT 1",
        workspace_id,
    )
    return Actor(workspace_id, row["account_id"], row["id"], frozenset({ALL})) if row else None


async def create_api_key(
    tx: Tx,
    actor: Actor,
    *,
    name: str,
    scopes: list[str] | None = None,
    description: str | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, NewApiKey]:
    """Make a key for the actor's workspace; its scopes default to the actor's and never exceed them.

    Raises:
        Invalid: an unknown scope, an empty name, or an expiry in the past.
        Forbidden: the actor lacks `api_keys:write` or one of the scopes.
    """
    actor.must("api_keys:write")
    if not name.strip() or len(name) > _MAX_NAME:
        raise Invalid("api_key.name_invalid", f"A name has 1 to {_MAX_NAME} characters.", field="name")
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise Invalid("api_key.expiry_past", "The expiry lies in the past.", field="expires_at")
    granted = check_scopes(sorted(actor.scopes) if scopes is None else scopes)
    if not granted:
        raise Invalid("api_key.scopes_empty", "A key needs at least one scope.", field="scopes")
    if ALL not in actor.scopes:
        for scope in granted:
            if scope not in actor.scopes:
                actor.must(scope)
    secret, principal = new_api_key(), new_id("profile")
    await tx.execute(
        "INSERT INTO principal (id, account_id, kind, name) VALUES ($1, $2, 'api_key', $3)",
        principal,
        actor.account_id,
        name,
    )
    row = await tx.fetchrow(
        "INSERT INTO api_key (id, workspace_id, principal_id, created_by, name, description, scopes, hash, hint,"
        " expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING *",
        new_id("apikey"),
        actor.workspace_id,
        principal,
        actor.principal_id,
        name,
        description,
        granted,
        secret.hash,
        secret.hint,
        expires_at,
    )
    if row is None:  # INSERT ... RETURNING gives a row or raises
        raise Conflict("api_key.not_made", "The key was not stored.")
    return _api_key(row), secret


async def list_api_keys(tx: ReadTx, actor: Actor) -> Page[ApiKey]:
    """All keys of the actor's workspace that were not deleted, newest first."""
    actor.must("api_keys:write")
    rows = await tx.fetch(
        "SELECT * FROM api_key WHERE workspace_id = $1 AND deleted_at IS NULL ORDER BY id DESC", actor.workspace_id
    )
    return Page([_api_key(row) for row in rows], len(rows))


async def revoke_api_key(tx: Tx, actor: Actor, *, key_id: str) -> ApiKey:
    """Make a key useless from now on, in every process; revoking again changes nothing. `key_id` may be its hint.

    Raises:
        NotFound: there is no such key in the workspace.
    """
    actor.must("api_keys:write")
    row = await tx.fetchrow(
        "UPDATE api_key SET revoked_at = coalesce(revoked_at, now())"
        " WHERE workspace_id = $1 AND (id = $2 OR hint = $2) AND deleted_at IS NULL RETURNING *",
        actor.workspace_id,
        key_id,
    )
    if row is None:
        raise NotFound("api_key.unknown", f"There is no API key {key_id!r} in this workspace.")
    await tx.publish(KEY_NEWS, row["hash"].hex())
    return _api_key(row)


async def find_key_actor(tx: Tx, *, key_hash: bytes) -> tuple[Actor, datetime | None] | None:
    """The actor behind a key and when the key expires; None when it is unknown, revoked, expired or its workspace gone.

    Notes the use, at most once a minute, so that look-ups stay reads.
    """
    row = await tx.fetchrow(
        "SELECT k.id, k.workspace_id, k.principal_id, k.scopes, k.expires_at, w.account_id,"
        " k.last_used_at IS NULL OR k.last_used_at < now() - interval '1 minute' AS stale"
        " FROM api_key k JOIN workspace w ON w.id = k.workspace_id"
        " WHERE k.hash = $1 AND k.revoked_at IS NULL AND k.deleted_at IS NULL AND w.deleted_at IS NULL"
        " AND (k.expires_at IS NULL OR k.expires_at > now())",
        key_hash,
    )
    if row is None:
        return None
    if row["stale"]:
        await tx.execute("UPDATE api_key SET last_used_at = now() WHERE id = $1", row["id"])
    actor = Actor(row["workspace_id"], row["account_id"], row["principal_id"], frozenset(row["scopes"]), row["id"])
    return actor, row["expires_at"]


def _api_key(row: Row) -> ApiKey:
    return ApiKey(**{name: row[name] for name in ApiKey.__dataclass_fields__})
