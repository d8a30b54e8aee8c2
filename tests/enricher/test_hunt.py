"""Fetching an old backlog by list pages: everything is found or named as missed, at a bounded price."""

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.enricher.hunt import PAGE_SIZE, Hunt, Quarry, Range
from shared.allegro.bodies import ListedOrder, OrderPage
from shared.messages import RawJson
from tests.builders import NOON


def a_shop(orders: int) -> list[ListedOrder]:
    return [
        ListedOrder(order_id=f"order-{number}", bought_at=NOON + timedelta(seconds=number), raw=RawJson(b"{}"))
        for number in range(orders)
    ]


def hunt_down(shop: list[ListedOrder], wanted: list[Quarry]) -> tuple[set[str], set[str], int]:
    """Run a hunt over a shop; returns what was found, what was missed, and the requests it took."""
    hunt = Hunt(wanted)
    found: set[str] = set()
    requests = 0
    while (where := hunt.next_range()) is not None:
        requests += 1
        found |= {order.order_id for order in hunt.take(a_page(shop, where))}
    return found, set(hunt.missed), requests


def a_page(shop: list[ListedOrder], where: Range) -> OrderPage:
    listed = [order for order in shop if order.bought_at and where.bought_from <= order.bought_at <= where.bought_to]
    return OrderPage(orders=tuple(listed[:PAGE_SIZE]), total_count=len(listed), requested_at=NOON)


def quarries(numbers: set[int]) -> list[Quarry]:
    return [Quarry(f"order-{number}", NOON + timedelta(seconds=number)) for number in numbers]


@given(wanted=st.sets(st.integers(0, 1999), max_size=150), hidden=st.sets(st.integers(0, 1999), max_size=300))
def test_every_wanted_order_is_found_or_missed_and_never_both(wanted: set[int], hidden: set[int]) -> None:
    shop = [order for order in a_shop(2000) if int(order.order_id.removeprefix("order-")) not in hidden]

    found, missed, requests = hunt_down(shop, quarries(wanted))

    assert found | missed == {f"order-{number}" for number in wanted}
    assert not found & missed
    # Each page settles one of them at least, and none is asked for unless it could show two.
    assert requests < max(len(wanted), 1)


def test_a_dense_backlog_costs_one_request_for_a_hundred_orders() -> None:
    found, missed, requests = hunt_down(a_shop(1000), quarries(set(range(1000))))

    assert (len(found), len(missed)) == (1000, 0)
    assert requests <= 11


@given(skipped=st.sets(st.integers(0, 9), max_size=10))
def test_pages_that_skip_a_row_end_no_hunt(skipped: set[int]) -> None:
    """What was skipped is fetched by itself, and nothing else."""
    shop = a_shop(1000)
    hunt = Hunt(quarries(set(range(1000))))
    found: set[str] = set()
    hidden: set[str] = set()
    requests = 0
    while (where := hunt.next_range()) is not None:
        page = a_page(shop, where)
        if requests in skipped:
            lost = page.orders[len(page.orders) // 2]
            hidden.add(lost.order_id)
            page = replace(page, orders=tuple(order for order in page.orders if order is not lost))
        requests += 1
        found |= {order.order_id for order in hunt.take(page)}

    assert set(hunt.missed) <= hidden
    assert found | set(hunt.missed) == {order.order_id for order in shop}
    assert requests <= 12


def test_a_sparse_backlog_is_not_hunted_page_by_page() -> None:
    found, missed, requests = hunt_down(a_shop(20_000), quarries(set(range(0, 20_000, 1000))))

    assert requests <= 2
    assert len(found) + len(missed) == 20


def test_a_handful_is_fetched_singly() -> None:
    assert hunt_down(a_shop(10), quarries({1, 2, 3})) == (set(), {"order-1", "order-2", "order-3"}, 0)


def test_an_abandoned_hunt_misses_all_that_it_did_not_find() -> None:
    hunt = Hunt(quarries(set(range(10))))

    assert set(hunt.abandon()) == {f"order-{number}" for number in range(10)}
    assert hunt.next_range() is None
