"""Rows of tokens, read at every call, but many at a time.

A call may use a token only as it is at that moment (it may have been refreshed, deactivated or replaced by another
process), so nothing is kept. But calls that come while a query is under way share the next one, and where many come
a query waits for a moment for more of them.
"""

import asyncio
from collections import defaultdict
from typing import Any

import asyncpg

from shared.logs import remember_user

# From one query to the next at least. A call takes many times as long, and a query costs as much for one as for fifty.
_SPACING_SECONDS = 0.005

# An access token is refreshed before its use when 2 % of its life, at most 10 s, are left.
# language=sql
READ_TOKENS = """
SELECT id, user_id, access_token, generation, status, status_reason,
       expires_at - least(interval '10 seconds', (expires_at - refreshed_at) / 50) <= clock_timestamp() AS expired,
       coalesce(refresh_after, expires_at) <= clock_timestamp() AS due
  FROM user_tokens WHERE id = ANY($1::bigint[])
"""


class TokenLookups:
    """`row` reads a token by a query that begins after it was asked."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._asked: defaultdict[int, list[asyncio.Future[asyncpg.Record | None]]] = defaultdict(list)
        self._reading: asyncio.Task[None] | None = None
        self._next_at = 0.0

    async def row(self, token_id: int) -> Any:
        """The row as it is now, or None where there is no such token; raises the driver's errors."""
        answer: asyncio.Future[asyncpg.Record | None] = asyncio.get_running_loop().create_future()
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
                self._next_at = clock() + _SPACING_SECONDS
                asked, self._asked = self._asked, defaultdict(list)
                await self._answer(asked)
        finally:
            self._reading = None

    async def _answer(self, asked: dict[int, list[asyncio.Future[asyncpg.Record | None]]]) -> None:
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
            for answer in waiting:
                if not answer.done():  # whoever asked may have given up
                    answer.set_result(rows.get(token_id))
