"""Finding and reading the files of a script step.

A file name is segments of safe characters below the step's `location`, and the file it leads to must lie there too,
symbolic links followed. Everything wrong here is a ValueError that says what; it is found when a file is planned.
"""

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from toolcrib.capability.locations import is_plain_segment, places_of

MAX_SOURCE_BYTES: Final = 256 * 1024  # of one file


@dataclass(frozen=True, slots=True)
class Source:
    """A script file: its name as the capability writes it, its text, and where it was read."""

    name: str
    text: str
    path: str


def folder_candidates(location: str, folders: tuple[str, ...]) -> tuple[Path, ...]:
    """Where `location` may point: one place, or for `file:///./x` and `file://./x` one below each of `folders`.

    Raises:
        ValueError: not a file URI.
    """
    try:
        uri = urlsplit(location)
    except ValueError:
        raise ValueError(f"location {location!r} is not a URI") from None
    if uri.scheme != "file" or uri.query or uri.fragment or uri.netloc not in {"", ".", "localhost"} or not uri.path:
        raise ValueError(f"location {location!r} is not a file URI (file:///folder or file:///./folder)")
    return places_of(location, folders)


def read_sources(location: str, names: tuple[str, ...], folders: tuple[str, ...]) -> tuple[Source, ...]:
    """The files `names`, all from the first place `location` may mean that holds the last of them.

    Raises:
        ValueError: a name is unsafe, or a file is missing, outside, too large or not UTF-8 text.
    """
    for name in names:
        segments = name.split("/")
        if not all(map(is_plain_segment, segments)):
            raise ValueError(f"file name {name!r} is not made of plain segments (letters, digits, '.', '_', '-')")
    candidates = folder_candidates(location, folders)
    home = next((folder for folder in candidates if (folder / names[-1]).is_file()), None)
    if home is None:
        raise ValueError(f"file {names[-1]!r} is not found in {location!r}")
    return tuple(_read(home, name) for name in names)


def _read(home: Path, name: str) -> Source:
    """One file below `home`."""
    root = home.resolve()
    try:
        path = (root / name).resolve(strict=True)
        if not path.is_relative_to(root):
            raise ValueError(f"file {name!r} leads out of its location")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name!r} is not a file")
        if status.st_size > MAX_SOURCE_BYTES:
            raise ValueError(f"file {name!r} is larger than {MAX_SOURCE_BYTES} bytes")
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"file {name!r} is not UTF-8 text") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise ValueError(f"file {name!r} cannot be read ({type(error).__name__})") from None
    if "\0" in text:
        raise ValueError(f"file {name!r} holds a null character")
    return Source(name, text, str(path))
