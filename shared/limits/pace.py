"""The arithmetic of pacing: GCRA, set so that no window of a minute, wherever it begins, holds more than the limit.

Allegro says "9,000 a minute" and not how it counts: in fixed windows, in sliding ones or by a bucket (allegro-api.md
6). So the strictest is assumed. A request has a *slot*, the moment it is meant for; slots are `interval` apart. It
reaches Allegro a little later than its slot: late by the tolerance, by the wait for its turn in the event loop, and by
the way there. All of that has to fit into the part of the allowance that is given up (`_USED_SHARE`):

    requests in any minute <= (minute + lateness) / interval + 1 <= limit
"""

from dataclasses import dataclass

# Of the limit. The rest, 3 % of a minute, is what requests may be late by in all.
_USED_SHARE = 0.97
# How far a slot may lie back and still be given out: it makes up for pauses between two requests.
_TOLERANCE_SHARE = 0.005
# How long a slot given out may stay unused. With the tolerance this leaves half of the lateness to the network.
_LIFETIME_SHARE = 0.01
# So few slots may always be asked for at a time: one round trip to PostgreSQL each would slow a scaled minute down.
_SMALL_CHUNK = 8
# What an event loop and a round trip to PostgreSQL need; matters only where the minute is scaled down.
_SHORTEST_SECONDS = 0.02


@dataclass(frozen=True)
class Pace:
    """A limit as the pacing sees it; all in seconds."""

    interval: float
    tolerance: float
    lifetime: float

    @classmethod
    def of(cls, per_minute: float, *, minute_seconds: float) -> "Pace":
        """The pace for a limit; `minute_seconds` is 60 but against the simulator."""
        return cls(
            interval=minute_seconds / (per_minute * _USED_SHARE),
            tolerance=max(minute_seconds * _TOLERANCE_SHARE, _SHORTEST_SECONDS),
            lifetime=max(minute_seconds * _LIFETIME_SHARE, _SHORTEST_SECONDS),
        )

    def slot(self, next_slot: float, now: float) -> float:
        """The moment that the next request is meant for, given the first slot that is not taken."""
        return max(next_slot, now - self.tolerance)

    def chunk(self, waiting: int, *, seconds: float) -> int:
        """How many slots to ask for at a time: what is needed, but not many more than `seconds` hold."""
        return max(1, min(waiting, max(int(seconds / self.interval), _SMALL_CHUNK)))
