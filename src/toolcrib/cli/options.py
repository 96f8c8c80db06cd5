"""Options that several commands share, and the settings with those options on top."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from toolcrib.cli.failure import CommandFailed
from toolcrib.settings import Settings

_SERVER = "Server"

Data = Annotated[
    Path | None,
    typer.Option("--data", help="Data folder. [TOOLCRIB_DATA]", show_default=False),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="TOOLCRIB_URL",
        help="Where the server answers; default: as `toolcrib up` noted it, else http://127.0.0.1:8700.",
        show_default=False,
        rich_help_panel=_SERVER,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="TOOLCRIB_API_KEY",
        help="API key; default: this host's own, which `toolcrib up` made.",
        show_default=False,
        rich_help_panel=_SERVER,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, as happens in a pipe.")]


def load_settings(**options: Any) -> Settings:
    """The settings with the options that were given on top.

    Raises:
        CommandFailed: a setting is wrong; names it.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        lines = [f"TOOLCRIB_{'_'.join(map(str, e['loc'][:1])).upper()}: {e['msg']}" for e in error.errors()]
        raise CommandFailed("the settings cannot be used:\n  " + "\n  ".join(lines)) from None


def pairs(texts: list[str] | None, option: str, separator: str = "=") -> dict[str, str]:
    """`name=value` texts as a mapping.

    Raises:
        typer.BadParameter: one has no separator or no name.
    """
    found = {}
    for text in texts or ():
        name, here, value = text.partition(separator)
        if not here or not name.strip():
            raise typer.BadParameter(f"{text!r} is not name{separator}value.", param_hint=option)
        found[name.strip()] = value.strip() if separator == ":" else value
    return found
