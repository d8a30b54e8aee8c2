"""What happens while the simulation runs: orders bought, steps taken, forms merged, events written.

All of it happens through `World.record`, one small mutation at a time, so that the same mutations read from a file
bring the same world back. Everything else about an order is derived.
"""

from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from simulator import catalogue, timeline
from simulator.catalogue import Shop
from simulator.clock import DAY_MS, SECOND_US, Agenda, Clock
from simulator.dice import Dice, Rolls
from simulator.faults import Faults
from simulator.history import History
from simulator.identity import FORM_DELAY_MS, MAX_LINES, origin, seller_number
from simulator.journal import Entry, Journal
from simulator.orders import Facts, Form, Shelf
from simulator.settings import Settings
from simulator.timeline import State, Step

# Section 3: 60 days of events (#912, #8496). Section 4: 365 days of orders, from the purchase (#9729).
EVENTS_KEPT_MS: Final = 60 * DAY_MS
ORDERS_KEPT_MS: Final = 365 * DAY_MS
# Events of the past begin so much after the retention's edge: none vanishes while a short run looks at them.
_EDGE_MS: Final = 3_600_000


class Bought(msgspec.Struct, tag="bought", array_like=True, frozen=True):
    seller: int
    number: int
    bought_ms: int
    at_ms: int
    buyer: int | None


class Stepped(msgspec.Struct, tag="stepped", array_like=True, frozen=True):
    seller: int
    number: int
    live: bool
    kind: int
    at_ms: int


class Merged(msgspec.Struct, tag="merged", array_like=True, frozen=True):
    """Live forms became a new one; only orders of this run are ever unpaid and young enough."""

    seller: int
    number: int
    old: tuple[tuple[int, bool], ...]
    at_ms: int


class Wrote(msgspec.Struct, tag="wrote", array_like=True, frozen=True):
    seller: int
    number: int
    live: bool
    place: int
    event_id: int


class Lost(msgspec.Struct, tag="lost", array_like=True, frozen=True):
    """An event that will never be written."""

    seller: int
    number: int
    live: bool
    place: int


class Connected(msgspec.Struct, tag="connected", array_like=True, frozen=True):
    seller: int


Mutation = Bought | Stepped | Merged | Wrote | Lost | Connected


class Order:
    """An order that is not, or no longer, what the history says of it."""

    __slots__ = ("created_ms", "facts", "form", "gone_ms", "pending", "steps", "successor", "told_us")

    def __init__(self, form: Form, steps: list[Step], created_ms: int, facts: Facts | None = None) -> None:
        self.form = form
        # Only in orders that are looked at and thrown away: those that are kept would need too much memory.
        self.facts = facts
        self.steps = steps
        self.created_ms = created_ms
        self.gone_ms: int | None = None
        self.successor: Order | None = None
        # Bit n: the event of step n is still to be written.
        self.pending = 0
        # The id of the newest event about it that was written in this run, which is when; 0: none.
        self.told_us = 0

    @property
    def changed_ms(self) -> int:
        """When something last happened to it."""
        return max(self.created_ms, self.steps[-1][1], self.gone_ms or 0)


class Seller:
    def __init__(self, number: int, settings: Settings, epoch_ms: int) -> None:
        self.number = number
        self.shelf = Shelf(settings.seed, number, settings.future_fields)
        self.id = self.shelf.seller_id
        self.shop: Shop = catalogue.shop(settings.seed, number)
        self.history = History(self.shelf, settings.history_orders, settings.history_days, epoch_ms)
        self.journal = Journal(self.history, epoch_ms - EVENTS_KEPT_MS + _EDGE_MS)
        self.connected = False
        self.live: dict[int, Order] = {}
        self.changed: dict[int, Order] = {}
        # (newest purchase, number) of every live order that has not been merged away, in that order.
        self.by_time: list[tuple[int, int]] = []
        # Past orders that have been merged away.
        self.gone: list[int] = []
        # (number, live) of the orders that a page of the list once left out by a fault.
        self.hidden: set[tuple[int, bool]] = set()

    def order(self, number: int, live: bool) -> Order:
        """An order to look at; `own` gives one to change."""
        if live:
            return self.live[number]
        changed = self.changed.get(number)
        if changed is not None:
            return changed
        form = self.history.form(number)
        facts = self.shelf.facts(form)
        return Order(form, self.history.steps(form, facts.roll), form.bought_ms, facts)

    def announced(self, order: Order) -> bool | None:
        """Whether an event was written after the order's last change; None: nothing has happened to it in this run."""
        if not order.form.live and order.form.number not in self.changed:
            return None
        return order.told_us // 1000 >= order.changed_ms

    def own(self, number: int, live: bool) -> Order:
        order = self.order(number, live)
        if not live:
            order.facts = None
            self.changed[number] = order
        return order

    def facts(self, order: Order) -> Facts:
        return order.facts or self.shelf.facts(order.form)

    def find(self, form_id: str) -> Order | None:
        """The order with that id, merged ones and those too old included."""
        source = origin(form_id)
        if source is None or source.seller != self.number:
            return None
        if not source.live:
            number = self.history.number_of(form_id)
            return None if number is None else self.order(number, False)
        wanted = form_id.lower().encode()
        # The id holds the number's last digits; 2^13 * 1000 orders later they come again.
        for number in range(source.number_digits, len(self.live), 0x2000 * 1000):
            if self.shelf.ids(self.live[number].form).form() == wanted:
                return self.live[number]
        return None

    def form_id(self, order: Order) -> str:
        return (self.shelf.ids(order.form).form() if order.facts is None else order.facts.id).decode()

    def state(self, order: Order, as_of_ms: int | None = None) -> State:
        told = timeline.story(self.shelf.roll(order.form)) if order.facts is None else order.facts.story
        return timeline.state_of(_steps_until(order, as_of_ms), told)

    def body(self, order: Order, as_of_ms: int | None = None) -> bytes:
        """The order's JSON, now or as it was."""
        facts = order.facts or self.shelf.facts(order.form)
        return self.shelf.order_body(facts, timeline.state_of(_steps_until(order, as_of_ms), facts.story))

    def event_body(self, event_id: int, entry: Entry) -> bytes:
        order = self.order(entry.order, entry.live)
        return self.shelf.event_body(self.facts(order), order.steps[: entry.place + 1], event_id)

    def next_kind(self, order: Order) -> int | None:
        """The step that this order takes next: its own plan's if it has kept to it, else the usual one."""
        roll = self.shelf.roll(order.form)
        state = self.state(order)
        if state.status != "CANCELLED" and order.form.lines is None:
            kinds = [kind for kind, _ in timeline.plan(roll, 0)]
            taken = [kind for kind, _ in order.steps]
            if kinds[: len(taken)] == taken and len(taken) < len(kinds):
                return kinds[len(taken)]
        return timeline.next_kind(state, timeline.story(roll))


