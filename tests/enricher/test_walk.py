"""The walk meets every order of a simulated seller exactly once, however the list behaves."""

from dataclasses import replace
from datetime import datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.enricher.walk import Met, PageRequest, Walk
from shared.allegro.bodies import ListedOrder, OrderPage, UnreadableBodyError, UnreadablePart
from shared.messages import RawJson
from tests.builders import NOON, after

END = after(10_000)


class Shop:
    """The list endpoint over some orders: ascending by purchase, inclusive bounds, 10,000-row limit."""

    def __init__(self, bought: list[datetime]) -> None:
        self.orders = [
            ListedOrder(order_id=f"order-{number}", bought_at=moment, raw=RawJson(b"{}"))
            for number, moment in enumerate(sorted(bought))
        ]
        self.requests = 0

    def come(self, order_id: str, bought_at: datetime) -> None:
        self.orders.append(ListedOrder(order_id=order_id, bought_at=bought_at, raw=RawJson(b"{}")))
        self.orders.sort(key=lambda order: order.bought_at or NOON)

    def page(self, request: PageRequest) -> OrderPage:
        self.requests += 1
        assert request.offset + request.limit <= 10_000
        found = [
            order
            for order in self.orders
            if order.bought_at is not None and request.bought_from <= order.bought_at <= request.bought_to
        ]
        return OrderPage(
            orders=tuple(found[request.offset : request.offset + request.limit]),
            total_count=len(found),
            requested_at=NOON,
        )

    def walk(self, walk: Walk) -> list[Met]:
        met: list[Met] = []
        while (request := walk.next_request()) is not None:
            met += walk.take(self.page(request))
        return met


def a_walk() -> Walk:
    return Walk(position=NOON, bought_to=END)


@given(
    st.lists(st.integers(0, 9_000), max_size=450),
    st.integers(1, 200),
)
def test_every_order_is_met_once_in_sequence(seconds: list[int], crowd: int) -> None:
    shop = Shop([after(second) for second in seconds] + [after(5_000)] * crowd)

    met = shop.walk(a_walk())

    assert sorted(one.order.order_id for one in met) == sorted(order.order_id for order in shop.orders)
    assert [one.sequence for one in met] == list(range(len(shop.orders)))


@pytest.mark.parametrize("orders", [200, 1000, 5000, 20_000])
def test_a_walk_costs_a_request_for_a_hundred_orders_and_never_meets_the_row_limit(orders: int) -> None:
    shop = Shop([NOON + timedelta(milliseconds=10 * number) for number in range(orders)])

    met = shop.walk(a_walk())

    assert len(met) == orders
    assert shop.requests == orders / 100


