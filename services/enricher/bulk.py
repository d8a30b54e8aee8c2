"""Bulk loads: one record walks through everything bought in a window, from where the run stands in the database.

A walk is fenced by its attempt number: it is raised here at the start, the writer counts only the newest attempt, and
a walk that finds itself overtaken ends without a word. Once a second, and before every page, it looks whether it should
stop.
"""

import logging
import time
from asyncio import Semaphore, create_task, sleep, wait
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
from aiokafka import ConsumerRecord

from services.enricher.headroom import Headroom
from services.enricher.publish import Publisher
from services.enricher.walk import Covered, Met, PageRequest, Walk
from shared.allegro.bodies import OrderPage
from shared.allegro.client import AllegroClient
from shared.allegro.errors import (
    AccessDeniedError,
    AllegroOutageError,
    AnswerTooLargeError,
    NotPermittedError,
    RateLimitedError,
    ReauthorizationRequiredError,
)
from shared.allegro.tally import Tally
from shared.errors import TransientError
from shared.logs import correlated, remember_user
from shared.messages import (
    CoveredRange,
    OrderObserved,
    OrderWindow,
    Outcome,
    Record,
    UnreadableRecordError,
    WindowFinished,
    WindowPlace,
    WindowProgressed,
    correlation_id_of,
    decode,
    token_of,
    traceparent_of,
)
from shared.tracing import span

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_STOP_CHECK_SECONDS = 1.0
_WRITER_PATIENCE_SECONDS = 60.0
# Each of these calls is three attempts already. Where all Allegro is away, fewer would be too few to find that out.
_FAILED_CALLS = 3
# What waited behind a walk in its lane follows at once; what the poller sends for want of progress comes much later.
_BEHIND_SECONDS = 10.0
# Everybody has to wait for these, whoever holds a slot meanwhile.
_NOBODYS_FAULT = (AllegroOutageError, RateLimitedError, NotPermittedError)

# language=sql
_BEGIN = """
UPDATE run_windows w
   SET attempt = w.attempt + 1, published_at = now()
  FROM sync_history r
 WHERE w.run_id = $1 AND r.run_id = w.run_id AND NOT w.finished AND r.completed_at IS NULL
RETURNING w.attempt, w.position, w.bought_to, w.next_sequence, w.boundary_order_ids,
          w.requests, r.orders_expected, r.user_id
"""

# From now on the poller waits for progress, the longer the longer there was none. What was spent in vain is counted.
# language=sql
_GIVE_UP = """
WITH walk AS (
    SELECT run_id, requests FROM run_windows WHERE run_id = $1 AND attempt = $2 AND NOT finished FOR UPDATE
), told AS (
    UPDATE run_windows w SET published_at = now(), requests = greatest(w.requests, $3)
      FROM walk WHERE w.run_id = walk.run_id
)
UPDATE sync_history r SET requests = r.requests + greatest($3 - walk.requests, 0)
  FROM walk WHERE r.run_id = walk.run_id
"""

_STANDING = """
SELECT w.attempt, w.next_sequence, coalesce(t.stop_requested_at IS NOT NULL, false) AS stop
  FROM run_windows w
  JOIN sync_history r USING (run_id)
  LEFT JOIN task_history t ON t.task_id = r.task_id
 WHERE w.run_id = $1 AND NOT w.finished AND r.completed_at IS NULL
"""


class _OvertakenError(Exception):
    """Another attempt has begun, or the run has ended: what this one finds is of no use."""


class _StopRequestedError(Exception):
    """Somebody asked for the run to stop."""


class _GivenUpError(Exception):
    """This attempt does not come on, and others want its slot: nothing gets stored, or Allegro fails.

    Without progress the poller sends the window out again, and the next attempt begins where it is stored.
    """


@dataclass
class _Attempt:
    """One attempt at a run's walk."""

    origin: ConsumerRecord
    token_id: int
    run_id: UUID
    number: int
    walk: Walk
    requests: int

    def place(self, met: Met) -> WindowPlace:
        return WindowPlace(run_id=self.run_id, attempt=self.number, sequence=met.sequence)


