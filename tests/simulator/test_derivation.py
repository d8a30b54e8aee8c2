"""The pure parts: what is derived is the same every time, and leads back to where it came from."""

import json
import uuid
from bisect import bisect_left
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import identity, listing, timeline
from simulator.clock import DAY_MS, ManualClock, iso, parse_iso
from simulator.faults import Faults
from simulator.history import History
from simulator.identity import Ids
from simulator.listing import BadQueryError, Query, read_query
from simulator.orders import Form, Shelf
from simulator.settings import Settings
from simulator.template import HOLE, TEXT, Template
from simulator.world import Seller, World

EPOCH_MS = 1_791_670_000_000
MILLISECONDS = st.integers(min_value=1_500_000_000_000, max_value=2_000_000_000_000)
ROLLS = st.binary(min_size=32, max_size=32)
SELLERS = st.integers(min_value=0, max_value=identity.MAX_SELLERS - 1)


def a_world(**settings: object) -> World:
    chosen = Settings(**{"sellers": 1, "history_orders": 300, **settings})  # type: ignore[arg-type]
    return World(chosen, ManualClock(EPOCH_MS * 1000), Faults(chosen.seed), EPOCH_MS)


@given(at_ms=MILLISECONDS)
def test_times_are_written_as_iso_and_read_back(at_ms: int) -> None:
    written = iso(at_ms)

    assert parse_iso(written) == at_ms
    assert written == datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


@given(seller=SELLERS, number=st.integers(0, 8_000_000), live=st.booleans(), bought_ms=MILLISECONDS)
def test_an_orders_id_is_a_time_uuid_that_tells_its_origin(
    seller: int, number: int, live: bool, bought_ms: int
) -> None:
    form = Ids(seller, number, live, bought_ms).form().decode()

    assert uuid.UUID(form).version == 1
    assert identity.is_time_uuid(form)
    assert identity.origin(form) == (seller, live, bought_ms, number)


@given(text=st.one_of(st.uuids(version=4).map(str), st.text(max_size=40)))
def test_other_ids_are_no_time_uuids(text: str) -> None:
    assert not identity.is_time_uuid(text)


@given(roll=ROLLS, bought_ms=MILLISECONDS)
def test_a_life_begins_with_the_purchase_and_goes_forward(roll: bytes, bought_ms: int) -> None:
    steps = timeline.plan(roll, bought_ms)
    times = [at_ms for _, at_ms in steps]

    assert steps[0] == (timeline.BOUGHT, bought_ms)
    assert times == sorted(times)
    assert times[-1] - bought_ms <= timeline.LONGEST_LIFE_MS


@given(roll=ROLLS)
def test_updated_at_is_blind_to_the_seller(roll: bytes) -> None:
    steps = timeline.plan(roll, EPOCH_MS)
    told = timeline.story(roll)

    for end in range(1, len(steps)):
        before, after = (timeline.state_of(steps[:length], told) for length in (end, end + 1))
        if timeline.event_type(steps[end][0]) == timeline.FULFILLMENT_CHANGED:
            assert after.updated_ms == before.updated_ms
            assert after.changes == before.changes + 1
        else:
            assert after.updated_ms == steps[end][1]


@given(roll=ROLLS)
def test_cash_orders_are_never_filled_in(roll: bytes) -> None:
    kinds = [kind for kind, _ in timeline.plan(roll, EPOCH_MS)]

    assert timeline.story(roll).cash == (timeline.FILLED_IN not in kinds and timeline.READY in kinds)


@given(roll=ROLLS, seller=SELLERS, number=st.integers(0, 1000))
def test_an_address_comes_when_the_order_is_ready(roll: bytes, seller: int, number: int) -> None:
    shelf = Shelf(1, seller)
    facts = shelf.facts(Form(number, False, EPOCH_MS))
    steps = timeline.plan(facts.roll, EPOCH_MS)

    for end in range(1, len(steps) + 1):
        body = json.loads(shelf.order_body(facts, timeline.state_of(steps[:end], facts.story)))
        ready = any(kind == timeline.READY for kind, _ in steps[:end])
        assert (body["delivery"]["address"] is not None) == ready
        assert (body["payment"]["finishedAt"] is not None) == ready


@given(number=st.integers(0, 10_000), future=st.sampled_from([0.0, 1.0]))
def test_bodies_are_json_with_amounts_as_text(number: int, future: float) -> None:
    shelf = Shelf(1, 5, future)
    facts = shelf.facts(Form(number, False, EPOCH_MS))
    body = json.loads(shelf.order_body(facts, timeline.state_of(timeline.plan(facts.roll, EPOCH_MS), facts.story)))

    assert ("futureField" in body) == (future == 1.0)
    assert isinstance(body["summary"]["totalToPay"]["amount"], str)
    assert max(line["boughtAt"] for line in body["lineItems"]) == iso(EPOCH_MS)
    ids = [body["id"], body["payment"]["id"], *(line["id"] for line in body["lineItems"])]
    assert len(set(ids)) == len(ids)
    assert all(identity.is_time_uuid(one) for one in ids)


@given(orders=st.integers(1, 500), days=st.floats(1, 500), seller=st.integers(0, 300))
def test_orders_of_the_past_are_found_by_time_and_by_id(orders: int, days: float, seller: int) -> None:
    shelf = Shelf(1, seller)
    history = History(shelf, orders, days, EPOCH_MS)
    times = [history.bought_ms(number) for number in range(orders)]

    assert times == sorted(set(times))
    assert times[-1] < history.horizon_ms
    for number in range(0, orders, 7):
        assert history.first_at_or_after(times[number]) == number
        assert history.first_at_or_after(times[number] + 1) == bisect_left(times, times[number] + 1)
        form = shelf.ids(history.form(number)).form().decode()
        assert history.number_of(form) == number
        assert History(Shelf(1, seller + 1), orders, days, EPOCH_MS).number_of(form) is None


