"""One batch, one transaction: orders, events, cursors, what is owed, counters and ends of runs.

Every effect is idempotent, so a batch that is applied again changes nothing, whatever part of it was applied
before: events by their id, orders by their observation, counters because they count effects.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Any
from uuid import UUID

import asyncpg

from services.writer import statements as sql
from services.writer.batch import Batch, Observation, OrderKey, advance_cursor, wanted_fetches
from services.writer.reconciliation import Finding, announce, link_merged, note, want_unlisted
from services.writer.unstorable import Storable, as_it_came
from services.writer.walk import WalkState, advance_all, is_complete
from shared.delivery import DeadLetter
from shared.dropped_looks import drop_looks
from shared.errors import PermanentError
from shared.messages import OrderEvent, OrderFetchFailed, OrderMissing, OrderObserved, WindowFinished
from shared.token_users import learn_users

# How long the enricher has for a new event before the poller sends the order out again (docs/architecture.md).
SETTLE_SECONDS = 120.0

# SQLSTATE classes that speak of the data: data exception, integrity constraint violation, program limit exceeded.
_CLASSES_OF_DATA = frozenset({"22", "23", "54"})


@dataclass
class RunCounts:
    """What one batch adds to a run."""

    walked: int = 0
    looked: int = 0
    added: int = 0
    updated: int = 0
    requests: int = 0
    unseen: int = 0


@dataclass(frozen=True)
class Written:
    """What a batch changed, for metrics and tests."""

    events: int = 0
    orders_added: int = 0
    orders_updated: int = 0
    orders_unchanged: int = 0
    dead_letters: int = 0
    waited_seconds: tuple[float, ...] = field(default=(), compare=False)
    """From the journal's newest event of an order to the look that shows it, for each order that was owed one."""
    found_by_listing: Mapping[str, int] = field(default_factory=dict)
    """Orders that nothing else would have led us to: missing, stale, merged, gone."""
    ended_runs: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)
    """Of each run that ended, `kind` and `status`."""
    announced_later: Mapping[str, int] = field(default_factory=dict)
    """Of those found before, orders that the journal has told of now."""

    def __add__(self, other: "Written") -> "Written":
        return Written(
            self.events + other.events,
            self.orders_added + other.orders_added,
            self.orders_updated + other.orders_updated,
            self.orders_unchanged + other.orders_unchanged,
            self.dead_letters + other.dead_letters,
            self.waited_seconds + other.waited_seconds,
            Counter(self.found_by_listing) + Counter(other.found_by_listing),
            self.ended_runs + other.ended_runs,
            Counter(self.announced_later) + Counter(other.announced_later),
        )


class RefusedError(PermanentError):
    """PostgreSQL will not take this batch, however often it is offered."""


def _is_refusal(error: Exception) -> bool:
    """Whether it is the data that cannot be stored. Nobody loses a record for a server that cannot store anything."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in _CLASSES_OF_DATA
    return isinstance(error, ValueError)  # the driver's complaints about arguments


class Store:
    """The tables that only the writer writes."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def apply(self, batch: Batch, *, storable: Mapping[bytes, Storable] | None = None) -> Written:
        """Store the batch in one transaction; if it raises, nothing of it is stored.

        `storable` gives stand-ins for documents that the database refused before, by the bytes as they came. Raises
        RefusedError for a batch that can never be stored as it is, and the driver's errors when it may be later.
        """
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                return await _Transaction(connection, batch, storable or {}).run()
        except (asyncpg.PostgresError, ValueError) as error:
            if not _is_refusal(error):
                raise
            raise RefusedError(f"{type(error).__name__}: {error}") from error


