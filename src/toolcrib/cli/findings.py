"""What `toolcrib check` reports: one finding for each thing it looked at."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `mend` says what to do unless all is well."""

    name: str
    state: State
    detail: str
    mend: str = ""
