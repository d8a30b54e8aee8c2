"""Waiting, at the start of a service, for what it cannot begin without: whoever is away comes back in the end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0

_Answer = TypeVar("_Answer")


async def until_answered(
    whom: str, ask: Callable[[], Awaitable[_Answer]], away: tuple[type[Exception], ...]
) -> _Answer:
    """The answer; asked again after growing pauses for as long as one of the errors `away` says that nobody is there.

    Any other error is raised. `whom` is named in the log.
    """
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await ask()
        except away as error:
            logger.warning(
                "%s is not reachable yet", whom, extra={"error": repr(error), "retry_in_seconds": round(pause, 1)}
            )
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
