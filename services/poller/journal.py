"""Live events: schedules that are due are claimed, their journals read on, published, and noted.

The cursor is moved by the writer only. What is noted here (`published_event_id`) is a shortcut that is believed for a
while; losing or repeating it does no harm (promises P1, P2). An empty look leaves no row but the schedule's.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

import asyncpg

from services.poller import metrics
from services.poller.leases import Leases
from services.poller.positions import Cursor, Start, has_gap, journal_pace, reading_start
from services.poller.publish import Publisher
from services.poller.reading import Page, PageReader
from services.poller.settings import PollerSettings
from services.poller.slots import Slots
from shared.allegro.errors import AccessDeniedError, AllegroOutageError, ReauthorizationRequiredError
from shared.allegro.tally import Tally
from shared.clock import Clock, from_event_id
from shared.errors import PermanentError, TransientError
from shared.kafka import PublishFailedError
from shared.logs import correlated, scrub
from shared.tracing import span

logger = logging.getLogger(__name__)

_JITTER_SHARE = 0.1
_FIRST_BACKOFF = timedelta(seconds=10)
# After an outage of Allegro, everybody is back within this time.
_MAX_BACKOFF = timedelta(minutes=5)
# Nothing but a person helps: a scope of the application.
_WITHOUT_ACCESS = timedelta(hours=1)
_KAFKA_PAUSE = timedelta(seconds=5)
# More than a busy seller's events of a few minutes; a full page has a thousand.
_MANY_EVENTS = 200
_LONG_LOOKS = 4
_POSTPONED = timedelta(seconds=15)
_MAX_ERROR_LENGTH = 500

# The journal of a new token waits until the beginning of its initial load is noted: that tells which of its events
# need no look of their own.
# language=sql
_DUE = """
SELECT s.user_token_id
  FROM active_sync_schedules s
  JOIN journal_cursors c USING (user_token_id)
 WHERE s.status = 'active' AND s.next_run <= now() AND (s.lease_until IS NULL OR s.lease_until < now())
   AND (c.covered_event_id > 0
        OR NOT EXISTS (SELECT FROM task_history h
                        WHERE h.user_token_id = s.user_token_id AND h.kind = 'initial' AND h.status = 'queued'))
"""

# Sellers whose last look failed have a number of places that they cannot exceed: a call that hangs holds its place for
# minutes, and many of them would hold all.
# language=sql
_CLAIM = f"""
WITH failing AS (
    {_DUE} AND s.consecutive_failures > 0 ORDER BY s.next_run LIMIT $4 FOR UPDATE OF s SKIP LOCKED
), well AS (
    {_DUE} AND s.consecutive_failures = 0 ORDER BY s.next_run LIMIT $2 - (SELECT count(*) FROM failing)
       FOR UPDATE OF s SKIP LOCKED
), due AS (
    SELECT * FROM failing UNION ALL SELECT * FROM well
)
UPDATE active_sync_schedules s
   SET lease_owner = $1, lease_until = now() + $3::interval, fence = s.fence + 1
  FROM due
  JOIN journal_cursors c USING (user_token_id)
 WHERE s.user_token_id = due.user_token_id
RETURNING s.user_token_id, s.user_id, s.fence, s.interval_seconds, s.consecutive_failures, now() - s.next_run AS late,
          now() - s.last_success AS since_success, c.stored_event_id, c.published_event_id, c.rewinds,
          c.covered_event_id, now() - greatest(c.published_at, c.stored_at) AS unconfirmed_for
"""  # noqa: S608 - a constant

# $4 is false for an empty look. `published_at` is the time of the oldest publication that may be on its way: a busy
# journal must not hide by new publications that the cursor stands still.
# language=sql
_FINISH = """
WITH finished AS (
    UPDATE active_sync_schedules
       SET last_run = now(), last_success = now(), next_run = now() + $3::interval, last_error = NULL,
           consecutive_failures = 0, lease_owner = NULL, lease_until = NULL
     WHERE user_token_id = $1 AND fence = $2
    RETURNING user_token_id
), noted AS (
    UPDATE journal_cursors c
       SET published_event_id = $5,
           published_at = CASE WHEN $6 THEN c.published_at ELSE now() END,
           rewinds = CASE WHEN $7 AND c.stored_event_id = $8 THEN c.rewinds + 1 ELSE c.rewinds END
      FROM finished f
     WHERE c.user_token_id = f.user_token_id AND $4
)
SELECT EXISTS (SELECT FROM finished)
"""

# Whoever paused the schedule meanwhile has said why; that stays.
# language=sql
_FAIL = """
UPDATE active_sync_schedules
   SET last_run = now(), next_run = now() + $3::interval, consecutive_failures = $5,
       last_error = CASE WHEN status = 'paused' THEN last_error ELSE $4 END,
       status = CASE WHEN $6 THEN 'paused' ELSE status END, lease_owner = NULL, lease_until = NULL
 WHERE user_token_id = $1 AND fence = $2
