"""Where a turn begins, and the chain it publishes: the cursor never passes what was not stored (promise P1)."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.poller.journal import next_interval, retry_delay
from services.poller.positions import (
    Cursor,
    Link,
    Start,
    chain,
    covered_position,
    has_gap,
    reading_start,
    wanted_after,
)
from services.writer.batch import advance_cursor
from shared.allegro.bodies import JournalEvent
from shared.clock import to_event_id
from shared.messages import OrderEvent, RawJson
from tests.builders import NOON, after, an_event

OVERLAP = timedelta(microseconds=50)
REDELIVERY = timedelta(seconds=60)


def a_journal_line(event_id: int) -> JournalEvent:
    return JournalEvent(
        event_id=event_id,
        event_type="BOUGHT",
        occurred_at=NOON,
        order_id="a",
        revision=None,
        bought_at=NOON,
        raw=RawJson(b"{}"),
    )


def start(cursor: Cursor) -> Start:
    return reading_start(cursor, overlap=OVERLAP, redelivery=REDELIVERY)


def test_a_turn_reads_on_from_the_stored_position_less_the_overlap() -> None:
    assert start(Cursor(1000, 1000, timedelta(0))) == Start(950)
    assert start(Cursor(10)) == Start(0)


def test_what_is_on_its_way_is_not_read_again_at_once() -> None:
    assert start(Cursor(1000, 2000, timedelta(seconds=59))) == Start(2000, continues=True)


@pytest.mark.parametrize(("rewinds", "seconds"), [(0, 60), (1, 120), (99, 960)])
def test_what_is_not_stored_in_time_is_read_again_with_growing_patience(rewinds: int, seconds: int) -> None:
    early = Cursor(1000, 2000, timedelta(seconds=seconds - 1), rewinds)
    late = Cursor(1000, 2000, timedelta(seconds=seconds), rewinds)

    assert start(early).continues
    assert start(late) == Start(950, rewound=True)


@given(
    stored=st.integers(0, 10**16),
    published=st.integers(0, 10**16),
    unconfirmed=st.none() | st.integers(0, 10**6),
    rewinds=st.integers(0, 50),
)
def test_a_turn_never_begins_beyond_what_is_stored_or_was_published(
    stored: int, published: int, unconfirmed: int | None, rewinds: int
) -> None:
    age = None if unconfirmed is None else timedelta(seconds=unconfirmed)

    begun = start(Cursor(stored, published, age, rewinds))

    assert 0 <= begun.after <= max(stored, published)
    assert begun.continues == (begun.after > stored)
    assert not (begun.continues and begun.rewound)


@given(data=st.data())
def test_whatever_is_lost_on_the_way_the_cursor_reaches_the_end_and_everything_is_stored(data: st.DataObject) -> None:
    """Turns of the poller and batches of the writer, with any of the published records lost in between."""
    journal = sorted(data.draw(st.sets(st.integers(1, 500), max_size=40)))
    stored: set[int] = set()
    cursor = 0

    for turn in range(12):
        after_id = max(0, cursor - 20)
        lines = [a_journal_line(event_id) for event_id in journal if event_id > after_id]
        links = list(chain(lines, after=after_id, stored_event_id=cursor, known=stored))
        kept = links if turn == 11 else [link for link in links if data.draw(st.booleans())]
        events = [an_event(link.event.event_id, follows=link.follows) for link in kept]
        cursor = advance_cursor(cursor, events)
        stored |= {event.event_id for event in events}
        assert stored >= {event_id for event_id in journal if event_id <= cursor}

    assert stored == set(journal)
    assert cursor == (journal[-1] if journal else 0)


class Model:
    """Poller, Kafka, writer and journal as sets of ids, with the poller's real decisions and the writer's."""

    def __init__(self) -> None:
        self.journal: list[int] = []
        self.late: set[int] = set()
        self.stored: set[int] = set()
        self.cursor = 0
        self.published = 0
        self.rewinds = 0
        self.topic: list[OrderEvent] = []

    def happens(self, gap: int) -> None:
        self.journal.append((self.journal[-1] if self.journal else 0) + gap)

    def shows_late(self, back: int) -> None:
        """A line appears with a smaller id than one that was served, within the overlap."""
        if not self.journal:
            return
        event_id = self.journal[-1] - back
        if event_id > 0 and event_id not in self.journal:
            self.journal = sorted([*self.journal, event_id])
            self.late.add(event_id)

    def polls(self, *, is_fresh: bool, pages: int, page_size: int = 4, acknowledged: bool = True) -> None:
        age = timedelta(0) if is_fresh else timedelta(days=1)
        cursor = Cursor(self.cursor, self.published, age, self.rewinds)
        begun = start(cursor)
        position = begun.after
        links: list[Link] = []
        for _ in range(pages):
            page = [event_id for event_id in self.journal if event_id > position][:page_size]
            lines = [a_journal_line(event_id) for event_id in page]
            links += chain(lines, after=position, stored_event_id=self.cursor, known=self.stored)
            position = max(page, default=position)
            if len(page) < page_size:
                break
        self.topic += [an_event(link.event.event_id, follows=link.follows) for link in links]
        if links and acknowledged:
            self.published = position
            self.rewinds += begun.rewound

    def stores(self, records: int) -> None:
        """The writer takes a batch, in the order of the partition."""
        batch, self.topic = self.topic[:records], self.topic[records:]
        moved = advance_cursor(self.cursor, batch)
        if moved > self.cursor:
            self.cursor, self.rewinds = moved, 0
        self.stored |= {record.event_id for record in batch}

    def repeats(self, records: int) -> None:
        """Kafka delivers a batch again."""
        self.topic = self.topic[:records] + self.topic

    def loses(self, records: int) -> None:
        """Kafka loses the beginning of what is on its way: a broker that kept its data in memory and came back."""
        self.topic = self.topic[records:]


STEPS = st.one_of(
    st.tuples(st.just("happens"), st.integers(1, 30)),
    st.tuples(st.just("shows_late"), st.integers(1, 40)),
    st.tuples(st.just("polls"), st.booleans(), st.integers(1, 3), st.booleans()),
    st.tuples(st.just("stores"), st.integers(0, 6)),
    st.tuples(st.just("repeats"), st.integers(0, 3)),
    st.tuples(st.just("loses"), st.integers(0, 9)),
)


@given(steps=st.lists(STEPS, min_size=25, max_size=80))
def test_in_whatever_order_things_happen_the_cursor_passes_only_what_is_stored_and_reaches_the_end(
    steps: list[tuple[Any, ...]],
) -> None:
    model = Model()

    for name, *arguments in steps:
        if name == "polls":
            model.polls(is_fresh=arguments[0], pages=arguments[1], acknowledged=arguments[2])
        else:
            getattr(model, name)(*arguments)
        passed = {event_id for event_id in model.journal if event_id <= model.cursor} - model.late
        assert passed <= model.stored

    for _ in range(3 + len(model.journal)):
        model.polls(is_fresh=False, pages=100)
        model.stores(10**6)
    assert model.stored >= set(model.journal) - model.late
    assert model.cursor == (model.journal[-1] if model.journal else 0)


def test_a_page_that_repeats_itself_is_taken_once() -> None:
    lines = [a_journal_line(number) for number in (5, 7, 5, 7, 9)]

    links = list(chain(lines, after=4, stored_event_id=0, known=()))

    assert [(link.event.event_id, link.follows) for link in links] == [(5, 4), (7, 5), (9, 7)]


def test_a_late_line_before_the_cursor_is_published_and_known_ones_are_not() -> None:
    lines = [a_journal_line(number) for number in (5, 6, 7)]

    links = list(chain(lines, after=4, stored_event_id=7, known={5, 7}))

    assert [(link.event.event_id, link.follows) for link in links] == [(6, 5)]


def test_a_look_has_to_be_later_than_the_journal_line_by_allegros_clock() -> None:
    event_id = to_event_id(after(-100))

    assert wanted_after(event_id, received_at=NOON, clock_ahead=timedelta(0)) == after(-98)
    assert wanted_after(event_id, received_at=NOON, clock_ahead=timedelta(seconds=50)) == after(-148)
    assert wanted_after(event_id, received_at=NOON, clock_ahead=timedelta(seconds=-500)) == NOON
    assert wanted_after(event_id, received_at=NOON, clock_ahead=None) == NOON
    assert wanted_after(2**63 - 1, received_at=NOON, clock_ahead=timedelta(0)) == NOON


def test_turns_are_spread_and_grow_apart_after_failures() -> None:
    minute = timedelta(minutes=1)

    assert next_interval(minute, jitter=0.5) == minute
    assert next_interval(minute, jitter=1.0) > minute > next_interval(minute, jitter=0.0)
    assert retry_delay(1, minute, None, jitter=1.0) == timedelta(seconds=10)
    assert retry_delay(3, minute, None, jitter=1.0) == timedelta(seconds=40)
    assert retry_delay(99, minute, None, jitter=1.0) == timedelta(minutes=5)
    assert retry_delay(99, 60 * minute, None, jitter=1.0) == timedelta(hours=1)
    assert retry_delay(1, minute, timedelta(seconds=90), jitter=0.0) == timedelta(seconds=90)


def test_the_initial_load_covers_the_journal_up_to_its_end_less_the_lag_of_lists() -> None:
    lag = timedelta(microseconds=10)

    assert covered_position(500, 1000, list_lag=lag) == 490
    assert covered_position(5000, 1000, list_lag=lag) == 990
    assert covered_position(None, 1000, list_lag=lag) == 990
    assert covered_position(5, 1000, list_lag=lag) == 0


@pytest.mark.parametrize(
    ("cursor", "stored_days", "success_days", "gap"),
    [
        (Cursor(0), 20_000, None, False),  # a new token
        (Cursor(0), 20_000, 59, False),
        (Cursor(0), 20_000, 61, True),  # no event yet when it was paused
        (Cursor(1000, 1000), 59, 59, False),
        (Cursor(1000, 1000), 61, 0, False),  # a shop without a sale, looked at all the time
        (Cursor(1000, 1000), 61, 61, True),  # nobody looked
        (Cursor(1000, 1000), 61, None, True),
        (Cursor(1000, 2000), 61, 0, True),  # looked at, but never stored
    ],
)
def test_an_old_cursor_is_a_gap_only_if_nobody_looked_or_nothing_was_stored(
    cursor: Cursor, stored_days: int, success_days: int | None, gap: bool
) -> None:
    since = None if success_days is None else timedelta(days=success_days)

    assert has_gap(cursor, stored_age=timedelta(days=stored_days), since_success=since) is gap
