"""Many claimed items at once, a bounded number of them; a slow one occupies its slot and delays nobody else's."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

from shared.service import LOOP_FAILURES, is_transient

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")

_LONGEST_WAIT_SECONDS = 1.0


class Slots:
    """Claims as many items as there are free slots, and works on each in a task of its own.

    An item whose work fails keeps its lease: when that has expired it is claimed again, by whichever replica.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def are_full(self) -> bool:
        return len(self._tasks) >= self._limit

    async def fill(
        self, claim: Callable[[int], Awaitable[Sequence[_Item]]], work: Callable[[_Item], Awaitable[None]]
    ) -> bool:
        """Start what is due; True if more may be waiting for a free slot."""
        if self.are_full:
            await asyncio.wait(self._tasks, timeout=_LONGEST_WAIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        free = self._limit - len(self._tasks)
        if free <= 0:
            return True
        items = await claim(free)
        for item in items:
            task = asyncio.create_task(self._guarded(work, item), name=self._name)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(items) == free

    async def idle(self) -> None:
        """Wait until nothing is in work."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _guarded(self, work: Callable[[_Item], Awaitable[None]], item: _Item) -> None:
        try:
            await work(item)
        except Exception as error:
            if is_transient(error):
                LOOP_FAILURES.labels(self._name, "outage").inc()
                logger.warning("%s: tried again later", self._name, extra={"error": repr(error)})
            else:
                LOOP_FAILURES.labels(self._name, "bug").inc()
                logger.error("%s: unexpected error", self._name, exc_info=error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for task in list(self._tasks):
            task.cancel()
        await self.idle()