RETURNING user_token_id
"""

# The journal has a gap that reading it cannot close: everything is listed instead.
# language=sql
_LIST_ALL = """
INSERT INTO task_history (task_id, user_token_id, user_id, kind, requested_by)
SELECT gen_random_uuid(), id, user_id, 'full', 'the journal cursor is older than the journal'
  FROM user_tokens t
 WHERE t.id = $1
   AND NOT EXISTS (SELECT FROM task_history
                    WHERE user_token_id = $1 AND kind IN ('initial', 'full', 'reconcile')
                      AND status IN ('queued', 'running'))
RETURNING task_id
"""


@dataclass(frozen=True)
class Look:
    """One claimed look into one journal."""

    token_id: int
    user_id: str
    fence: int
    interval: timedelta
    failures: int
    since_success: timedelta | None
    cursor: Cursor

    @property
    def is_failing(self) -> bool:
        """Whether the look before this one failed."""
        return self.failures > 0


@dataclass(frozen=True)
class Outcome:
    """What a look has done."""

    published: int
    read_up_to: int
    has_more: bool


def next_interval(interval: timedelta, *, jitter: float) -> timedelta:
    """Until the next look, spread by `jitter` (0..1) so that tokens do not move in step."""
    return interval * (1 - _JITTER_SHARE / 2 + _JITTER_SHARE * jitter)


def retry_delay(failures: int, interval: timedelta, asked: timedelta | None, *, jitter: float) -> timedelta:
    """Until the next try after so many failures in a row: doubling, capped; at least what the other side asked for."""
    longest = max(interval, _MAX_BACKOFF)
    delay = min(_FIRST_BACKOFF * 2.0 ** min(failures - 1, 20), longest) * (0.5 + jitter / 2)
    return max(delay, asked or timedelta())


class JournalPoller:
    """Looks into the journals that are due; each look has a slot of its own, so that a slow seller delays nobody.

    Half of the slots are never held by sellers whose last look failed, however many they are (E3).
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        reader: PageReader,
        publisher: Publisher,
        clock: Clock,
        leases: Leases,
        slots: Slots,
        settings: PollerSettings,
    ) -> None:
        self._pool = pool
        self._reader = reader
        self._publisher = publisher
        self._clock = clock
        self._leases = leases
        self._slots = slots
        self._max_failing = max(settings.poller_concurrency // 2, 1)
        self._failing = 0
        """Looks in hand of sellers whose last one failed."""
        self._max_pages = settings.poller_max_pages
        self._overlap = timedelta(seconds=settings.poller_overlap_seconds)
        self._redelivery = timedelta(seconds=settings.poller_redelivery_seconds)
        self._pace = journal_pace(settings)
        self._long_looks = asyncio.Semaphore(_LONG_LOOKS)
        self._away_until: datetime | None = None

    async def turn(self) -> bool:
        """Begin the looks that are due; says whether there may be more."""
        if self._away_until is not None and self._clock.now() < self._away_until:
            return False
        return await self._slots.fill(self.claim, self.look)

    async def claim(self, limit: int) -> Sequence[Look]:
        """Lease up to `limit` due schedules; no other replica gets the same ones."""
        failing = min(self._max_failing - self._failing, limit)
        rows = await self._pool.fetch(_CLAIM, self._leases.owner, limit, self._leases.duration, failing)
        for row in rows:
            metrics.schedule_delay_seconds.observe(row["late"].total_seconds())
        looks = [_look(row) for row in rows]
        self._failing += sum(look.is_failing for look in looks)
        return looks

    async def look(self, look: Look) -> None:
        """Read on, publish, note it; a failure is noted as well and tried again later."""
        try:
            await self._look(look)
        finally:
            self._failing -= look.is_failing

    async def _look(self, look: Look) -> None:
        with correlated(None, user=look.user_id), span("poll journal", {"orders_backup.token_id": look.token_id}):
            try:
                async with asyncio.timeout(self._leases.work_seconds):
                    start = self._start(look)
                    outcome = await self._read_and_publish(look, start)
                    # After the reading: while that fails, a listing would follow the other.
                    await self._list_if_gap(look)
            except PublishFailedError as error:
                await self._postpone(look, error, _KAFKA_PAUSE)
            except AllegroOutageError as error:
                pause = (error.retry_after or _POSTPONED) if error.is_for_all else timedelta(0)
                await self._postpone(look, error, pause)
            except ReauthorizationRequiredError as error:
                await self._fail(look, error, look.interval, pause=True)
            except AccessDeniedError as error:
                await self._fail(look, error, _WITHOUT_ACCESS)
            except (TransientError, PermanentError, TimeoutError) as error:
                asked = error.retry_after if isinstance(error, TransientError) else None
                await self._fail(look, error, retry_delay(look.failures + 1, look.interval, asked, jitter=_jitter()))
            else:
                await self._finish(look, start, outcome)

    async def _list_if_gap(self, look: Look) -> None:
        age = self._clock.now() - from_event_id(look.cursor.stored_event_id)
        if not has_gap(look.cursor, stored_age=age, since_success=look.since_success):
            return
        if await self._pool.fetchval(_LIST_ALL, look.token_id) is not None:
            metrics.gaps.inc()
            logger.error(
                "the journal cursor is older than the journal: listing all orders instead",
                extra={"token_id": look.token_id, "stored_event_id": look.cursor.stored_event_id},
            )

    def _start(self, look: Look) -> Start:
        start = reading_start(look.cursor, overlap=self._overlap, redelivery=self._redelivery)
        if start.rewound:
            metrics.rewinds.inc()
            logger.warning(
                "events published are not stored: reading them again",
                extra={"token_id": look.token_id, "rewinds": look.cursor.rewinds + 1},
            )
        return start

    async def _read_and_publish(self, look: Look, start: Start) -> Outcome:
        """Read up to a short page; the pages with something new in them are one run, published when all are read.

        Where there is much, only a few looks go on at a time: each holds its pages, twice while they are published
        (promise P10). Others take a little each time, and none waits in a slot that a seller with little could have.
        """
        with Tally() as tally:
            page = await self._reader.page(look.token_id, look.cursor, after=start.after)
            is_long = not page.is_last or len(page.links) > _MANY_EVENTS
            if is_long and self._long_looks.locked():
                head = page.head(_MANY_EVENTS)
                published = await self._publish(look, [head] if head.links else [], requests=tally.requests)
                return Outcome(published, head.read_up_to, has_more=True)
            async with self._long_looks if is_long else nullcontext():
                pages = [page] if page.links else []
                while not page.is_last and len(pages) < self._max_pages:
                    page = await self._reader.page(look.token_id, look.cursor, after=page.read_up_to)
                    if page.links:
                        pages.append(page)
                published = await self._publish(look, pages, requests=tally.requests)
        return Outcome(published, page.read_up_to, has_more=not page.is_last)

    async def _publish(self, look: Look, pages: Sequence[Page], *, requests: int) -> int:
        if not pages:
            return 0
        run_id = uuid4()
        run_last = pages[-1].links[-1].event.event_id
        records = [
            record
            for page in pages
            for record in self._reader.records(
                look.token_id, page, look.cursor, run_id=run_id, run_last=run_last, run_requests=requests
            )
        ]
        await self._publisher.events(records, run_id=run_id)
        metrics.published_events.inc(len(records))
        logger.info(
            "events published", extra={"token_id": look.token_id, "run_id": str(run_id), "events": len(records)}
        )
        return len(records)

    async def _finish(self, look: Look, start: Start, outcome: Outcome) -> None:
        delay = timedelta() if outcome.has_more else next_interval(look.interval, jitter=_jitter())
        is_ours = await self._pool.fetchval(
            _FINISH,
            look.token_id,
            look.fence,
            max(delay, self._pace),
            outcome.published > 0,
            outcome.read_up_to,
            start.continues,
            start.rewound,
            look.cursor.stored_event_id,
        )
        metrics.polls.labels("events" if outcome.published else "empty").inc()
        if not is_ours:
            _say_overtaken(look)

    async def _postpone(self, look: Look, error: PublishFailedError | AllegroOutageError, pause: timedelta) -> None:
        """Kafka or Allegro is away: no fault of this token. Where it is for all, no other is looked for either."""
        self._away_until = self._clock.now() + pause
        metrics.polls.labels("postponed").inc()
        logger.warning("look postponed", extra={"token_id": look.token_id, "error": str(error)})
        await self._end_failed(look, error, _POSTPONED * (0.5 + _jitter()), failures=look.failures)

    async def _fail(self, look: Look, error: Exception, delay: timedelta, *, pause: bool = False) -> None:
        metrics.polls.labels("failed").inc()
        logger.warning("journal not read", extra={"token_id": look.token_id, "error": _text(error)})
        await self._end_failed(look, error, delay, failures=look.failures + 1, pause=pause)

    async def _end_failed(
        self, look: Look, error: Exception, delay: timedelta, *, failures: int, pause: bool = False
    ) -> None:
        delay = max(delay, self._pace)
        ended = await self._pool.fetchval(_FAIL, look.token_id, look.fence, delay, _text(error), failures, pause)
        if ended is None:
            _say_overtaken(look)


def _look(row: asyncpg.Record) -> Look:
    return Look(
        token_id=row["user_token_id"],
        user_id=row["user_id"],
        fence=row["fence"],
        interval=timedelta(seconds=row["interval_seconds"]),
        failures=row["consecutive_failures"],
        since_success=row["since_success"],
        cursor=Cursor(
            stored_event_id=row["stored_event_id"],
            published_event_id=row["published_event_id"],
            unconfirmed_for=row["unconfirmed_for"],
            rewinds=row["rewinds"],
            covered_event_id=row["covered_event_id"],
        ),
    )


def _say_overtaken(look: Look) -> None:
    logger.warning("the lease had run out: another replica has this token", extra={"token_id": look.token_id})


def _text(error: Exception) -> str:
    return scrub(str(error) or type(error).__name__)[:_MAX_ERROR_LENGTH]


def _jitter() -> float:
    return random.random()  # noqa: S311 - spreads load, hides nothing
