"""Where to read a journal from, and the chain of what was read. Pure.

The cursor (`stored_event_id`) moves only when the writer has stored what it passes. Until then we read on from what
we published; if the cursor does not follow, what we published is taken for lost and read again.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from shared.allegro.bodies import JournalEvent
from shared.clock import from_event_id
from shared.limits.pace import Pace
from shared.settings import AllegroSettings

# Allegro keeps events for 60 days and says nothing when a position is older (allegro-api.md 3).
JOURNAL_RETENTION = timedelta(days=60)
# Twice as long for every rewind in a row, up to this factor: a writer that is away for hours is not buried.
_MAX_REWIND_FACTOR = 16
# Clocks and journal writes are rounded; a look has to be later than the event by more than that.
_CLOCK_MARGIN = timedelta(seconds=2)
_LATEST = datetime.max.replace(tzinfo=UTC)


def journal_pace(settings: AllegroSettings) -> timedelta:
    """From one process's last call of a seller's journal to another one's first: each counts only its own."""
    pace = Pace.of(settings.allegro_events_limit_per_minute, minute_seconds=settings.allegro_limit_minute_seconds)
    return timedelta(seconds=pace.interval)


@dataclass(frozen=True)
class Cursor:
    """A row of `journal_cursors`."""

    stored_event_id: int
    published_event_id: int = 0
    unconfirmed_for: timedelta | None = None
    """Since when nothing was confirmed: the oldest publication that may be on its way, or the cursor's last move."""
    rewinds: int = 0
    covered_event_id: int = 0

    @property
    def is_behind(self) -> bool:
        """Whether something that was published is not stored."""
        return self.published_event_id > self.stored_event_id


@dataclass(frozen=True)
class Start:
    """Where a turn begins: the position to read after, and what that says of what was published before."""

    after: int
    continues: bool = False
    """It is trusted to be on its way."""
    rewound: bool = False
    """It is given up for lost."""


def reading_start(cursor: Cursor, *, overlap: timedelta, redelivery: timedelta) -> Start:
    """Read on from what is published while that is fresh, else from what is stored, less the overlap."""
    if cursor.is_behind and cursor.unconfirmed_for is not None:
        patience = redelivery * min(2**cursor.rewinds, _MAX_REWIND_FACTOR)
        if cursor.unconfirmed_for < patience:
            return Start(cursor.published_event_id, continues=True)
    return Start(_before(cursor.stored_event_id, overlap), rewound=cursor.is_behind)


def _before(position: int, span: timedelta) -> int:
    return max(0, position - span // timedelta(microseconds=1))


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


def covered_position(latest_event_id: int | None, now_event_id: int, *, list_lag: timedelta) -> int:
    """Up to which event a listing that begins now shows the orders: the journal's end, less what lists lag behind.

    `now_event_id` is now by Allegro's clock, by which it numbers its events.
    """
    end = now_event_id if latest_event_id is None else min(latest_event_id, now_event_id)
    return _before(end, list_lag)


def has_gap(cursor: Cursor, *, stored_age: timedelta, since_success: timedelta | None) -> bool:
    """Whether events may have left the journal unread: Allegro says nothing when a position is too old.

    An old cursor alone is no gap: that of a shop without a sale is old as well. But somebody has to have looked
    meanwhile, and stored what there was.
    """
    if stored_age <= JOURNAL_RETENTION:
        return False
    if cursor.stored_event_id == 0:  # never an event; a new token's orders come with its initial load
        return since_success is not None and since_success > JOURNAL_RETENTION
    unwatched = since_success is None or since_success > JOURNAL_RETENTION
    return unwatched or cursor.is_behind
