"""What a script may use, and how it is told that it used more.

The failures here are the script's own (`script.failed`, shown to the caller); what befalls an interpreter from outside
is `Unavailable`.
"""

from dataclasses import dataclass
from typing import Final

from toolcrib.errors import Invalid, Unavailable

# Neither interpreter counts statements. A statement stands for this much processor time, hundreds of times what a plain
# one takes: a script within its statements is never stopped, and a runaway loop is stopped long before the time-out.
STATEMENT_S: Final = 0.000_1
MAX_DEPTH: Final = 100  # of a result; the Python interpreter itself reads no JSON deeper than 200
_MAX_MESSAGE: Final = 500  # characters


@dataclass(frozen=True, slots=True)
class ScriptLimits:
    """What one run may use.

    Attributes:
        timeout_s: wall time, from the moment an interpreter is free.
        statements: turned into processor time (`STATEMENT_S` each); None leaves only the time-out.
        memory_bytes: heap of the interpreter.
        output_bytes: length of the result as JSON, and, apart from it, of everything printed.
    """

    timeout_s: float = 60.0
    statements: int | None = 100_000
    memory_bytes: int = 64 * 1024 * 1024
    output_bytes: int = 1024 * 1024

    @property
    def busy_s(self) -> float:
        """Processor time of one run, seconds."""
        return self.timeout_s if self.statements is None else min(self.timeout_s, self.statements * STATEMENT_S)


def failed(name: str, reason: str, line: int | None = None) -> Invalid:
    """The script at fault, with the file and, where known, the line."""
    place = name if line is None else f"{name}:{line}"
    text = "".join(character if character.isprintable() else " " for character in reason[:_MAX_MESSAGE]).strip()
    return Invalid("script.failed", f"{place}: {text}", file=name, line=line)


def too_long(name: str, limits: ScriptLimits) -> Invalid:
    """The script ran out of time."""
    if limits.busy_s < limits.timeout_s:
        reason = f"the script used more than {limits.busy_s:g} s, which is what {limits.statements} statements may take"
    else:
        reason = f"the script ran longer than its time-out of {limits.timeout_s:g} s"
    return failed(name, reason)


def too_much_memory(name: str, limits: ScriptLimits, line: int | None = None) -> Invalid:
    """The script ran out of memory."""
    return failed(name, f"the script needed more than {limits.memory_bytes} bytes of memory", line)


def too_much_output(name: str, limits: ScriptLimits) -> Invalid:
    """The result is too long."""
    return failed(name, f"the result is longer than {limits.output_bytes} bytes of JSON")


def interpreter_lost(name: str, ending: str) -> Unavailable:
    """The interpreter was ended from outside while the script ran."""
    return Unavailable(
        "script.interpreter_lost", f"{name}: the interpreter ended while the script ran ({ending}); try again"
    )
