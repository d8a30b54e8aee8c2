"""What is owed to a token, read from PostgreSQL: the backlog of a seller whose records find no room in a lane."""

from collections.abc import Sequence
from datetime import UTC, datetime

import asyncpg
from aiokafka import ConsumerRecord

from services.enricher.lanes import LaneKey
from shared.messages import OrderFetch

_UNKNOWN_OFFSET = -1
# What all lanes together hold of it, a kilobyte each (promise P10); but of each lane as many as a page of the list
# shows, since pages would be asked for in vain otherwise.
_IN_HAND = 8_000
_PAGE = 100

# In the order of purchase, since a page of the list shows what was bought together. What was tried and failed waits
# for its next attempt, which the poller sends.
# language=sql
_OWED = """
SELECT allegro_order_id, wanted_after, bought_at, coalesce(bought_at, to_timestamp(0)) AS place,
       CASE WHEN cardinality(run_ids) = 1 THEN run_ids[1] END AS run_id
  FROM pending_fetches
 WHERE user_token_id = $1 AND attempts = 0
   AND (coalesce(bought_at, to_timestamp(0)), allegro_order_id) > ($2, $3)
 ORDER BY place, allegro_order_id
 LIMIT $4
"""

_Place = tuple[datetime, str]
_BEGINNING: _Place = (datetime.fromtimestamp(0, UTC), "")


class OwedLooks:
    """Reads `pending_fetches` of one token, at most `at_a_time` of them."""

    def __init__(self, pool: asyncpg.Pool, *, at_a_time: int) -> None:
        self._pool = pool
        self._at_a_time = at_a_time

    async def read(
        self, lane: LaneKey, after: _Place | None, lanes: int
    ) -> tuple[Sequence[ConsumerRecord], _Place | None]:
        """The looks behind a place, as records that the poller might have sent; raises the driver's errors.

        So many `lanes` read what is owed to their tokens; the fewer, the more each may hold.
        """
        token_id = _token_of(lane)
        if token_id is None:
            return [], None
        at_a_time = min(self._at_a_time, max(_IN_HAND // max(lanes, 1), _PAGE))
        rows = await self._pool.fetch(_OWED, token_id, *(after or _BEGINNING), at_a_time)
        records = [
            OrderFetch(
                token_id=token_id,
                order_id=row["allegro_order_id"],
                wanted_after=row["wanted_after"],
                bought_at=row["bought_at"],
                # A look that was made meanwhile is on its way to the database.
                asked_at=row["wanted_after"],
                run_id=row["run_id"],
            )
            for row in rows
        ]
        place = (rows[-1]["place"], rows[-1]["allegro_order_id"]) if rows else None
        return [_as_consumed(record, lane) for record in records], place


def _token_of(lane: LaneKey) -> int | None:
    _, key = lane
    return int(key) if key.isdigit() and len(key) < 19 else None


def _as_consumed(record: OrderFetch, lane: LaneKey) -> ConsumerRecord:
    partition, key = lane
    value = record.encode()
    return ConsumerRecord(
        partition.topic, partition.partition, _UNKNOWN_OFFSET, 0, 0, key, value, None, len(key), len(value), ()
    )
