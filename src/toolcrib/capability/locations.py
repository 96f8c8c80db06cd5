"""What a `location` of a capability file means, and which names below one may be asked for.

The one rule for binds, scripts, skills, resources and prompts: `file:///x` is absolute, `file:///./x` and `file://./x`
are relative; names below are made of plain segments, and what they lead to lies there too, links followed.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote

_SEGMENT: Final = re.compile(r"[a-zA-Z0-9._-]+")


def places_of(location: str, folders: Sequence[str]) -> tuple[Path, ...]:
    """The one place of an absolute location, or those of a relative one below each of `folders`.

    Raises:
        ValueError: it is empty, or holds a null character.
    """
    path = unquote(re.sub(r"^file://(localhost(?=/))?", "", location))
    if path == "/." or path.startswith("/./"):
        path = path[1:]
    if not path or "\0" in path:
        raise ValueError(f"location {location!r} names no place")
    return (Path(path),) if path.startswith("/") else tuple(Path(folder, path) for folder in folders)


def is_plain_segment(name: str) -> bool:
    """Whether a name may be part of a path that somebody asks for."""
    return _SEGMENT.fullmatch(name) is not None and name not in {".", ".."}


def contained(root: Path, path: Path) -> Path | None:
    """Where a path really leads, if that is below the (resolved) root and there; blocks."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):  # absent, or a loop of links, before Python 3.13
        return None
    return real if real.is_relative_to(root) else None
