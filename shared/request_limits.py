"""Staying within Allegro's limits (promise P5): per token and endpoint in process, per client id over all processes.

A token's calls to one endpoint are paced by the process that owns the token's partition or lease (shared.limits.turns).
The allowance of the client id is taken from PostgreSQL in small chunks (shared.limits.budget): 9,000 requests a minute
belong to all sellers and all our processes together, calls of the token endpoint included (allegro-api.md 6). Bulk
loads pass a second, smaller allowance before, so that a share is always left to live traffic.

When Allegro answers 429 all the same, everybody stops: calls during a block prolong it (#3454, #6754).
"""

import asyncio
import logging
import time
from contextlib import suppress
from datetime import timedelta
from enum import Enum
from typing import Any, Literal

import asyncpg

from shared.allegro import metrics
from shared.database import TRANSIENT_DATABASE_ERRORS
from shared.limits.budget import Budget
from shared.limits.pace import Pace
from shared.limits.turns import Turns
from shared.settings import AllegroSettings

logger = logging.getLogger(__name__)

Traffic = Literal["live", "bulk"]


class Endpoint(Enum):
    """What Allegro limits separately; the values name it in metrics and errors."""

    EVENTS = "events"
    STATS = "event-stats"
    LIST = "list"
    DETAIL = "detail"
    DEVICE = "device"
    TOKEN = "token"  # noqa: S105 - an endpoint's name
    ME = "me"


# How far ahead slots of the client id's allowance may be taken, as parts of a minute: 0.5 s and 0.25 s. So live traffic
# waits for a quarter of a second of bulk loads at most, and bulk loads give way where many processes queue.
_LIVE_LOOKAHEAD_SHARE = 1 / 120
_BULK_LOOKAHEAD_SHARE = 1 / 240
# Where Allegro says that nothing is left of the minute, this process pauses for this part of it.
_EXHAUSTED_SHARE = 1 / 60

_CHANNEL = "orders_backup_allegro_blocked"

# language=sql
_BLOCK = """
WITH block AS (
    INSERT INTO client_budgets AS b (client_id, blocked_until)
    VALUES ($1, clock_timestamp() + $2::float8 * interval '1 second')
    ON CONFLICT (client_id) DO UPDATE SET blocked_until = greatest(b.blocked_until, excluded.blocked_until)
    RETURNING client_id
)
SELECT pg_notify($3, client_id) FROM block
"""

_READ_BLOCK = """
SELECT extract(epoch FROM blocked_until - clock_timestamp())::float8 FROM client_budgets WHERE client_id = $1
"""


