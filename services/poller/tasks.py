"""Tasks become runs: a person, a schedule or a consent asked; the plan is written down, then sent out.

Writing down comes first: whatever is lost after that (this process, Kafka) is sent out again from the rows.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from services.poller import metrics
from services.poller.leases import Leases
from services.poller.parameters import TaskParameters, UnusableParametersError, window
from services.poller.positions import Cursor, covered_position, journal_pace
from services.poller.publish import Publisher
from services.poller.reading import PageReader
from services.poller.settings import PollerSettings
from services.poller.slots import Slots
from shared.allegro.client import AllegroClient
from shared.allegro.errors import AllegroError
from shared.allegro.tally import Tally
from shared.clock import Clock, to_event_id
from shared.dropped_looks import drop_looks
from shared.ended_runs import count_ended
from shared.errors import PermanentError, TransientError
from shared.logs import correlated, scrub
from shared.messages import OrderEvent, OrderWindow
from shared.tracing import span

logger = logging.getLogger(__name__)

LISTING_KINDS = ("initial", "full", "manual", "reconcile")
_SHORT_KINDS = (*LISTING_KINDS, "orders")
_LONG_KINDS = ("journal",)
_POSTPONED = timedelta(seconds=30)
_MAX_ERROR_LENGTH = 500
# A reading that is under way: its run must not end before its last event is known.
_UNKNOWN_YET = 2**63 - 1


def _order_ids(task: str) -> str:
    """The orders that a task of this alias asks for, whatever its parameters look like. SQL."""
    ids = f"{task}.parameters -> 'order_ids'"
    return f"SELECT jsonb_array_elements_text(CASE jsonb_typeof({ids}) WHEN 'array' THEN {ids} ELSE '[]' END)"


# One listing of a token at a time, and one re-reading of its journal, the oldest first; the others stay queued. So do
# certain orders while an earlier task wants one of them, or a run waits for it. A re-reading whose reader died is begun
# again: its lease has run out (that of one that has read all is null).
# language=sql
_CLAIM = f"""
WITH due AS (
    SELECT h.task_id
      FROM task_history h
      JOIN user_tokens t ON t.id = h.user_token_id
     WHERE (h.status = 'queued' AND (h.lease_until IS NULL OR h.lease_until < now())
            OR h.status = 'running' AND h.kind = 'journal' AND h.lease_until < now())
       AND h.stop_requested_at IS NULL AND h.kind = ANY($5)
       AND t.status IN ('active', 'refresh_failed')
       AND NOT (h.kind = ANY($4) AND EXISTS (
                SELECT FROM task_history o
                 WHERE o.user_token_id = h.user_token_id AND o.kind = ANY($4)
                   AND (o.status IN ('running', 'stopping')
                        OR o.status = 'queued' AND (o.created_at, o.task_id) < (h.created_at, h.task_id))))
       AND NOT (h.kind = 'journal' AND h.status = 'queued' AND EXISTS (
                SELECT FROM task_history o
                 WHERE o.user_token_id = h.user_token_id AND o.kind = 'journal'
                   AND (o.status IN ('running', 'stopping') AND o.lease_until IS NOT NULL
                        OR o.status = 'queued' AND (o.created_at, o.task_id) < (h.created_at, h.task_id))))
       AND NOT (h.kind = 'orders' AND EXISTS (
                SELECT FROM task_history o
                 WHERE o.user_token_id = h.user_token_id AND o.kind = 'orders' AND o.status = 'queued'
                   AND (o.created_at, o.task_id) < (h.created_at, h.task_id)
                   AND EXISTS ({_order_ids("o")} INTERSECT {_order_ids("h")})))
       AND NOT (h.kind = 'orders' AND EXISTS (
                SELECT FROM pending_fetches p JOIN sync_history r ON r.run_id = ANY(p.run_ids)
                 WHERE p.user_token_id = h.user_token_id AND p.allegro_order_id = ANY(ARRAY({_order_ids("h")}))
                   AND r.kind = 'orders' AND r.completed_at IS NULL))
     ORDER BY h.created_at
     LIMIT $2
       FOR UPDATE OF h SKIP LOCKED
)
UPDATE task_history h
   SET lease_owner = $1, lease_until = now() + $3::interval, fence = h.fence + 1
  FROM due WHERE h.task_id = due.task_id
RETURNING h.task_id, h.user_token_id, h.user_id, h.kind, h.parameters, h.correlation_id, h.traceparent,
          h.fence, h.status
