"""From the records of one poll to what one transaction stores: pure, no I/O, no clock.

Within a batch the same order, event or window may occur many times; PostgreSQL refuses a row twice in one
statement, so everything is brought to one entry a row here, by the rule that the database applies as well:
the later observation wins (promise P3), a repeated event is the same event (P2).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from aiokafka import ConsumerRecord
from msgspec.structs import replace

from services.writer.unstorable import Storable, as_it_came
from shared.allegro.bodies import OrderFacts, UnreadableBodyError, order_facts
from shared.delivery import DeadLetter
from shared.messages import (
    CoveredRange,
    OrderEvent,
    OrderFetch,
    OrderFetchFailed,
    OrderMissing,
    OrderObserved,
    OrderState,
    OrderWindow,
    Record,
    UnreadableRecordError,
    WindowFinished,
    WindowPlace,
    WindowProgressed,
    decode,
)

SERVICE = "writer"

OrderKey = tuple[int, str]
"""Token id and Allegro's order id."""


@dataclass(frozen=True)
class Observation:
    """An order as seen, with what becomes columns."""

    record: OrderObserved
    facts: OrderFacts
    document: Storable

    @property
    def key(self) -> OrderKey:
        return self.record.token_id, self.record.order_id


@dataclass
class WantedFetch:
    """A look that new events ask for: one an order, however many events name it."""

    wanted_after: datetime
    bought_at: datetime | None
    run_ids: set[UUID]

    def merge(self, other: "WantedFetch") -> None:
        self.wanted_after = max(self.wanted_after, other.wanted_after)
        self.bought_at = max(filter(None, (self.bought_at, other.bought_at)), default=None)
        self.run_ids |= other.run_ids


@dataclass(frozen=True)
class Walked:
    """One order that a walk came by: its place in the sequence and when it was bought."""

    sequence: int
    order_id: str
    """As PostgreSQL can hold it."""
    bought_at: datetime | None


@dataclass
class Batch:
    """Everything that one transaction stores."""

    events: dict[tuple[int, int], OrderEvent] = field(default_factory=dict)
    observations: dict[OrderKey, Observation] = field(default_factory=dict)
    looked_at: dict[OrderKey, datetime] = field(default_factory=dict)
    missing: dict[OrderKey, OrderMissing] = field(default_factory=dict)
    failures: dict[OrderKey, OrderFetchFailed] = field(default_factory=dict)
    requests: dict[OrderKey, int] = field(default_factory=dict)
    """What the looks at an order have cost."""
    wanted_by: defaultdict[OrderKey, dict[UUID, int]] = field(default_factory=lambda: defaultdict(dict))
    """The runs of the journal that looks are counted for, with their last events."""
    walked: defaultdict[tuple[UUID, int], list[Walked]] = field(default_factory=lambda: defaultdict(list))
    passed: list[OrderEvent] = field(default_factory=list)
    """Events that are dead letters: not stored, but the cursor goes on behind them."""
    progressed: dict[tuple[UUID, int], WindowProgressed] = field(default_factory=dict)
    covered: defaultdict[tuple[UUID, int], list[CoveredRange]] = field(default_factory=lambda: defaultdict(list))
    finished: dict[tuple[UUID, int], WindowFinished] = field(default_factory=dict)
    unreadable: list[DeadLetter] = field(default_factory=list)
    """Set aside by this service, just now."""
    dead_letters: list[DeadLetter] = field(default_factory=list)
    """Read from the dead-letter topic."""

    def token_ids(self) -> set[int]:
        """Every token that this batch concerns."""
        keys = {token_id for token_id, _ in self.events} | {event.token_id for event in self.passed}
        for group in (self.looked_at, self.failures):
            keys |= {token_id for token_id, _ in group}
        return keys | {end.token_id for end in self.finished.values()}

    def without_documents(self, letter: DeadLetter) -> "Batch":
        """What there is to store beside the dead letter that the one record of this batch becomes.

        Its place in a walk is passed, its event by the cursor, and an owed look that it was has been made. Else each
        of them would stand there for ever, and bring the same record again.
        """
        return Batch(
            # What cannot be named in PostgreSQL cannot be owed.
            looked_at={key: moment for key, moment in self.looked_at.items() if "\0" not in key[1]},
            requests=self.requests,
            walked=self.walked,
            passed=list(self.events.values()),
            unreadable=[letter],
        )

    def run_ids(self) -> set[UUID]:
        """Every run whose walk this batch concerns."""
        return {run_id for group in (self.walked, self.progressed, self.finished) for run_id, _ in group}


def collect(records: Sequence[ConsumerRecord], *, dead_letter_topic: str) -> Batch:
    """Sort the records of one poll into a batch; what cannot be read becomes a dead letter and blocks nothing."""
    batch = Batch()
    extend(batch, records, dead_letter_topic=dead_letter_topic)
    return batch


