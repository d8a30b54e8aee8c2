"""The walk meets every order of a simulated seller exactly once, however the list behaves."""

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.enricher.walk import PAGE_SIZE, Met, PageRequest, Walk
from shared.allegro.bodies import ListedOrder, OrderPage
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

    def page(self, request: PageRequest) -> OrderPage:
        self.requests += 1
        assert request.offset + PAGE_SIZE <= 10_000
        found = [
            order
            for order in self.orders
            if order.bought_at is not None and request.bought_from <= order.bought_at <= request.bought_to
        ]
        return OrderPage(
            orders=tuple(found[request.offset : request.offset + PAGE_SIZE]), total_count=len(found), requested_at=NOON
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


def test_a_large_shop_costs_one_request_for_99_orders_and_never_meets_the_row_limit() -> None:
    shop = Shop([NOON + timedelta(milliseconds=10 * number) for number in range(20_000)])

    met = shop.walk(Walk(position=NOON, bought_to=END))

    assert len(met) == 20_000
    assert shop.requests <= 0.011 * 20_000


def test_a_resumed_walk_goes_on_where_it_is_stored() -> None:
    shop = Shop([after(number // 3) for number in range(600)])
    first = a_walk()
    met = [one for _ in range(3) for one in first.take(shop.page(first.next_request() or PageRequest(NOON, END, 0)))]
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

    assert len(shop.walk(walk)) == 160


def test_orders_outside_of_the_window_are_noticed() -> None:
    walk = Walk(position=after(100), bought_to=after(200))
    shop = Shop([after(10), after(150)])

    walk.take(OrderPage(orders=tuple(shop.orders), total_count=2, requested_at=NOON))

    assert walk.outside == 1


@given(st.lists(st.integers(0, 9_000), min_size=300, max_size=450), st.sets(st.integers(1, 12), max_size=6))
def test_pages_that_break_off_now_and_then_hide_no_order(seconds: list[int], broken: set[int]) -> None:
    shop = Shop([after(second) for second in seconds])
    walk = a_walk()
    met: list[Met] = []
    in_a_row = 0
    while (request := walk.next_request()) is not None:
        page = shop.page(request)
        in_a_row = in_a_row + 1 if shop.requests in broken else 0
        if 0 < in_a_row <= 3:
            page = OrderPage(orders=(), total_count=page.total_count, requested_at=NOON)
        met += walk.take(page)
    # Less than a page more than is shown may be a count that is a little off.
    shown = {one.order.order_id for one in met}
    assert len(shop.orders) - len(shown) <= PAGE_SIZE
    assert walk.withheld == 0


def test_a_list_that_breaks_off_for_good_is_asked_again_and_is_not_taken_for_complete() -> None:
    shop = Shop([after(number) for number in range(500)])
    walk = a_walk()
    met = walk.take(shop.page(PageRequest(NOON, END, 0)))
    while walk.next_request() is not None:
        met += walk.take(OrderPage(orders=(), total_count=401, requested_at=NOON))

    assert (len(met), walk.pages, walk.withheld) == (100, 5, 401)


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
