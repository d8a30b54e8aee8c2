"""Reading journals: claim due schedules, read, publish, note; an empty turn leaves no row but the schedule's."""

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import asyncpg

from services.poller.positions import Cursor, Link, chain, reading_start, wanted_after
from services.poller.settings import PollerSettings
from shared.allegro.bodies import JournalEvent
from shared.allegro.client import AllegroClient
from shared.allegro.errors import AllegroError
from shared.clock import Clock, to_event_id
from shared.errors import TransientError
from shared.kafka import RecordProducer
from shared.logs import correlated, current_correlation_id
from shared.messages import OrderEvent, headers

logger = logging.getLogger(__name__)

PAGE_SIZE = 1000
# Allegro keeps events for 60 days and says nothing when a position is older (allegro-api.md 3).
_RETENTION = timedelta(days=60)
_JITTER_SHARE = 0.1
_MAX_BACKOFF = timedelta(minutes=30)

# language=sql
_CLAIM = """
WITH due AS (
    SELECT user_token_id FROM active_sync_schedules
     WHERE status = 'active' AND next_run <= now() AND (lease_until IS NULL OR lease_until < now())
     ORDER BY next_run LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE active_sync_schedules s
   SET lease_owner = $1, lease_until = now() + $3::interval, fence = s.fence + 1
  FROM due, journal_cursors c
 WHERE s.user_token_id = due.user_token_id AND c.user_token_id = s.user_token_id
RETURNING s.user_token_id, s.user_id, s.fence, s.interval_seconds, s.consecutive_failures,
          c.stored_event_id, c.covered_event_id, c.published_event_id, c.published_at, c.rewinds
"""

_KNOWN = "SELECT event_id FROM order_events WHERE user_token_id = $1 AND event_id = ANY($2::bigint[])"

_NOTE_PUBLISHED = """
UPDATE journal_cursors c
   SET published_event_id = $2, published_at = now(), rewinds = CASE WHEN $3 THEN c.rewinds + 1 ELSE c.rewinds END
  FROM active_sync_schedules s
 WHERE c.user_token_id = $1 AND s.user_token_id = c.user_token_id AND s.fence = $4
"""

_FINISH = """
UPDATE active_sync_schedules
   SET last_run = now(), last_success = now(), last_error = NULL, consecutive_failures = 0,
       next_run = now() + $3::interval, lease_owner = NULL, lease_until = NULL
 WHERE user_token_id = $1 AND fence = $2
"""

_FAIL = """
UPDATE active_sync_schedules
   SET last_run = now(), last_error = $4, consecutive_failures = consecutive_failures + 1,
       next_run = now() + $3::interval, lease_owner = NULL, lease_until = NULL
 WHERE user_token_id = $1 AND fence = $2
"""

_RELEASE = "UPDATE active_sync_schedules SET lease_owner = NULL, lease_until = NULL WHERE lease_owner = $1"

# The journal has a gap that reading it cannot close: everything is listed instead.
_LIST_ALL = """
INSERT INTO task_history (task_id, user_token_id, user_id, kind, requested_by)
SELECT $2, $1, $3, 'full', 'the journal cursor is older than the journal'
 WHERE NOT EXISTS (SELECT FROM task_history
                    WHERE user_token_id = $1 AND kind IN ('initial', 'full', 'reconcile')
                      AND status IN ('queued', 'running'))
"""


@dataclass(frozen=True)
class _Turn:
    """One claimed look into one journal."""

    token_id: int
    user_id: str
    fence: int
    interval: timedelta
    failures: int
    covered_event_id: int
    cursor: Cursor


def next_interval(interval: timedelta, failures: int, *, jitter: float) -> timedelta:
    """Until the next turn: longer after failures, spread by `jitter` (0..1) so that tokens do not move in step."""
    delay = interval if failures == 0 else max(interval, min(interval * 2.0 ** min(failures, 10), _MAX_BACKOFF))
    return delay * (1 - _JITTER_SHARE / 2 + _JITTER_SHARE * jitter)


