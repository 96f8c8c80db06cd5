"""How authenticators take secrets and hand out credentials."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from toolcrib.errors import Unavailable

Secret = Callable[[], str]  # gives a value, or raises Unavailable when it has none

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Authorized:
    """The credentials of one request: the URL to use and the headers to add.

    `used` is the authenticator's own memory of what it gave (a token, a challenge).
    """

    url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    used: object = field(default=None, repr=False)


def checked(name: str, secret: Secret, *, empty: bool = False) -> str:
    """The value of a secret, fit to be sent.

    Raises:
        Unavailable: it has no value, is empty although `empty` is not allowed, or cannot stand in a header.
    """
    value = secret()
    if not value and not empty:
        raise Unavailable("upstream.credential_invalid", f"The credential {name!r} is empty.")
    if _CONTROL.search(value):
        raise Unavailable(
            "upstream.credential_invalid",
            f"The credential {name!r} holds a control character, perhaps a line break at its end.",
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unavailable("upstream.credential_invalid", f"The credential {name!r} is not text.") from None
    return value
