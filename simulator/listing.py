"""The list of orders: filters, sorting, pages (section 4). Works on numbers; only the page's rows are written out."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from simulator.clock import parse_iso
from simulator.timeline import FULFILLMENT, STATUSES
from simulator.world import Order, Seller

WINDOW: Final = 10_000
_SORTS: Final = ("lineItems.boughtAt", "-lineItems.boughtAt", "updatedAt", "-updatedAt")
# Documented filters that are rare enough to look into the bodies.
_BODY_FILTERS: Final[Mapping[str, tuple[str, ...]]] = {
    "fulfillment.provider.id": ("fulfillment", "provider", "id"),
    "fulfillment.shipmentSummary.lineItemsSent": ("fulfillment", "shipmentSummary", "lineItemsSent"),
    "payment.id": ("payment", "id"),
    "delivery.method.id": ("delivery", "method", "id"),
    "buyer.login": ("buyer", "login"),
    "marketplace.id": ("marketplace", "id"),
}
_FOREVER: Final = 1 << 62


class BadQueryError(Exception):
    """A parameter that Allegro refuses; `status` and `code` say how."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Query:
    offset: int = 0
    limit: int = 100
    bought_from: int = 0
    bought_to: int = _FOREVER
    updated_from: int = 0
    updated_to: int = _FOREVER
    status: str | None = None
    fulfillment: str | None = None
    sort: str = "-lineItems.boughtAt"
    in_body: tuple[tuple[tuple[str, ...], str], ...] = ()

    def longer(self) -> "Query":
        """The same with one more row."""
        return replace(self, limit=self.limit + 1)

    @property
    def by_purchase_only(self) -> bool:
        """Whether purchase times alone decide what is on the page, so that nothing has to be looked at."""
        return (
            self.status is None
            and self.fulfillment is None
            and self.updated_from == 0
            and self.updated_to == _FOREVER
            and not self.in_body
            and self.sort.endswith("boughtAt")
        )


def read_query(parameters: Mapping[str, str]) -> Query:
    """Read the parameters; those that Allegro does not know are ignored (#12248). Raises BadQueryError.

    Time ranges include both ends, as the names say; Allegro has not confirmed it. What it makes of an unknown status
    is not known: here nothing has it.
    """
    offset = _whole(parameters, "offset", 0, 0, None)
    limit = _whole(parameters, "limit", 100, 1, 100)
    if offset + limit > WINDOW:
        raise BadQueryError(
            422, "VALIDATION_ERROR", "Offset and limit parameters exceed maximal result size of 10000 items"
        )
    sort = parameters.get("sort", "-lineItems.boughtAt")
    if sort not in _SORTS:
        raise BadQueryError(422, "VALIDATION_ERROR", f"Unsupported sort: {sort}")
    return Query(
        offset=offset,
        limit=limit,
        bought_from=_time(parameters, "lineItems.boughtAt.gte", 0),
        bought_to=_time(parameters, "lineItems.boughtAt.lte", _FOREVER),
        updated_from=_time(parameters, "updatedAt.gte", 0),
        updated_to=_time(parameters, "updatedAt.lte", _FOREVER),
        status=parameters.get("status"),
        fulfillment=parameters.get("fulfillment.status"),
        sort=sort,
        in_body=tuple((path, parameters[name]) for name, path in _BODY_FILTERS.items() if name in parameters),
    )


def _whole(parameters: Mapping[str, str], name: str, default: int, least: int, most: int | None) -> int:
    text = parameters.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.removeprefix("-").isdigit() or len(text) > 12:
        raise BadQueryError(422, "VALIDATION_ERROR", f"{name} must be a number")
    number = int(text)
    if number < least or (most is not None and number > most):
        raise BadQueryError(422, "VALIDATION_ERROR", f"{name} is out of range")
    return number


def _time(parameters: Mapping[str, str], name: str, default: int) -> int:
    """ISO 8601 in UTC with `Z`, milliseconds at most (#10170); anything else is the generic error (#2347, #2948)."""
    text = parameters.get(name)
    if text is None:
        return default
    fraction = text.partition(".")[2]
    try:
        if not text.endswith("Z") or "T" not in text or len(fraction) > 4:
            raise ValueError(text)
        return parse_iso(text)
    except ValueError:
        raise BadQueryError(400, "ERROR", "An error has occurred") from None


class Row(NamedTuple):
    """An order of the list: of the past or of this run."""

    bought_ms: int
    live: bool
    number: int


@dataclass(frozen=True, slots=True)
class Page:
    rows: Sequence[Row]
    total: int


def page(seller: Seller, query: Query, oldest_ms: int, as_of_ms: int | None = None) -> Page:
    """One page. `oldest_ms` is where Allegro's memory ends; `as_of_ms` shows the list as it was."""
    visible = _Visible(seller, max(query.bought_from, oldest_ms), query.bought_to, as_of_ms)
    if query.by_purchase_only:
        descending = query.sort.startswith("-")
        return Page(visible.slice(query.offset, query.limit, descending), visible.total)
    rows = [row for row in visible.ascending() if _matches(seller, row, query, as_of_ms)]
    rows.sort(key=_sort_key(seller, query, as_of_ms), reverse=query.sort.startswith("-"))
    return Page(rows[query.offset : query.offset + query.limit], len(rows))


