"""How the command line signs in to the server on this machine: a key of its own in the data folder, mode 0600."""

import json
from dataclasses import dataclass
from pathlib import Path

from toolcrib.core.files import read_private, write_private

_FILE = "cli.json"


@dataclass(frozen=True, slots=True)
class SignInFile:
    """What the file says; either may be unknown."""

    url: str | None = None
    api_key: str | None = None


def read_sign_in(data: Path) -> SignInFile:
    """The file's content; empty when there is none or it cannot be read by this user."""
    try:
        values = json.loads(read_private(data / _FILE) or "{}")
    except (OSError, ValueError):
        return SignInFile()
    return SignInFile(values.get("url"), values.get("api_key"))


def save_cli_key(data: Path, url: str | None, api_key: str) -> None:
    """Keep a key and the URL it is for, if that is known already."""
    write_private(data / _FILE, json.dumps({"url": url, "api_key": api_key}))


def save_cli_url(data: Path, url: str) -> None:
    """Keep the URL where the server answers now, with the key that was there."""
    write_private(data / _FILE, json.dumps({"url": url, "api_key": read_sign_in(data).api_key}))
