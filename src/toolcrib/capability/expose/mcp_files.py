"""The static resources of an MCP server: the files below a folder, listed and read by URI.

Only files that can be read through their URI are listed: every segment is made of letters, digits, `.`, `_` and `-`,
and nothing leads out of the folder. Everything here blocks; callers keep it off the event loop.
"""

import contextlib
import mimetypes
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from toolcrib.capability.locations import is_plain_segment
from toolcrib.core.mcp_server.wire import INTERNAL_ERROR, INVALID_PARAMS, RpcError

_MAX_FILE_BYTES: Final = 64 * 1024 * 1024
_TYPES = mimetypes.MimeTypes()  # Python's own table: what the machine adds would make answers differ
for _type, _suffix in (
    ("text/markdown", ".md"),
    ("application/yaml", ".yaml"),
    ("application/yaml", ".yml"),
    ("application/toml", ".toml"),
):
    _TYPES.add_type(_type, _suffix)


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file below the folder: its path with slashes, and its size in bytes."""

    path: str
    size: int


def list_files(folder: str) -> list[StaticFile]:
    """The files that `read_file` would read, sorted; none when there is no folder."""
    root = Path(folder).resolve()
    found = []
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if is_plain_segment(name)]
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(OSError, RuntimeError):  # it has gone, or links to itself
                if is_plain_segment(name) and path.resolve().is_relative_to(root) and path.is_file():
                    found.append(StaticFile(path.relative_to(root).as_posix(), path.stat().st_size))
    return sorted(found, key=lambda file: file.path)


def read_file(folder: str, path: str) -> bytes:
    """The bytes of a file.

    Raises:
        RpcError: the path is not one that may be asked for, leads out of the folder, or to no ordinary file.
    """
    if not all(map(is_plain_segment, path.split("/"))):
        raise RpcError(INVALID_PARAMS, "A path consists of segments of letters, digits, '.', '_' and '-'")
    try:
        root = Path(folder).resolve(strict=True)
        real = root.joinpath(path).resolve(strict=True)
        if not real.is_relative_to(root):
            raise RpcError(INVALID_PARAMS, "This path leads out of the folder")
        # what was judged is what is opened; a FIFO put there must not hold us up
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise RpcError(INVALID_PARAMS, "This is not a file")
            if status.st_size > _MAX_FILE_BYTES:
                raise RpcError(INTERNAL_ERROR, f"This file is larger than {_MAX_FILE_BYTES} bytes")
            return file.read()
    except IsADirectoryError:
        raise RpcError(INVALID_PARAMS, "This is not a file") from None
    except (FileNotFoundError, NotADirectoryError):
        raise RpcError(INVALID_PARAMS, "There is no such file") from None
    except (OSError, RuntimeError):  # no permission, a loop of links, a name too long
        raise RpcError(INVALID_PARAMS, "This file cannot be read") from None


def guess_type(path: str) -> str | None:
    """The media type that a file's name tells."""
    known, encoding = _TYPES.guess_type(path)
    return None if encoding else known
