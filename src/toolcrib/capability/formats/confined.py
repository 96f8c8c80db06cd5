"""Parsing in a child process with limits on time and memory, for parsers that a hostile text can drive without bound.

The rules of HTML themselves turn 30 KB into gigabytes, and no library can be interrupted. The child gets the text and
nothing else: no environment, no open files. Run as a program this file is that child, so it imports nothing of ours.
"""

import os
import resource
import runpy
import subprocess  # the child is this very interpreter
import sys
import threading
from typing import Any, Final

import orjson

CPU_S: Final = 10
WALL_S: Final = 30
MEMORY_BYTES: Final = 1 << 30
_REFUSED: Final = 3  # the status of a child whose parser raised ValueError; the reason is its output
_CHILDREN: Final = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))


def run_confined(script: str, text: str, argument: str) -> Any:
    """What `extract(text, argument)` of the Python file `script` returns, as a JSON tree. Blocks.

    Raises ValueError with the reason of the script, or because a limit was reached.
    """
    command = [sys.executable, "-I", __file__, script]
    given = orjson.dumps([text, argument])
    with _CHILDREN:
        try:
            child = subprocess.run(  # noqa: S603  # no shell, and all of the command is ours
                command, input=given, capture_output=True, env={}, timeout=WALL_S, check=False
            )
        except (subprocess.TimeoutExpired, OSError):
            raise ValueError("parsing it takes too long") from None
    if child.returncode == _REFUSED:
        raise ValueError(child.stdout.decode("utf-8", "replace"))
    if child.returncode:
        raise ValueError("parsing it takes too much time or memory")
    return orjson.loads(child.stdout)


def _child(script: str) -> int:
    _limit(resource.RLIMIT_CPU, CPU_S)
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform != "darwin":  # macOS knows the limit, but no process there stays below it
        _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    extract = runpy.run_path(script)["extract"]
    text, argument = orjson.loads(sys.stdin.buffer.read())
    try:
        answer = orjson.dumps(extract(text, argument))
    except ValueError as e:
        sys.stdout.buffer.write(str(e).encode())
        return _REFUSED
    sys.stdout.buffer.write(answer)
    return 0


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1]))