class _Visible:
    """The orders bought in a time range, in order of purchase, without making a list of the past ones."""

    def __init__(self, seller: Seller, from_ms: int, to_ms: int, as_of_ms: int | None) -> None:
        history = seller.history
        self._history = history
        self._first = history.first_at_or_after(from_ms)
        self._end = max(self._first, history.first_at_or_after(to_ms + 1))
        gone = seller.gone
        if as_of_ms is not None and gone:
            gone = [number for number in gone if (seller.changed[number].gone_ms or 0) <= as_of_ms]
        self._gone = gone[bisect_left(gone, self._first) : bisect_left(gone, self._end)]
        low = bisect_left(seller.by_time, (from_ms, -1))
        high = bisect_right(seller.by_time, (to_ms, _FOREVER))
        self._live: Sequence[tuple[int, int]] = (
            seller.by_time[low:high] if low or high < len(seller.by_time) else (seller.by_time)
        )
        if as_of_ms is not None:
            self._live = _live_as_of(seller, from_ms, to_ms, as_of_ms)
        self._past = self._end - self._first - len(self._gone)

    @property
    def total(self) -> int:
        return self._past + len(self._live)

    def slice(self, offset: int, limit: int, descending: bool) -> list[Row]:
        """Rows `offset` to `offset + limit` in either direction."""
        total = self.total
        start, end = min(offset, total), min(offset + limit, total)
        if descending:
            start, end = total - end, total - start
        rows = list(self._between(start, end))
        return rows[::-1] if descending else rows

    def ascending(self) -> Iterator[Row]:
        return self._between(0, self.total)

    def _between(self, start: int, end: int) -> Iterator[Row]:
        if self._follow_each_other():
            past = self._past_rows(min(start, self._past), min(end, self._past))
            live = self._live[max(0, start - self._past) : max(0, end - self._past)]
            yield from past
            yield from _live_rows(live)
        else:
            yield from islice(merge(self._past_rows(0, self._past), _live_rows(self._live)), start, end)

    def _follow_each_other(self) -> bool:
        """Usually whatever happens now is younger than the past."""
        return not self._live or not self._past or self._history.bought_ms(self._end - 1) < self._live[0][0]

    def _past_rows(self, start: int, end: int) -> Iterator[Row]:
        bought_ms = self._history.bought_ms
        if not self._gone:
            return (Row(bought_ms(n), False, n) for n in range(self._first + start, self._first + end))
        gone = frozenset(self._gone)
        there = (number for number in range(self._first, self._end) if number not in gone)
        return (Row(bought_ms(n), False, n) for n in islice(there, start, end))


def _live_rows(pairs: Iterable[tuple[int, int]]) -> Iterator[Row]:
    return (Row(bought_ms, True, number) for bought_ms, number in pairs)


def _live_as_of(seller: Seller, from_ms: int, to_ms: int, as_of_ms: int) -> list[tuple[int, int]]:
    """The live orders as the list showed them then: not yet the new ones, still the ones merged since."""
    return sorted(
        (order.form.bought_ms, number)
        for number, order in seller.live.items()
        if order.created_ms <= as_of_ms
        and (order.gone_ms is None or order.gone_ms > as_of_ms)
        and from_ms <= order.form.bought_ms <= to_ms
    )


def row_order(seller: Seller, row: Row) -> Order:
    return seller.order(row.number, row.live)


class _Looked(NamedTuple):
    status: str
    fulfillment: str
    updated_ms: int


def _look(seller: Seller, row: Row, as_of_ms: int | None) -> _Looked:
    if row.live or row.number in seller.changed:
        state = seller.state(row_order(seller, row), as_of_ms)
        return _Looked(state.status, state.fulfillment, state.updated_ms)
    columns = seller.history.columns
    return _Looked(
        STATUSES[columns.statuses[row.number]],
        FULFILLMENT[columns.fulfillments[row.number]],
        columns.updated_ms[row.number],
    )


def _matches(seller: Seller, row: Row, query: Query, as_of_ms: int | None) -> bool:
    looked = _look(seller, row, as_of_ms)
    return (
        (query.status is None or looked.status == query.status)
        and (query.fulfillment is None or looked.fulfillment == query.fulfillment)
        and query.updated_from <= looked.updated_ms <= query.updated_to
        and (not query.in_body or _matches_body(seller, row, query, as_of_ms))
    )


def _matches_body(seller: Seller, row: Row, query: Query, as_of_ms: int | None) -> bool:
    body = msgspec.json.decode(seller.body(row_order(seller, row), as_of_ms))
    for path, wanted in query.in_body:
        value = body
        for name in path:
            value = value[name]
        if value != wanted:
            return False
    return True


def _sort_key(seller: Seller, query: Query, as_of_ms: int | None) -> Callable[[Row], tuple[int, ...]]:
    if query.sort.endswith("boughtAt"):
        return lambda row: tuple(row)
    return lambda row: (_look(seller, row, as_of_ms).updated_ms, *row)