def test_nothing_of_the_past_happens_after_its_horizon() -> None:
    world = a_world(history_orders=2000, history_days=20.0)
    seller = world.sellers[0]
    steps = [step for number in range(2000) for step in seller.order(number, False).steps]

    assert max(at_ms for _, at_ms in steps) <= seller.history.horizon_ms
    latest = seller.journal.latest()
    assert latest is not None
    assert latest[0] < EPOCH_MS * 1000


def test_equal_seeds_and_epochs_have_equal_pasts_and_others_have_not() -> None:
    def past(seed: int) -> list[bytes]:
        seller = a_world(seed=seed).sellers[0]
        events = [seller.event_body(event_id, entry) for event_id, entry in seller.journal.after(0)]
        return [seller.body(seller.order(number, False)) for number in range(300)] + events

    assert past(1) == past(1)
    assert past(1) != past(2)


def mixed_seller() -> tuple[World, Seller, list[tuple[int, bytes]]]:
    """Orders of the past, new ones, new ones with old purchases, merged ones; and what should be listed."""
    world = a_world(history_days=30.0)
    seller = world.sellers[0]
    now_us = world.now_us()
    made = [world.buy(seller, now_us, EPOCH_MS - number * DAY_MS) for number in range(20)]
    made += [world.buy(seller, now_us, EPOCH_MS - 5 * DAY_MS) for _ in range(10)]
    world.merge(seller, made[3:5], now_us)
    orders = [seller.order(number, False) for number in range(300)]
    orders += [order for order in seller.live.values() if order.gone_ms is None]
    return world, seller, sorted((order.form.bought_ms, seller.body(order)) for order in orders)


def test_pages_of_any_size_and_direction_add_up_to_all_orders() -> None:
    world, seller, expected = mixed_seller()

    for sort in ("lineItems.boughtAt", "-lineItems.boughtAt"):
        for limit in (7, 100):
            rows: list[listing.Row] = []
            for offset in range(0, 400, limit):
                rows += listing.page(seller, Query(offset, limit, sort=sort), world.oldest_order_ms()).rows
            found = [(row.bought_ms, seller.body(listing.row_order(seller, row))) for row in rows]
            assert sorted(found) == expected
            times = [bought_ms for bought_ms, _ in found]
            assert times == sorted(times, reverse=sort.startswith("-"))


@given(low=st.integers(0, 31), high=st.integers(-1, 31), offset=st.integers(0, 50), limit=st.integers(1, 100))
def test_a_window_shows_exactly_its_orders(low: int, high: int, offset: int, limit: int) -> None:
    query = Query(offset, limit, EPOCH_MS - low * DAY_MS, EPOCH_MS - high * DAY_MS, sort="lineItems.boughtAt")
    expected = [time for time, _ in _EXPECTED if query.bought_from <= time <= query.bought_to]

    found = listing.page(_SELLER, query, _WORLD.oldest_order_ms())
    slow = listing.page(_SELLER, replace(query, updated_from=1), _WORLD.oldest_order_ms())

    assert found.total == slow.total == len(expected)
    assert [row.bought_ms for row in found.rows] == expected[offset : offset + limit]
    assert found.rows == slow.rows


_WORLD, _SELLER, _EXPECTED = mixed_seller()


def test_a_lagging_list_shows_what_was() -> None:
    world = a_world()
    seller, clock = world.sellers[0], world.clock
    assert isinstance(clock, ManualClock)
    old = [world.buy(seller, world.now_us()) for _ in range(2)]
    clock.advance(10)
    world.merge(seller, old, world.now_us())
    new = world.buy(seller, world.now_us())

    def live_rows(as_of_ms: int | None) -> set[int]:
        rows = listing.page(seller, Query(), world.oldest_order_ms(), as_of_ms).rows
        return {row.number for row in rows if row.live}

    assert live_rows(None) == {2, new.form.number}
    assert live_rows(world.now_ms() - 5000) == {0, 1}
    assert live_rows(world.now_ms() - 15000) == set()


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"offset": "9901"}, 422),
        ({"offset": "-1"}, 422),
        ({"limit": "0"}, 422),
        ({"limit": "ten"}, 422),
        ({"sort": "id"}, 422),
        ({"updatedAt.gte": "2026-01-01T00:00:00+00:00"}, 400),
        ({"updatedAt.gte": "2026-01-01T00:00:00.123456Z"}, 400),
        ({"lineItems.boughtAt.lte": "2026-01-01"}, 400),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, str], status: int) -> None:
    with pytest.raises(BadQueryError) as error:
        read_query(parameters)

    assert error.value.status == status


def test_good_parameters_are_read_and_unknown_ones_ignored() -> None:
    query = read_query(
        {"offset": "9900", "lineItems.boughtAt.gte": "2026-01-01T00:00:00Z", "boughtAt.gte": "nonsense", "limit": "100"}
    )

    assert query == Query(9900, 100, bought_from=parse_iso("2026-01-01T00:00:00Z"))


def test_a_templates_holes_are_filled_in_their_order() -> None:
    template = Template({"percent": "100 %", "value": HOLE, "text": f"<{TEXT}>", "list": [HOLE]})

    assert json.loads(template.fill(b'{"a":1}', b"b", b"1,2")) == {
        "percent": "100 %",
        "value": {"a": 1},
        "text": "<b>",
        "list": [1, 2],
    }
