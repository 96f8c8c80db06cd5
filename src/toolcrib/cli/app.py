"""The command line's root: every command is added here."""

import typer

from toolcrib import __version__
from toolcrib.cli.server import serve, up, worker

app = typer.Typer(
    name="toolcrib",
    help="Toolcrib: issue tools to AI agents, govern what they do, and account for it.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(up)
app.command()(serve)
app.command()(worker)


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
    app()
