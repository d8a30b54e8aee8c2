"""Walking through a window of purchases, page by page, without ever meeting the 10,000-row limit. Pure.

Pages are asked for in ascending order of purchase; the next one starts at the last purchase time seen, not at a
growing offset, so there is no depth at which Allegro refuses (`offset + limit <= 10000`, #4027). The rows seen at
that very moment, nearly always one, are skipped by an offset: a page brings a hundred new orders. That is safe only
while nothing has vanished or come between the two answers, which their counts tell; if they do not fit together the
page is thrown away, and the moment is read again from its first row. If two answers agree that fewer rows are left
than were foreseen, the page before may have left one out and filled up behind it: the walk goes back to it, once.
Where a page is too large to be read, smaller ones are asked for, down to a single row, and this one is skipped as well
if it alone is too large.

No count is believed by itself: `totalCount` lies, and an answer may be wrongly empty with a count of 0 (#3740). What
a page counts beyond its own rows is remembered, and the list is at its end where two answers agree on it. Otherwise a
page is asked for again: lists skip and repeat rows (#3740, #3985). Its orders are numbered, in order of purchase, only
when the walk goes on behind it: what is stored of a walk has no holes, wherever it breaks off. What the walk has passed
it states as a covered range, so that stored orders that were not listed there can be looked at.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from shared.allegro.bodies import ListedOrder, OrderPage

PAGE_SIZE = 100
# Pages that repeat rows do so nearby: remembering this many ids recognises them with bounded memory.
_REMEMBERED_IDS = 1000
# A list that breaks off, and a page that lacks a few of its rows.
_LOOKS_AGAIN = 3
_SMALLER = 10
_LOOKS_AT_A_SHORT_PAGE = 2
# What a page may leave out and fill up behind; where a count says less by more than that, the list breaks off.
_FEW_ROWS = 10


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
    requested_at: datetime
    """When the page that showed it was asked for."""


@dataclass(frozen=True)
class _Row:
    order: ListedOrder
    requested_at: datetime


class Walk:
    """The state of one walk; `sequence` and `counted` let it go on where an earlier attempt was stored.

    `expected` is what an earlier attempt was told that there is, from the first order on.
    """

    def __init__(
        self,
        *,
        position: datetime,
        bought_to: datetime,
        sequence: int = 0,
        counted: Iterable[str] = (),
        expected: int | None = None,
    ) -> None:
        self._position = _whole_milliseconds(position)
        self._bought_to = bought_to
        self._offset = 0
        self._limit = PAGE_SIZE
        self._known: OrderedDict[str, None] = OrderedDict.fromkeys(counted)
        self._ended = position > bought_to
        self._skipped: set[str] = set()
        """The rows at the present position that the offset skips."""
        self._foreseen: int | None = None if expected is None else max(expected - sequence, 0) + len(self._known)
        """How many rows there are from the present position on, by what was counted before."""
        self._is_read_anew = False
        """The present position was asked for from its first row on, since its counts did not fit together."""
        self._before: datetime | None = None
        """The position before the present one."""
        self._furthest = self._position
        """Where the walk has gone back from."""
        self._fewer: int | None = None
        """What an answer has counted from the present position on, if it is less than was foreseen."""
        self._rows: dict[str, _Row] = {}
        """What the answers to the present request have shown, however often it was asked."""
        self._unreadable: set[bytes] = set()
        """Rows of it that nobody can read: there, all the same."""
        self._shown: dict[str, ListedOrder] = {}
        """What was shown from the present position on."""
        self._shown_since: datetime | None = None
        self._has_begun = False
        self.sequence = sequence
        self.pages = 0
        self.outside = 0
        """Orders that Allegro listed although they were not bought in the window asked for (#1895)."""
        self.expected: int | None = None
        self.withheld = 0
        """At the end: orders that Allegro has counted and does not list."""
        self.passed_over = 0
        """How often an order was not read, since it alone is larger than an answer may be."""
        self.looks_again = 0
        """How often in a row the present request was made again."""
        self.breaks_off = False
        """The last page showed nothing, or much less than there is: it may be whole after a while."""
        self.covered: Covered | None = None
        """The range that the last page completed, if it completed one."""

    def next_request(self) -> PageRequest | None:
        """What to ask for next; None at the end."""
        return None if self._ended else PageRequest(self._position, self._bought_to, self._offset, self._limit)

    def ask_for_less(self) -> None:
        """The answer was too large to be read: fewer orders next time, and at last go on behind the one that is."""
        if self._limit > 1:
            self._ask_anew(limit=self._limit // _SMALLER)
        else:
            self._offset += 1
            self._ask_anew()
            self.passed_over += 1

    def take(self, page: OrderPage) -> list[Met]:
        """Take a page; returns the orders that are the next ones of the walk."""
        self._expect(page)
        self.pages += 1
        self.covered = None
        self.breaks_off = False
        self._shown_since = self._shown_since or page.requested_at
        if self._has_shifted(page):
            self._read_anew(counted=page.total_count)
            return []
        if self._has_passed_a_row(page):
            self._go_back()
            return []
        self._rows |= {order.order_id: _Row(order, page.requested_at) for order in page.orders}
        self._unreadable.update(part.raw for part in page.unreadable)
        return self._move(page.total_count)

    def _expect(self, page: OrderPage) -> None:
        """The count of the first page that shows something."""
        if not self._has_begun and page.total_count is not None:
            self.expected = self.sequence + max(page.total_count - len(self._known), 0)
        self._has_begun = self._has_begun or bool(page.orders)

    def _has_shifted(self, page: OrderPage) -> bool:
        """Whether the offset may have skipped other rows than those that are known."""
        if self._offset == 0 or self._is_read_anew:
            return False
        total = page.total_count
        return (
            total is None
            or total < self._offset + len(page.orders)
            or (self._foreseen is not None and total != self._foreseen)
            or any(order.order_id in self._skipped for order in page.orders)
        )

    def _has_passed_a_row(self, page: OrderPage) -> bool:
        agrees = self._is_read_anew and self._fewer is not None and self._fewer == page.total_count
        return agrees and bool(page.orders) and self._before is not None and self._position > self._furthest

    def _go_back(self) -> None:
        self._furthest = self._position
        self._position = self._before or self._position
        self._before = None
        self._foreseen = None
        self._offset = 0
        self._is_read_anew = False
        self._ask_anew()

    def _read_anew(self, *, counted: int | None) -> None:
        lacking = 0 if counted is None or self._foreseen is None else self._foreseen - counted
        self._fewer = counted if 0 < lacking <= _FEW_ROWS else None
        self._is_read_anew = True
        self._offset = 0
        self._skipped = set()
        self._ask_anew()

    def _ask_anew(self, *, limit: int = PAGE_SIZE) -> None:
        """The next request is another one: what was shown in answer to the last says nothing about it."""
        self._limit = limit
        self.looks_again = 0
        self._rows = {}
        self._unreadable = set()

    def _move(self, total: int | None) -> list[Met]:
        """Go on, end, or ask again; a count that is a little off is common and means little by itself."""
        shown = len(self._rows) + len(self._unreadable)
        end = self._offset + shown
        foreseen = self._foreseen
        beyond = max(total or 0, foreseen or 0) - end
        if shown >= self._limit:
            return self._end() if total == end == foreseen else self._go_on(shown, counted=total)
        if total == end and (shown > 0 or foreseen is not None) and total >= (foreseen or 0):
            return self._end()
        is_much = beyond > PAGE_SIZE or (beyond > 0 and shown == 0)
        if self.looks_again < (_LOOKS_AGAIN if is_much else _LOOKS_AT_A_SHORT_PAGE):
            self.looks_again += 1
            self.breaks_off = is_much or shown == 0
            return []
        if self._latest() > self._position:
            return self._go_on(shown, counted=end + max(beyond, 0), is_certain=False)
        return self._end(withheld=beyond if is_much else 0)

    def _latest(self) -> datetime:
        """The latest moment that was shown, to the millisecond: Allegro is asked no closer."""
        inside = [row.order.bought_at for row in self._rows.values() if self._is_inside(row.order)]
        latest = max((moment for moment in inside if moment is not None), default=self._position)
        return _whole_milliseconds(latest)

    def _is_inside(self, order: ListedOrder) -> bool:
        return order.bought_at is None or self._position <= order.bought_at <= self._bought_to

    def _go_on(self, shown: int, *, counted: int | None, is_certain: bool = True) -> list[Met]:
        """Ask for what is behind these rows. Of `counted` rows from the present position on, some are passed now."""
        latest = self._latest()
        met = self._meet()
        end = self._offset + shown
        foreseen = counted if counted is not None and counted >= end else None
        if latest > self._position:
            here = {row.order.order_id for row in self._rows.values() if _is_since(row.order, latest)}
            self._foreseen = None if foreseen is None else foreseen - (end - len(here))
            self._cover(until=latest)
            self._before, self._position = self._position, latest
            self._is_read_anew = False
            self._skipped = here if is_certain and foreseen is not None else set()
            self._offset = len(self._skipped)
        else:
            self._foreseen = foreseen
            self._skipped |= self._rows.keys()
            self._offset = end
        self._ask_anew()
        return met

    def _end(self, *, withheld: int = 0) -> list[Met]:
        """A list that breaks off covers nothing."""
        met = self._meet()
        self._ended = True
        self.withheld = withheld
        if not withheld:
            self._cover(until=self._bought_to)
        return met

    def _meet(self) -> list[Met]:
        """Give numbers to the orders that are shown for the first time."""
        rows: Sequence[_Row] = sorted(self._rows.values(), key=lambda row: row.order.bought_at or self._position)
        met = []
        for row in rows:
            order = row.order
            self._shown[order.order_id] = order
            if order.order_id in self._known:
                self._known.move_to_end(order.order_id)
                continue
            self._known[order.order_id] = None
            if not self._is_inside(order):
                self.outside += 1
            met.append(Met(self.sequence, order, row.requested_at))
            self.sequence += 1
        while len(self._known) > _REMEMBERED_IDS:
            self._known.popitem(last=False)
        return met

    def _cover(self, *, until: datetime) -> None:
        if self._shown_since is not None:
            self.covered = Covered(self._position, until, tuple(self._shown), self._shown_since)
        self._shown = {order_id: order for order_id, order in self._shown.items() if _is_since(order, until)}
        self._shown_since = None


def _is_since(order: ListedOrder, moment: datetime) -> bool:
    return order.bought_at is not None and order.bought_at >= moment


def _whole_milliseconds(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