class BulkHandler:
    """Walks through windows, `walks` of them at a time in this process."""

    def __init__(
        self,
        allegro: AllegroClient,
        publisher: Publisher,
        pool: asyncpg.Pool,
        *,
        list_lag: timedelta,
        walks: int,
        pause: Callable[[float], Awaitable[None]] = sleep,
    ) -> None:
        self._allegro = allegro
        self._publisher = publisher
        self._pool = pool
        self._list_lag = list_lag
        self._walks = Semaphore(walks)
        self._headroom = Headroom()
        self._given_up: dict[UUID, float] = {}
        """When walks were given up not long ago, by time.monotonic()."""
        self._pause = pause

    async def handle(self, raw_records: Sequence[ConsumerRecord]) -> None:
        """Work off records of one token, one walk after the other."""
        for raw in raw_records:
            with (
                correlated(correlation_id_of(raw.headers), token=token_of(raw.key)),
                span(
                    f"process {raw.topic}",
                    {"messaging.system": "kafka"},
                    kind="consumer",
                    parent=traceparent_of(raw.headers),
                ),
            ):
                try:
                    record = _read(raw)
                except UnreadableRecordError as error:
                    await self._publisher.dead_letter(raw, error)
                else:
                    if self._was_given_up(record):
                        continue  # it was sent before that, and waited behind: the next one comes after a pause
                    async with self._walks:
                        with self._headroom.walking():
                            await self._walk(raw, record)

    def _was_given_up(self, record: OrderWindow) -> bool:
        return time.monotonic() < self._given_up.get(record.run_id, 0.0) + _BEHIND_SECONDS

    async def _walk(self, raw: ConsumerRecord, record: OrderWindow) -> None:
        attempt = await self._begin(raw, record)
        if attempt is None:
            return  # the run has ended: a repeated record
        logger.info("walk begun", extra={"run_id": str(record.run_id), "attempt": attempt.number})
        try:
            await self._walk_pages(attempt)
        except _OvertakenError:
            logger.info("walk overtaken", extra={"run_id": str(record.run_id), "attempt": attempt.number})
        except _GivenUpError as error:
            await self._give_up(attempt, error)
        except _StopRequestedError:
            await self._finish(attempt, "stopped")
        except (ReauthorizationRequiredError, AccessDeniedError) as error:
            await self._finish(attempt, "failed", f"{type(error).__name__}: {error}")
        else:
            await self._end(attempt)

    async def _give_up(self, attempt: _Attempt, reason: _GivenUpError) -> None:
        logger.warning(
            "walk given up for now",
            extra={
                "run_id": str(attempt.run_id),
                "attempt": attempt.number,
                "orders": attempt.walk.sequence,
                "reason": str(reason),
            },
        )
        await self._pool.execute(_GIVE_UP, attempt.run_id, attempt.number, attempt.requests)
        now = time.monotonic()
        self._given_up = {run_id: at for run_id, at in self._given_up.items() if now < at + _BEHIND_SECONDS}
        self._given_up[attempt.run_id] = now

    async def _begin(self, raw: ConsumerRecord, record: OrderWindow) -> _Attempt | None:
        row = await self._pool.fetchrow(_BEGIN, record.run_id)
        if row is None:
            return None
        remember_user(record.token_id, row["user_id"])
        walk = Walk(
            position=row["position"],
            bought_to=row["bought_to"],
            sequence=row["next_sequence"],
            counted=row["boundary_order_ids"],
            expected=row["orders_expected"],
        )
        return _Attempt(raw, record.token_id, record.run_id, row["attempt"], walk, row["requests"])

    async def _walk_pages(self, attempt: _Attempt) -> None:
        walk = attempt.walk
        while (request := walk.next_request()) is not None:
            try:
                page = await self._page(attempt, request)
            except AnswerTooLargeError as error:
                logger.warning("a page is too large", extra={"run_id": str(attempt.run_id), "error": str(error)})
                walk.ask_for_less()
                continue
            for part in page.unreadable:
                await self._publisher.unreadable(attempt.origin, part)
            observed = [_observed(attempt, met, met.requested_at - self._list_lag) for met in walk.take(page)]
            progressed = WindowProgressed(
                token_id=attempt.token_id,
                run_id=attempt.run_id,
                attempt=attempt.number,
                page=walk.pages,
                requests=attempt.requests,
                orders_expected=walk.expected,
                covered=None if walk.covered is None else self._covered(walk.covered),
            )
            # In this order: what moves the stored position must not be stored without the range that it passes.
            results: list[Record] = [progressed, *observed]
            await self._publisher.results(results, run_id=attempt.run_id)
            if walk.breaks_off:
                await self._wait(attempt, _FIRST_PAUSE_SECONDS * 2**walk.looks_again)
        if walk.outside:
            logger.warning(
                "Allegro listed orders outside of the window asked for; they are stored all the same",
                extra={"run_id": str(attempt.run_id), "orders": walk.outside},
            )

    def _covered(self, covered: Covered) -> CoveredRange:
        return CoveredRange(
            bought_from=covered.bought_from,
            bought_until=covered.bought_until,
            order_ids=covered.order_ids,
            observed_at=covered.requested_at - self._list_lag,
        )

    async def _page(self, attempt: _Attempt, request: PageRequest) -> OrderPage:
        """One page. However long all of Allegro is away, a run waits rather than fails, and can be stopped meanwhile.

        Raises _GivenUpError where only this seller's calls fail: others want the slot.
        """
        delay = _FIRST_PAUSE_SECONDS
        failures = 0
        while True:
            await self._let_the_writer_follow(attempt)
            try:
                page = await self._counted(attempt, request)
            except TransientError as error:
                pause = error.retry_after.total_seconds() if error.retry_after else delay
                if not isinstance(error, _NOBODYS_FAULT):
                    failures += 1
                    if failures == _FAILED_CALLS or pause > _LONGEST_PAUSE_SECONDS:
                        raise _GivenUpError(f"{type(error).__name__}: {error}") from error
                logger.warning("bulk load waits", extra={"run_id": str(attempt.run_id), "error": str(error)})
                await self._wait(attempt, pause)
                delay = min(delay * 2, _LONGEST_PAUSE_SECONDS)
            else:
                return page

    async def _counted(self, attempt: _Attempt, request: PageRequest) -> OrderPage:
        """The page; what it cost, with every attempt of the client, is counted however it ends."""
        with Tally() as tally:
            try:
                return await self._unless_stopped(
                    attempt,
                    self._allegro.list_orders(
                        attempt.token_id,
                        bought_from=request.bought_from,
                        bought_to=request.bought_to,
                        offset=request.offset,
                        limit=request.limit,
                        traffic="bulk",
                    ),
                )
            finally:
                attempt.requests += tally.requests

    async def _unless_stopped(self, attempt: _Attempt, call: Coroutine[Any, Any, OrderPage]) -> OrderPage:
        """The call's result; it may wait for minutes (limits, a block, a slow answer), a stop does not wait for it."""
        calling = create_task(call)
        try:
            while not (await wait([calling], timeout=_STOP_CHECK_SECONDS))[0]:
                await self._check(attempt)
            return await calling
        finally:
            calling.cancel()
            del calling  # else an error, its traceback and the task hold each other, and with them the answer's body

    async def _wait(self, attempt: _Attempt, seconds: float) -> None:
        while seconds > 0:
            await self._pause(min(seconds, _STOP_CHECK_SECONDS))
            seconds -= _STOP_CHECK_SECONDS
            await self._check(attempt)

    async def _let_the_writer_follow(self, attempt: _Attempt) -> None:
        """Wait while too much of what was read is not stored; raises _GivenUpError where nothing is stored at all."""
        stored, waited = await self._check(attempt), 0.0
        while self._headroom.is_used_up(under_way=attempt.walk.sequence - stored):
            if waited >= _WRITER_PATIENCE_SECONDS:
                raise _GivenUpError("what it read is not stored: it is lost, or the writer is away")
            pause = self._headroom.pause_seconds
            await self._pause(pause)
            before, stored = stored, await self._check(attempt)
            waited = waited + pause if stored == before else 0.0

    async def _check(self, attempt: _Attempt) -> int:
        """How many orders of the walk are stored.

        Raises _StopRequestedError or _OvertakenError where this attempt should not go on.
        """
        row = await self._pool.fetchrow(_STANDING, attempt.run_id)
        if row is None or row["attempt"] != attempt.number:
            raise _OvertakenError
        if row["stop"]:
            raise _StopRequestedError
        stored: int = row["next_sequence"]
        return stored

    async def _end(self, attempt: _Attempt) -> None:
        """A list that breaks off is no complete one: the run says so, and the next complete listing looks again."""
        withheld = attempt.walk.withheld
        if withheld:
            await self._finish(attempt, "stalled", f"Allegro counts {withheld} more orders than it lists")
        elif attempt.walk.passed_over:
            await self._finish(
                attempt, "stalled", f"{attempt.walk.passed_over} times an order was too large to be read"
            )
        else:
            await self._finish(attempt, "completed")

    async def _finish(self, attempt: _Attempt, outcome: Outcome, error: str | None = None) -> None:
        end = WindowFinished(
            token_id=attempt.token_id,
            run_id=attempt.run_id,
            attempt=attempt.number,
            orders=attempt.walk.sequence,
            orders_expected=attempt.walk.expected,
            requests=attempt.requests,
            outcome=outcome,
            error=error,
        )
        await self._publisher.results([end], run_id=attempt.run_id)


def _read(raw: ConsumerRecord) -> OrderWindow:
    record = decode(raw.value)
    if not isinstance(record, OrderWindow):
        raise UnreadableRecordError(f"kind: {record.kind} does not belong on this topic")
    return record


def _observed(attempt: _Attempt, met: Met, observed_at: datetime) -> OrderObserved:
    return OrderObserved(
        token_id=attempt.token_id,
        order_id=met.order.order_id,
        observed_at=observed_at,
        observed_by="list",
        place=attempt.place(met),
        order=met.order.raw,
    )
