"""Fetching an old backlog by list pages: 100 orders for one request instead of one (promise P6). Pure.

A hunt looks for some orders among all that the seller has. It walks from one wanted purchase time to the next; a
page is worth its request only if it will show at least two of them, and how much time a page spans is learnt from
the pages before. What no page showed is fetched one by one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from shared.allegro.bodies import ListedOrder, OrderPage

PAGE_SIZE = 100
# Below this, single fetches cost about the same and are exact.
_WORTH_A_PAGE = 2
_WORTH_A_HUNT = 5


@dataclass(frozen=True)
class Quarry:
    """A wanted order and when it was bought."""

    order_id: str
    bought_at: datetime


@dataclass(frozen=True)
class Range:
    """The purchase times to ask a page for."""

    bought_from: datetime
    bought_to: datetime


class Hunt:
    """The state of one hunt: ask `next_range`, hand the page to `take`, until there is no range left."""

    def __init__(self, wanted: Iterable[Quarry]) -> None:
        self._ahead = sorted(wanted, key=lambda quarry: (quarry.bought_at, quarry.order_id))
        self._missed: list[Quarry] = []
        self._span: timedelta | None = None
        if len(self._ahead) < _WORTH_A_HUNT:
            self._give_up()

    @property
    def missed(self) -> Sequence[str]:
        """Ids that no page showed: to be fetched one by one."""
        return [quarry.order_id for quarry in self._missed]

    def next_range(self) -> Range | None:
        """Where the next page should start; None when no page is worth its request any more."""
        while self._ahead:
            if self._expected_on_a_page() >= _WORTH_A_PAGE:
                return Range(self._ahead[0].bought_at, self._ahead[-1].bought_at)
            self._missed.append(self._ahead.pop(0))
        return None

    def take(self, page: OrderPage) -> list[ListedOrder]:
        """Take a page; returns the wanted orders on it."""
        shown = {order.order_id: order for order in page.orders}
        found = [shown[quarry.order_id] for quarry in self._ahead if quarry.order_id in shown]
        times = [order.bought_at for order in page.orders if order.bought_at is not None]
        # Pages skip and repeat rows (#3740): one that is not full is the last one if it is hardly worth its request.
        is_full = len(page.orders) + len(page.unreadable) >= PAGE_SIZE
        if not times or not (is_full or len(found) >= _WORTH_A_PAGE):
            self._ahead = [quarry for quarry in self._ahead if quarry.order_id not in shown]
            self._give_up()
            return found
        end = max(times)
        self._span = max(end - min(times), timedelta(milliseconds=1))
        first = self._ahead[0]
        passed = [quarry for quarry in self._ahead if quarry.bought_at < end or quarry is first]
        self._missed += [quarry for quarry in passed if quarry.order_id not in shown]
        gone = {quarry.order_id for quarry in passed} | shown.keys()
        self._ahead = [quarry for quarry in self._ahead if quarry.order_id not in gone]
        return found

    def abandon(self) -> Sequence[str]:
        """End the hunt; returns the ids that have to be fetched one by one."""
        self._give_up()
        return self.missed

    def _expected_on_a_page(self) -> int:
        if self._span is None:
            return len(self._ahead)
        end = self._ahead[0].bought_at + self._span
        return sum(1 for quarry in self._ahead[:PAGE_SIZE] if quarry.bought_at <= end)

    def _give_up(self) -> None:
        self._missed += self._ahead
        self._ahead = []
