"""Staying within Allegro's limits (promise P5): per token and endpoint in process, per client id over all processes.

A token's calls to one endpoint are paced by the process that owns the token's partition or lease. The allowance of
the client id is leased from PostgreSQL in small chunks: 9,000 requests a minute belong to all sellers and all our
processes together, calls of the token endpoint included (allegro-api.md 6). All pacing is GCRA, set so that no
window of a minute, wherever it starts, holds more than the limit: rate x minute + burst = limit.

When Allegro answers 429 all the same, everybody stops: calls during a block prolong it (#3454, #6754).
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Literal

import asyncpg

from shared.allegro import metrics
from shared.settings import AllegroSettings

Traffic = Literal["live", "bulk"]


class Endpoint(Enum):
    """What Allegro limits separately; the values name it in metrics and errors."""

    EVENTS = "events"
    LIST = "list"
    DETAIL = "detail"
    DEVICE = "device"
    TOKEN = "token"  # noqa: S105 - an endpoint's name
    ME = "me"


# A burst is this part of a minute's allowance, one request at least.
_BURST_SHARE = 0.02
# A chunk is leased for about this long: what a process that dies takes with it.
_CHUNK_SECONDS = 0.05
_PERMIT_LIFETIME_SECONDS = 1.0
_REMEMBERED_KEYS = 20_000

# language=sql
_RESERVE = """
INSERT INTO client_budgets AS b (client_id, theoretical_arrival_at)
VALUES ($1, clock_timestamp() + $2::float8 * interval '1 second')
ON CONFLICT (client_id) DO UPDATE
   SET theoretical_arrival_at = greatest(b.theoretical_arrival_at, clock_timestamp()) + $2::float8 * interval '1 second'
RETURNING extract(epoch FROM theoretical_arrival_at - clock_timestamp())::float8 - $2::float8 AS wait,
          extract(epoch FROM blocked_until - clock_timestamp())::float8 AS blocked
"""

_BLOCK = """
INSERT INTO client_budgets AS b (client_id, blocked_until)
VALUES ($1, clock_timestamp() + $2::float8 * interval '1 second')
ON CONFLICT (client_id) DO UPDATE
   SET blocked_until = greatest(b.blocked_until, excluded.blocked_until)
"""

_READ_BLOCK = """
SELECT extract(epoch FROM blocked_until - clock_timestamp())::float8 FROM client_budgets WHERE client_id = $1
"""


@dataclass(frozen=True)
class Pace:
    """A limit as GCRA sees it: seconds between requests, and how many may come at once."""

    interval: float
    burst: int

    @classmethod
    def of(cls, per_minute: float, *, minute_seconds: float) -> "Pace":
        """The pace at which no window of a minute holds more than `per_minute` requests."""
        burst = max(1, int(per_minute * _BURST_SHARE))
        steady = max(per_minute - burst, 0.5)
        return cls(minute_seconds / steady, burst)

    @property
    def tolerance(self) -> float:
        """How far ahead of its time a request may come, in seconds."""
        return (self.burst - 1) * self.interval


def arrive(theoretical: float, now: float, pace: Pace) -> tuple[float, float]:
    """One request under GCRA: returns its new theoretical arrival time and how long it has to wait."""
    start = max(theoretical, now)
    return start + pace.interval, max(0.0, start - pace.tolerance - now)


class _Paced:
    """GCRA for many keys in this process; what was not used for long is forgotten, which only a burst can notice."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._theoretical: OrderedDict[tuple[int, Endpoint], float] = OrderedDict()

    def wait(self, key: tuple[int, Endpoint], pace: Pace) -> float:
        """Take a place in the key's queue; returns the seconds until it is its turn."""
        now = self._monotonic()
        self._theoretical[key], wait = arrive(self._theoretical.get(key, now), now, pace)
        self._theoretical.move_to_end(key)
        if len(self._theoretical) > _REMEMBERED_KEYS:
            self._theoretical.popitem(last=False)
        return wait