def extend(batch: Batch, records: Sequence[ConsumerRecord], *, dead_letter_topic: str) -> None:
    """Sort more records into a batch, after those that it holds."""
    for raw in records:
        if raw.topic == dead_letter_topic:
            batch.dead_letters.append(DeadLetter.from_record(raw))
            continue
        try:
            _add(batch, decode(raw.value))
        except (UnreadableRecordError, UnreadableBodyError) as error:
            batch.unreadable.append(DeadLetter.of(raw, error, service=SERVICE))


def _add(batch: Batch, record: Record) -> None:
    match record:
        case OrderObserved():
            _add_observation(batch, record)
        case OrderEvent():
            batch.events.setdefault((record.token_id, record.event_id), record)
        case OrderMissing():
            _add_missing(batch, record)
        case OrderFetchFailed():
            _add_failure(batch, record)
        case WindowProgressed():
            _add_progress(batch, record)
        case WindowFinished():
            batch.finished[record.run_id, record.attempt] = record
        case OrderFetch():
            pass  # a trigger for the enricher: what it asks for stands in pending_fetches already
        case OrderWindow() | OrderState():
            raise UnreadableRecordError(f"kind: {record.kind} does not belong on this topic")


def _cost(batch: Batch, key: OrderKey, requests: int) -> None:
    """A repeated record has cost nothing more."""
    if requests:
        batch.requests[key] = max(batch.requests.get(key, 0), requests)


def _look(batch: Batch, key: OrderKey, observed_at: datetime) -> None:
    known = batch.looked_at.get(key)
    if known is None or observed_at > known:
        batch.looked_at[key] = observed_at


def _walk(batch: Batch, place: WindowPlace | None, order_id: str, bought_at: datetime | None) -> None:
    if place is not None:
        batch.walked[place.run_id, place.attempt].append(Walked(place.sequence, order_id, bought_at))


def _add_observation(batch: Batch, record: OrderObserved) -> None:
    key = record.token_id, record.order_id
    # However it ends, even as a dead letter: the look has been made, and the walk goes on behind it.
    _look(batch, key, record.observed_at)
    _cost(batch, key, record.requests)
    for wanted in record.wanted_by:
        batch.wanted_by[key][wanted.run_id] = wanted.last_event_id
    try:
        facts = order_facts(record.order)
    except UnreadableBodyError:
        _walk(batch, record.place, record.order_id.replace("\0", "\N{REPLACEMENT CHARACTER}"), None)
        raise
    _walk(batch, record.place, facts.order_id, facts.bought_at)
    observation = Observation(record, facts, as_it_came(record.order))
    known = batch.observations.get(observation.key)
    if known is None or record.observed_at > known.record.observed_at:
        batch.observations[observation.key] = observation
    gone = batch.missing.get(observation.key)
    if gone is not None and record.observed_at > gone.observed_at:
        del batch.missing[observation.key]


def _add_missing(batch: Batch, record: OrderMissing) -> None:
    key = record.token_id, record.order_id
    _look(batch, key, record.observed_at)
    _cost(batch, key, record.requests)
    seen = batch.observations.get(key)
    known = batch.missing.get(key)
    if (seen is None or record.observed_at > seen.record.observed_at) and (
        known is None or record.observed_at > known.observed_at
    ):
        batch.missing[key] = record


def _add_failure(batch: Batch, record: OrderFetchFailed) -> None:
    key = record.token_id, record.order_id
    _walk(batch, record.place, record.order_id.replace("\0", "\N{REPLACEMENT CHARACTER}"), None)
    _cost(batch, key, record.requests)
    known = batch.failures.get(key)
    if known is None or record.attempts > known.attempts:
        batch.failures[key] = record


def _add_progress(batch: Batch, record: WindowProgressed) -> None:
    key = record.run_id, record.attempt
    if record.covered is not None:
        batch.covered[key].append(record.covered)
    known = batch.progressed.get(key)
    if known is None or record.page > known.page:
        expected = record.orders_expected
        if expected is None and known is not None:
            expected = known.orders_expected
        batch.progressed[key] = replace(record, orders_expected=expected)


def wanted_fetches(events: Sequence[OrderEvent]) -> dict[OrderKey, WantedFetch]:
    """The looks that these new events ask for, one an order."""
    wanted: dict[OrderKey, WantedFetch] = {}
    for event in events:
        if not event.fetch or event.order_id is None:
            continue
        fetch = WantedFetch(event.wanted_after, event.bought_at, {event.run_id})
        known = wanted.setdefault((event.token_id, event.order_id), fetch)
        if known is not fetch:
            known.merge(fetch)
    return wanted


def advance_cursor(stored_event_id: int, events: Sequence[OrderEvent]) -> int:
    """How far the cursor may move: over unbroken steps only, so that it never passes an event that got lost.

    Each event names the position it follows. Taken in the order of those positions, an event whose predecessor is
    at or before the cursor carries it on; the first gap stops it until the missing events have come.
    """
    for event in sorted(events, key=lambda event: (event.follows_event_id, event.event_id)):
        if event.follows_event_id > stored_event_id:
            break
        stored_event_id = max(stored_event_id, event.event_id)
    return stored_event_id
