"""When most calls to somebody fail, stop calling and look again now and then. Pure: no clock, no I/O.

Closed: everybody calls. Open: nobody calls until a pause is over. Then one call goes out to probe; its success closes
the circuit, its failure opens it for a pause twice as long, up to a limit.

Calls are made on behalf of many. Where those of one alone fail, however many, that is no reason to stop the others.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass

# Outcomes are judged over this many seconds, and this many calls at most.
_WINDOW_SECONDS = 60.0
_WINDOW_CALLS = 50
# It takes so many failures, and so large a share of all outcomes: one order that always fails is no outage.
_LEAST_FAILURES = 8
_LEAST_SHARE = 0.8
# And the last calls of so many, and of so large a share of those who called in so many seconds, must have failed. Long
# enough for those who call rarely to be seen, short enough to be noticed where hundreds call.
_LEAST_PARTIES = 3
_PARTIES_SECONDS = 30.0
# Who called within so many seconds is one of those who might; of so many the last outcome is known.
_KNOWN_SECONDS = 900.0
_KNOWN_PARTIES = 20_000
_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class Ticket:
    """A call that was let through, to be handed back with its outcome."""

    opening: int
    """How often the circuit had opened before: the outcome of an older call says nothing of the present."""
    is_probe: bool


class Circuit:
    """The state for one party; `now` is any clock in seconds that does not go back."""

    def __init__(self) -> None:
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=_WINDOW_CALLS)
        self._parties: OrderedDict[Hashable, tuple[float, bool]] = OrderedDict()
        """When each called last, and whether that failed; the latest at the end."""
        self._openings = 0
        self._pause = _FIRST_PAUSE_SECONDS
        self._paused_until = 0.0
        self._probe: Ticket | None = None
        self.opened_at: float | None = None
        """Since when most calls fail; None while the circuit is closed."""

    @property
    def is_open(self) -> bool:
        return self.opened_at is not None

    def pause_left(self, now: float) -> float:
        """Seconds until it is worth asking again; 0 if a call would be let through."""
        if not self.is_open:
            return 0.0
        if self._probe is not None:
            return _FIRST_PAUSE_SECONDS
        return max(self._paused_until - now, 0.0)

    def admit(self, now: float) -> Ticket | None:
        """Let a call through, or not (None)."""
        if self.pause_left(now) > 0:
            return None
        ticket = Ticket(self._openings, is_probe=self.is_open)
        if ticket.is_probe:
            self._probe = ticket
        return ticket

    def record(self, ticket: Ticket, now: float, *, failed: bool, party: Hashable = None) -> None:
        """Take note of the outcome of a call made on behalf of `party`."""
        if ticket.opening != self._openings:
            return
        if ticket.is_probe:
            self._end_probe(now, failed=failed)
        elif not self.is_open:
            self._outcomes.append((now, failed))
            self._note(party, now, failed=failed)
            if failed and self._most_fail(now) and self._most_parties_fail(now):
                self._open(now)

    def release(self, ticket: Ticket) -> None:
        """The call ended without an outcome (it was cancelled): another one may probe."""
        if ticket is self._probe:
            self._probe = None

    def _most_fail(self, now: float) -> bool:
        recent = [failed for at, failed in self._outcomes if at > now - _WINDOW_SECONDS]
        failures = sum(recent)
        return failures >= _LEAST_FAILURES and failures >= _LEAST_SHARE * len(recent)

    def _note(self, party: Hashable, now: float, *, failed: bool) -> None:
        self._parties[party] = now, failed
        self._parties.move_to_end(party)
        while len(self._parties) > _KNOWN_PARTIES or next(iter(self._parties.values()))[0] < now - _KNOWN_SECONDS:
            self._parties.popitem(last=False)

    def _most_parties_fail(self, now: float) -> bool:
        recent = failing = 0
        for at, failed in reversed(self._parties.values()):
            if at <= now - _PARTIES_SECONDS:
                break
            recent += 1
            failing += failed
        all_failing = sum(failed for _, failed in self._parties.values())
        return all_failing >= min(_LEAST_PARTIES, len(self._parties)) and failing >= _LEAST_SHARE * recent

    def _open(self, now: float) -> None:
        self.opened_at = now
        self._openings += 1
        self._pause = _FIRST_PAUSE_SECONDS
        self._paused_until = now + self._pause
        self._outcomes.clear()

    def _end_probe(self, now: float, *, failed: bool) -> None:
        self._probe = None
        if failed:
            self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)
            self._paused_until = now + self._pause
        else:
            self.opened_at = None
            self._openings += 1