class _Lease:
    """Permits of one allowance in PostgreSQL, leased in chunks."""

    def __init__(self, pool: asyncpg.Pool, key: str, pace: Pace, blocked: Callable[[float | None], None]) -> None:
        self._pool = pool
        self._key = key
        self._pace = pace
        self._blocked = blocked
        self._permits: deque[float] = deque()
        self._waiting = 0
        self._lock = asyncio.Lock()

    async def take(self) -> float:
        """A permit: the monotonic moment from which it may be used."""
        self._waiting += 1
        try:
            async with self._lock:
                now = time.monotonic()
                while self._permits and self._permits[0] < now - _PERMIT_LIFETIME_SECONDS:
                    self._permits.popleft()
                if not self._permits:
                    await self._reserve(max(self._waiting, int(_CHUNK_SECONDS / self._pace.interval), 1))
                return self._permits.popleft()
        finally:
            self._waiting -= 1

    async def _reserve(self, wanted: int) -> None:
        count = min(wanted, self._pace.burst)
        row = await self._pool.fetchrow(_RESERVE, self._key, count * self._pace.interval)
        first = time.monotonic() + row["wait"] - self._pace.tolerance
        self._permits.extend(first + number * self._pace.interval for number in range(count))
        self._blocked(row["blocked"])


class RequestLimits:
    """Every call to Allegro waits here first. `notice_block()` has to be called all the time beside it."""

    def __init__(
        self, pool: asyncpg.Pool, settings: AllegroSettings, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        minute = settings.allegro_limit_minute_seconds
        self._pool = pool
        self._client_id = settings.allegro_client_id
        self._monotonic = monotonic
        self._blocked_until = 0.0
        self._paced = _Paced(monotonic)
        self._paces = {
            Endpoint.EVENTS: Pace.of(settings.allegro_events_limit_per_minute, minute_seconds=minute),
            Endpoint.LIST: Pace.of(settings.allegro_list_limit_per_minute, minute_seconds=minute),
            Endpoint.DETAIL: Pace.of(settings.allegro_detail_limit_per_minute, minute_seconds=minute),
            Endpoint.DEVICE: Pace.of(settings.allegro_device_limit_per_minute, minute_seconds=minute),
        }
        limit = settings.allegro_client_limit_per_minute
        bulk_limit = limit * (1 - settings.allegro_live_share)
        self._client = _Lease(pool, self._client_id, Pace.of(limit, minute_seconds=minute), self._learn_block)
        self._bulk = _Lease(
            pool, f"{self._client_id}/bulk", Pace.of(bulk_limit, minute_seconds=minute), lambda _blocked: None
        )

    async def acquire(self, endpoint: Endpoint, *, token_id: int | None, traffic: Traffic) -> None:
        """Wait until the call is allowed; raises the driver's errors if PostgreSQL is away: then nobody calls."""
        started = self._monotonic()
        pace = self._paces.get(endpoint)
        if pace is not None:
            await asyncio.sleep(self._paced.wait((token_id or 0, endpoint), pace))
        if traffic == "bulk":
            await self._until(await self._bulk.take())
        await self._until(await self._client.take())
        await self._until_unblocked()
        metrics.limit_wait_seconds.labels(endpoint.value).observe(self._monotonic() - started)

    async def _until_unblocked(self) -> None:
        while (blocked := self._blocked_until - self._monotonic()) > 0:  # it may be prolonged meanwhile
            await asyncio.sleep(blocked)

    async def block(self, duration: timedelta) -> None:
        """Stop every process that uses this client id for `duration`: Allegro answered 429."""
        seconds = duration.total_seconds()
        self._learn_block(seconds)
        await self._pool.execute(_BLOCK, self._client_id, seconds)

    async def notice_block(self) -> None:
        """Learn of blocks that other processes ran into; to be called at least twice a second."""
        self._learn_block(await self._pool.fetchval(_READ_BLOCK, self._client_id))

    def _learn_block(self, seconds: float | None) -> None:
        if seconds is not None and seconds > 0:
            self._blocked_until = max(self._blocked_until, self._monotonic() + seconds)
            metrics.blocked_until.set(time.time() + seconds)

    async def _until(self, moment: float) -> None:
        wait = moment - self._monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
