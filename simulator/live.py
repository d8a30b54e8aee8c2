"""Live activity: new orders are bought and go through their lives in compressed time; sellers work on older ones."""

from collections.abc import Callable, Sequence
from typing import Any

from simulator import timeline
from simulator.clock import SECOND_US
from simulator.dice import Dice, Rolls
from simulator.settings import Settings
from simulator.world import Order, Seller, World, can_merge

_MOST_STEPS = 40


class Live:
    """One run at a time; a new one takes the old one's place."""

    def __init__(self, world: World, settings: Settings) -> None:
        self._world = world
        self._settings = settings
        self._rolls = Rolls(Dice(settings.seed, "live"))
        self._run = 0
        self._unfinished = 0
        self._events_at_start = 0
        self.orders_created = 0
        self.remaining = 0

    def start(
        self,
        orders: int,
        rate: float,
        *,
        events_per_order: int | None = None,
        sellers: Sequence[Seller] | None = None,
        step_seconds: float | None = None,
        history: float | None = None,
    ) -> None:
        """Buy so many orders, so many a second; without `sellers`, spread over those of the settings."""
        self.stop()
        self.orders_created = 0
        self.remaining = orders
        self._events_at_start = self._world.events_written
        self._most_steps = _MOST_STEPS if events_per_order is None else max(1, events_per_order)
        self._sellers = sellers
        self._step_us = (self._settings.live_step_seconds if step_seconds is None else step_seconds) * SECOND_US
        self._gap_us = SECOND_US / rate
        self._history_rate = self._settings.live_history if history is None else history
        run, start_us = self._run, self._world.now_us()
        if orders:
            self._world.agenda.add(start_us, lambda now_us: self._buy_next(run, start_us, now_us))

    def stop(self) -> None:
        """No further orders and steps; what has happened still gets into the journal."""
        self._run += 1
        self._unfinished = 0
        self.remaining = 0

    def describe(self) -> dict[str, Any]:
        return {
            "active": self.remaining > 0 or self._unfinished > 0 or self._world.writes_to_come > 0,
            "orders_created": self.orders_created,
            "events_written": self._world.events_written - self._events_at_start,
            "remaining": self.remaining,
            "steps_to_come": self._unfinished,
            "events_to_come": self._world.writes_to_come,
        }

    def _buy_next(self, run: int, start_us: int, now_us: int) -> None:
        if run != self._run or not self.remaining:
            return
        sellers = self._candidates()
        if sellers:
            seller = sellers[self.orders_created % len(sellers)]
            self.remaining -= 1
            self.orders_created += 1
            self._buy(run, seller, now_us)
        due_us = start_us + round(self.orders_created * self._gap_us)
        # Nobody is connected yet: look again, rather than give the orders to no one.
        due_us = max(due_us, now_us + (0 if sellers else SECOND_US // 4))
        if self.remaining:
            self._world.agenda.add(due_us, lambda later_us: self._buy_next(run, start_us, later_us))

    def _candidates(self) -> Sequence[Seller]:
        if self._sellers is not None:
            return self._sellers
        return self._world.sellers if self._settings.live_sellers == "all" else self._world.connected()

    def _buy(self, run: int, seller: Seller, now_us: int) -> None:
        if self.remaining and self._world.faults.strikes("merges", seller=seller.id):
            self._buy_two_to_merge(run, seller, now_us)
        else:
            self._go_on(run, seller, self._world.buy(seller, now_us), self._most_steps - 1, now_us)
        if self._rolls.happens(self._history_rate):
            self._work_on_history(seller, now_us)

    def _buy_two_to_merge(self, run: int, seller: Seller, now_us: int) -> None:
        """Two purchases of one buyer, to be paid together."""
        first = self._world.buy(seller, now_us)
        buyer = seller.shelf.buyer_number(first.form)
        second = self._world.buy(seller, now_us + 1000, buyer=buyer)
        self.remaining -= 1
        self.orders_created += 1

        def merge(at_us: int) -> None:
            self._unfinished -= 1 if run == self._run else 0
            if run == self._run and can_merge(seller, [first, second]):
                merged = self._world.merge(seller, [first, second], at_us)
                self._go_on(run, seller, merged, self._most_steps - 1, at_us)

        self._later(merge, now_us)

    def _go_on(self, run: int, seller: Seller, order: Order, most_steps: int, now_us: int) -> None:
        """Plan the order's next step, if it has one."""
        if most_steps <= 0 or order.gone_ms is not None or seller.next_kind(order) is None:
            return

        def step(at_us: int) -> None:
            if run != self._run:
                return
            self._unfinished -= 1
            kind = seller.next_kind(order)
            if kind is not None and order.gone_ms is None:
                self._world.step(seller, order, kind, at_us)
                self._go_on(run, seller, order, most_steps - 1, at_us)

        self._later(step, now_us)

    def _later(self, action: Callable[[int], None], now_us: int) -> None:
        self._unfinished += 1
        self._world.agenda.add(now_us + round(self._step_us * (0.3 + 1.4 * self._rolls.fraction())), action)

    def _work_on_history(self, seller: Seller, now_us: int) -> None:
        """The seller moves an order of the last days on: `updatedAt` will not tell (#4355)."""
        count = seller.history.count
        if not count:
            return
        number = count - 1 - int(self._rolls.fraction() * min(count, max(10, count // 10)))
        order = seller.order(number, False)
        kind = seller.next_kind(order)
        if kind is not None and kind >= timeline.PROCESSING:
            self._world.step(seller, order, kind, now_us)
