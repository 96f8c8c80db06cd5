"""The command line's root: every command is listed here, and its module is loaded when it is asked for.

So `toolcrib --help` and short commands start fast; the web framework is loaded by the commands that serve.
"""

import importlib
import os
import sys
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from toolcrib import __version__
from toolcrib.cli.failure import CommandFailed, tell


class _Entry(NamedTuple):
    """Where a command is: a function, or a Typer with commands of its own; and what the list says of it."""

    module: str
    attribute: str
    panel: str
    summary: str


COMMANDS = {
    "up": _Entry("server", "up", "Run", "Start everything: PostgreSQL, migrations, web, worker and keeper."),
    "serve": _Entry("server", "serve", "Run", "Run the web server alone (MCP and REST)."),
    "worker": _Entry("server", "worker", "Run", "Run a worker and a keeper alone."),
    "check": _Entry("check", "check", "Run", "Look at settings and surroundings, and say what is wrong."),
    "tools": _Entry("tools", "app", "Use", "Add, see, call, sync and remove tools."),
    "audit": _Entry("audit", "audit", "Use", "Show which tools were called, by whom, with which outcome."),
    "key": _Entry("keys", "app", "Use", "Make, list and revoke API keys."),
    "capability": _Entry("capability", "app", "Use", "Serve, check, call and convert capability files."),
    "mcp-config": _Entry(
        "mcp_config", "mcp_config", "Use", "Print the configuration that gives an MCP client the tools."
    ),
}


class _Root(TyperGroup):
    """Shows stand-ins in the list of commands and loads the real one to run it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, entry in COMMANDS.items():
            self.add_command(TyperCommand(name, help=entry.summary, rich_help_panel=entry.panel))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the arguments name."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, load(name) if name and found else found, rest


def load(name: str) -> Any:
    """The command of this name, its module loaded."""
    entry = COMMANDS[name]
    found = getattr(importlib.import_module(f"toolcrib.cli.{entry.module}"), entry.attribute)
    if isinstance(found, typer.Typer):
        found.pretty_exceptions_show_locals = False
        group = typer.main.get_group(found)
        group.name = name
        return group
    single = typer.Typer(add_completion=False)
    single.command(name)(found)
    return typer.main.get_command(single)


app = typer.Typer(
    name="toolcrib",
    cls=_Root,
    help="Toolcrib: issue tools to AI agents, govern what they do, and account for it.\n\nExamples:\n    toolcrib up\n"
    "    toolcrib tools add https://mcp.deepwiki.com/mcp\n    toolcrib mcp-config cursor",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"toolcrib {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Options of the command itself."""


def main() -> None:
    """The entry point."""
    _open_standard_streams()
    try:
        app()
    except CommandFailed as error:
        tell(error)
        sys.exit(error.code)


def _open_standard_streams() -> None:
    """Where we are started with closed streams, sockets would get their numbers: libuv aborts when it closes those."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
