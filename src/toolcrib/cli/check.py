"""`toolcrib check`: the settings in force and where they come from, then what is wrong around them.

Only looks: it starts, makes and changes nothing, and holds no lock that a starting server would want. Each finding that
is not `ok` says how to mend it. What needs a database that does not run is reported as skipped.
"""

import importlib.util
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolcrib import __version__
from toolcrib.cli.check_database import look_at_database
from toolcrib.cli.check_port import look_at_port
from toolcrib.cli.failure import FAILED, CommandFailed
from toolcrib.cli.findings import Finding
from toolcrib.cli.loop import run
from toolcrib.cli.options import Data, Json, load_settings
from toolcrib.cli.output import print_json, printable, say, wants_json
from toolcrib.settings import Settings

_MASK = "********"
_SECRET = {"vault_old_keys"}  # beside those whose type says so
_LITTLE, _TOO_LITTLE = 1_000_000_000, 100_000_000  # bytes of disk
_LAUNCHERS = ("npx", "uvx", "docker")
_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red"), "skip": ("-", "dim")}


def check(as_json: Json = False, data: Data = None) -> None:
    """Look at settings and surroundings, and say what is wrong.

    Prints every setting with its source, then looks at data folder, disk, database, schema, vault key, port, addresses,
    commands and clock. Starts and changes nothing; ends with 1 if something fails.

    Examples:
        toolcrib check
        toolcrib check --json | jq '.checks[] | select(.state != "ok")'
    """
    settings: list[dict[str, Any]] = []
    try:
        found = load_settings(data=data)
        settings = effective_settings(found, options={"data"} if data else set())
        checks = look(found)
    except CommandFailed as error:
        checks = [Finding("settings", "fail", str(error), "Mend the variable that is named there.")]
    failed = any(finding.state == "fail" for finding in checks)
    if wants_json(as_json):
        shown = [asdict(finding) for finding in checks]
        print_json({"version": __version__, "ok": not failed, "settings": settings, "checks": shown})
    else:
        _print(settings, checks)
    if failed:
        raise typer.Exit(FAILED)


def look(settings: Settings) -> list[Finding]:
    """Everything there is to find."""
    return [
        _data_folder(settings),
        _disk(settings),
        *run(lambda: look_at_database(settings)),
        look_at_port(settings),
        _exposure(settings),
        _outbound(settings),
        _commands(settings),
        *_tracing(settings),
    ]


def effective_settings(settings: Settings, *, options: set[str]) -> list[dict[str, Any]]:
    """Every setting with its value (secrets hidden), source and meaning."""
    rows = []
    for name, field in Settings.model_fields.items():
        source = "option" if name in options else "environment" if name in settings.model_fields_set else "default"
        rows.append(
            {
                "name": name,
                "env": f"TOOLCRIB_{name.upper()}",
                "value": _value(name, getattr(settings, name)),
                "source": source,
                "description": field.description or "",
            }
        )
    return rows


def _value(name: str, value: Any) -> Any:
    if isinstance(value, SecretStr) or (name in _SECRET and value):
        return _MASK
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str) and "@" in value and "://" in value:
        parts = urlsplit(value)
        return urlunsplit(parts._replace(netloc=f"{_MASK}@{parts.netloc.rpartition('@')[2]}"))
    return str(value) if isinstance(value, Path) else value


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _data_folder(settings: Settings) -> Finding:
    folder = settings.data.absolute()
    mend = "Choose another with TOOLCRIB_DATA or --data, or mend its owner and mode."
    try:
        above = _existing(folder)
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            return Finding("data folder", "fail", f"{above} cannot be written by this user", mend)
        if above != folder:
            return Finding("data folder", "ok", f"{folder} does not exist yet; the first start makes it")
        if folder.stat().st_mode & 0o066:
            return Finding("data folder", "warn", f"others can read or write {folder}", f"chmod go-rw {folder}")
    except PermissionError as error:
        return Finding("data folder", "fail", f"{error.filename or folder} belongs to another user", mend)
    return Finding("data folder", "ok", str(folder))