class JournalReader:
    """Reads the journals that are due, `poller_concurrency` of them at a time."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        allegro: AllegroClient,
        producer: RecordProducer,
        clock: Clock,
        settings: PollerSettings,
        *,
        owner: str,
    ) -> None:
        self._pool = pool
        self._allegro = allegro
        self._producer = producer
        self._clock = clock
        self._settings = settings
        self._topic = settings.topics.order_events
        self._owner = owner

    async def turn(self) -> bool:
        """Claim and read what is due; says whether there may be more."""
        rows = await self._pool.fetch(
            _CLAIM,
            self._owner,
            self._settings.poller_concurrency,
            timedelta(seconds=self._settings.poller_lease_seconds),
        )
        await asyncio.gather(*(self._read(_turn(row)) for row in rows))
        return len(rows) == self._settings.poller_concurrency

    async def release(self) -> None:
        """Give back what was claimed, so that others take it over at once."""
        await self._pool.execute(_RELEASE, self._owner)

    async def _read(self, turn: _Turn) -> None:
        with correlated(None, user=turn.user_id):
            try:
                await self._look(turn)
            except (AllegroError, TransientError) as error:
                delay = next_interval(turn.interval, turn.failures + 1, jitter=random.random())  # noqa: S311
                logger.warning("journal not read", extra={"token_id": turn.token_id, "error": str(error)})
                await self._pool.execute(_FAIL, turn.token_id, turn.fence, delay, str(error))
            else:
                delay = next_interval(turn.interval, 0, jitter=random.random())  # noqa: S311 - spreads load
                await self._pool.execute(_FINISH, turn.token_id, turn.fence, delay)

    async def _look(self, turn: _Turn) -> None:
        await self._check_age(turn)
        start = reading_start(
            turn.cursor,
            now=self._clock.now(),
            overlap=timedelta(seconds=self._settings.poller_overlap_seconds),
            redelivery=timedelta(seconds=self._settings.poller_redelivery_seconds),
        )
        if start.rewound:
            logger.warning("events published are not stored: reading them again", extra={"token_id": turn.token_id})
        after, run_id = start.after, uuid4()
        for _page in range(self._settings.poller_max_pages):
            page = await self._allegro.events(turn.token_id, after=after, limit=PAGE_SIZE, traffic="live")
            if page.events:
                known = await self._known(turn, page.events)
                links = list(chain(page.events, after=after, stored_event_id=turn.cursor.stored_event_id, known=known))
                await self._publish(turn, links, run_id, page.received_at, page.clock_ahead)
                after = max(after, max(event.event_id for event in page.events))
                if links and after > turn.cursor.stored_event_id:
                    await self._pool.execute(_NOTE_PUBLISHED, turn.token_id, after, start.rewound, turn.fence)
            if len(page.events) < PAGE_SIZE:
                return

    async def _check_age(self, turn: _Turn) -> None:
        """A cursor older than the journal reads on as if nothing were missing; 0 means: from the beginning."""
        stored = turn.cursor.stored_event_id
        if 0 < stored < to_event_id(self._clock.now() - _RETENTION):
            created = await self._pool.execute(_LIST_ALL, turn.token_id, uuid4(), turn.user_id)
            if created.endswith(" 1"):
                logger.error(
                    "the journal cursor is older than the journal: listing all orders instead",
                    extra={"token_id": turn.token_id, "stored_event_id": stored},
                )

    async def _known(self, turn: _Turn, events: Sequence[JournalEvent]) -> frozenset[int]:
        """Which of these events, up to the cursor, are stored."""
        asked = [event.event_id for event in events if event.event_id <= turn.cursor.stored_event_id]
        if not asked:
            return frozenset()
        return frozenset(row["event_id"] for row in await self._pool.fetch(_KNOWN, turn.token_id, asked))

    async def _publish(
        self,
        turn: _Turn,
        links: Sequence[Link],
        run_id: UUID,
        received_at: datetime,
        clock_ahead: timedelta | None,
    ) -> None:
        if not links:
            return
        carried = headers(correlation_id=current_correlation_id(), run_id=run_id)
        last = links[-1].event.event_id
        tracked = self._settings.sync_tracked_event_types
        records = [
            OrderEvent(
                token_id=turn.token_id,
                event_id=link.event.event_id,
                follows_event_id=link.follows,
                event_type=link.event.event_type,
                occurred_at=link.event.occurred_at,
                order_id=link.event.order_id,
                revision=link.event.revision,
                bought_at=link.event.bought_at,
                fetch=link.event.event_id > turn.covered_event_id and (not tracked or link.event.event_type in tracked),
                wanted_after=wanted_after(link.event.event_id, received_at=received_at, clock_ahead=clock_ahead),
                run_id=run_id,
                run_last_event_id=last,
                event=link.event.raw,
            )
            for link in links
        ]
        await self._producer.publish_all(self._topic, [(record.key, record.encode(), carried) for record in records])


def _turn(row: asyncpg.Record) -> _Turn:
    return _Turn(
        token_id=row["user_token_id"],
        user_id=row["user_id"],
        fence=row["fence"],
        interval=timedelta(seconds=row["interval_seconds"]),
        failures=row["consecutive_failures"],
        covered_event_id=row["covered_event_id"],
        cursor=Cursor(row["stored_event_id"], row["published_event_id"], row["published_at"], row["rewinds"]),
    )
