"""The API's keys as one process knows them: read again every second, so that a revoked key is soon of no use."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import asyncpg

from shared.api_keys import ApiKey, all_keys, note_use, public_id_of

_FRESH_SECONDS = 1.0
_NOTE_SECONDS = 60.0
# Unknown keys wait for a common look: otherwise whoever invents keys would have all of them read at every request.
_PAUSE_SECONDS = 0.1


class KeyStore:
    """Looks keys up without asking PostgreSQL at every request."""

    def __init__(self, pool: Callable[[], asyncpg.Pool]) -> None:
        self._pool = pool
        self._keys: dict[str, ApiKey] = {}
        self._read_at = -float("inf")
        self._lock = asyncio.Lock()
        self._noted: dict[int, float] = {}

    async def is_empty(self) -> bool:
        """Whether there never was a key; a revoked one counts, so that revoking the last opens nothing."""
        await self._read(before=time.monotonic() - _FRESH_SECONDS)
        return not self._keys

    async def has_usable(self) -> bool:
        """Whether anybody could get in."""
        await self._read(before=time.monotonic() - _FRESH_SECONDS)
        now = datetime.now(UTC)
        return any(key.is_usable(now) for key in self._keys.values())

    async def find(self, presented: str) -> ApiKey | None:
        """The key that was presented, if it is one and may be used; a new key is known within 0.1 s."""
        asked_at = time.monotonic()
        public_id = public_id_of(presented)
        if public_id is None:
            return None
        await self._read(before=asked_at - _FRESH_SECONDS)
        if public_id not in self._keys and self._read_at < asked_at:
            await asyncio.sleep(self._read_at + _PAUSE_SECONDS - asked_at)
            await self._read(before=asked_at)
        key = self._keys.get(public_id)
        if key is None or not key.opens_with(presented) or not key.is_usable(datetime.now(UTC)):
            return None
        await self._note(key)
        return key

    async def _read(self, *, before: float) -> None:
        """Read the keys again if what we know is from before that moment; one reader at a time."""
        if self._read_at >= before:
            return
        async with self._lock:
            if self._read_at < before:
                started = time.monotonic()
                self._keys = {key.public_id: key for key in await all_keys(self._pool())}
                self._read_at = started

    async def _note(self, key: ApiKey) -> None:
        now = time.monotonic()
        if now - self._noted.get(key.id, -_NOTE_SECONDS) >= _NOTE_SECONDS:
            self._noted[key.id] = now
            await note_use(self._pool(), key.id)
