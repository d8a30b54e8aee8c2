"""Realistic orders for benchmarks: the simulated Allegro's own bodies, about 3 kB each, made without a server."""

from collections.abc import Iterator
from datetime import UTC, datetime

from shared.messages import RawJson
from simulator import timeline
from simulator.history import History
from simulator.orders import Shelf

_EPOCH = datetime(2026, 10, 1, tzinfo=UTC)
_DAYS = 365.0


def order_bodies(count: int, *, seller: int = 1, seed: int = 7) -> Iterator[RawJson]:
    """`count` different orders of one seller, evenly spread over a year."""
    shelf = Shelf(seed, seller)
    history = History(shelf, count, _DAYS, int(_EPOCH.timestamp() * 1000))
    for number in range(count):
        form = history.form(number)
        facts = shelf.facts(form)
        state = timeline.state_of(history.steps(form, facts.roll), facts.story)
        yield RawJson(shelf.order_body(facts, state))