def _disk(settings: Settings) -> Finding:
    try:
        free = shutil.disk_usage(_existing(settings.data.absolute())).free
    except OSError as error:
        return Finding("disk", "skip", f"cannot be looked at: {error.strerror}")
    text = f"{free / 1e9:.1f} GB free"
    if free < _LITTLE:
        return Finding("disk", "fail" if free < _TOO_LITTLE else "warn", text, "Make room, or move the data folder.")
    return Finding("disk", "ok", text)


def _exposure(settings: Settings) -> Finding:
    if settings.listens_on_loopback:
        return Finding("exposure", "ok", f"{settings.host}: only programs on this machine reach the server")
    if settings.public_url is None or not settings.public_url.startswith("https://"):
        detail = f"{settings.host}: other machines reach the server in plain HTTP"
        mend = "Put a TLS proxy in front, and its https URL into TOOLCRIB_PUBLIC_URL."
        return Finding("exposure", "warn", detail, mend)
    return Finding("exposure", "ok", f"{settings.host}, published as {settings.public_url}")


def _outbound(settings: Settings) -> Finding:
    allowed = settings.address_policy.allow
    if any(network.prefixlen == 0 for network in allowed):
        mend = "Name the networks that tool sets need in TOOLCRIB_OUTBOUND_ALLOW."
        return Finding("outbound", "warn", "tool sets reach every address, metadata services of clouds too", mend)
    networks = ", ".join(map(str, allowed))
    if not settings.listens_on_loopback and any(network.is_loopback for network in allowed):
        mend = "Leave loopback out of TOOLCRIB_OUTBOUND_ALLOW unless tool sets need it."
        return Finding("outbound", "warn", "callers from other machines reach services of this one by tool sets", mend)
    return Finding("outbound", "ok", "tool sets reach public addresses" + (f" and {networks}" if allowed else " only"))


def _commands(settings: Settings) -> Finding:
    if not settings.stdio:
        return Finding("stdio commands", "ok", "off: tool sets run no commands")
    there = [name for name in _LAUNCHERS if shutil.which(name)]
    missing = [name for name in _LAUNCHERS if name not in there]
    if not there:
        mend = "Install Node.js or uv if tool sets are to run such servers; set TOOLCRIB_STDIO=false otherwise."
        return Finding("stdio commands", "warn", "neither npx nor uvx nor docker is here", mend)
    detail = f"{', '.join(there)} found" + (f"; no {', no '.join(missing)}" if missing else "")
    return Finding("stdio commands", "ok", detail)


def _tracing(settings: Settings) -> list[Finding]:
    if settings.otlp_endpoint is None:
        return []
    try:
        there = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        there = False
    if there:
        return [Finding("tracing", "ok", "spans are exported")]
    return [Finding("tracing", "warn", "an endpoint is set, the exporter is missing", "pip install 'toolcrib[otel]'")]


def _print(settings: list[dict[str, Any]], checks: list[Finding]) -> None:
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold", title="Settings", title_justify="left")
    for heading in ("NAME", "VALUE", "SOURCE", "MEANING"):
        table.add_column(heading, overflow="fold")
    for row in settings:
        value = ", ".join(row["value"]) if isinstance(row["value"], list) else row["value"]
        style = "" if row["source"] == "default" else "bold"
        cells = (row["env"], "-" if value is None or value == "" else str(value), row["source"], row["description"])
        table.add_row(*(Text(printable(cell)) for cell in cells), style=style)
    console.print(table)
    console.print()
    for finding in checks:
        mark, style = _MARKS[finding.state]
        console.print(Text.assemble((f"{mark} ", style), (f"{finding.name}: ", "bold"), printable(finding.detail)))
        if finding.mend:
            console.print(Text(f"    {printable(finding.mend)}", style=style))
    worst = [finding.name for finding in checks if finding.state == "fail"]
    say(f"Failed: {', '.join(worst)}." if worst else "Nothing fails.")
