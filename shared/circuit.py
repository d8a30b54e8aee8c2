"""When the calls of most parties fail, stop calling and look again now and then. Pure: no clock, no I/O.

Calls go to one service on behalf of many parties (sellers). One of them whose every call fails says nothing of the
service, however often it calls: parties are counted, not calls.

Closed: everybody calls. Open: nobody calls until a pause is over. Then one call goes out to probe; its success closes
the circuit, its failure opens it for a pause twice as long, up to a limit. Where few parties have failed, because no
other called lately, another that comes is let through at once: it may be well.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from math import ceil

# Parties are judged by their newest outcome within so many seconds, and so many at most: those that called last.
# Longer than the usual time between two looks into a seller's journal: who is well and seldom calls has to count.
_REMEMBERED_SECONDS = 300.0
_REMEMBERED_PARTIES = 50
# It takes so many failures within a minute, each since its party's last success, and so large a share of all parties.
_WINDOW_SECONDS = 60.0
_LEAST_FAILURES = 8
_LEAST_SHARE = 0.8
# The failures have to come from so many parties, or from all there are: three that failed once or twice are no outage.
_WITNESSES = 3
_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class Ticket:
    """A call that was let through, to be handed back with its outcome."""

    opening: int
    """The circuit's `openings` when it began: the outcome of an older call says nothing of the present."""
    party: int
    is_probe: bool


@dataclass
class _Party:
    called_at: float
    failed_at: deque[float] = field(default_factory=lambda: deque(maxlen=_LEAST_FAILURES))
    """Since its last success: empty while it is well."""


class Circuit:
    """The state for one service; `now` is any clock in seconds that does not go back."""

    def __init__(self) -> None:
        self._parties: OrderedDict[int, _Party] = OrderedDict()
        self._asked: set[int] = set()
        self.openings = 0
        """How often it has opened or closed: calls are told apart by it."""
        self._pause = _FIRST_PAUSE_SECONDS
        self._paused_until = 0.0
        self._probe: Ticket | None = None
        self.opened_at: float | None = None
        """Since when the calls of most parties fail; None while the circuit is closed."""

    @property
    def is_open(self) -> bool:
        return self.opened_at is not None

    @property
    def refuses_all(self) -> bool:
        """Whether a party of which nothing is known would have to wait as well."""
        return self.is_open and len(self._asked) >= _WITNESSES

    def pause_left(self, party: int, now: float) -> float:
        """Seconds until it is worth asking again; 0 if a call would be let through."""
        if not self.is_open or self._may_be_well(party):
            return 0.0
        if self._probe is not None:
            return _FIRST_PAUSE_SECONDS
        return max(self._paused_until - now, 0.0)

    def admit(self, party: int, now: float) -> Ticket | None:
        """Let a call through, or not (None)."""
        if self.pause_left(party, now) > 0:
            return None
        ticket = Ticket(self.openings, party, is_probe=self.is_open and not self._may_be_well(party))
        if ticket.is_probe:
            self._probe = ticket
        if self.is_open:
            self._asked.add(party)
        return ticket

    def record(self, ticket: Ticket, now: float, *, failed: bool) -> None:
        """Take note of a call's outcome."""
        if ticket.opening != self.openings:
            return
        if not self.is_open:
            self._note(ticket.party, now, failed=failed)
            if failed and self._most_fail(now):
                self._open(now)
        elif not failed:
            self._close()
            self._note(ticket.party, now, failed=False)
        elif ticket.is_probe:
            self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)
            self._paused_until = now + self._pause
            self.release(ticket)

    def release(self, ticket: Ticket) -> None:
        """The call has ended, with an outcome or without (it was cancelled): another one may probe."""
        if ticket is self._probe:
            self._probe = None

    def _may_be_well(self, party: int) -> bool:
        """Whether the circuit opened without enough witnesses, of whom this party was none."""
        return not self.refuses_all and party not in self._asked

    def _note(self, party: int, now: float, *, failed: bool) -> None:
        known = self._parties.setdefault(party, _Party(now))
        known.called_at = now
        if failed:
            known.failed_at.append(now)
        else:
            known.failed_at.clear()
        self._parties.move_to_end(party)
        self._forget(now)

    def _forget(self, now: float) -> None:
        while len(self._parties) > _REMEMBERED_PARTIES or self._longest_silent().called_at <= now - _REMEMBERED_SECONDS:
            self._parties.popitem(last=False)

    def _longest_silent(self) -> _Party:
        return next(iter(self._parties.values()))

    def _most_fail(self, now: float) -> bool:
        """Asked after a failure: one party at least fails."""
        failing = [party.failed_at for party in self._parties.values() if party.failed_at]
        if len(failing) < _LEAST_SHARE * len(self._parties):
            return False
        most_of_one = ceil(_LEAST_FAILURES / min(len(failing), _WITNESSES))
        recent = (sum(at > now - _WINDOW_SECONDS for at in times) for times in failing)
        return sum(min(count, most_of_one) for count in recent) >= _LEAST_FAILURES

    def _open(self, now: float) -> None:
        self.opened_at = now
        self.openings += 1
        self._pause = _FIRST_PAUSE_SECONDS
        self._paused_until = now + self._pause
        self._asked = {number for number, party in self._parties.items() if party.failed_at}
        self._parties.clear()

    def _close(self) -> None:
        self.opened_at = None
        self.openings += 1
        self._probe = None