"""  # noqa: S608 - constants

# The task's row is locked by this update, so a stop that is asked for at the same moment comes before or after it.
# language=sql
_BEGIN_TASK = """
UPDATE task_history
   SET status = 'running', started_at = coalesce(started_at, now()), error = NULL,
       lease_owner = CASE WHEN $3 THEN lease_owner END, lease_until = CASE WHEN $3 THEN lease_until END
 WHERE task_id = $1 AND fence = $2 AND status = 'queued' AND stop_requested_at IS NULL
"""

_POSTPONE = """
UPDATE task_history SET lease_owner = NULL, lease_until = now() + $3::interval, error = $4
 WHERE task_id = $1 AND fence = $2 AND status IN ('queued', 'running')
"""

_REFUSE = """
WITH task AS (
    UPDATE task_history
       SET status = 'failed', finished_at = now(), error = $3, lease_owner = NULL, lease_until = NULL
     WHERE task_id = $1 AND fence = $2 AND status IN ('queued', 'running')
    RETURNING task_id
)
UPDATE sync_history r SET status = 'failed', completed_at = now(), error = $3
  FROM task WHERE r.task_id = task.task_id AND r.completed_at IS NULL
RETURNING r.kind, r.status
"""

_CREATE_RUN = """
INSERT INTO sync_history (run_id, task_id, user_token_id, user_id, kind, window_from, window_to, orders_expected,
                          last_event_id, requests)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
"""

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('listing ' || $1::bigint, 0))"

_LISTING_RUNS = """
SELECT EXISTS (SELECT FROM sync_history WHERE user_token_id = $1 AND completed_at IS NULL AND kind = ANY($2))
"""

_READING_RUNS = """
SELECT EXISTS (SELECT FROM task_history
                WHERE user_token_id = $1 AND kind = 'journal' AND status IN ('running', 'stopping')
                  AND lease_until IS NOT NULL)
"""

_ARE_WANTED = """
SELECT EXISTS (SELECT FROM pending_fetches p JOIN sync_history r ON r.run_id = ANY(p.run_ids)
                WHERE p.user_token_id = $1 AND p.allegro_order_id = ANY($2::text[])
                  AND r.kind = 'orders' AND r.completed_at IS NULL)
"""

_CREATE_WINDOW = """
INSERT INTO run_windows (run_id, user_token_id, bought_from, bought_to, position) VALUES ($1, $2, $3, $4, $3)
"""

_COVER = """
UPDATE journal_cursors SET covered_event_id = greatest(covered_event_id, $2) WHERE user_token_id = $1
"""

_OWE = """
INSERT INTO pending_fetches AS p (user_token_id, allegro_order_id, wanted_after, run_ids, next_attempt_at)
SELECT $1, order_id, now(), ARRAY[$3::uuid], now() FROM unnest($2::text[]) AS o (order_id) ORDER BY order_id
ON CONFLICT (user_token_id, allegro_order_id) DO UPDATE
   SET wanted_after = greatest(p.wanted_after, excluded.wanted_after), next_attempt_at = now(),
       run_ids = p.run_ids || excluded.run_ids
"""

_RUN_OF_TASK = "SELECT run_id FROM sync_history WHERE task_id = $1 AND completed_at IS NULL"

_CURSOR = "SELECT stored_event_id, covered_event_id FROM journal_cursors WHERE user_token_id = $1"

# Nobody who lost the lease, or whose task was stopped, goes on. What was read since the last time is progress.
_HEARTBEAT = """
WITH task AS (
    UPDATE task_history SET lease_until = now() + $3::interval
     WHERE task_id = $1 AND fence = $2 AND status = 'running' AND stop_requested_at IS NULL
    RETURNING task_id
), run AS (
    UPDATE sync_history r SET progress_at = CASE WHEN $4 > 0 THEN now() ELSE r.progress_at END,
                              requests = r.requests + $4
      FROM task WHERE r.task_id = task.task_id AND r.completed_at IS NULL
)
SELECT task_id FROM task
"""

_END_READING = """
WITH task AS (
    UPDATE task_history SET lease_owner = NULL, lease_until = NULL
     WHERE task_id = $1 AND fence = $2 AND status = 'running'
    RETURNING task_id
)
UPDATE sync_history r SET last_event_id = $3
  FROM task WHERE r.task_id = task.task_id AND r.completed_at IS NULL
