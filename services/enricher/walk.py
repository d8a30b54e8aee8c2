"""Walking through a window of purchases, page by page, without ever meeting the 10,000-row limit. Pure.

Pages are asked for in ascending order of purchase; the next one starts at the last purchase time seen, not at a
growing offset. So an order that vanishes while we page shifts nothing, a `totalCount` that lies or changes decides
nothing while pages are full, and there is no depth at which Allegro refuses (`offset + limit <= 10000`, #4027).
Only while a whole page shares one millisecond does the offset grow.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from shared.allegro.bodies import ListedOrder, OrderPage

PAGE_SIZE = 100
# Pages that repeat rows do so nearby: remembering this many ids recognises them with bounded memory.
_REMEMBERED_IDS = 1000
_LOOKS_AGAIN = 3


@dataclass(frozen=True)
class PageRequest:
    """One call of the list."""

    bought_from: datetime
    bought_to: datetime
    offset: int


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
        self._known: OrderedDict[str, None] = OrderedDict.fromkeys(counted)
        self._ended = position > bought_to
        self.sequence = sequence
        self.pages = 0
        self.outside = 0
        """Orders that Allegro listed although they were not bought in the window asked for (#1895)."""
        self.expected: int | None = None
        self.withheld = 0
        """Orders that the last page counted beyond its own and did not show, where these are more than a page."""
        self.looks_again = 0
        """How often in a row such a page was asked for again."""

    def next_request(self) -> PageRequest | None:
        """What to ask for next; None at the end."""
        return None if self._ended else PageRequest(self._position, self._bought_to, self._offset)

    def take(self, page: OrderPage) -> list[Met]:
        """Take a page; returns the orders not met before."""
        if self.pages == 0 and page.total_count is not None:
            self.expected = self.sequence + max(page.total_count - len(self._known), 0)
        self.pages += 1
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
        rows = len(page.orders)
        is_last = rows < PAGE_SIZE and (page.total_count is None or page.total_count <= self._offset + rows)
        if is_last or rows == 0 or (rows < PAGE_SIZE and not met):
            self._end(page)
            return
        self.withheld = self.looks_again = 0
        inside = [order.bought_at for order in page.orders if order.bought_at is not None and self._is_inside(order)]
        latest = max(inside, default=self._position)
        if latest > self._position:
            self._position, self._offset = latest, 0
        else:
            self._offset += rows

    def _end(self, page: OrderPage) -> None:
        """End, unless the page itself says that there is much more: then it is asked for again a few times.

        A count that is a little off is common and means nothing; one that is off by a page is an answer cut short.
        """
        beyond = (page.total_count or 0) - self._offset - len(page.orders)
        self.withheld = beyond if beyond > PAGE_SIZE else 0
        if self.withheld and self.looks_again < _LOOKS_AGAIN:
            self.looks_again += 1
        else:
            self._ended = True
