"""From start to exit status: the event loop, the signals, and the tasks that run as long as the service does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, NoReturn

import structlog
import uvloop

from services.process.settings import refuse

log = structlog.get_logger()


class StartError(Exception):
    """The process cannot start as it is set up; the text names the setting."""


@contextlib.contextmanager
def naming(setting: str) -> Iterator[None]:
    """Turn an OSError into a StartError that names the setting which led to it."""
    try:
        yield
    except OSError as error:
        raise StartError(f"{setting}: {error}") from error


@contextlib.asynccontextmanager
async def running(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run tasks for as long as the block lasts, then cancel them. If one fails, so does the block, as a group.

    No service runs on without one of its parts: what starts it again then starts all of them.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
        yield
        for task in tasks:
            task.cancel()


def run(service: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> int:
    """Run a service until SIGTERM or SIGINT sets the event that it is given and it has drained. Returns exit status.

    A second signal ends the process at once. StartError ends it with one line, as a wrong setting does.
    """

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _on_signal, number, stopping)
        await service(stopping)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except StartError as error:
        refuse(str(error))
    return 0


def _on_signal(number: signal.Signals, stopping: asyncio.Event) -> None:
    if stopping.is_set():
        os._exit(128 + number)
    log.info("draining", signal=signal.Signals(number).name)
    stopping.set()


def end_at_once(reason: str) -> NoReturn:
    """End the process with status 1 although a thread of it hangs, which would keep it alive for ever."""
    log.error("stopped with work under way", reason=reason)
    os._exit(1)