@pytest.mark.parametrize("orders", [1001, 1050, 1099])
def test_the_last_page_need_not_be_full(orders: int) -> None:
    shop = Shop([after(number // 3) for number in range(orders)])

    met = shop.walk(a_walk())

    assert (len(met), shop.requests) == (orders, 11)


def test_a_resumed_walk_goes_on_where_it_is_stored() -> None:
    shop = Shop([after(number // 3) for number in range(600)])
    first = a_walk()
    met = [one for _ in range(3) for one in first.take(shop.page(first.next_request() or PageRequest(NOON, END, 0)))]
    assert len(met) == 300
    stored = met[:250]  # what the writer committed, before the crash
    position = max(one.order.bought_at for one in stored if one.order.bought_at)
    counted = [one.order.order_id for one in stored if one.order.bought_at == position]

    rest = shop.walk(Walk(position=position, bought_to=END, sequence=len(stored), counted=counted))

    everything = [one.order.order_id for one in stored + rest]
    assert sorted(everything) == sorted(order.order_id for order in shop.orders)
    assert [one.sequence for one in rest] == list(range(250, 600))


def test_an_order_that_vanishes_while_paging_hides_no_other() -> None:
    shop = Shop([after(number) for number in range(300)])
    walk = a_walk()
    met = walk.take(shop.page(PageRequest(NOON, END, 0)))
    del shop.orders[50]

    met += shop.walk(walk)

    assert {f"order-{number}" for number in range(300)} == {one.order.order_id for one in met}


def test_the_row_that_the_next_page_skips_may_vanish() -> None:
    """The offset skips another row then, which nobody has seen."""
    shop = Shop([after(number) for number in range(250)])
    walk = a_walk()
    met = walk.take(shop.page(PageRequest(NOON, END, 0)))
    del shop.orders[99]

    met += shop.walk(walk)

    assert [one.order.order_id for one in met] == [f"order-{number}" for number in range(250)]
    assert shop.requests <= 6


@given(
    slips=st.sets(st.integers(0, 5), max_size=6),
    place=st.integers(0, 99),
    crowd=st.integers(1, 5),
)
def test_a_row_that_a_full_page_leaves_out_is_met_all_the_same(slips: set[int], place: int, crowd: int) -> None:
    """The page is filled up behind it, so nothing but the next count tells; every fifth page may be such a one."""
    shop = Shop([after(number // crowd) for number in range(1000)])
    walk = a_walk()
    met: list[Met] = []
    while (request := walk.next_request()) is not None:
        page = shop.page(request)
        if shop.requests % 5 == 0 and shop.requests // 5 in slips:
            longer = shop.page(replace(request, limit=request.limit + 1))
            shop.requests -= 1
            rows = [order for number, order in enumerate(longer.orders) if number != place][: request.limit]
            page = replace(page, orders=tuple(rows))
        met += walk.take(page)

    assert sorted(one.order.order_id for one in met) == sorted(order.order_id for order in shop.orders)
    assert [one.sequence for one in met] == list(range(1000))
    assert shop.requests <= 11 + 5 * len(slips)


def test_rows_of_one_moment_may_change_places() -> None:
    """Some of them stand on one page and some on the next: which ones is up to Allegro."""
    shop = Shop([after(number) for number in range(95)] + [after(95)] * 10 + [after(200 + n) for n in range(50)])
    walk = a_walk()
    met = walk.take(shop.page(PageRequest(NOON, END, 0)))
    shop.orders[95:105] = reversed(shop.orders[95:105])

    met += shop.walk(walk)

    assert sorted(one.order.order_id for one in met) == sorted(order.order_id for order in shop.orders)


def test_a_lying_total_count_ends_no_walk_early() -> None:
    shop = Shop([after(number) for number in range(250)])
    walk = a_walk()
    met: list[Met] = []
    while (request := walk.next_request()) is not None:
        page = shop.page(request)
        met += walk.take(OrderPage(orders=page.orders, total_count=0, requested_at=NOON))

    assert len(met) == 250


def test_a_page_that_skips_rows_is_not_taken_for_the_last() -> None:
    shop = Shop([after(number) for number in range(250)])
    walk = a_walk()
    page = shop.page(PageRequest(NOON, END, 0))
    walk.take(OrderPage(orders=page.orders[:90], total_count=page.total_count, requested_at=NOON))

    met = shop.walk(walk)

    assert [one.order.order_id for one in met] == [order.order_id for order in shop.orders]
    assert [one.sequence for one in met] == list(range(250))


def test_orders_outside_of_the_window_are_noticed() -> None:
    walk = Walk(position=after(100), bought_to=after(200))
    shop = Shop([after(10), after(150)])

    walk.take(OrderPage(orders=tuple(shop.orders), total_count=2, requested_at=NOON))

    assert walk.outside == 1


def nothing(page: OrderPage, *, total: int | None = 0) -> OrderPage:
    """The page as Allegro shows it when it is out of sorts: empty, with a count of 0 or without one (#3740)."""
    return replace(page, orders=(), total_count=total)


@given(st.lists(st.integers(0, 9_000), min_size=100, max_size=450), st.sets(st.integers(1, 12), max_size=6), st.data())
def test_pages_that_break_off_now_and_then_hide_no_order(
    seconds: list[int], broken: set[int], data: st.DataObject
) -> None:
    shop = Shop([after(second) for second in seconds])
    walk = a_walk()
    met: list[Met] = []
    in_a_row = 0
    while (request := walk.next_request()) is not None:
        page = shop.page(request)
        in_a_row = in_a_row + 1 if shop.requests in broken else 0
        if 0 < in_a_row <= 2:
            page = nothing(page, total=data.draw(st.sampled_from([0, None, page.total_count])))
        met += walk.take(page)

    assert [one.order for one in met] == shop.orders
    assert [one.sequence for one in met] == list(range(len(shop.orders)))
    assert walk.withheld == 0


@pytest.mark.parametrize("total", [0, None, 401])
@pytest.mark.parametrize("since", [2, 3, 5])
def test_a_list_that_breaks_off_for_good_is_asked_again_and_is_not_taken_for_complete(
    total: int | None, since: int
) -> None:
    shop = Shop([after(number) for number in range(500)])
    walk = a_walk()
    met: list[Met] = []
    covered = None
    while (request := walk.next_request()) is not None:
        page = shop.page(request)
        met += walk.take(page if shop.requests < since else nothing(page, total=total))
        covered = walk.covered or covered

    assert len(met) == 100 * (since - 1)
    assert walk.withheld > 0
    assert covered is not None
    assert covered.bought_until == met[-1].order.bought_at


@pytest.mark.parametrize("orders", [105, 150, 199])
def test_a_list_that_hides_its_last_few_orders_is_not_taken_for_complete(orders: int) -> None:
    """However few: an empty page does not even show the order that it should begin with."""
    shop = Shop([after(number) for number in range(orders)])
    walk = a_walk()
    met: list[Met] = []
    while (request := walk.next_request()) is not None:
        page = shop.page(request)
        met += walk.take(page if shop.requests == 1 else nothing(page))

    assert (len(met), walk.withheld) == (100, orders - 99)


def test_a_first_page_that_is_empty_is_asked_for_again() -> None:
    shop = Shop([after(number) for number in range(30)])
    walk = a_walk()
    met: list[Met] = []
    while (request := walk.next_request()) is not None:
        page = shop.page(request)
        met += walk.take(page if shop.requests == 3 else nothing(page))

    assert (len(met), walk.expected, walk.withheld) == (30, 30, 0)


def test_a_seller_without_an_order_is_done_after_three_looks() -> None:
    shop = Shop([])

    met = shop.walk(walk := a_walk())

    assert (met, shop.requests, walk.expected, walk.withheld) == ([], 3, 0, 0)
    assert walk.covered is not None


def test_a_resumed_walk_does_not_end_where_its_first_page_is_empty() -> None:
    shop = Shop([after(number) for number in range(250)])
    walk = Walk(position=after(99), bought_to=END, sequence=100, counted=["order-99"], expected=250)
    while (request := walk.next_request()) is not None:
        walk.take(nothing(shop.page(request)))

    assert walk.withheld == 151


def test_a_small_lie_about_the_count_ends_a_walk_all_the_same() -> None:
    shop = Shop([after(number) for number in range(250)])
    walk = a_walk()
    met: list[Met] = []
    while (request := walk.next_request()) is not None:
        page = shop.page(request)
        met += walk.take(replace(page, total_count=(page.total_count or 0) + 7))

    assert (len(met), walk.withheld) == (250, 0)
    assert walk.covered is not None
    assert walk.covered.bought_until == END


@given(
    st.lists(st.integers(0, 40), min_size=150, max_size=450),
    st.dictionaries(st.integers(1, 20), st.integers(0, 460), max_size=8),
    st.dictionaries(st.integers(1, 20), st.integers(0, 40), max_size=4),
)
def test_orders_that_vanish_or_come_while_paging_hide_none_of_the_others(
    seconds: list[int], vanishing: dict[int, int], coming: dict[int, int]
) -> None:
    """Many share a moment; of one page and the next, something either vanishes or comes."""
    shop = Shop([after(second) for second in seconds])
    there = {order.order_id for order in shop.orders}
    walk = a_walk()
    met: list[Met] = []
    while (request := walk.next_request()) is not None:
        if shop.requests in coming:
            shop.come(f"late-{shop.requests}", after(coming[shop.requests]))
        elif shop.requests in vanishing and vanishing[shop.requests] < len(shop.orders):
            there.discard(shop.orders.pop(vanishing[shop.requests]).order_id)
        met += walk.take(shop.page(request))

    ids = [one.order.order_id for one in met]
    assert there <= set(ids)
    assert len(ids) == len(set(ids))
    assert walk.withheld == 0
    assert [one.sequence for one in met] == list(range(len(met)))


@given(st.lists(st.integers(0, 9_000), min_size=120, max_size=450), st.integers(0, 449), st.randoms())
def test_wherever_a_walk_breaks_off_the_next_attempt_leaves_no_hole(
    seconds: list[int], stored: int, chance: Random
) -> None:
    """Although pages skip rows and repeat them: what has a number is stored up to some number."""
    shop = Shop([after(second) for second in seconds])
    first = falsified(shop, a_walk(), chance)[:stored]
    position = max((one.order.bought_at for one in first if one.order.bought_at), default=NOON)
    counted = [one.order.order_id for one in first if one.order.bought_at == position]

    rest = shop.walk(Walk(position=position, bought_to=END, sequence=len(first), counted=counted))

    met = [one.order.order_id for one in first + rest]
    assert sorted(met) == sorted(order.order_id for order in shop.orders)


def falsified(shop: Shop, walk: Walk, chance: Random) -> list[Met]:
    """What the walk meets if every other page lacks a row, but is whole when it is asked for again."""
    met: list[Met] = []
    while (request := walk.next_request()) is not None:
        page = shop.page(request)
        if page.orders and walk.looks_again == 0 and chance.random() < 0.5:
            missing = chance.randrange(len(page.orders))
            page = replace(page, orders=page.orders[:missing] + page.orders[missing + 1 :])
        met += walk.take(page)
    return met


def test_an_order_that_nobody_can_read_is_passed_like_any_other() -> None:
    shop = Shop([after(number) for number in range(250)])
    walk = a_walk()
    met: list[Met] = []
    while (request := walk.next_request()) is not None:
        page = shop.page(request)
        readable = tuple(order for order in page.orders if order.order_id not in {"order-50", "order-99", "order-200"})
        odd = {order.order_id for order in page.orders} - {order.order_id for order in readable}
        unreadable = tuple(UnreadablePart(identifier.encode(), UnreadableBodyError("odd")) for identifier in odd)
        met += walk.take(replace(page, orders=readable, unreadable=unreadable))

    assert (len(met), walk.withheld) == (247, 0)
    assert shop.requests <= 5


def test_a_page_that_is_too_large_is_asked_for_in_smaller_pieces_and_one_order_is_passed_over_at_last() -> None:
    walk = Walk(position=NOON, bought_to=after(60))
    limits = []
    for _ in range(3):
        request = walk.next_request()
        assert request is not None
        limits.append(request.limit)
        walk.ask_for_less()

    request = walk.next_request()

    assert limits == [100, 10, 1]
    assert request is not None
    assert (request.bought_from, request.offset, request.limit) == (NOON, 1, 100)
    assert walk.passed_over == 1


def walked(shop: Shop, walk: Walk, *, most: int, sizes: dict[str, int]) -> list[Met]:
    """What the walk meets where an answer cannot be read whose orders are larger than `most` together."""
    met: list[Met] = []
    while (request := walk.next_request()) is not None:
        page = shop.page(request)
        if sum(sizes.get(order.order_id, 1) for order in page.orders) > most:
            walk.ask_for_less()
        else:
            met += walk.take(page)
    return met


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=250),
    st.dictionaries(st.integers(0, 249), st.sampled_from([30, 150]), max_size=8),
)
def test_orders_that_are_too_large_to_be_read_hide_none_of_the_others(
    seconds: list[int], large: dict[int, int]
) -> None:
    """Many share a moment; some are read only among few others, some cannot be read at all."""
    shop = Shop([after(second) for second in seconds])
    sizes = {f"order-{number}": size for number, size in large.items() if number < len(seconds)}
    never = {order_id for order_id, size in sizes.items() if size > 120}
    walk = a_walk()

    met = walked(shop, walk, most=120, sizes=sizes)

    ids = [one.order.order_id for one in met]
    assert sorted(ids) == sorted({order.order_id for order in shop.orders} - never)
    assert [one.sequence for one in met] == list(range(len(met)))
    assert (walk.passed_over >= len(never), walk.passed_over > 0) == (True, bool(never))
    assert walk.withheld == 0


def test_a_small_page_that_skips_rows_is_asked_for_again_as_small() -> None:
    shop = Shop([after(number) for number in range(30)])
    walk = a_walk()
    walk.ask_for_less()
    request = walk.next_request()
    assert request is not None
    page = shop.page(request)

    met = walk.take(replace(page, orders=page.orders[:8]))

    assert (met, walk.next_request()) == ([], request)
    met = walk.take(page)
    again = walk.next_request()
    assert again is not None
    assert (len(met), again.offset, again.limit) == (10, 1, 100)


def test_what_was_shown_in_answer_to_a_larger_request_is_no_page_of_a_smaller_one() -> None:
    """A page that lacks rows, then one that is too large: the rows that were lacking are not passed."""
    shop = Shop([after(number) for number in range(250)])
    walk = a_walk()
    page = shop.page(PageRequest(NOON, END, 0))
    walk.take(replace(page, orders=page.orders[:20] + page.orders[30:]))
    walk.ask_for_less()

    met = shop.walk(walk)

    assert [one.order for one in met] == shop.orders


def test_an_order_that_vanishes_before_one_that_is_passed_over_hides_no_other() -> None:
    shop = Shop([after(number) for number in range(300)])
    walk = a_walk()
    met = walk.take(shop.page(PageRequest(NOON, END, 0)))
    for _ in range(3):
        walk.ask_for_less()
    del shop.orders[99]

    met += walked(shop, walk, most=100, sizes={"order-100": 101})

    assert {f"order-{number}" for number in range(300)} - {"order-100"} == {one.order.order_id for one in met}


def test_an_order_alone_that_is_too_large_ends_a_walk() -> None:
    shop = Shop([NOON])
    walk = a_walk()

    met = walked(shop, walk, most=0, sizes={})

    assert (met, walk.passed_over, walk.withheld) == ([], 1, 0)
