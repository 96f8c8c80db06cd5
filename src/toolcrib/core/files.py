"""Small files of ours in the data folder: written whole or not at all, readable by their owner alone."""

import os
import secrets
from pathlib import Path


def make_private_folder(folder: Path, *, mode: int = 0o700) -> None:
    """Create a folder, parents as usual; an existing one stays as it is.

    Root's is 0711: the embedded PostgreSQL runs as another user, who must get through to its own part.
    """
    folder.mkdir(mode=mode, parents=True, exist_ok=True)


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically; mode 0600 from its first byte, on disk before the name appears."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_private(path: Path) -> str | None:
    """The text of a file, or None when there is none."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
