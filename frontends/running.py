"""The life of a frontend process, the same for all protocols: settings, exit codes, and waiting to be told to stop."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from conch.errors import ConchError
from conch.process import begin
from conch.settings import Settings


def run(
    title: str,
    logger: logging.Logger,
    is_wanted: Callable[[Settings], bool],
    serve: Callable[[Settings], Coroutine[Any, Any, bool]],
) -> int:
    """The process's exit code: 0 after a stop signal, or for a frontend that is not wanted; 1 if it cannot run, or if
    ``serve`` returns False: not everything could be finished in time. ``title`` is for logs."""
    try:
        settings = Settings.from_environ()
    except ConchError as error:
        logging.basicConfig()
        logger.error("%s", error.message)
        return 1
    begin(settings)
    if not is_wanted(settings):
        return 0
    try:
        finished = uvloop.run(serve(settings))
    except (ConchError, OSError) as error:
        logger.error("the %s frontend cannot run: %s", title, error)
        return 1
    if not finished:
        logger.error("Exit timeout expired. Exiting immediately.")
        return 1
    return 0


async def first(*events: asyncio.Event) -> None:
    """Returns when one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
