"""Realistic orders and events for benchmarks: the simulated Allegro's own bodies, made without a server.

An order has about 3 kB, an event about 900 bytes.
"""

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


def event_bodies(count: int, *, seller: int = 1, seed: int = 7) -> Iterator[RawJson]:
    """The newest event of as many orders."""
    shelf = Shelf(seed, seller)
    history = History(shelf, count, _DAYS, int(_EPOCH.timestamp() * 1000))
    for number in range(count):
        form = history.form(number)
        facts = shelf.facts(form)
        steps = history.steps(form, facts.roll)
        if steps:
            yield RawJson(shelf.event_body(facts, steps, steps[-1][1] * 1000))
