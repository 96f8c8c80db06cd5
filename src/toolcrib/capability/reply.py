"""What anything executed answers with."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of anything executed: what an upstream, a mock or the steps gave, after mapping.

    `headers` are those that may go on to the caller; `media` is the content type of the body, None without a body.
    """

    status: int
    body: bytes = b""
    media: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def is_error(self) -> bool:
        """Whether the upstream reported a failure."""
        return self.status >= 400


Arguments = Mapping[str, Any]
Run = Callable[[Arguments], Awaitable[Reply]]