class RequestLimits:
    """Every call to Allegro waits here first.

    `notice_block()` has to be called at least twice a second beside it, and `close()` before the pool is closed.
    """

    def __init__(self, pool: asyncpg.Pool, settings: AllegroSettings) -> None:
        self._minute = minute = settings.allegro_limit_minute_seconds
        self._pool = pool
        self._client_id = settings.allegro_client_id
        self._blocked_until = 0.0
        # Set when there is a block to be noticed: whoever calls `notice_block` need not wait any longer.
        self.noticed = asyncio.Event()
        self._listener: asyncpg.Connection | None = None
        self._turns = Turns()
        self._paces = {
            Endpoint.EVENTS: Pace.of(settings.allegro_events_limit_per_minute, minute_seconds=minute),
            Endpoint.LIST: Pace.of(settings.allegro_list_limit_per_minute, minute_seconds=minute),
            Endpoint.DETAIL: Pace.of(settings.allegro_detail_limit_per_minute, minute_seconds=minute),
        }
        limit = settings.allegro_client_limit_per_minute
        metrics.allowance.set(limit / minute)
        pace = Pace.of(limit, minute_seconds=minute)
        self._live = self._budget("", pace, _LIVE_LOOKAHEAD_SHARE)
        self._bulk = self._budget("", pace, _BULK_LOOKAHEAD_SHARE)
        self._bulk_share = self._budget(
            "/bulk",
            Pace.of(limit * (1 - settings.allegro_live_share), minute_seconds=minute),
            _LIVE_LOOKAHEAD_SHARE,
        )
        # Starts of the device flow come from any replica of the API and know no token yet.
        self._device = self._budget(
            "/device",
            Pace.of(settings.allegro_device_limit_per_minute, minute_seconds=minute),
            _LIVE_LOOKAHEAD_SHARE,
        )

    def _budget(self, suffix: str, pace: Pace, lookahead_share: float) -> Budget:
        return Budget(
            self._pool,
            self._client_id + suffix,
            pace,
            lookahead=self._minute * lookahead_share,
            learn_block=self._learn_block,
            blocked_seconds=lambda: self.blocked_seconds,
        )

    async def acquire(self, endpoint: Endpoint, *, token_id: int | None, traffic: Traffic) -> None:
        """Wait until the call is allowed, and make it at once then: the permission does not keep.

        Raises the driver's errors if PostgreSQL is away: then nobody calls.
        """
        started = time.monotonic()
        pace = self._paces.get(endpoint)
        if pace is None or token_id is None:
            await self._take(endpoint, traffic)
        else:
            async with self._turns.turn((token_id, endpoint), pace):
                await self._take(endpoint, traffic)
        metrics.limit_wait(endpoint.value).observe(time.monotonic() - started)
        metrics.permit_count(traffic).inc()

    async def _take(self, endpoint: Endpoint, traffic: Traffic) -> None:
        if endpoint is Endpoint.DEVICE:
            await self._device.take()
        if traffic == "bulk":
            await self._bulk_share.take()
        budget = self._bulk if traffic == "bulk" else self._live
        while True:
            # A seller without a token has nothing else to do: its refresh does not queue behind the others' orders.
            await budget.take(urgent=endpoint is Endpoint.TOKEN)
            if not self.blocked_seconds:
                return

    @property
    def blocked_seconds(self) -> float:
        """How long nobody may call, as far as this process knows; 0 if nothing stands in the way."""
        return max(self._blocked_until - time.monotonic(), 0.0)

    async def wait_until_unblocked(self) -> None:
        """Wait for the end of a block, without taking a permission."""
        while self.blocked_seconds:  # noqa: ASYNC110 - it may be prolonged meanwhile
            await asyncio.sleep(self.blocked_seconds)

    async def block(self, duration: timedelta | None = None) -> None:
        """Stop every process that uses this client id: Allegro answered 429.

        Without a `duration` for a minute, as no stated one was ever seen (allegro-api.md 6).
        """
        seconds = self._minute if duration is None else duration.total_seconds()
        metrics.blocks.inc()
        if not self.blocked_seconds:
            logger.error("Allegro answered 429: nobody calls for a while", extra={"seconds": seconds})
        self._learn_block(seconds)
        await self._pool.execute(_BLOCK, self._client_id, seconds, _CHANNEL)

    def learn_remaining(self, remaining: int) -> None:
        """Take note of `X-RateLimit-Remaining`: at 0 the next call would only cause a block."""
        metrics.remaining.set(remaining)
        if remaining <= 0:
            self._learn_block(self._minute * _EXHAUSTED_SHARE)

    async def notice_block(self) -> None:
        """Learn of blocks that other processes ran into: at once by a notification, and by asking at every call.

        Notifications may get lost with their connection. So the question goes over that very connection: it fails
        when the connection is gone, and the next call opens another.
        """
        if self._listener is None:
            self._listener = await self._pool.acquire()
            await self._listener.add_listener(_CHANNEL, self._notified)
        try:
            seconds = await self._listener.fetchval(_READ_BLOCK, self._client_id)
        except TRANSIENT_DATABASE_ERRORS:
            with suppress(asyncpg.InterfaceError):  # the pool has noticed already
                self._listener.terminate()  # else it may go back to the pool before its end is noticed
            await self.close()
            raise
        if seconds is not None:
            self._learn_block(seconds)

    def _notified(self, _connection: Any, _pid: int, _channel: str, client_id: Any) -> None:
        if client_id == self._client_id:
            self.noticed.set()

    async def close(self) -> None:
        """Give the listening connection back."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        with suppress(*TRANSIENT_DATABASE_ERRORS):  # it is gone already
            await listener.remove_listener(_CHANNEL, self._notified)
        with suppress(*TRANSIENT_DATABASE_ERRORS):
            await self._pool.release(listener)

    def _learn_block(self, seconds: float) -> None:
        if seconds > 0:
            self._blocked_until = max(self._blocked_until, time.monotonic() + seconds)
            metrics.blocked_until.set(time.time() + seconds)
