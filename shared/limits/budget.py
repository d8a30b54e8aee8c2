"""An allowance that all processes share: slots of one row in PostgreSQL, taken in small chunks.

All moments are PostgreSQL's. A chunk holds a slot for every call that waits, and for those that will come within an
eighth of a second if they go on coming as they did: a round trip to PostgreSQL for each call would cost more than the
call. A process that dies, or has nothing more to do, wastes what it had not used of one chunk.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable

import asyncpg

from shared.limits.pace import Pace
from shared.limits.slots import Demand, Slots

# A chunk is at most this part of what may be taken ahead, so that several processes fit in.
_CHUNKS_AHEAD = 4

# One statement in autocommit, never in a business transaction: the row is locked for its length only. Nobody waits for
# the disk: if PostgreSQL crashes, its restart takes longer than the slots that are forgotten. The clock is read where
# the row is locked, after any wait for it.
# language=sql
_LEASE = """
WITH budget AS (
    SELECT client_id, theoretical_arrival_at, blocked_until, clock_timestamp() AS read_at
      FROM client_budgets WHERE client_id = $1 FOR UPDATE
), slot AS (
    SELECT client_id, read_at, blocked_until,
           greatest(theoretical_arrival_at, read_at - $4::float8 * interval '1 second', blocked_until) AS first
      FROM budget
), lease AS (
    SELECT *, extract(epoch FROM first - read_at)::float8 AS wait FROM slot
), size AS (
    SELECT *, CASE WHEN wait > $5::float8 THEN 0
                   ELSE least($2::int, floor(($5::float8 - wait) / $3::float8)::int + 1) END AS count
      FROM lease
), taken AS (
    UPDATE client_budgets b
       SET theoretical_arrival_at = size.first + size.count * $3::float8 * interval '1 second'
      FROM size WHERE b.client_id = size.client_id AND size.count > 0
)
SELECT count, wait, extract(epoch FROM blocked_until - read_at)::float8 AS blocked,
       set_config('synchronous_commit', 'off', true)
  FROM size
"""

_CREATE = "INSERT INTO client_budgets (client_id) VALUES ($1) ON CONFLICT DO NOTHING"


class Budget:
    """Slots of one row for one kind of traffic.

    `lookahead` is how many seconds ahead slots may be taken: traffic with less of it gives way to traffic with more.
    `learn_block` is told of blocks that the row shows, in seconds; `blocked_seconds` says how long one holds still.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        key: str,
        pace: Pace,
        *,
        lookahead: float,
        learn_block: Callable[[float], None] = lambda _seconds: None,
        blocked_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._pool = pool
        self._key = key
        self._pace = pace
        self._lookahead = lookahead
        self._learn_block = learn_block
        self._blocked_seconds = blocked_seconds
        self._slots = Slots(pace)
        self._demand = Demand()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._server: asyncio.Task[None] | None = None

    async def take(self, *, urgent: bool = False) -> None:
        """Wait for a slot, first come, first served; `urgent` goes to the front.

        Raises the driver's errors if PostgreSQL is away: then nobody calls.
        """
        self._demand.calls += 1
        if not self._waiting and not self._blocked_seconds() and self._slots.use(time.monotonic()):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if urgent:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        if self._server is None:
            self._server = asyncio.create_task(self._serve(), name=f"budget {self._key}")
        await turn

    async def _serve(self) -> None:
        """Take slots and hand them out for as long as somebody waits."""
        try:
            while self._forget_cancelled():
                if blocked := self._blocked_seconds():
                    self._slots = Slots(self._pace)  # slots before the end of a block are void
                    await asyncio.sleep(min(blocked, self._lookahead))
                elif self._slots.use(time.monotonic()):
                    self._waiting.popleft().set_result(None)
                elif wait := self._slots.wait(time.monotonic()):
                    await asyncio.sleep(wait)
                elif wait is None:
                    await self._renew()
        except Exception as error:  # noqa: BLE001 - it is the error of everyone who waits
            self._fail(error)
        finally:
            self._server = None

    async def _renew(self) -> None:
        """Take a chunk; wait where there is none to be had yet."""
        seconds = self._lookahead / _CHUNKS_AHEAD
        wanted = max(len(self._waiting), self._demand.within(seconds, now=time.monotonic()))
        row = await self._lease(self._pace.chunk(wanted, seconds=seconds))
        if row["blocked"] is not None:
            self._learn_block(row["blocked"])
        if row["count"]:
            self._slots = Slots(self._pace, time.monotonic() + row["wait"], row["count"])
        else:
            # Spread, so that the processes that wait do not come back all at once.
            late = self._lookahead * random.uniform(0.1, 0.5)  # noqa: S311
            await asyncio.sleep(max(row["wait"] - self._lookahead, 0.0) + late)

    async def _lease(self, count: int) -> asyncpg.Record:
        pace = self._pace
        while True:
            row = await self._pool.fetchrow(_LEASE, self._key, count, pace.interval, pace.tolerance, self._lookahead)
            if row is not None:
                return row
            await self._pool.execute(_CREATE, self._key)

    def _forget_cancelled(self) -> bool:
        """Whether anybody still waits."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()
        return bool(self._waiting)

    def _fail(self, error: Exception) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)