def _steps_until(order: Order, as_of_ms: int | None) -> list[Step]:
    return order.steps if as_of_ms is None else timeline.until(order.steps, as_of_ms) or order.steps[:1]


class World:
    def __init__(self, settings: Settings, clock: Clock, faults: Faults, epoch_ms: int) -> None:
        self.clock = clock
        self.epoch_ms = epoch_ms
        self.agenda = Agenda()
        self.faults = faults
        self.sellers = [Seller(number, settings, epoch_ms) for number in range(settings.sellers)]
        self.listeners: list[Callable[[Mutation], None]] = []
        self.events_written = 0
        self.writes_to_come = 0
        self._last_event_id = epoch_ms * 1000
        self._journal_delay_us = round(settings.journal_delay * SECOND_US)
        self._journal_jitter_us = round(settings.journal_jitter * SECOND_US)
        self._delays = Rolls(Dice(settings.seed, "journal delay"))

    def now_us(self) -> int:
        return self.clock.now_us()

    def now_ms(self) -> int:
        return self.clock.now_us() // 1000

    def tick(self) -> None:
        """Let everything happen that is due; every request does this first, so no answer is behind the clock."""
        self.agenda.run_due(self.clock.now_us())

    def seller(self, seller_id: str) -> Seller | None:
        number = seller_number(seller_id)
        return None if number is None or number >= len(self.sellers) else self.sellers[number]

    def seller_of(self, form_id: str) -> Seller | None:
        source = origin(form_id)
        return None if source is None or source.seller >= len(self.sellers) else self.sellers[source.seller]

    def connected(self) -> list[Seller]:
        return [seller for seller in self.sellers if seller.connected]

    def connect(self, seller: Seller) -> None:
        if not seller.connected:
            self.record(Connected(seller.number))

    def oldest_event_us(self) -> int:
        return self.clock.now_us() - EVENTS_KEPT_MS * 1000

    def oldest_order_ms(self) -> int:
        return self.now_ms() - ORDERS_KEPT_MS

    def record(self, mutation: Mutation) -> None:
        """Let it be so, and tell whoever keeps a record."""
        self.apply(mutation)
        for listener in self.listeners:
            listener(mutation)

    def apply(self, mutation: Mutation) -> None:
        seller = self.sellers[mutation.seller]
        match mutation:
            case Bought():
                _apply_bought(seller, mutation)
            case Stepped():
                order = seller.own(mutation.number, mutation.live)
                order.pending |= 1 << len(order.steps)
                order.steps.append((mutation.kind, mutation.at_ms))
            case Merged():
                _apply_merged(seller, mutation)
            case Wrote():
                self._apply_wrote(seller, mutation)
            case Lost():
                seller.order(mutation.number, mutation.live).pending &= ~(1 << mutation.place)
            case Connected():
                seller.connected = True

    def buy(self, seller: Seller, at_us: int, bought_ms: int | None = None, buyer: int | None = None) -> Order:
        """A new order, bought just now unless said otherwise; its first event follows."""
        number, at_ms = len(seller.live), at_us // 1000
        when = at_ms - FORM_DELAY_MS if bought_ms is None else bought_ms
        self.record(Bought(seller.number, number, when, at_ms, buyer))
        order = seller.live[number]
        if timeline.story(seller.shelf.roll(order.form)).silent_bought:
            self.record(Lost(seller.number, number, True, 0))
        else:
            self._announce(seller, order, 0, at_us)
        return order

    def step(self, seller: Seller, order: Order, kind: int, at_us: int) -> None:
        """The order takes a step, and the journal will tell."""
        form = order.form
        self.record(Stepped(seller.number, form.number, form.live, kind, at_us // 1000))
        owned = seller.order(form.number, form.live)
        self._announce(seller, owned, len(owned.steps) - 1, at_us)

    def merge(self, seller: Seller, orders: Sequence[Order], at_us: int) -> Order:
        """Unpaid orders become one new form, with the same line items; the old ones vanish without a word (#13184)."""
        number = len(seller.live)
        old = tuple((order.form.number, order.form.live) for order in orders)
        self.record(Merged(seller.number, number, old, at_us // 1000))
        self.record(Lost(seller.number, number, True, 0))
        merged = seller.live[number]
        self.step(seller, merged, timeline.FILLED_IN, at_us)
        return merged

    def resume(self) -> None:
        """After a restart: write the events that had not been written when the last run ended."""
        now_us = self.clock.now_us()
        for seller in self.sellers:
            for order in (*seller.live.values(), *seller.changed.values()):
                for place in _bits(order.pending):
                    self._write_later(seller, order, place, now_us)

    def _announce(self, seller: Seller, order: Order, place: int, at_us: int) -> None:
        faults = self.faults
        if faults.strikes("journal_missing", seller=seller.id):
            self.record(Lost(seller.number, order.form.number, order.form.live, place))
            return
        due_us = at_us + self._journal_delay_us + round(self._journal_jitter_us * self._delays.fraction())
        late = faults.strikes("journal_late", seller=seller.id)
        if late is not None:
            due_us += round(late.amount * SECOND_US)
        shuffled = faults.strikes("journal_shuffle", seller=seller.id)
        if shuffled is not None:
            due_us += round(shuffled.amount * SECOND_US * self._delays.fraction())
        self._write_later(seller, order, place, due_us)
        again = faults.strikes("journal_duplicate", seller=seller.id)
        if again is not None:
            self._write_later(seller, order, place, due_us + round(again.amount * SECOND_US))

    def _write_later(self, seller: Seller, order: Order, place: int, due_us: int) -> None:
        form = order.form

        def write(now_us: int) -> None:
            self.writes_to_come -= 1
            event_id = max(now_us, self._last_event_id + 1)
            self.record(Wrote(seller.number, form.number, form.live, place, event_id))

        self.writes_to_come += 1
        self.agenda.add(due_us, write)

    def _apply_wrote(self, seller: Seller, wrote: Wrote) -> None:
        order = seller.order(wrote.number, wrote.live)
        order.pending &= ~(1 << wrote.place)
        order.told_us = wrote.event_id
        kind = order.steps[wrote.place][0]
        seller.journal.append(wrote.event_id, Entry(wrote.number, wrote.live, wrote.place, kind))
        self._last_event_id = wrote.event_id
        self.events_written += 1


def _apply_bought(seller: Seller, bought: Bought) -> None:
    form = Form(bought.number, True, bought.bought_ms, bought.buyer)
    order = Order(form, [(timeline.BOUGHT, bought.bought_ms + FORM_DELAY_MS)], bought.at_ms)
    order.pending = 1
    seller.live[bought.number] = order
    insort(seller.by_time, (form.bought_ms, form.number))


def _apply_merged(seller: Seller, merged: Merged) -> None:
    orders = [seller.own(number, live) for number, live in merged.old]
    facts = [seller.shelf.facts(order.form) for order in orders]
    lines = tuple(line for one in facts for line in one.lines)
    buyer = seller.shelf.buyer_number(orders[0].form)
    form = Form(merged.number, True, max(line.bought_ms for line in lines), buyer, lines)
    new = Order(form, [(timeline.BOUGHT, form.bought_ms + FORM_DELAY_MS)], merged.at_ms)
    new.pending = 1
    for order in orders:
        order.gone_ms = merged.at_ms
        order.successor = new
        if order.form.live:
            seller.by_time.remove((order.form.bought_ms, order.form.number))
        else:
            insort(seller.gone, order.form.number)
    seller.live[merged.number] = new
    insort(seller.by_time, (form.bought_ms, form.number))


def can_merge(seller: Seller, orders: Sequence[Order]) -> bool:
    """Whether these are several unpaid orders that still exist; merging happens before the payment (#12888)."""
    unpaid = all(order.gone_ms is None and seller.state(order).status in ("BOUGHT", "FILLED_IN") for order in orders)
    lines = sum(len(seller.shelf.facts(order.form).lines) for order in orders)
    return len(orders) > 1 and unpaid and lines <= MAX_LINES * 4


def _bits(mask: int) -> Iterator[int]:
    place = 0
    while mask:
        if mask & 1:
            yield place
        mask >>= 1
        place += 1
