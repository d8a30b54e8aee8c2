"""Where to read a journal from, and the chain of what was read. Pure.

The cursor (`stored_event_id`) moves only when the writer has stored what it passes. Until then we read on from what
we published; if the cursor does not follow, what we published is taken for lost and read again.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from shared.allegro.bodies import JournalEvent
from shared.clock import from_event_id

# Twice as long for every rewind in a row, up to this factor: a writer that is away for hours is not buried.
_MAX_REWIND_FACTOR = 16
# Clocks and journal writes are rounded; a look has to be later than the event by more than that.
_CLOCK_MARGIN = timedelta(seconds=2)
_LATEST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Cursor:
    """A row of `journal_cursors`."""

    stored_event_id: int
    published_event_id: int
    published_at: datetime | None
    rewinds: int


@dataclass(frozen=True)
class Start:
    """Where a turn begins: the position to read after, and whether published events are given up for lost."""

    after: int
    rewound: bool


def reading_start(cursor: Cursor, *, now: datetime, overlap: timedelta, redelivery: timedelta) -> Start:
    """Read on from what is published while that is fresh, else from what is stored, less the overlap."""
    in_flight = cursor.published_event_id > cursor.stored_event_id and cursor.published_at is not None
    if in_flight and cursor.published_at is not None:
        patience = redelivery * min(2**cursor.rewinds, _MAX_REWIND_FACTOR)
        if now - cursor.published_at < patience:
            return Start(cursor.published_event_id, rewound=False)
    return Start(max(0, cursor.stored_event_id - overlap // timedelta(microseconds=1)), rewound=in_flight)


@dataclass(frozen=True)
class Link:
    """An event and the position it follows."""

    event: JournalEvent
    follows: int


def chain(
    events: Iterable[JournalEvent], *, after: int, stored_event_id: int, known: Collection[int]
) -> Iterator[Link]:
    """The events worth publishing, each with the position read just before it.

    Events that are stored (`known`) are left out, but only up to the cursor: leaving one out beyond it would break
    the chain over which the cursor moves.
    """
    position = after
    for event in events:
        if event.event_id <= position:
            continue  # a page that repeats itself
        if not (event.event_id <= stored_event_id and event.event_id in known):
            yield Link(event, position)
        position = event.event_id


def wanted_after(event_id: int, *, received_at: datetime, clock_ahead: timedelta | None) -> datetime:
    """The moment, by our clock, after which a look shows what the event is about.

    Looks made after the page was received always do. Mostly an earlier one does, made after the journal line was
    written: its id tells when, by Allegro's clock, and the answer's `Date` tells how far that is ahead of ours.
    """
    if clock_ahead is None:
        return received_at
    written_at = from_event_id(event_id)
    if written_at >= _LATEST - abs(clock_ahead) - _CLOCK_MARGIN:
        return received_at
    return min(received_at, written_at - clock_ahead + _CLOCK_MARGIN)
