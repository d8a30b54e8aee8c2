"""One seller's pace at one endpoint, in this process: the owner of a token's partition or lease is its only caller."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager

from shared.limits.pace import Pace

_SMALLEST_SWEEP = 1000


class _Turn:
    """Who calls next for one key, and from when on."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.next_slot = float("-inf")


class Turns:
    """Turns by key, first come, first served; memory is bounded by the keys used within the last interval."""

    def __init__(
        self,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._monotonic = monotonic
        self._sleep = sleep
        self._turns: dict[Hashable, _Turn] = {}
        self._sweep_at = _SMALLEST_SWEEP

    def __len__(self) -> int:
        return len(self._turns)

    @asynccontextmanager
    async def turn(self, key: Hashable, pace: Pace) -> AsyncIterator[None]:
        """Wait for the key's turn; the body waits for whatever else is needed, the request goes out right after it.

        The slot is taken when the body ends, since that is when the request is made. And a key is in the body once
        only: a seller with a thousand calls waiting has one place in the queue for the shared allowance, as every
        other seller has (requirement E3).
        """
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                wait = pace.slot(turn.next_slot, self._monotonic()) - self._monotonic()
                if wait > 0:
                    await self._sleep(wait)
                yield
                turn.next_slot = pace.slot(turn.next_slot, self._monotonic()) + pace.interval
        finally:
            turn.users -= 1
            if len(self._turns) > self._sweep_at:
                self._sweep()

    def _sweep(self) -> None:
        """Forget keys that are as if they had never been used."""
        now = self._monotonic()
        self._turns = {key: turn for key, turn in self._turns.items() if turn.users or turn.next_slot > now}
        self._sweep_at = max(_SMALLEST_SWEEP, 2 * len(self._turns))
