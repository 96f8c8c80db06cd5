"""How a command fails: one sentence on standard error, and an exit code that scripts can rely on."""

import typer

FAILED = 1
WRONG = 2  # the command line
HELD = 3
UNREACHABLE = 4
REFUSED = 5


class CommandFailed(Exception):
    """A command cannot go on; the message says why and how to mend it. `main` turns it into words and an exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def tell(error: CommandFailed) -> None:
    """Say on standard error why a command cannot go on."""
    typer.secho(f"toolcrib: {error}", err=True, fg="red")
