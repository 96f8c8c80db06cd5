"""`toolcrib up`, `serve` and `worker`."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.panel import Panel

from toolcrib import __version__
from toolcrib.cli.failure import HELD, CommandFailed
from toolcrib.cli.first_start import keep_cli_key, print_first_start
from toolcrib.cli.loop import run
from toolcrib.cli.options import Data, load_settings
from toolcrib.cli.running import listen, running
from toolcrib.cli.sign_in_file import save_cli_url
from toolcrib.core.files import read_private, write_private
from toolcrib.core.log import configure_logging
from toolcrib.installation import NotReady, Ready, make_data_folder, open_installation
from toolcrib.settings import Settings
from toolcrib.wiring import open_parts, start_tracing

Host = Annotated[
    str | None, typer.Option("--host", help="Address to listen on. [TOOLCRIB_HOST, 127.0.0.1]", show_default=False)
]
Port = Annotated[
    int | None, typer.Option("--port", help="Port; 0 takes a free one. [TOOLCRIB_PORT, 8700]", show_default=False)
]

_console = Console(stderr=True)


def up(
    data: Data = None,
    host: Host = None,
    port: Port = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON line on standard output when everything answers.")
    ] = False,
) -> None:
    """Start everything: PostgreSQL (unless TOOLCRIB_DATABASE_URL is set), migrations, web, worker and keeper.

    Ctrl-C stops all of it. The first start prints the administrator's e-mail, password and API key, once.

    Examples:
        toolcrib up
        toolcrib up --data ./data --port 9000
    """
    settings = load_settings(data=data, host=host, port=port)
    configure_logging(settings.log_level, settings.log_style)
    start_tracing(settings)
    run(lambda: _up(settings, as_json=as_json))


async def _up(settings: Settings, *, as_json: bool) -> None:
    try:
        make_data_folder(settings.data)
    except NotReady as error:
        raise CommandFailed(str(error)) from None
    with _held(settings.data) as hold:
        sock = listen(settings.host, settings.port)
        with sock, _console.status("Starting PostgreSQL and bringing the schema up to date ...") as status:
            async with open_installation(settings) as ready:
                status.update("Starting web server, worker and keeper ...")
                async with (
                    open_parts(settings, ready.database, ready.vault) as parts,
                    running(ready, parts, sock=sock, work=True) as served,
                ):
                    url = served.url or ""
                    hold(url)
                    keep_cli_key(settings, ready, url)
                    save_cli_url(settings.data, url)
                    status.stop()
                    _announce(settings, ready, url, as_json=as_json)
                    await served.stop.wait()
                    _console.print("Stopping ...")


def serve(data: Data = None, host: Host = None, port: Port = None) -> None:
    """Run the web server alone (MCP and REST); run as many as you like against one TOOLCRIB_DATABASE_URL.

    Examples:
        TOOLCRIB_DATABASE_URL=postgresql://toolcrib@db/toolcrib toolcrib serve --host 0.0.0.0
    """
    _alone(data, host, port, web=True)


def worker(data: Data = None) -> None:
    """Run a worker and a keeper alone; run as many as you like against one TOOLCRIB_DATABASE_URL.

    Examples:
        TOOLCRIB_DATABASE_URL=postgresql://toolcrib@db/toolcrib toolcrib worker
    """
    _alone(data, None, None, web=False)


def _alone(data: Path | None, host: str | None, port: int | None, *, web: bool) -> None:
    async def work() -> None:
        sock = listen(settings.host, settings.port) if web else None
        async with (
            open_installation(settings) as ready,
            open_parts(settings, ready.database, ready.vault) as parts,
            running(ready, parts, sock=sock, work=not web) as served,
        ):
            keep_cli_key(settings, ready, served.url)
            print_first_start(ready)
            what = f"web server at {served.url}, MCP at {served.url}/mcp" if web else "worker and keeper"
            _console.print(f"Toolcrib {__version__}: {what}. Ctrl-C stops it.")
            await served.stop.wait()

    settings = load_settings(data=data, host=host, port=port)
    configure_logging(settings.log_level, settings.log_style)
    start_tracing(settings)
    run(work)


@contextmanager
def _held(data: Path) -> Iterator[Callable[[str], None]]:
    """Hold the data folder for this process; yields the way to note the URL for whoever finds it held.

    Raises:
        CommandFailed: another `toolcrib up` holds it; says which and where it answers.
    """
    note = data / "up.json"
    with (data / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held_by = json.loads(read_private(note) or "{}")
            who = f"process {held_by['pid']} at {held_by['url']}" if held_by else "another process that is starting"
            raise CommandFailed(
                f"Toolcrib already runs on {data}: {who}. Stop that one, or choose another folder with --data.", HELD
            ) from None
        note.unlink(missing_ok=True)
        try:
            yield lambda url: write_private(note, json.dumps({"pid": os.getpid(), "url": url}))
        finally:
            note.unlink(missing_ok=True)


def _announce(settings: Settings, ready: Ready, url: str, *, as_json: bool) -> None:
    if as_json:
        line = {
            "url": url,
            "mcp_url": f"{url}/mcp",
            "workspace_id": ready.installation.workspace_id,
            "admin_email": ready.installation.admin_email,
            "api_key": ready.first_start.api_key if ready.first_start else None,
        }
        print(json.dumps(line), flush=True)
    database = (
        "your PostgreSQL"
        if settings.database_url
        else f"embedded PostgreSQL in {ready.postgres.location if ready.postgres else ''}"
    )
    text = (
        f"MCP    [bold]{url}/mcp[/]\nREST   {url}/api, {url}/v1\nDocs   {url}/docs\n"
        f"Data   {settings.data}\n       {database}\n\nCtrl-C stops everything."
    )
    _console.print(Panel(text, title=f"Toolcrib {__version__} is up", expand=False, border_style="green"))
    if not as_json:
        print_first_start(ready)