class _Transaction:
    """The steps of one batch, in the order in which they depend on each other."""

    def __init__(self, connection: asyncpg.Connection, batch: Batch, storable: Mapping[bytes, Storable]) -> None:
        self._connection = connection
        self._batch = batch
        self._storable = storable
        self._runs: defaultdict[UUID, RunCounts] = defaultdict(RunCounts)
        self._changes: defaultdict[UUID | None, list[OrderKey]] = defaultdict(list)
        """Orders that changed, by the run to count them for; None: there is none."""
        self._settled_by: dict[OrderKey, list[UUID]] = {}
        self._waited: tuple[float, ...] = ()
        self._ended: list[Mapping[str, Any]] = []

    async def run(self) -> Written:
        events = await self._insert_events()
        announced = await announce(self._connection, events)
        await self._want_fetches(events)
        changed = await self._upsert_orders()
        gone = await self._mark_gone([key for key, added in changed.items() if added])
        await link_merged(self._connection, gone=gone, buyers_of_new=self._buyers_of_new(changed))
        await self._settle_fetches()
        moved = await self._move_observations(changed)
        await self._count_early_looks({*changed, *moved})
        await self._note_failures()
        await self._move_cursors(changed)
        walks = await self._move_walks()
        found = await note(self._connection, [*self._count_changes(changed), *self._gone_from_lists(gone)])
        await self._count(events)
        await self._note_late_changes(changed)
        await self._finish_walks(walks)
        await self._finish_settled_runs()
        dead_letters = await self._insert_dead_letters([*self._batch.unreadable, *self._batch.dead_letters])
        await learn_users(self._connection, self._batch.token_ids())
        added = sum(changed.values())
        return Written(
            events=len(events),
            orders_added=added,
            orders_updated=len(changed) - added,
            orders_unchanged=len(self._batch.observations) - len(changed),
            dead_letters=dead_letters,
            waited_seconds=self._waited,
            found_by_listing=found,
            ended_runs=tuple(self._ended),
            announced_later=announced,
        )

    async def _insert_events(self) -> list[OrderEvent]:
        """Store the events; returns those that were not stored before."""
        events = list(self._batch.events.values())
        if not events:
            return []
        documents = [self._storable.get(event.event) or as_it_came(event.event) for event in events]
        rows = await self._connection.fetch(
            sql.INSERT_EVENTS,
            [event.token_id for event in events],
            [event.event_id for event in events],
            [event.event_type for event in events],
            [event.occurred_at for event in events],
            [event.order_id for event in events],
            [event.revision for event in events],
            [document.data for document in documents],
            [document.raw for document in documents],
        )
        return [self._batch.events[row["user_token_id"], row["event_id"]] for row in rows]

    async def _want_fetches(self, events: Sequence[OrderEvent]) -> None:
        wanted = wanted_fetches(events)
        if not wanted:
            return
        await self._connection.execute(
            sql.WANT_FETCHES,
            [token_id for token_id, _ in wanted],
            [order_id for _, order_id in wanted],
            [fetch.wanted_after for fetch in wanted.values()],
            [fetch.bought_at for fetch in wanted.values()],
            [",".join(map(str, fetch.run_ids)) for fetch in wanted.values()],
            SETTLE_SECONDS,
        )

    async def _upsert_orders(self) -> dict[OrderKey, bool]:
        """Store the observations; returns the orders that changed, with whether they are new."""
        observations = list(self._batch.observations.values())
        if not observations:
            return {}
        rows = await self._connection.fetch(sql.UPSERT_ORDERS, *self._order_columns(observations))
        return {(row["user_token_id"], row["allegro_order_id"]): bool(row["added"]) for row in rows}

    async def _move_observations(self, changed: Collection[OrderKey]) -> list[OrderKey]:
        """What a look confirmed is as new as the look: the order as it was, or that it is gone; returns these."""
        confirmed: list[OrderObserved | OrderMissing] = [
            seen.record
            for key, seen in self._batch.observations.items()
            if key not in changed
            and (seen.record.observed_by == "detail" or key in self._settled_by or key in self._batch.wanted_by)
        ]
        confirmed += self._batch.missing.values()
        if not confirmed:
            return []
        rows = await self._connection.fetch(
            sql.MOVE_OBSERVATIONS,
            [look.token_id for look in confirmed],
            [look.order_id for look in confirmed],
            [look.observed_at for look in confirmed],
        )
        return [(row["user_token_id"], row["allegro_order_id"]) for row in rows]

    async def _count_early_looks(self, looked_at: Collection[OrderKey]) -> None:
        """Count looks that are stored before the events that led to them: then nothing is owed yet.

        Only a look that is the latest of its order counts, so one that comes again does not.
        """
        new: dict[UUID, tuple[int, int]] = {}
        for key in looked_at:
            runs = self._batch.wanted_by.get(key, {})
            settled_by = self._settled_by.get(key)
            for run_id, last_event_id in runs.items():
                if settled_by is None or run_id not in settled_by:
                    self._runs[run_id].looked += 1
                    new[run_id] = key[0], last_event_id
            if runs and settled_by is None:
                self._runs[max(runs, key=lambda run_id: runs[run_id])].requests += self._batch.requests.get(key, 0)
        if new:
            await self._connection.execute(
                sql.BEGIN_RUNS,
                list(new),
                [token_id for token_id, _ in new.values()],
                [last_event_id for _, last_event_id in new.values()],
            )

    def _order_columns(self, observations: Sequence[Observation]) -> list[list[Any]]:
        documents = [self._storable.get(seen.record.order) or seen.document for seen in observations]
        return [
            [seen.record.token_id for seen in observations],
            [seen.record.order_id for seen in observations],
            [seen.facts.status for seen in observations],
            [seen.facts.fulfillment_status for seen in observations],
            [seen.facts.buyer_id for seen in observations],
            [seen.facts.buyer_login for seen in observations],
            [seen.facts.buyer_email for seen in observations],
            [seen.facts.total_amount for seen in observations],
            [seen.facts.currency for seen in observations],
            [seen.facts.bought_at for seen in observations],
            [seen.facts.updated_at for seen in observations],
            [seen.facts.revision for seen in observations],
            [document.data for document in documents],
            [document.raw for document in documents],
            [seen.record.observed_at for seen in observations],
            [seen.record.observed_by for seen in observations],
        ]

    async def _mark_gone(self, added: Sequence[OrderKey]) -> list[OrderKey]:
        """Mark what Allegro no longer has, also of new orders what it no longer had before they came; returns the
        orders that went just now."""
        missing = [(row.token_id, row.order_id, row.observed_at, row.reason) for row in self._batch.missing.values()]
        if missing:
            await self._connection.execute(sql.NOTE_MISSING, *zip(*missing, strict=True))
        if added:
            missing += await self._connection.fetch(
                sql.RECALL_MISSING, [token_id for token_id, _ in added], [order_id for _, order_id in added]
            )
        if not missing:
            return []
        latest = {(token_id, order_id): looked for token_id, order_id, *looked in sorted(missing, key=itemgetter(2))}
        rows = await self._connection.fetch(
            sql.MARK_GONE,
            [token_id for token_id, _ in latest],
            [order_id for _, order_id in latest],
            [observed_at for observed_at, _ in latest.values()],
            [reason for _, reason in latest.values()],
        )
        return [(row["user_token_id"], row["allegro_order_id"]) for row in rows]

    def _buyers_of_new(self, changed: Mapping[OrderKey, bool]) -> set[tuple[int, str]]:
        facts = {key: self._batch.observations[key].facts for key, added in changed.items() if added}
        return {(key[0], fact.buyer_login) for key, fact in facts.items() if fact.buyer_login is not None}

    async def _settle_fetches(self) -> None:
        looked_at = self._batch.looked_at
        if looked_at:
            settled = await self._connection.fetch(
                sql.SETTLE_FETCHES,
                [token_id for token_id, _ in looked_at],
                [order_id for _, order_id in looked_at],
                list(looked_at.values()),
            )
            self._count_settled(settled)
            self._waited = tuple(row["waited"] for row in settled)

    async def _note_failures(self) -> None:
        failures = self._batch.failures.values()
        await self._postpone([failure for failure in failures if failure.retry_after_seconds is not None])
        await self._give_up([failure for failure in failures if failure.retry_after_seconds is None])

    async def _postpone(self, failures: Sequence[OrderFetchFailed]) -> None:
        if failures:
            self._count_requests(
                await self._connection.fetch(
                    sql.POSTPONE_FETCHES,
                    [failure.token_id for failure in failures],
                    [failure.order_id for failure in failures],
                    [failure.attempts for failure in failures],
                    [failure.error for failure in failures],
                    [failure.retry_after_seconds for failure in failures],
                )
            )

    async def _give_up(self, failures: Sequence[OrderFetchFailed]) -> None:
        if failures:
            rows = await self._connection.fetch(
                sql.GIVE_UP_FETCHES,
                [failure.token_id for failure in failures],
                [failure.order_id for failure in failures],
                [failure.wanted_after for failure in failures],
            )
            self._count_settled(rows)
            for run_id in chain.from_iterable(row["run_ids"] for row in rows):
                self._runs[run_id].unseen += 1

    def _count_settled(self, rows: Sequence[asyncpg.Record]) -> None:
        """A look that was owed to a run of the journal is one order processed by it, one that a listing asked for is
        none beside those that it lists; a change it found is counted for one of the runs."""
        self._count_requests(rows)
        for row in rows:
            self._settled_by[row["user_token_id"], row["allegro_order_id"]] = row["run_ids"]
            for run_id in row["run_ids"]:
                self._runs[run_id].looked += 1

    def _count_requests(self, rows: Sequence[asyncpg.Record]) -> None:
        """What the looks at these owed orders have cost is counted for one of the runs that they are owed to."""
        for row in rows:
            if row["run_ids"]:
                spent = self._batch.requests.get((row["user_token_id"], row["allegro_order_id"]), 0)
                self._runs[row["run_ids"][-1]].requests += spent

    def _count_changes(self, changed: Mapping[OrderKey, bool]) -> list[Finding]:
        """Count each change for one run; returns them as findings of that run."""
        findings = []
        for key, added in changed.items():
            wanted_by = self._settled_by.get(key, [])
            run_id = self._run_of_change(key, wanted_by)
            self._changes[run_id].append(key)
            if run_id is None:
                continue
            if added:
                self._runs[run_id].added += 1
            else:
                self._runs[run_id].updated += 1
            findings.append(Finding(run_id, key, "missing" if added else "stale", owed=_by_others(wanted_by, run_id)))
        return findings

    def _run_of_change(self, key: OrderKey, wanted_by: Sequence[UUID]) -> UUID | None:
        place = self._batch.observations[key].record.place
        early = self._batch.wanted_by.get(key, {})
        if place is not None:
            return place.run_id
        return wanted_by[-1] if wanted_by else max(early, key=lambda run_id: early[run_id], default=None)

    def _gone_from_lists(self, gone: Sequence[OrderKey]) -> list[Finding]:
        return [
            Finding(run_id, key, "gone", owed=_by_others(self._settled_by[key], run_id))
            for key in gone
            for run_id in self._settled_by.get(key, [])
        ]

    async def _move_cursors(self, changed: Mapping[OrderKey, bool]) -> None:
        """Move the tokens' cursors over what is stored, and count their new orders."""
        added = Counter(token_id for (token_id, _), is_new in changed.items() if is_new)
        by_token: defaultdict[int, list[OrderEvent]] = defaultdict(list)
        for event in (*self._batch.events.values(), *self._batch.passed):
            by_token[event.token_id].append(event)
        if not (by_token or added):
            return
        rows = await self._connection.fetch(sql.LOCK_CURSORS, sorted(by_token.keys() | added.keys()))
        moved = {
            row["user_token_id"]: advance_cursor(row["stored_event_id"], by_token[row["user_token_id"]])
            for row in rows
            if row["user_token_id"] in by_token
        }
        if moved:
            await self._connection.execute(sql.MOVE_CURSORS, list(moved), list(moved.values()))
        if added:
            await self._connection.execute(sql.COUNT_STORED, list(added), list(added.values()))

    async def _move_walks(self) -> list[WalkState]:
        """Move the walks over what is committed with this transaction; returns where they stand."""
        run_ids = self._batch.run_ids()
        if not run_ids:
            return []
        rows = await self._connection.fetch(sql.LOCK_WALKS, sorted(run_ids))
        before = [
            WalkState(
                row["run_id"], row["attempt"], row["next_sequence"], row["position"], tuple(row["boundary_order_ids"])
            )
            for row in rows
        ]
        for walk in before:
            await want_unlisted(self._connection, walk.run_id, self._batch.covered.get((walk.run_id, walk.attempt), ()))
        after = advance_all(before, self._batch.walked)
        for old, new in zip(before, after, strict=True):
            if new != old:
                await self._connection.execute(
                    sql.MOVE_WALK, new.run_id, new.next_sequence, new.position, list(new.boundary_order_ids)
                )
                self._runs[new.run_id].walked += new.next_sequence - old.next_sequence
            progressed = self._batch.progressed.get((new.run_id, new.attempt))
            if progressed is not None:
                await self._connection.execute(
                    sql.NOTE_PROGRESS, new.run_id, progressed.requests, progressed.orders_expected
                )
        return after

    async def _count(self, events: Sequence[OrderEvent]) -> None:
        stored: Counter[tuple[UUID, int]] = Counter((event.run_id, event.token_id) for event in events)
        last = {event.run_id: 0 for event in events}
        requests = {event.run_id: event.run_requests for event in events}
        for event in events:
            last[event.run_id] = max(last[event.run_id], event.run_last_event_id)
        if stored:
            await self._connection.execute(
                sql.COUNT_EVENTS,
                [run_id for run_id, _ in stored],
                [token_id for _, token_id in stored],
                [last[run_id] for run_id, _ in stored],
                list(stored.values()),
                [requests[run_id] for run_id, _ in stored],
            )
        if self._runs:
            counts = dict(sorted(self._runs.items()))
            rows = await self._connection.fetch(
                sql.COUNT_ORDERS,
                list(counts),
                [count.walked for count in counts.values()],
                [count.looked for count in counts.values()],
                [count.added for count in counts.values()],
                [count.updated for count in counts.values()],
                [count.requests for count in counts.values()],
                [count.unseen for count in counts.values()],
            )
            for row in rows:
                self._changes.pop(row["run_id"], None)

    async def _note_late_changes(self, changed: Mapping[OrderKey, bool]) -> None:
        """What no run counted: it had ended, or there was none."""
        added: Counter[int] = Counter()
        updated: Counter[int] = Counter()
        for token_id, order_id in chain.from_iterable(self._changes.values()):
            (added if changed[token_id, order_id] else updated)[token_id] += 1
        token_ids = sorted(added.keys() | updated.keys())
        if token_ids:
            self._ended += await self._connection.fetch(
                sql.NOTE_LATE_CHANGES,
                token_ids,
                [added[token_id] for token_id in token_ids],
                [updated[token_id] for token_id in token_ids],
            )

    async def _finish_walks(self, walks: Collection[WalkState]) -> None:
        for walk in walks:
            end = self._batch.finished.get((walk.run_id, walk.attempt))
            if end is not None and is_complete(walk, end.orders):
                await self._finish_walk(end)

    async def _finish_walk(self, end: WindowFinished) -> None:
        """A walk that went through ends its run when the looks that it wants are made, any other ends it now."""
        if end.outcome == "stopped":
            await drop_looks(self._connection, end.token_id, end.run_id)
        await self._connection.execute(sql.NOTE_PROGRESS, end.run_id, end.requests, end.orders_expected)
        await self._connection.execute(sql.FINISH_WALK, end.run_id, end.outcome == "completed")
        if end.outcome != "completed":
            self._ended += await self._connection.fetch(sql.FINISH_RUN, end.run_id, end.outcome, end.error)

    async def _finish_settled_runs(self) -> None:
        token_ids = self._batch.token_ids()
        if token_ids:
            for statement in (sql.FINISH_SETTLED_RUNS, sql.FINISH_WALKED_RUNS):
                self._ended += await self._connection.fetch(statement, sorted(token_ids))

    async def _insert_dead_letters(self, letters: Sequence[DeadLetter]) -> int:
        """Store the dead letters; returns how many were not stored before."""
        if not letters:
            return 0
        rows = await self._connection.fetch(
            sql.INSERT_DEAD_LETTERS,
            [letter.token_id for letter in letters],
            [letter.service for letter in letters],
            [letter.topic for letter in letters],
            [letter.partition for letter in letters],
            [letter.offset for letter in letters],
            [letter.key for letter in letters],
            [letter.value for letter in letters],
            [letter.header_json() for letter in letters],
            [letter.digest for letter in letters],
            [letter.error_type for letter in letters],
            [letter.error for letter in letters],
            [letter.attempts for letter in letters],
        )
        return len(rows)


def _by_others(wanted_by: Sequence[UUID], run_id: UUID) -> bool:
    return any(other != run_id for other in wanted_by)
