"""Slots that were taken from PostgreSQL and not used yet, and how many are worth taking; all moments are monotonic."""

from shared.limits.pace import Pace

_MOST_GROWTH = 2.0


class Slots:
    """`count` slots, `interval` seconds apart, from the monotonic moment `first` on."""

    def __init__(self, pace: Pace, first: float = 0.0, count: int = 0) -> None:
        self._lifetime = pace.lifetime + pace.tolerance
        self._interval = pace.interval
        self._first = first
        self._count = count

    def use(self, now: float) -> bool:
        """Use up the first slot that is due and not too old; False if there is none."""
        while self._count and self._first <= now:
            slot = self._first
            self._first += self._interval
            self._count -= 1
            if now - slot <= self._lifetime:
                return True
        return False

    def wait(self, now: float) -> float | None:
        """Seconds until the next slot is due; None if none is left."""
        return max(self._first - now, 0.0) if self._count else None


class Demand:
    """How many calls come: counted from one chunk to the next."""

    def __init__(self) -> None:
        self.calls = 0
        self._since = 0.0

    def within(self, seconds: float, *, now: float) -> int:
        """How many calls to expect in so many seconds; begins to count anew.

        Twice as many as came, at most: a few calls at once say little of what follows.
        """
        elapsed = now - self._since
        expected = self.calls * (seconds / elapsed if elapsed * _MOST_GROWTH > seconds else _MOST_GROWTH)
        self.calls, self._since = 0, now
        return int(expected)