"""

_STORED = "SELECT count(*) FROM order_events WHERE user_token_id = $1 AND event_id = ANY($2::bigint[])"

# The run ends at once, whoever works at it: a walk notices that it has. What it had read is still stored, and counted
# while its window is not finished.
# language=sql
_STOP = """
WITH asked AS (
    SELECT task_id FROM task_history
     WHERE status IN ('queued', 'running', 'stopping') AND stop_requested_at IS NOT NULL
       FOR UPDATE SKIP LOCKED
), runs AS (
    UPDATE sync_history r SET status = 'stopped', completed_at = now(), error = NULL
      FROM asked WHERE r.task_id = asked.task_id AND r.completed_at IS NULL
    RETURNING r.run_id, r.kind, r.status, r.user_token_id
), windows AS (
    UPDATE run_windows w SET finished = true FROM runs WHERE w.run_id = runs.run_id AND w.attempt = 0
), tasks AS (
    UPDATE task_history h SET status = 'stopped', finished_at = now(), lease_owner = NULL, lease_until = NULL
      FROM asked WHERE h.task_id = asked.task_id
)
SELECT user_token_id, run_id, kind, status FROM runs
"""

_GIVE_UP = """
UPDATE task_history h SET status = 'failed', finished_at = now(), error = 'the token was deactivated'
  FROM user_tokens t
 WHERE t.id = h.user_token_id AND t.status = 'deactivated' AND h.status = 'queued'
"""

# Whoever reads a journal has its schedule's lease: its calls are counted by one process at a time, and one process's
# calls are so far from the next one's that all keep within the limit. A live look that is due goes first.
# language=sql
_TAKE_JOURNAL = """
WITH taken AS (
    UPDATE active_sync_schedules SET lease_owner = $2, lease_until = now() + $3::interval, fence = fence + 1
     WHERE user_token_id = $1 AND (lease_until IS NULL OR lease_until < now())
       AND (last_run IS NULL OR last_run <= now() - $4::interval)
       AND (status <> 'active' OR next_run > now() + $4::interval)
    RETURNING fence
)
SELECT (SELECT fence FROM taken) AS fence,
       EXISTS (SELECT FROM active_sync_schedules WHERE user_token_id = $1) AS is_scheduled
"""

_GIVE_JOURNAL = """
UPDATE active_sync_schedules
   SET lease_owner = NULL, lease_until = NULL, next_run = greatest(next_run, now() + $3::interval)
 WHERE user_token_id = $1 AND fence = $2
