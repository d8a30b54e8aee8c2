"""Tasks become runs: a person, a schedule or a consent asked, the plan is written down and sent out."""

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from services.poller.settings import PollerSettings
from shared.allegro.client import AllegroClient
from shared.allegro.errors import AllegroError
from shared.clock import Clock, to_event_id
from shared.errors import TransientError
from shared.kafka import RecordProducer
from shared.logs import correlated, current_correlation_id
from shared.messages import OrderWindow, headers

logger = logging.getLogger(__name__)

_BATCH = 20
LISTING_KINDS = ("initial", "full", "manual", "reconcile")
# Allegro keeps orders for 12 months; slightly older ones may appear (#12597).
_LISTED = timedelta(days=366)
# A purchase on a host whose clock is ahead of ours is inside of the window as well.
_MARGIN = timedelta(minutes=10)

# One listing of a token at a time, and none while another waits to be stored: the others stay queued.
# language=sql
_CLAIM = """
WITH due AS (
    SELECT h.task_id FROM task_history h JOIN user_tokens t ON t.id = h.user_token_id
     WHERE h.status = 'queued' AND (h.lease_until IS NULL OR h.lease_until < now())
       AND t.status IN ('active', 'refresh_failed')
       AND NOT EXISTS (SELECT FROM sync_history r
                        WHERE r.user_token_id = h.user_token_id AND r.status = 'running' AND r.kind = ANY($4)
                          AND h.kind = ANY($4))
     ORDER BY h.created_at LIMIT $2 FOR UPDATE OF h SKIP LOCKED
)
UPDATE task_history h
   SET lease_owner = $1, lease_until = now() + $3::interval, fence = h.fence + 1
  FROM due WHERE h.task_id = due.task_id
RETURNING h.task_id, h.user_token_id, h.user_id, h.kind, h.parameters, h.correlation_id, h.fence
"""

_RUN_TASK = """
UPDATE task_history SET status = 'running', started_at = now(), lease_owner = NULL, lease_until = NULL, error = NULL
 WHERE task_id = $1 AND fence = $2 AND status = 'queued'
"""

_POSTPONE_TASK = (
    "UPDATE task_history SET lease_until = now() + interval '30 seconds', error = $3 WHERE task_id = $1 AND fence = $2"
)

