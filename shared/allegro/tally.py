"""How many requests a piece of work costs, repeated ones included."""

from contextvars import ContextVar, Token


class Tally:
    """Count the `requests` of everything that is begun inside; an inner tally counts its own for itself. Once each."""

    def __init__(self) -> None:
        self.requests = 0

    def __enter__(self) -> "Tally":
        self._outer: Token[Tally | None] = _TALLY.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _TALLY.reset(self._outer)


_TALLY: ContextVar[Tally | None] = ContextVar("tally", default=None)


def note_request() -> None:
    """One more request goes out."""
    tally = _TALLY.get()
    if tally is not None:
        tally.requests += 1
