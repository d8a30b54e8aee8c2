"""How many list pages of backlogs are in hand at a time.

A page is held several times over between its answer and the acknowledgement of what it showed: a megabyte and more.
Memory must not grow with the number of sellers that have a backlog (promise P10), and one whose call hangs must not
keep the others waiting (P4): it holds a place, but no page.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# As many as this process can decode and publish at a time, and more.
_PAGES = 16
# However slowly Allegro answers, 32 pages a second are asked for.
_PATIENCE_SECONDS = 0.5


class Place:
    """One of the places, taken until it is given back, by whoever is first to do so."""

    def __init__(self, places: asyncio.Semaphore, patience_seconds: float) -> None:
        self._places = places
        self._is_taken = True
        self._waiting = asyncio.get_running_loop().call_later(patience_seconds, self.give_back)

    async def page_came(self) -> None:
        """From now on there is something to hold, however long that takes; one that came late waits for a place."""
        self._waiting.cancel()
        if not self._is_taken:
            await self._places.acquire()
            self._is_taken = True

    def give_back(self) -> None:
        """Let the next one have it; does nothing where it was given back before."""
        self._waiting.cancel()
        if self._is_taken:
            self._is_taken = False
            self._places.release()


class PagePlaces:
    """So many places; one where no page comes within `patience_seconds` is given to the next."""

    def __init__(self, pages: int = _PAGES, *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._places = asyncio.Semaphore(pages)
        self._patience_seconds = patience_seconds

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        """Wait for a place; ask for a page, and publish what it shows, within the block."""
        await self._places.acquire()
        place = Place(self._places, self._patience_seconds)
        try:
            yield place
        finally:
            place.give_back()
