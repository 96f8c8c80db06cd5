"""Runs a command's coroutine to its end, and turns what stands in its way into words and an exit code."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import typer
import uvloop

from toolcrib.cli.failure import CommandFailed
from toolcrib.errors import AppError
from toolcrib.installation import NotReady

T = TypeVar("T")


def run(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work()`.

    Raises:
        CommandFailed: it failed in a way that people can mend.
    """

    async def main() -> T:
        return await work()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    except NotReady as error:
        raise CommandFailed(str(error)) from None
    except AppError as error:
        raise CommandFailed(error.message) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
