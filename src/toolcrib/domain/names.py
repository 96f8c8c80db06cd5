"""Callable names: what an agent writes to call a tool.

One rule everywhere: letters, digits, `_` and `-`, at most 64 characters (what every model provider accepts), unique
where it is used, given once and kept. Inside its tool set a tool goes by its own name; inside the workspace it keeps
that name if it was the first to ask for it, and is `{tool set}__{tool}` otherwise.
"""

import hashlib
import re
from collections.abc import Container

MAX_NAME = 64
MAX_SLUG = 30
_BAD = re.compile(r"[^A-Za-z0-9_-]+")


def callable_name(text: str, limit: int = MAX_NAME) -> str:
    """`text` with other characters as `_`; a long one is cut and ends in a hash of the whole, to stay distinct."""
    name = _BAD.sub("_", text).strip("_") or "tool"
    if len(name) <= limit:
        return name
    return f"{name[: limit - 9]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def slug_of(text: str, taken: Container[str]) -> str:
    """A tool set's name in URLs and before `__`: lower case, no `__` inside, at most 30 characters, not taken."""
    slug = re.sub(r"_+", "_", callable_name(text.lower(), MAX_SLUG - 3)).strip("_") or "tools"
    return _free(slug, taken, MAX_SLUG)


def local_name(tool: str, taken: Container[str]) -> str:
    """A tool's callable name inside its tool set."""
    return _free(callable_name(tool), taken, MAX_NAME)


def call_name(slug: str, local: str, taken: Container[str]) -> str:
    """A tool's callable name inside the workspace."""
    if local not in taken:
        return local
    return _free(callable_name(f"{slug}__{local}"), taken, MAX_NAME)


def _free(name: str, taken: Container[str], limit: int) -> str:
    candidate, number = name, 2
    while candidate in taken:
        suffix = f"_{number}"
        candidate = name[: limit - len(suffix)].rstrip("_") + suffix
        number += 1
    return candidate
