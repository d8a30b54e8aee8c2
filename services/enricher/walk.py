"""Walking through a window of purchases, page by page, without ever meeting the 10,000-row limit. Pure.

Pages are asked for in ascending order of purchase; the next one starts at the last purchase time seen, not at a
growing offset. So an order that vanishes while we page shifts nothing, a `totalCount` that lies or changes decides
nothing while pages are full, and there is no depth at which Allegro refuses (`offset + limit <= 10000`, #4027).
Only while a whole page shares one millisecond does the offset grow.

A page that shows fewer orders than it should is asked for again: lists skip and repeat rows (#3740, #3985). What the
walk has passed it states as a covered range, so that stored orders that were not listed there can be looked at.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from shared.allegro.bodies import ListedOrder, OrderPage

PAGE_SIZE = 100
# Pages that repeat rows do so nearby: remembering this many ids recognises them with bounded memory.
_REMEMBERED_IDS = 1000
# A page that shows nothing new although there is much more; and one that lacks a few of its rows.
_LOOKS_AGAIN = 3
_SMALLER = 10
_LOOKS_AT_A_SHORT_PAGE = 2


@dataclass(frozen=True)
class PageRequest:
    """One call of the list."""

    bought_from: datetime
    bought_to: datetime
    offset: int
    limit: int = PAGE_SIZE


@dataclass(frozen=True)
class Covered:
    """All that the list shows of the purchases from one moment until just before another."""

    bought_from: datetime
    bought_until: datetime
    order_ids: tuple[str, ...]
    """What was listed there, and perhaps a few more."""
    requested_at: datetime
    """When the first page of it was asked for."""


@dataclass(frozen=True)
class Met:
    """An order met for the first time in this walk, with its number in the walk."""

    sequence: int
    order: ListedOrder


class Walk:
    """The state of one walk; `sequence` and `counted` let it go on where an earlier attempt was stored."""

    def __init__(
        self,
        *,
        position: datetime,
        bought_to: datetime,
        sequence: int = 0,
        counted: Iterable[str] = (),
    ) -> None:
        self._position = position
        self._bought_to = bought_to
        self._offset = 0
        self._limit = PAGE_SIZE
        self._known: OrderedDict[str, None] = OrderedDict.fromkeys(counted)
        self._ended = position > bought_to
        self._shown_here: dict[str, ListedOrder] = {}
        """What the answers to the present request have shown, however often it was asked."""
        self._shown: dict[str, ListedOrder] = {}
        """What was shown from the present position on."""
        self._shown_since: datetime | None = None
        self.sequence = sequence
        self.pages = 0
        self.outside = 0
        """Orders that Allegro listed although they were not bought in the window asked for (#1895)."""
        self.expected: int | None = None
        self.withheld = 0
        """Orders that the last page counted beyond its own and did not show, where these are more than a page."""
        self.passed_over = 0
        """Orders that were not read, since each alone is larger than an answer may be."""
        self.looks_again = 0
        """How often in a row the present request was made again."""
        self.covered: Covered | None = None
        """The range that the last page completed, if it completed one."""

    def next_request(self) -> PageRequest | None:
        """What to ask for next; None at the end."""
        return None if self._ended else PageRequest(self._position, self._bought_to, self._offset, self._limit)

    def ask_for_less(self) -> None:
        """The answer was too large to be read: fewer orders next time, and at last go on behind the one that is."""
        if self._limit > 1:
            self._limit //= _SMALLER
        else:
            self._limit = PAGE_SIZE
            self._offset += 1
            self._shown_here = {}
            self.passed_over += 1

    def take(self, page: OrderPage) -> list[Met]:
        """Take a page; returns the orders not met before."""
        if self.pages == 0 and page.total_count is not None:
            self.expected = self.sequence + max(page.total_count - len(self._known), 0)
        self.pages += 1
        self.covered = None
        self._shown_since = self._shown_since or page.requested_at
        shown = {order.order_id: order for order in page.orders}
        self._shown_here |= shown
        self._shown |= shown
        met = self._meet(page.orders)
        self._move(page, met)
        return met

    def _meet(self, orders: Sequence[ListedOrder]) -> list[Met]:
        met = []
        for order in orders:
            if order.order_id in self._known:
                self._known.move_to_end(order.order_id)
                continue
            self._known[order.order_id] = None
            if not self._is_inside(order):
                self.outside += 1
            met.append(Met(self.sequence, order))
            self.sequence += 1
        while len(self._known) > _REMEMBERED_IDS:
            self._known.popitem(last=False)
        return met

    def _is_inside(self, order: ListedOrder) -> bool:
        return order.bought_at is None or self._position <= order.bought_at <= self._bought_to

    def _move(self, page: OrderPage, met: Sequence[Met]) -> None:
        """Go on, end, or ask again; a count that is a little off is common and means nothing by itself."""
        shown = len(self._shown_here)
        beyond = (page.total_count or 0) - self._offset - shown
        self.withheld = beyond if beyond > PAGE_SIZE and not met else 0
        is_full = shown >= self._limit
        self._limit = PAGE_SIZE
        if is_full:
            self._go_on()
        elif beyond <= 0:
            self._end()
        elif self.looks_again < (_LOOKS_AGAIN if self.withheld else _LOOKS_AT_A_SHORT_PAGE):
            self.looks_again += 1
        elif self._latest() > self._position:
            self._go_on()
        else:
            self._end()

    def _latest(self) -> datetime:
        inside = [order.bought_at for order in self._shown_here.values() if self._is_inside(order)]
        return max((moment for moment in inside if moment is not None), default=self._position)

    def _go_on(self) -> None:
        self.withheld = self.looks_again = 0
        latest = self._latest()
        if latest > self._position:
            self._cover(until=latest)
            self._position, self._offset = latest, 0
        else:
            self._offset += len(self._shown_here)
        self._shown_here = {}

    def _end(self) -> None:
        """A list that breaks off covers nothing."""
        self._ended = True
        if not self.withheld:
            self._cover(until=self._bought_to)

    def _cover(self, *, until: datetime) -> None:
        if self._shown_since is not None:
            self.covered = Covered(self._position, until, tuple(self._shown), self._shown_since)
        self._shown = {order_id: order for order_id, order in self._shown.items() if order.bought_at == until}
        self._shown_since = None