# The partial look at running listings is repeated under the token's lock: two tasks must not both find none.
_CREATE_RUN = """
INSERT INTO sync_history (run_id, task_id, user_token_id, user_id, kind, window_from, window_to, orders_expected)
SELECT $1, $2, $3, $4, $5, $6, $7, $8
 WHERE NOT ($5 = ANY($9) AND EXISTS (SELECT FROM sync_history
                                      WHERE user_token_id = $3 AND status = 'running' AND kind = ANY($9)))
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


class TaskPlanner:
    """Claims queued tasks and turns them into runs."""

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
        self._owner = owner

    async def turn(self) -> bool:
        """Claim and plan what is queued; says whether there may be more."""
        rows = await self._pool.fetch(
            _CLAIM,
            self._owner,
            _BATCH,
            timedelta(seconds=self._settings.poller_lease_seconds),
            list(LISTING_KINDS),
        )
        for row in rows:
            with correlated(row["correlation_id"], user=row["user_id"]):
                await self._plan(row)
        return len(rows) == _BATCH

    async def _plan(self, task: asyncpg.Record) -> None:
        parameters: dict[str, Any] = json.loads(task["parameters"])
        try:
            match task["kind"]:
                case "orders":
                    await self._plan_orders(task, parameters["order_ids"])
                case "journal":
                    await self._plan_journal(task, datetime.fromisoformat(parameters["from"]))
                case _:
                    await self._plan_listing(task, parameters)
        except (AllegroError, TransientError) as error:
            logger.warning("task postponed", extra={"task_id": str(task["task_id"]), "error": str(error)})
            await self._pool.execute(_POSTPONE_TASK, task["task_id"], task["fence"], str(error))

    async def _plan_listing(self, task: asyncpg.Record, parameters: dict[str, Any]) -> None:
        token_id = task["user_token_id"]
        covered = await self._note_position(token_id) if task["kind"] == "initial" else None
        bought_from, bought_to = window(parameters, now=self._clock.now())
        run_id = uuid4()
        async with self._pool.acquire() as connection, connection.transaction():
            if not await self._begin(connection, task, run_id, (bought_from, bought_to), None):
                return
            if covered is not None:
                await connection.execute(_COVER, token_id, covered)
            await connection.execute(_CREATE_WINDOW, run_id, token_id, bought_from, bought_to)
        # If this is lost, the window is sent out again for want of progress.
        record = OrderWindow(token_id=token_id, run_id=run_id, bought_from=bought_from, bought_to=bought_to)
        carried = headers(correlation_id=current_correlation_id(), run_id=run_id)
        await self._producer.publish_all(self._settings.topics.order_windows, [(record.key, record.encode(), carried)])

    async def _note_position(self, token_id: int) -> int:
        """The journal position up to which the walk that begins now brings every order, less what lists lag behind."""
        latest = await self._allegro.latest_event_id(token_id, traffic="live")
        position = to_event_id(self._clock.now()) if latest is None else latest
        lag = timedelta(seconds=self._settings.sync_list_lag_seconds)
        return max(0, position - lag // timedelta(microseconds=1))

    async def _plan_orders(self, task: asyncpg.Record, order_ids: Sequence[str]) -> None:
        """What is owed is written down; sending it out is the redelivery's work, as for everything that is owed."""
        run_id = uuid4()
        unique = sorted(set(order_ids))
        async with self._pool.acquire() as connection, connection.transaction():
            if await self._begin(connection, task, run_id, None, len(unique)):
                await connection.execute(_OWE, task["user_token_id"], unique, run_id)

    async def _plan_journal(self, task: asyncpg.Record, moment: datetime) -> None:
        """Read the journal from a date again: what is not stored comes to light, the cursor stays where it is."""
        await self._read_again(task, to_event_id(moment.astimezone(UTC)))

    async def _read_again(self, task: asyncpg.Record, position: int) -> None:
        token_id = task["user_token_id"]
        stored: list[tuple[int, str]] = []
        known: set[int] = set()
        while True:
            page = await self._allegro.events(token_id, after=position, traffic="bulk")
            ids = [event.event_id for event in page.events]
            rows = await self._pool.fetch(
                "SELECT event_id FROM order_events WHERE user_token_id = $1 AND event_id = ANY($2::bigint[])",
                token_id,
                ids,
            )
            known = {row["event_id"] for row in rows}
            stored += [
                (event.event_id, event.order_id)
                for event in page.events
                if event.event_id not in known and event.order_id is not None
            ]
            if len(page.events) < 1000:
                break
            position = max(ids)
        run_id = uuid4()
        orders = sorted({order_id for _, order_id in stored})
        async with self._pool.acquire() as connection, connection.transaction():
            if not await self._begin(connection, task, run_id, None, len(orders)):
                return
            await connection.execute(_OWE, token_id, orders, run_id)
            # The next turn of the journal reads from before the first event that is missing.
            if stored:
                await connection.execute(
                    "UPDATE journal_cursors SET stored_event_id = least(stored_event_id, $2), published_event_id = 0"
                    " WHERE user_token_id = $1",
                    token_id,
                    min(event_id for event_id, _ in stored) - 1,
                )

    async def _begin(
        self,
        connection: asyncpg.Connection,
        task: asyncpg.Record,
        run_id: UUID,
        bounds: tuple[datetime, datetime] | None,
        expected: int | None,
    ) -> bool:
        """Make the task a run; False if it is not ours any more, or has to wait for another listing."""
        token_id = task["user_token_id"]
        await connection.execute("SELECT FROM user_tokens WHERE id = $1 FOR NO KEY UPDATE", token_id)
        created = await connection.execute(
            _CREATE_RUN,
            run_id,
            task["task_id"],
            token_id,
            task["user_id"],
            task["kind"],
            bounds[0] if bounds else None,
            bounds[1] if bounds else None,
            expected,
            list(LISTING_KINDS),
        )
        if created.endswith(" 0"):
            await connection.execute(
                "UPDATE task_history SET lease_owner = NULL, lease_until = NULL WHERE task_id = $1 AND fence = $2",
                task["task_id"],
                task["fence"],
            )
            return False
        ours = await connection.execute(_RUN_TASK, task["task_id"], task["fence"])
        if ours.endswith(" 0"):
            raise _LeaseLostError(f"task {task['task_id']} was stopped, or its lease ran out")
        return True


class _LeaseLostError(TransientError):
    """Somebody else has the task now, or it was stopped: the transaction must leave nothing."""


def window(parameters: dict[str, Any], *, now: datetime) -> tuple[datetime, datetime]:
    """The purchases to list: what was asked for, else everything that Allegro has."""
    start = parameters.get("from")
    end = parameters.get("to")
    return (
        datetime.fromisoformat(start) if start else now - _LISTED,
        datetime.fromisoformat(end) if end else now + _MARGIN,
    )
