"""Rows of tokens, read at every call, but many at a time.

A call may use a token only as it is at that moment (it may have been refreshed, deactivated or replaced by another
process), so nothing is kept. But calls that come while a query is under way share the next one, and a query that would
begin right after another waits for a moment for more of them.
"""

import asyncio
from collections import defaultdict
from dataclasses import dataclass

import asyncpg

from shared.encryption import Secret
from shared.lately import Lately
from shared.logs import remember_user

# From one query to the next at least. A call takes many times as long, and a query costs as much for one as for fifty.
# Where many calls come it is longer. So many lately are twice what Allegro lets one client id have, 150 a second.
_SHORT_SPACING_SECONDS = 0.005
_LONG_SPACING_SECONDS = 0.02
_MANY_CALLS = 200
_HALF_LIFE_SECONDS = 0.5

# An access token is refreshed before its use when 2 % of its life, at most 10 s, are left.
# language=sql
READ_TOKENS = """
SELECT id, user_id, access_token, generation, status, status_reason,
       expires_at - least(interval '10 seconds', (expires_at - refreshed_at) / 50) <= clock_timestamp() AS expired,
       coalesce(refresh_after, expires_at) <= clock_timestamp() AS due
  FROM user_tokens WHERE id = ANY($1::bigint[])
"""


@dataclass
class Found:
    """A token's row as one query found it, None where there is no such token; the calls of that query share it."""

    row: asyncpg.Record | None
    access_token: Secret | None = None
    """Once a call has decrypted it: gone with the last of these calls."""


class TokenLookups:
    """`find` reads a token by a query that begins after it was asked."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._asked: defaultdict[int, list[asyncio.Future[Found]]] = defaultdict(list)
        self._reading: asyncio.Task[None] | None = None
        self._next_at = 0.0
        self._lately = Lately(_HALF_LIFE_SECONDS)
        """Calls."""

    async def find(self, token_id: int) -> Found:
        """The token as it is now; raises the driver's errors."""
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._asked[token_id].append(answer)
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(), name="token lookups")
        return await answer

    async def _read(self) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while self._asked:
                if (wait := self._next_at - clock()) > 0:
                    await asyncio.sleep(wait)
                asked, self._asked = self._asked, defaultdict(list)
                self._next_at = clock() + self._spacing_seconds(sum(map(len, asked.values())), clock())
                await self._answer(asked)
                del asked  # and what was decrypted for them
        finally:
            self._reading = None

    def _spacing_seconds(self, calls: int, now: float) -> float:
        self._lately.add(calls, now)
        return _LONG_SPACING_SECONDS if self._lately.amount(now) >= _MANY_CALLS else _SHORT_SPACING_SECONDS

    async def _answer(self, asked: dict[int, list[asyncio.Future[Found]]]) -> None:
        answers = [answer for waiting in asked.values() for answer in waiting]
        try:
            rows = {row["id"]: row for row in await self._pool.fetch(READ_TOKENS, list(asked))}
        except Exception as error:  # noqa: BLE001 - it is the error of everyone who asked
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)
            return
        except BaseException:
            for answer in answers:
                answer.cancel()
            raise
        for row in rows.values():
            remember_user(row["id"], row["user_id"])
        for token_id, waiting in asked.items():
            found = Found(rows.get(token_id))
            for answer in waiting:
                if not answer.done():  # whoever asked may have given up
                    answer.set_result(found)
