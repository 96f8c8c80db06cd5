"""The process's standard input and output for a protocol: no threads, and no blocking mode changed.

A file descriptor may be shared with other processes and with standard error, so it is left as it is: we wait until
the system says that it is ready, and then take or give no more than cannot block. Whatever else the process prints to
standard output goes to standard error meanwhile, because one stray line would break the protocol.
"""

import asyncio
import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import Protocol

_CHUNK = 65_536


class Reader(Protocol):
    """Where bytes come from, for example an `asyncio.StreamReader`."""

    async def read(self, n: int, /) -> bytes:
        """Up to `n` bytes; none at the end."""
        ...


class Writer(Protocol):
    """Where bytes go, for example an `asyncio.StreamWriter`."""

    def write(self, data: bytes, /) -> None:
        """Take bytes to be written."""
        ...

    async def drain(self) -> None:
        """Write what was taken; raises OSError when nobody reads any more."""
        ...


class _Input:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def read(self, n: int, /) -> bytes:
        loop = asyncio.get_running_loop()
        await _ready(self._descriptor, loop.add_reader, loop.remove_reader)
        return os.read(self._descriptor, min(n, _CHUNK))


class _Output:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting = bytearray()
        self._lock = asyncio.Lock()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, data: bytes, /) -> None:
        self._waiting += data

    async def drain(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._lock:
            while self._waiting:
                if not self._poll.poll(0):
                    await _ready(self._descriptor, loop.add_writer, loop.remove_writer)
                # ready means that so much can be written without blocking, says POSIX
                written = os.write(self._descriptor, memoryview(self._waiting)[: select.PIPE_BUF].tobytes())
                del self._waiting[:written]


async def _ready(descriptor: int, add: Callable[..., None], remove: Callable[[int], object]) -> None:
    """Return when the descriptor is ready; ordinary files always are, and cannot be waited for."""
    ready = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    try:
        add(descriptor, wake)
    except PermissionError:
        return
    try:
        await ready
    finally:
        remove(descriptor)


@contextlib.contextmanager
def standard_streams() -> Iterator[tuple[Reader, Writer]]:
    """Standard input, and standard output that is ours alone until the end of the context."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    try:
        yield _Input(0), _Output(ours)
    finally:
        sys.stdout.flush()
        os.dup2(ours, 1)
        os.close(ours)
