"""The `toolcrib` command.

Exit codes: 0 done, 1 it failed, 2 the command line is wrong, 3 another process holds the data folder, 4 the server
cannot be reached, 5 the server refused. Data goes to standard output (JSON with `--json` or into a pipe), words for
people to standard error.
"""

from toolcrib.cli.app import main

__all__ = ["main"]
