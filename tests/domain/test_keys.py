"""API keys: what they may do, when they end, and how soon everybody knows."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from toolcrib.api.sign_in import SignIn
from toolcrib.core.auth import ALL, SCOPES, Actor
from toolcrib.core.db import Database
from toolcrib.core.vault import NewApiKey, new_api_key
from toolcrib.domain import access
from toolcrib.domain.access import ApiKey, create_api_key, find_admin, list_api_keys, revoke_api_key
from toolcrib.errors import Forbidden, Invalid, NotFound, Unauthenticated

DEADLINE_S = 10


@pytest.fixture
async def admin(database: Database) -> Actor:
    """The administrator of a fresh installation."""
    async with database.tx() as tx:
        await access.install(tx, vault_key_id="0" * 16, admin_email="a@example.com", password_hash="x")
        found = await find_admin(tx)
    assert found
    return found


async def make(
    database: Database, actor: Actor, *scopes: str, expires_at: datetime | None = None
) -> tuple[ApiKey, NewApiKey]:
    async with database.tx() as tx:
        return await create_api_key(tx, actor, name="k", scopes=list(scopes) or None, expires_at=expires_at)


def as_key(actor: Actor, *scopes: str) -> Actor:
    """The same workspace, other scopes."""
    return Actor(actor.workspace_id, actor.account_id, actor.principal_id, frozenset(scopes))


@pytest.mark.parametrize(
    ("held", "asked", "granted"),
    [
        ([ALL], [ALL], [ALL]),
        ([ALL], ["tools:call"], ["tools:call"]),
        ([ALL], [], [ALL]),
        (["api_keys:write", "tools:call"], [], ["api_keys:write", "tools:call"]),
        (["api_keys:write", "tools:call"], ["tools:call"], ["tools:call"]),
        (["api_keys:write", "tools:call"], ["tools:call", "tools:call"], ["tools:call"]),
        (["api_keys:write", "tool_sets:*"], ["tool_sets:write"], ["tool_sets:write"]),
        (["api_keys:write", "tool_sets:*"], ["tool_sets:*"], ["tool_sets:*"]),
        (["api_keys:write", "tools:call"], ["tool_sets:read"], None),
        (["api_keys:write", "tools:call"], ["tools:*"], None),
        (["api_keys:write", "tool_sets:read", "tool_sets:write"], ["tool_sets:*"], None),
        (["api_keys:write", "tool_sets:*"], ["commands:write"], None),
        (["api_keys:write"], [ALL], None),
        (["tools:call"], ["tools:call"], None),
        (["tools:call"], [], None),
    ],
)
async def test_a_key_never_may_more_than_its_maker(
    database: Database, admin: Actor, held: list[str], asked: list[str], granted: list[str] | None
) -> None:
    maker = as_key(admin, *held)
    if granted is None:
        with pytest.raises(Forbidden):
            await make(database, maker, *asked)
    else:
        key, secret = await make(database, maker, *asked)
        assert key.scopes == granted
        actor = await SignIn(database).actor(f"Bearer {secret.text}", None)
        assert actor.scopes == set(granted)
        assert not {scope for scope in SCOPES if actor.can(scope)} - {scope for scope in SCOPES if maker.can(scope)}


@pytest.mark.parametrize("scopes", [["tools:fly"], ["*:*"], ["tools"], [""], ["tools:call", "TOOLS:CALL"]])
async def test_a_scope_that_does_not_exist_is_refused(database: Database, admin: Actor, scopes: list[str]) -> None:
    with pytest.raises(Invalid) as caught:
        await make(database, admin, *scopes)
    assert caught.value.field == "scopes"


async def test_names_and_expiries_are_checked(database: Database, admin: Actor) -> None:
    async with database.tx() as tx:
        for name in ("", "  ", "x" * 201):
            with pytest.raises(Invalid, match="name"):
                await create_api_key(tx, admin, name=name)
        with pytest.raises(Invalid, match="past"):
            await create_api_key(tx, admin, name="k", expires_at=datetime.now(UTC) - timedelta(seconds=1))
        with pytest.raises(Invalid, match="scope"):
            await create_api_key(tx, admin, name="k", scopes=[])


async def test_a_key_signs_in_as_itself_not_as_its_maker(database: Database, admin: Actor) -> None:
    key, secret = await make(database, admin, "tools:call")
    actor = await SignIn(database).actor(None, secret.text)
    assert (actor.key_id, actor.principal_id, actor.workspace_id) == (key.id, key.principal_id, admin.workspace_id)
    assert actor.principal_id != admin.principal_id
    row = await database.pool.fetchrow("SELECT * FROM api_key WHERE id = $1", key.id)
    assert row is not None
    assert row["created_by"] == admin.principal_id
    assert row["last_used_at"] is not None
    assert secret.text not in repr(dict(row))


@pytest.mark.parametrize("header", ["Bearer {}", "bearer {}", "BEARER  {} "])
async def test_the_word_bearer_may_be_written_as_one_likes(database: Database, admin: Actor, header: str) -> None:
    _, secret = await make(database, admin)
    assert await SignIn(database).actor(header.format(secret.text), None)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer {}x", "Bearer x{}", "Token {}"]
)
async def test_anything_else_signs_nobody_in(database: Database, admin: Actor, header: str | None) -> None:
    _, secret = await make(database, admin)
    with pytest.raises(Unauthenticated):
        await SignIn(database).actor(header and header.format(secret.text), None)
    with pytest.raises(Unauthenticated):
        await SignIn(database).actor(f"Bearer {new_api_key().text}", None)


async def test_a_key_ends_when_it_expires_cached_or_not(database: Database, admin: Actor) -> None:
    _, secret = await make(database, admin, expires_at=datetime.now(UTC) + timedelta(seconds=0.5))
    sign_in = SignIn(database)
    await sign_in.actor(f"Bearer {secret.text}", None)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(Unauthenticated):  # noqa: PT012 - it is the loop that must end so
            while True:
                await sign_in.actor(f"Bearer {secret.text}", None)
                await asyncio.sleep(0.02)  # until the clock, which nothing announces, passes the expiry


@pytest.mark.parametrize("by", ["id", "hint"])
async def test_a_revoked_key_ends_at_once_in_every_process(database: Database, admin: Actor, by: str) -> None:
    other = Database(database.dsn)  # as a second process has it
    await other.open()
    try:
        heard = asyncio.Event()
        here, there = SignIn(database), SignIn(other)
        other.bus.subscribe(access.KEY_NEWS, lambda _payload: heard.set())
        key, secret = await make(database, admin)
        for sign_in in (here, there):
            await sign_in.actor(f"Bearer {secret.text}", None)
        heard.clear()
        async with database.tx() as tx:
            revoked = await revoke_api_key(tx, admin, key_id=getattr(key, by))
        assert revoked.revoked_at is not None
        with pytest.raises(Unauthenticated):
            await here.actor(f"Bearer {secret.text}", None)
        async with asyncio.timeout(DEADLINE_S):
            await heard.wait()
        with pytest.raises(Unauthenticated):
            await there.actor(f"Bearer {secret.text}", None)
    finally:
        await other.close()


async def test_a_revocation_that_overtakes_a_look_up_is_not_forgotten(database: Database, admin: Actor) -> None:
    key, secret = await make(database, admin)
    heard = asyncio.Event()
    other = Database(database.dsn)  # hears of it once, by the bus
    await other.open()
    sign_in = SignIn(other)
    other.bus.subscribe(access.KEY_NEWS, lambda _payload: heard.set())

    async def hold_until_heard() -> None:
        async with database.tx() as tx:
            await tx.fetchrow("SELECT 1 FROM api_key WHERE id = $1 FOR UPDATE", key.id)
            await heard.wait()

    async with asyncio.timeout(DEADLINE_S):
        async with database.tx() as tx:
            await tx.fetchrow("SELECT 1 FROM api_key WHERE id = $1 FOR UPDATE", key.id)
            holder = asyncio.create_task(hold_until_heard())
            await waiting(database, 1)
            look_up = asyncio.create_task(sign_in.actor(f"Bearer {secret.text}", None))
            await waiting(database, 2)  # it has read the key, and cannot note the use of it yet
            await revoke_api_key(tx, admin, key_id=key.id)
        await asyncio.gather(holder, look_up)
        with pytest.raises(Unauthenticated):
            await sign_in.actor(f"Bearer {secret.text}", None)
    await other.close()


async def waiting(database: Database, count: int) -> None:
    """Until as many connections wait for a lock."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while await database.pool.fetchval(sql) < count:
        await asyncio.sleep(0.005)


