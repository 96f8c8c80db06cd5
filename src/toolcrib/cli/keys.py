"""`toolcrib key`: make, list and revoke API keys, straight in the database, as the administrator of this host.

Whoever may read the data folder (or knows TOOLCRIB_DATABASE_URL) owns the installation anyway; so no server is needed.
"""

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import typer

from toolcrib.cli.failure import WRONG, CommandFailed
from toolcrib.cli.first_start import keep_cli_key, print_first_start
from toolcrib.cli.loop import run
from toolcrib.cli.options import Data, Json, load_settings
from toolcrib.cli.output import print_json, print_panel, print_table, say, waiting, wants_json
from toolcrib.core.auth import ALL, SCOPES, Actor
from toolcrib.core.db import Database, ReadTx
from toolcrib.core.log import configure_logging
from toolcrib.core.postgres import PostgresError, cluster_of
from toolcrib.domain.access import ApiKey, create_api_key, find_admin, list_api_keys, revoke_api_key
from toolcrib.installation import open_installation
from toolcrib.settings import Settings

T = TypeVar("T")
_DURATION = re.compile(r"(\d{1,6})([hdwy])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1), "y": timedelta(days=365)}

app = typer.Typer(
    name="key",
    help="Make, list and revoke API keys.\n\nExamples:\n    toolcrib key create --name 'my agent'\n"
    "    toolcrib key list",
    no_args_is_help=True,
)
Workspace = Annotated[
    str | None, typer.Option("--workspace", metavar="ID", help="Workspace; default: the first one.", show_default=False)
]


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", help="What the key is for; the audit shows it.")] = "command line",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            help=f"What it may do, repeatable: {', '.join(SCOPES)}, or '*' for everything (default).",
            show_default=False,
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="30d|DATE", help="When it ends: 12h, 30d, 2027-01-01.", show_default=False),
    ] = None,
    description: Annotated[str | None, typer.Option("--description", help="A note.", show_default=False)] = None,
    workspace: Workspace = None,
    as_json: Json = False,
    data: Data = None,
) -> None:
    """Make an API key and print it, once: only a hash of it is kept.

    Examples:
        toolcrib key create --name 'my agent' --scope tools:call --expires 90d
        toolcrib key create --name ci --scope tool_sets:read --scope tool_sets:write
        export TOOLCRIB_API_KEY=$(toolcrib key create --json | jq -r .api_key)
    """
    expires_at = expiry(expires, datetime.now(UTC)) if expires else None
    key, text = make_key(
        load_settings(data=data),
        name=name,
        scopes=scope or [ALL],
        expires_at=expires_at,
        description=description,
        workspace_id=workspace,
    )
    if wants_json(as_json):
        print_json({**_shown(key), "api_key": text})
        return
    ends = f"until {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else "does not end"
    print_panel(f"{text}\n\n{key.name}: {', '.join(key.scopes)}; {ends}\n{key.id}", "API key: shown this once")


def make_key(
    settings: Settings,
    *,
    name: str,
    scopes: list[str],
    expires_at: datetime | None = None,
    description: str | None = None,
    workspace_id: str | None = None,
) -> tuple[ApiKey, str]:
    """Make a key in the database of this host; returns it and its text."""

    async def work(database: Database) -> tuple[ApiKey, str]:
        async with database.tx() as tx:
            admin = await _admin(tx, workspace_id)
            key, secret = await create_api_key(
                tx, admin, name=name, scopes=scopes, description=description, expires_at=expires_at
            )
        return key, secret.text

    return _with_database(settings, work)


@app.command("list")
def list_(workspace: Workspace = None, as_json: Json = False, data: Data = None) -> None:
    """List the keys of a workspace, newest first, without their text.

    Examples:
        toolcrib key list
        toolcrib key list --json | jq '.[] | select(.last_used_at == null)'
    """

    async def work(database: Database) -> list[ApiKey]:
        async with database.read() as tx:
            return (await list_api_keys(tx, await _admin(tx, workspace))).items

    keys = _with_database(load_settings(data=data), work)
    if wants_json(as_json):
        print_json([_shown(key) for key in keys])
        return
    rows = [
        (
            k.name,
            k.hint,
            _state(k),
            _day(k.created_at),
            _day(k.expires_at),
            _day(k.last_used_at),
            k.id,
            " ".join(k.scopes),
        )
        for k in keys
    ]
    print_table(
        ("NAME", "KEY", "STATE", "CREATED", "EXPIRES", "LAST USED", "ID", "SCOPES"), rows, empty="There are no keys."
    )


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID|HINT", help="As `key list` shows it.", show_default=False)],
    workspace: Workspace = None,
    as_json: Json = False,
    data: Data = None,
) -> None:
    """Make a key useless from now on, on every server at once.

    Examples:
        toolcrib key revoke apikey_01JD0W1N8V2Z3Q4R5S6T7V8W9X
        toolcrib key revoke 'tck_8fGh...Zk2Q'
    """

    async def work(database: Database) -> ApiKey:
        async with database.tx() as tx:
            return await revoke_api_key(tx, await _admin(tx, workspace), key_id=key)

    revoked = _with_database(load_settings(data=data), work)
    if wants_json(as_json):
        print_json(_shown(revoked))
    say(f"Revoked {revoked.name} ({revoked.hint}).")


def expiry(text: str, now: datetime) -> datetime:
    """`30d`, `12h`, `4w`, `1y` from now; or a date or time, in UTC unless it says otherwise.

    Raises:
        CommandFailed: it is neither.
    """
    try:
        if match := _DURATION.fullmatch(text.strip()):
            return now + int(match[1]) * _UNITS[match[2]]
        at = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        raise CommandFailed(f"--expires {text!r} is neither a time from now (12h, 30d) nor a date.", WRONG) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _with_database(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    """Run `work` on the database of this host, which is started for the moment if it does not run.

    Raises:
        CommandFailed: no installation was made here yet; only a server makes one.
    """
    try:
        made = settings.database_url is not None or cluster_of(settings.data) is not None
    except PostgresError as error:
        raise CommandFailed(str(error)) from None
    if not made:
        raise CommandFailed(
            f"There is no installation in {settings.data}. `toolcrib up` makes one; --data names another folder."
        )
    configure_logging("warning" if settings.log_level in {"debug", "info"} else settings.log_level, settings.log_style)

    async def opened() -> T:
        with waiting("Opening the database ..."):
            async with open_installation(settings, pool_size=2) as ready:
                keep_cli_key(settings, ready, url=None)
                print_first_start(ready)
                return await work(ready.database)

    return run(opened)


async def _admin(tx: ReadTx, workspace_id: str | None) -> Actor:
    admin = await find_admin(tx, workspace_id=workspace_id)
    if admin is None:
        raise CommandFailed(
            f"There is no workspace {workspace_id!r}." if workspace_id else "There is no administrator."
        )
    return admin


def _shown(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "description": key.description,
        "hint": key.hint,
        "state": _state(key),
        "scopes": key.scopes,
        "workspace_id": key.workspace_id,
        **{
            name: value.isoformat(timespec="seconds").replace("+00:00", "Z") if value else None
            for name, value in (
                ("created_at", key.created_at),
                ("expires_at", key.expires_at),
                ("revoked_at", key.revoked_at),
                ("last_used_at", key.last_used_at),
            )
        },
    }


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= datetime.now(UTC) else "valid"


def _day(at: datetime | None) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M") if at else "-"
