"""One seller's past before the simulation began: any order of it, by arithmetic, without a stored list. Pure.

Orders are numbered by the time of purchase, evenly spread with some jitter, so number and time lead to each other. All
of it had happened by `horizon_ms`: nothing of the past moves by itself once the simulation runs, else no two
looks at the truth could be compared.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from simulator import identity, timeline
from simulator.clock import DAY_MS
from simulator.identity import FORM_DELAY_MS
from simulator.orders import Form, Shelf
from simulator.timeline import Step

_MARGIN_MS = 10 * 60_000


class Columns(NamedTuple):
    """What filters look at, for every order of the past."""

    statuses: bytes
    fulfillments: bytes
    updated_ms: list[int]


class History:
    def __init__(self, shelf: Shelf, orders: int, days: float, epoch_ms: int) -> None:
        self.count = orders
        self.horizon_ms = epoch_ms - _MARGIN_MS
        self._shelf = shelf
        self._step_ms = max(3, round(days * DAY_MS) // orders) if orders else 1
        self._start_ms = self.horizon_ms - self._step_ms * orders - FORM_DELAY_MS

    def bought_ms(self, number: int) -> int:
        """When the newest line item of an order was bought; rises with the number."""
        jitter = (number * 0x9E3779B97F4A7C15 >> 20) % (self._step_ms - 1)
        return self._start_ms + number * self._step_ms + jitter

    def first_at_or_after(self, at_ms: int) -> int:
        """The number of the first order that was bought then or later; `count` if there is none."""
        number = (at_ms - self._start_ms) // self._step_ms
        if number < 0:
            return 0
        if number >= self.count:
            return self.count
        return number if self.bought_ms(number) >= at_ms else number + 1

    def form(self, number: int) -> Form:
        return Form(number, False, self.bought_ms(number))

    def number_of(self, form_id: str) -> int | None:
        """Which order has that id, if any."""
        source = identity.origin(form_id)
        if source is None or source.live or source.seller != self._shelf.seller:
            return None
        number = self.first_at_or_after(source.bought_ms)
        if number >= self.count or self._shelf.ids(self.form(number)).form() != form_id.lower().encode():
            return None
        return number

    def steps(self, form: Form, roll: bytes) -> list[Step]:
        """What had happened to an order by the horizon."""
        plan = timeline.plan(roll, form.bought_ms + FORM_DELAY_MS)
        return plan if plan[-1][1] <= self.horizon_ms else timeline.until(plan, self.horizon_ms)

    def events(self, since_ms: int) -> Iterator[tuple[int, int, int, int]]:
        """(journal id before it is made unique, order, place of the step, kind) of every event written since then."""
        first = self.first_at_or_after(since_ms - timeline.LONGEST_LIFE_MS)
        for number in range(first, self.count):
            form = self.form(number)
            roll = self._shelf.roll(form)
            silent = timeline.story(roll).silent_bought
            for place, (kind, at_ms) in enumerate(self.steps(form, roll)):
                # The journal is written 11 to 20 s after the event, so ids do not rise with occurredAt (#2700).
                written_us = (at_ms + 11_000) * 1000 + (roll[15] * 37 + place * 101) % 256 * 35_000 + roll[14] * 13
                if written_us >= since_ms * 1000 and not (silent and kind == timeline.BOUGHT):
                    yield written_us, number, place, kind

    @cached_property
    def columns(self) -> Columns:
        """Made when a filter first asks; some microseconds an order."""
        statuses, fulfillments, updated = bytearray(), bytearray(), []
        for number in range(self.count):
            form = self.form(number)
            roll = self._shelf.roll(form)
            state = timeline.state_of(self.steps(form, roll), timeline.story(roll))
            statuses.append(timeline.STATUSES.index(state.status))
            fulfillments.append(timeline.FULFILLMENT.index(state.fulfillment))
            updated.append(state.updated_ms)
        return Columns(bytes(statuses), bytes(fulfillments), updated)
