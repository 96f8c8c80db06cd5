"""Schema files that capability files name: found in the allowed folders, never outside them, and read once."""

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

MAX_BYTES: Final = 1_000_000


def read_schema(name: str | None, folders: tuple[str, ...], *, what: str) -> str:
    """The text of the schema file `name`, from the first of the folders that has it.

    Raises ValueError, in words for the author of the capability file: `what` says which format wants it.
    """
    if name is None or not name.strip():
        raise ValueError(f"outputRawFormat {what} needs outputSchema: the path of its schema file")
    found = next((path for folder in folders if (path := _inside(folder, name.strip()))), None)
    if found is None:
        raise ValueError(f"the {what} schema file {name!r} is not in the folder of the capability file")
    try:
        with found.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"the {what} schema file {name!r} is larger than {MAX_BYTES} bytes")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"the {what} schema file {name!r} is not UTF-8 text") from None
    except OSError as e:
        raise ValueError(f"the {what} schema file {name!r} cannot be read: {e.strerror}") from None


def _inside(folder: str, name: str) -> Path | None:
    """The file if it is a regular one that lies in the folder once links are followed."""
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or "\0" in name:
        raise ValueError(f"the schema file {name!r} must be given relative to the capability file")
    if ".." in PurePosixPath(name).parts:
        raise ValueError(f"the schema file {name!r} must not climb out of its folder")
    try:
        root = Path(folder).resolve(strict=True)
        path = (root / name).resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
        return None
    return path if path.is_relative_to(root) and path.is_file() else None
