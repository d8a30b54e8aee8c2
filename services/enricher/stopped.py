"""What was stopped: looks that a listing, or a run of certain orders, had asked for, and nobody else wants."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from uuid import UUID

import asyncpg

from services.enricher.merge import Wanted

# A look that is owed still is wanted by somebody else, too. The run has to be looked at as well: an order that is owed
# nothing may have been asked for by a person who replays a dead letter.
# language=sql
_STOPPED = """
SELECT w.order_id
  FROM unnest($2::text[], $3::uuid[]) AS w (order_id, run_id)
  JOIN sync_history r ON r.run_id = w.run_id AND r.kind <> 'journal' AND r.status = 'stopped'
 WHERE NOT EXISTS (SELECT FROM pending_fetches p WHERE p.user_token_id = $1 AND p.allegro_order_id = w.order_id)
"""

# A stop is heard within two seconds.
_LOOK_SECONDS = 1.0

StoppedOf = Callable[[int, Mapping[str, UUID]], Awaitable[Collection[str]]]
"""Of orders of a token, each with the run that asked for it, those that nobody wants any more."""


class StoppedLooks:
    """Knows from PostgreSQL which looks are not wanted any more."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def among(self, token_id: int, asked: Mapping[str, UUID]) -> Collection[str]:
        """The orders of a token that need no look; raises the driver's errors."""
        rows = await self._pool.fetch(_STOPPED, token_id, list(asked), list(asked.values()))
        return frozenset(row["order_id"] for row in rows)


class StopWatch:
    """Hears of stops while looks of one token are made: asks once a second, for all of them, and never for events."""

    def __init__(self, stopped_of: StoppedOf, token_id: int, wanted: Sequence[Wanted]) -> None:
        self._stopped_of = stopped_of
        self._token_id = token_id
        self._asked = {request.order_id: request.only_for for request in wanted if request.only_for is not None}
        self._stopped: Collection[str] = ()
        self._next_look = 0.0
        self._looking = asyncio.Lock()

    async def is_stopped(self, request: Wanted) -> bool:
        """Whether nobody wants this look any more; raises the errors of whoever is asked."""
        if request.only_for is None:
            return False
        async with self._looking:
            if time.monotonic() >= self._next_look:
                self._stopped = await self._stopped_of(self._token_id, self._asked)
                self._next_look = time.monotonic() + _LOOK_SECONDS
        return request.order_id in self._stopped