async def test_a_cache_that_hears_no_news_is_not_trusted(database: Database, admin: Actor) -> None:
    key, secret = await make(database, admin)
    sign_in = SignIn(database)
    await sign_in.actor(f"Bearer {secret.text}", None)
    database.bus.connected = False
    await database.pool.execute("UPDATE api_key SET revoked_at = now() WHERE id = $1", key.id)
    with pytest.raises(Unauthenticated):
        await sign_in.actor(f"Bearer {secret.text}", None)


async def test_revoking_twice_keeps_the_first_moment(database: Database, admin: Actor) -> None:
    key, _ = await make(database, admin)
    async with database.tx() as tx:
        first = await revoke_api_key(tx, admin, key_id=key.id)
    async with database.tx() as tx:
        assert (await revoke_api_key(tx, admin, key_id=key.id)).revoked_at == first.revoked_at


async def test_a_key_of_another_workspace_cannot_be_revoked(database: Database, admin: Actor) -> None:
    key, _ = await make(database, admin)
    stranger = Actor("workspace_other", admin.account_id, admin.principal_id, frozenset({ALL}))
    async with database.tx() as tx:
        for name in (key.id, key.hint, "apikey_nope", ""):
            with pytest.raises(NotFound):
                await revoke_api_key(tx, stranger, key_id=name)
        with pytest.raises(Forbidden):
            await revoke_api_key(tx, as_key(admin, "tools:call"), key_id=key.id)


async def test_keys_are_listed_without_their_text(database: Database, admin: Actor) -> None:
    made = [await make(database, admin, "tools:call") for _ in range(3)]
    async with database.read() as tx:
        page = await list_api_keys(tx, admin)
        with pytest.raises(Forbidden):
            await list_api_keys(tx, as_key(admin, "tools:call"))
    assert {key.id for key in page.items} == {key.id for key, _ in made}
    assert not any(secret.text in repr(page) for _, secret in made)


async def test_the_keys_of_a_deleted_workspace_end(database: Database, admin: Actor) -> None:
    _, secret = await make(database, admin)
    await database.pool.execute("UPDATE workspace SET deleted_at = now()")
    with pytest.raises(Unauthenticated):
        await SignIn(database).actor(f"Bearer {secret.text}", None)