"""

# Between two looks whether the events of a page are stored, or whether a journal is free.
_LOOK_SECONDS = 0.2
_MAX_REDELIVERY_FACTOR = 16


class LeaseLostError(TransientError):
    """Somebody else has the task now, or it was stopped: what was begun must leave nothing."""


@dataclass(frozen=True)
class Task:
    """A claimed task."""

    task_id: UUID
    token_id: int
    user_id: str
    kind: str
    parameters: bytes
    correlation_id: str | None
    traceparent: str | None
    fence: int
    is_resumed: bool


class TaskPlanner:
    """Claims queued tasks and turns them into runs."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        allegro: AllegroClient,
        reader: PageReader,
        publisher: Publisher,
        clock: Clock,
        leases: Leases,
        slots: Slots,
        readings: Slots,
        settings: PollerSettings,
    ) -> None:
        self._pool = pool
        self._allegro = allegro
        self._reader = reader
        self._publisher = publisher
        self._clock = clock
        self._leases = leases
        self._slots = slots
        # A journal is read again page by page for as long as it takes: nobody else's task waits for that.
        self._readings = readings
        self._pace = journal_pace(settings)
        self._list_lag = timedelta(seconds=settings.sync_list_lag_seconds)
        self._redelivery_seconds = settings.poller_redelivery_seconds

    async def turn(self) -> bool:
        """Begin what is queued and end what was stopped; says whether there may be more."""
        # One statement after the other: the writer locks what is owed before runs and tasks.
        stopped = await self._pool.fetch(_STOP)
        count_ended(stopped)
        for run in stopped:
            if run["kind"] != "journal":
                await drop_looks(self._pool, run["user_token_id"], run["run_id"])
        await self._pool.execute(_GIVE_UP)
        more = await self._slots.fill(partial(self.claim, kinds=_SHORT_KINDS), self.plan)
        if not self._readings.are_full:
            more |= await self._readings.fill(partial(self.claim, kinds=_LONG_KINDS), self.plan)
        return more

    async def claim(self, limit: int, *, kinds: Sequence[str] = (*_SHORT_KINDS, *_LONG_KINDS)) -> Sequence[Task]:
        """Lease up to `limit` tasks that may begin; no other replica gets the same ones."""
        rows = await self._pool.fetch(
            _CLAIM, self._leases.owner, limit, self._leases.duration, list(LISTING_KINDS), list(kinds)
        )
        return [
            Task(
                task_id=row["task_id"],
                token_id=row["user_token_id"],
                user_id=row["user_id"],
                kind=row["kind"],
                parameters=row["parameters"],
                correlation_id=row["correlation_id"],
                traceparent=row["traceparent"],
                fence=row["fence"],
                is_resumed=row["status"] == "running",
            )
            for row in rows
        ]

    async def plan(self, task: Task) -> None:
        """Make the task a run; one that cannot be done fails and says why, one that cannot yet is tried again."""
        with (
            correlated(task.correlation_id, user=task.user_id),
            span(f"begin {task.kind}", {"orders_backup.token_id": task.token_id}, parent=task.traceparent),
        ):
            try:
                await self._plan(task)
            except LeaseLostError as error:
                logger.info("task not begun", extra={"task_id": str(task.task_id), "reason": str(error)})
            except PermanentError as error:
                metrics.tasks.labels(task.kind, "refused").inc()
                logger.error("task refused", extra={"task_id": str(task.task_id), "error": _text(error)})
                count_ended(await self._pool.fetch(_REFUSE, task.task_id, task.fence, _text(error)))
            except (AllegroError, TransientError) as error:
                logger.warning("task postponed", extra={"task_id": str(task.task_id), "error": _text(error)})
                await self._pool.execute(_POSTPONE, task.task_id, task.fence, _POSTPONED, _text(error))
            else:
                metrics.tasks.labels(task.kind, "begun").inc()
                logger.info("task begun", extra={"task_id": str(task.task_id), "kind": task.kind})

    async def _plan(self, task: Task) -> None:
        parameters = TaskParameters.read(task.parameters)
        match task.kind:
            case "orders":
                await self._plan_orders(task, parameters)
            case "journal":
                await self._read_journal_again(task, parameters)
            case _:
                await self._plan_listing(task, parameters)

    async def _plan_listing(self, task: Task, parameters: TaskParameters) -> None:
        with Tally() as tally:
            covered = await self._covered(task.token_id) if task.kind == "initial" else None
        wanted = window(task.kind, parameters, now=self._clock.now())
        run_id = uuid4()
        async with self._pool.acquire() as connection, connection.transaction():
            await self._lock(connection, task)
            if await connection.fetchval(_LISTING_RUNS, task.token_id, list(LISTING_KINDS)):
                raise TransientError("another listing of this token is running")
            bounds = (wanted.bought_from, wanted.bought_to)
            await self._begin(connection, task, run_id, window=bounds, spent=tally.requests)
            if covered is not None:
                await connection.execute(_COVER, task.token_id, covered)
            await connection.execute(_CREATE_WINDOW, run_id, task.token_id, wanted.bought_from, wanted.bought_to)
        # If this is lost, the window is sent out again for want of progress.
        await self._publisher.windows(
            [
                OrderWindow(
                    token_id=task.token_id, run_id=run_id, bought_from=wanted.bought_from, bought_to=wanted.bought_to
                )
            ]
        )

    async def _covered(self, token_id: int) -> int:
        end = await self._allegro.journal_end(token_id, traffic="live")
        return covered_position(end.event_id, to_event_id(end.at), list_lag=self._list_lag)

    async def _lock(self, connection: asyncpg.Connection, task: Task) -> None:
        """Two tasks must not both find that nothing of their kind runs."""
        await connection.execute(_LOCK, task.token_id)

    async def _plan_orders(self, task: Task, parameters: TaskParameters) -> None:
        """What is owed is written down; sending it out is the redelivery's work, as for everything that is owed."""
        if not parameters.order_ids:
            raise UnusableParametersError("order_ids: missing")
        unique = sorted(set(parameters.order_ids))
        run_id = uuid4()
        async with self._pool.acquire() as connection, connection.transaction():
            await self._lock(connection, task)
            if await connection.fetchval(_ARE_WANTED, task.token_id, unique):
                raise TransientError("another run of some of these orders is going on")
            await self._begin(connection, task, run_id, expected=len(unique))
            await connection.execute(_OWE, task.token_id, unique, run_id)

    async def _read_journal_again(self, task: Task, parameters: TaskParameters) -> None:
        """Publish the journal once more from a date on: what is missing gets stored, what is stored stays as it is.

        The cursor is not touched: it goes on by itself, and passes these events where they lie behind it. So it does
        not notice if they get lost on the way: a page counts as read when its events are stored.
        """
        if parameters.from_ is None:
            raise UnusableParametersError("from: missing")
        run_id = await self._run_of(task)
        cursor = await self._cursor(task.token_id)
        position = max(to_event_id(parameters.from_), 0)
        last = 0
        while True:
            await self._heartbeat(task, 0)
            async with self._journal(task):
                with Tally() as tally:
                    page = await self._reader.page(task.token_id, cursor, after=position, traffic="bulk")
            # It may have waited long for its turn: nothing of what was stopped meanwhile is published.
            await self._heartbeat(task, tally.requests)
            if page.links:
                last = page.links[-1].event.event_id
                records = self._reader.records(task.token_id, page, cursor, run_id=run_id, run_last=last)
                await self._until_stored(task, records, run_id)
            if page.is_last:
                break
            position = page.read_up_to
        await self._pool.execute(_END_READING, task.task_id, task.fence, last)

    @asynccontextmanager
    async def _journal(self, task: Task) -> AsyncIterator[None]:
        """Nobody else reads the seller's journal meanwhile; raises LeaseLostError."""
        while True:
            row = await self._pool.fetchrow(
                _TAKE_JOURNAL, task.token_id, self._leases.owner, self._leases.duration, self._pace
            )
            if row["fence"] is not None or not row["is_scheduled"]:
                break
            await self._heartbeat(task, 0)
            await asyncio.sleep(_LOOK_SECONDS)
        try:
            yield
        finally:
            await self._pool.execute(_GIVE_JOURNAL, task.token_id, row["fence"], self._pace)

    async def _until_stored(self, task: Task, records: Sequence[OrderEvent], run_id: UUID) -> None:
        """Publish, and again if the events do not arrive, with growing patience; raises LeaseLostError."""
        patience = self._redelivery_seconds
        while True:
            await self._publisher.events(records, run_id=run_id)
            metrics.published_events.inc(len(records))
            if await self._are_stored(task, [record.event_id for record in records], within_seconds=patience):
                return
            logger.warning(
                "events published are not stored: publishing them again", extra={"task_id": str(task.task_id)}
            )
            patience = min(patience * 2, self._redelivery_seconds * _MAX_REDELIVERY_FACTOR)

    async def _are_stored(self, task: Task, event_ids: Sequence[int], *, within_seconds: float) -> bool:
        now = asyncio.get_running_loop().time
        deadline = now() + within_seconds
        while await self._pool.fetchval(_STORED, task.token_id, event_ids) < len(event_ids):
            if now() >= deadline:
                return False
            await self._heartbeat(task, 0)
            await asyncio.sleep(_LOOK_SECONDS)
        return True

    async def _run_of(self, task: Task) -> UUID:
        """The run of this task: a new one, or the one that a reader left behind when it died."""
        if task.is_resumed:
            known: UUID | None = await self._pool.fetchval(_RUN_OF_TASK, task.task_id)
            if known is None:
                raise LeaseLostError("its run has ended")
            return known
        run_id = uuid4()
        async with self._pool.acquire() as connection, connection.transaction():
            await self._lock(connection, task)
            if await connection.fetchval(_READING_RUNS, task.token_id):
                raise TransientError("another reading of this journal is running")
            await self._begin(connection, task, run_id, last_event_id=_UNKNOWN_YET, keep_lease=True)
        return run_id

    async def _cursor(self, token_id: int) -> Cursor:
        row = await self._pool.fetchrow(_CURSOR, token_id)
        return Cursor(stored_event_id=row["stored_event_id"], covered_event_id=row["covered_event_id"])

    async def _heartbeat(self, task: Task, spent: int) -> None:
        """Keep the lease and count the requests since the last time; raises LeaseLostError if it is not ours."""
        if await self._pool.fetchval(_HEARTBEAT, task.task_id, task.fence, self._leases.duration, spent) is None:
            raise LeaseLostError("it was stopped, or another replica has it")

    async def _begin(
        self,
        connection: asyncpg.Connection,
        task: Task,
        run_id: UUID,
        *,
        window: tuple[datetime, datetime] | tuple[None, None] = (None, None),
        expected: int | None = None,
        last_event_id: int | None = None,
        spent: int = 0,
        keep_lease: bool = False,
    ) -> None:
        """Make the task a run; raises LeaseLostError if it is not ours any more."""
        ours: str = await connection.execute(_BEGIN_TASK, task.task_id, task.fence, keep_lease)
        if ours.endswith(" 0"):
            raise LeaseLostError("it was stopped, or another replica has it")
        values: tuple[Any, ...] = (task.token_id, task.user_id, task.kind, *window, expected, last_event_id, spent)
        await connection.execute(_CREATE_RUN, run_id, task.task_id, *values)


def _text(error: Exception) -> str:
    return scrub(str(error) or type(error).__name__)[:_MAX_ERROR_LENGTH]
