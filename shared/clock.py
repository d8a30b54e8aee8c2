"""Time, as a port: real in production, set by hand in tests.

Observations are compared across processes (promise P3), so they are stamped with the database's clock: a host
whose wall clock is off, or jumps, must not make an old observation look new.
"""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """What the code asks about time."""

    def now(self) -> datetime:
        """The present moment, aware, in UTC."""
        ...


class SystemClock:
    """This host's wall clock: for logs and for processes without a database."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class DatabaseClock:
    """PostgreSQL's clock, carried forward by this process's monotonic clock between synchronisations."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._base: datetime | None = None
        self._base_monotonic = 0.0

    async def synchronise(self, read_database_time: Callable[[], Awaitable[datetime]]) -> None:
        """Take over the database's time; half the round trip is taken as the way back."""
        before = self._monotonic()
        moment = await read_database_time()
        after = self._monotonic()
        self._base = moment
        self._base_monotonic = (before + after) / 2

    def now(self) -> datetime:
        if self._base is None:
            raise RuntimeError("DatabaseClock.synchronise() has to run before the clock is read")
        return self._base + timedelta(seconds=self._monotonic() - self._base_monotonic)


def to_event_id(moment: datetime) -> int:
    """The journal position of a moment: event ids are microseconds of the journal write (#5232, #11942)."""
    return (moment - _EPOCH) // _MICROSECOND


def from_event_id(event_id: int) -> datetime:
    """When an event was written to the journal; ids beyond year 9999 are read as the latest moment there is."""
    try:
        return _EPOCH + timedelta(microseconds=event_id)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
