"""An outage of Allegro's API: while most sellers' calls fail nobody calls, but for a probe now and then (E2).

One seller whose calls all fail is no outage: the others go on (E3). Where only one calls, it is judged by that one.
Every process judges by its own calls: one whose network fails must not stop the others. What it finds it tells in
`allegro_outages`, for `GET /health`.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from shared.allegro import metrics
from shared.allegro.errors import (
    AllegroError,
    AllegroOutageError,
    AllegroUnavailableError,
    CallRefusedError,
    RequestRejectedError,
)
from shared.circuit import Circuit

logger = logging.getLogger(__name__)

REPORT_SECONDS = 5.0
_REMEMBERED_ORDERS = 1000
_FRESH = timedelta(seconds=REPORT_SECONDS * 4)

# language=sql
_TELL = """
INSERT INTO allegro_outages (client_id, since, seen_at)
VALUES ($1, now() - $2::float8 * interval '1 second', now())
ON CONFLICT (client_id) DO UPDATE SET seen_at = now(), since = least(allegro_outages.since, excluded.since)
"""

_FORGET = "DELETE FROM allegro_outages WHERE client_id = $1"

_READ = "SELECT since FROM allegro_outages WHERE client_id = $1 AND seen_at > now() - $2::interval"


class Outage:
    """Lets calls through, or refuses them at once with AllegroOutageError, which says when to ask again."""

    def __init__(self, pool: asyncpg.Pool, client_id: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._client_id = client_id
        self._monotonic = monotonic
        self._circuit = Circuit()
        self._rejected: OrderedDict[str, None] = OrderedDict()
        self._is_told = False

    def check(self, token_id: int) -> None:
        """Raises AllegroOutageError if a call would not be let through: no need to wait for a permission then."""
        pause = self._circuit.pause_left(token_id, self._monotonic())
        if pause > 0:
            raise self._refusal(pause)

    @contextmanager
    def call(self, token_id: int, order_id: str | None = None) -> Iterator[None]:
        """One call with a seller's token: its failure counts if Allegro did not answer, or not as promised.

        One order that is rejected says nothing of the others; where many are, no order is to blame.
        """
        ticket = self._circuit.admit(token_id, self._monotonic())
        if ticket is None:
            raise self._refusal(self._circuit.pause_left(token_id, self._monotonic()))
        try:
            yield
        except RequestRejectedError:
            if order_id is not None and self._is_news(order_id):
                self._circuit.record(ticket, self._monotonic(), failed=True)
            raise
        except (AllegroUnavailableError, CallRefusedError):
            self._circuit.record(ticket, self._monotonic(), failed=True)
            raise
        except AllegroError:
            self._circuit.record(ticket, self._monotonic(), failed=False)
            raise
        else:
            self._circuit.record(ticket, self._monotonic(), failed=False)
        finally:
            self._circuit.release(ticket)

    def _is_news(self, order_id: str) -> bool:
        """Whether an order could be one of Allegro's, by its id (a UUID of version 1), and was not rejected before."""
        if order_id in self._rejected or not _is_time_uuid(order_id):
            return False
        self._rejected[order_id] = None
        if len(self._rejected) > _REMEMBERED_ORDERS:
            self._rejected.popitem(last=False)
        return True

    async def report(self) -> None:
        """Tell PostgreSQL and Prometheus how it stands; raises the driver's errors."""
        since = self._circuit.opened_at
        metrics.outage.set(since is not None)
        if since is not None:
            seconds = self._monotonic() - since
            if not self._is_told:
                logger.error("most sellers' calls to Allegro fail: pausing", extra={"since_seconds": round(seconds)})
            await self._pool.execute(_TELL, self._client_id, seconds)
            self._is_told = True
        elif self._is_told:
            logger.warning("Allegro answers again")
            await self._pool.execute(_FORGET, self._client_id)
            self._is_told = False

    def _refusal(self, pause: float) -> AllegroOutageError:
        error = AllegroOutageError("most sellers' calls to Allegro fail: pausing", retry_after=timedelta(seconds=pause))
        error.is_for_all = self._circuit.refuses_all
        return error


def _is_time_uuid(text: str) -> bool:
    try:
        return UUID(text).version == 1
    except ValueError:
        return False


async def outage_since(pool: asyncpg.Pool, client_id: str) -> datetime | None:
    """Since when a service pauses its calls, None if none does."""
    since: datetime | None = await pool.fetchval(_READ, client_id, _FRESH)
    return since
