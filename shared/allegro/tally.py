"""How many requests a piece of work costs, repeated ones included."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Tally:
    """Requests that were sent so far."""

    def __init__(self) -> None:
        self.requests = 0


_TALLY: ContextVar[Tally | None] = ContextVar("tally", default=None)


@contextmanager
def tallied() -> Iterator[Tally]:
    """Count the requests of everything that is begun inside; an inner tally counts its own for itself."""
    tally = Tally()
    outer = _TALLY.set(tally)
    try:
        yield tally
    finally:
        _TALLY.reset(outer)


def note_request() -> None:
    """One more request goes out."""
    tally = _TALLY.get()
    if tally is not None:
        tally.requests += 1
