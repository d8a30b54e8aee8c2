"""How many list pages of backlogs are in hand at a time.

A page is held several times over between its answer and the acknowledgement of what it showed: a megabyte and more.
Memory must not grow with the number of sellers that have a backlog (promise P10).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

# More than this process can decode and publish while it waits for as many answers.
_PAGES = 16
# Who waits longer waits behind sellers whose calls hang: those hold a place, but no page (promise P4).
_PATIENCE_SECONDS = 5.0


class PagePlaces:
    """Places for `pages` of them; nobody waits for one longer than `patience_seconds`."""

    def __init__(self, pages: int = _PAGES, *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._places = asyncio.Semaphore(pages)
        self._patience_seconds = patience_seconds

    @property
    def are_taken(self) -> bool:
        """Whether there is no free place."""
        return self._places.locked()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Ask for a page, and publish what it shows, within the block."""
        taken = False
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_seconds):
                taken = await self._places.acquire()
        try:
            yield
        finally:
            if taken:
                self._places.release()
