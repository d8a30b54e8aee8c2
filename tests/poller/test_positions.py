"""Where a turn begins, and the chain it publishes: the cursor never passes what was not stored (promise P1)."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.poller.journal import next_interval
from services.poller.positions import Cursor, Start, chain, reading_start, wanted_after
from services.writer.batch import advance_cursor
from shared.allegro.bodies import JournalEvent
from shared.clock import to_event_id
from shared.messages import RawJson
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


def start(cursor: Cursor, *, seconds: float = 0.0) -> Start:
    return reading_start(cursor, now=after(seconds), overlap=OVERLAP, redelivery=REDELIVERY)


def test_a_turn_reads_on_from_the_stored_position_less_the_overlap() -> None:
    assert start(Cursor(1000, 1000, NOON, 0)) == Start(950, rewound=False)
    assert start(Cursor(10, 0, None, 0)) == Start(0, rewound=False)


def test_what_is_on_its_way_is_not_read_again_at_once() -> None:
    assert start(Cursor(1000, 2000, NOON, 0), seconds=59) == Start(2000, rewound=False)


def test_what_is_not_stored_in_time_is_read_again_with_growing_patience() -> None:
    assert start(Cursor(1000, 2000, NOON, 0), seconds=60) == Start(950, rewound=True)
    assert start(Cursor(1000, 2000, NOON, 1), seconds=60) == Start(2000, rewound=False)
    assert start(Cursor(1000, 2000, NOON, 1), seconds=120) == Start(950, rewound=True)
    assert start(Cursor(1000, 2000, NOON, 99), seconds=960) == Start(950, rewound=True)


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

    assert next_interval(minute, 0, jitter=0.5) == minute
    assert next_interval(minute, 0, jitter=1.0) > minute > next_interval(minute, 0, jitter=0.0)
    assert next_interval(minute, 3, jitter=0.5) == 8 * minute
    assert next_interval(minute, 99, jitter=0.5) == timedelta(minutes=30)
