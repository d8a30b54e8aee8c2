"""Reading Allegro's bodies: the few fields we need, whatever the rest is (P9; allegro-api.md 3 and 5)."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.allegro import bodies
from shared.allegro.bodies import (
    JournalEvent,
    ListedOrder,
    OrderFacts,
    UnreadableBodyError,
    journal_event,
    journal_events,
    latest_event_id,
    listed_order,
    order_facts,
    order_list,
    seller,
)
from shared.messages import RawJson
from tests.builders import NOON, an_order_body

MOMENT = datetime(2026, 10, 10, 12, 0, 0, 878000, tzinfo=UTC)
FULL: dict[str, Any] = {
    "id": "o-1",
    "messageToSeller": None,
    "buyer": {"id": "1", "email": "k1@allegromail.pl", "login": "Client:1", "guest": False},
    "payment": {"finishedAt": None, "paidAmount": None},
    "status": "READY_FOR_PROCESSING",
    "fulfillment": {"status": "NEW", "shipmentSummary": {"lineItemsSent": "NONE"}},
    "delivery": None,
    "lineItems": [
        {"id": "i-1", "boughtAt": "2026-10-10T11:00:00.000Z", "price": {"amount": "1.00"}},
        {"id": "i-2", "boughtAt": "2026-10-10T12:00:00.878Z"},
    ],
    "summary": {"totalToPay": {"amount": "85.97", "currency": "PLN"}},
    "updatedAt": "2026-10-10T12:00:00.878Z",
    "revision": "b3a81206",
}
FACTS = OrderFacts(
    order_id="o-1",
    status="READY_FOR_PROCESSING",
    fulfillment_status="NEW",
    buyer_id="1",
    buyer_login="Client:1",
    buyer_email="k1@allegromail.pl",
    total_amount=Decimal("85.97"),
    currency="PLN",
    bought_at=MOMENT,
    updated_at=MOMENT,
    revision="b3a81206",
    line_item_ids=("i-1", "i-2"),
)
NOTHING = OrderFacts("o-1", "UNKNOWN", None, None, None, None, None, None, None, None, None, ())


def encoded(body: Any) -> bytes:
    return json.dumps(body).encode()


def facts(**fields: Any) -> OrderFacts:
    return order_facts(encoded({"id": "o-1", **fields}))


class TestOrderFacts:
    def test_all_of_them(self) -> None:
        assert order_facts(encoded(FULL)) == FACTS

    def test_an_order_may_lack_everything_but_its_id(self) -> None:
        assert facts() == NOTHING

    @pytest.mark.parametrize("name", [name for name in FULL if name != "id"])
    @pytest.mark.parametrize("strange", [None, 17, 1.5, True, "x", [], {}, [1, None, "x"], {"status": {"a": []}}])
    def test_a_strange_field_costs_no_other(self, name: str, strange: Any) -> None:
        strangely = order_facts(encoded(FULL | {name: strange}))

        own = {
            "buyer": {"buyer_id", "buyer_login", "buyer_email"},
            "status": {"status"},
            "fulfillment": {"fulfillment_status"},
            "lineItems": {"bought_at", "line_item_ids"},
            "summary": {"total_amount", "currency"},
            "updatedAt": {"updated_at"},
            "revision": {"revision"},
        }.get(name, set())
        for field in FACTS.__struct_fields__:
            if field not in own:
                assert getattr(strangely, field) == getattr(FACTS, field)

    @pytest.mark.parametrize(
        ("amount", "expected"),
        [
            ("85.97", Decimal("85.97")),
            (85, Decimal(85)),
            ("-0.10", Decimal("-0.10")),
            ("", None),
            ("NaN", None),
            ("Infinity", None),
            ("1e99999", None),
            ("12,50", None),
            (True, None),
            (None, None),
            ({}, None),
        ],
    )
    def test_amounts_are_what_postgresql_can_hold_or_unknown(self, amount: Any, expected: Decimal | None) -> None:
        assert facts(summary={"totalToPay": {"amount": amount, "currency": "PLN"}}).total_amount == expected

    @pytest.mark.parametrize(
        ("moment", "expected"),
        [
            ("2026-10-10T12:00:00.878Z", MOMENT),
            ("2026-10-10T14:00:00.878+02:00", MOMENT),
            ("2026-10-10T12:00:00.878", MOMENT),
            ("2026-10-10T12:00:00Z", NOON),
            ("yesterday", None),
            ("", None),
            ("0001-01-01T00:00:00+23:59", None),
            (1791640800, None),
            (None, None),
        ],
    )
    def test_moments_are_in_utc_or_unknown(self, moment: Any, expected: datetime | None) -> None:
        assert facts(updatedAt=moment).updated_at == expected
        assert facts(lineItems=[{"id": "i", "boughtAt": moment}]).bought_at == expected

    def test_the_newest_line_item_counts(self) -> None:
        bought = ["2026-10-10T12:00:00.000Z", None, "2026-10-10T12:00:00.878Z", "rubbish", "2026-01-01T00:00:00Z"]

        assert facts(lineItems=[{"boughtAt": moment} for moment in bought]).bought_at == MOMENT

    def test_a_nul_does_not_get_into_a_column(self) -> None:
        body = FULL | {"buyer": {"login": "a\0b"}, "status": "X\0", "lineItems": [{"id": "i\0"}]}

        read = order_facts(encoded(body))

        assert (read.buyer_login, read.status, read.line_item_ids) == ("a\ufffdb", "X\ufffd", ("i\ufffd",))

    @pytest.mark.parametrize(
        "raw",
        [
            *(b"", b"null", b"[]", b'"o-1"', b"{", b"{}", b'{"id": null}', b'{"id": ""}', b'{"id": 5}'),
            b'{"id": "\xff"}',
            b'{"id": "o", "x": ' + b"[" * 100_000,
        ],
    )
    def test_what_is_no_order_is_refused_without_quoting_it(self, raw: bytes) -> None:
        for read in (order_facts, listed_order):
            with pytest.raises(UnreadableBodyError) as raised:
                read(raw)
            assert "o-1" not in str(raised.value)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.fixed_dictionaries(
    {"id": st.text(max_size=5) | ANYTHING},
    optional={
        "status": st.text(max_size=5) | ANYTHING,
        "fulfillment": st.fixed_dictionaries({}, optional={"status": ANYTHING}) | ANYTHING,
        "buyer": st.fixed_dictionaries({}, optional={"id": ANYTHING, "login": ANYTHING, "email": ANYTHING}) | ANYTHING,
        "summary": st.fixed_dictionaries(
            {}, optional={"totalToPay": st.fixed_dictionaries({}, optional={"amount": ANYTHING, "currency": ANYTHING})}
        ),
        "lineItems": st.lists(st.fixed_dictionaries({}, optional={"id": ANYTHING, "boughtAt": ANYTHING}), max_size=3)
        | ANYTHING,
        "updatedAt": st.sampled_from(["2026-10-10T12:00:00.878Z", "x"]) | ANYTHING,
        "revision": ANYTHING,
        "unknown": ANYTHING,
    },
)


EVENT_FIELDS = st.fixed_dictionaries(
    {"id": st.integers(0, 2**64).map(str) | st.text(max_size=5) | ANYTHING},
    optional={
        "type": st.text(max_size=5) | ANYTHING,
        "occurredAt": st.sampled_from(["2026-10-10T12:00:00.878Z", "x"]) | ANYTHING,
        "order": st.fixed_dictionaries(
            {},
            optional={
                "checkoutForm": st.fixed_dictionaries({}, optional={"id": ANYTHING, "revision": ANYTHING}) | ANYTHING,
                "lineItems": st.lists(
                    st.fixed_dictionaries(
                        {}, optional={"boughtAt": st.sampled_from(["2026-10-10T12:00:00.878Z", "x"]) | ANYTHING}
                    ),
                    max_size=3,
                )
                | ANYTHING,
            },
        )
        | ANYTHING,
        "unknown": ANYTHING,
    },
)


def outcome(read: Any, raw: bytes) -> Any:
    try:
        return read(raw)
    except UnreadableBodyError as error:
        return type(error)


@given(FIELDS)
def test_the_quick_way_and_the_tolerant_way_read_the_same(body: dict[str, Any]) -> None:
    raw = encoded(body)

    assert outcome(order_facts, raw) == outcome(bodies._tolerant_facts, raw)
    assert outcome(listed_order, raw) == outcome(bodies._tolerant_listed_order, raw)


@given(EVENT_FIELDS)
def test_the_quick_way_and_the_tolerant_way_read_the_same_event(body: dict[str, Any]) -> None:
    raw = encoded(body)

    assert outcome(journal_event, raw) == outcome(bodies._tolerant_event, raw)


@given(st.binary(max_size=200))
def test_no_bytes_make_a_reader_fail_in_another_way(raw: bytes) -> None:
    readers = (order_facts, listed_order, journal_event, journal_events, latest_event_id, seller)
    for read in (*readers, lambda body: order_list(body, requested_at=NOON)):
        outcome(read, raw)


ODD_FIELDS = {
    "revision": b"9" * 10_000,
    "status": b"1e9999",
    "buyer": b'{"id": ' + b"7" * 5000 + b', "rating": -1e999999}',
    "note": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "summary": b"[" * 100_000 + b"]" * 100_000,
}


@pytest.mark.parametrize("name", ODD_FIELDS)
def test_no_field_but_the_id_costs_an_order(name: str) -> None:
    items = b'[{"id": "i", "boughtAt": "2026-10-10T12:00:00.000Z", "n": 1e9999}]'
    raw = b'{"%b": %b, "lineItems": %b, "id": "o"}' % (name.encode(), ODD_FIELDS[name], items)

    facts, listed = order_facts(raw), listed_order(raw)

    assert (facts.order_id, facts.status, facts.bought_at, facts.line_item_ids) == ("o", "UNKNOWN", NOON, ("i",))
    assert listed == ListedOrder("o", NOON, RawJson(raw))


class TestLists:
    @pytest.mark.parametrize("odd", [b"{}", b"7", b"null", b'{"id": 5}', b'{"id": "\xff"}', b'{"id": 1e9999}'])
    def test_an_unreadable_order_costs_only_itself(self, odd: bytes) -> None:
        raw = b'{"checkoutForms": [{"id": "a"}, %b ,{"id": "b"}], "totalCount": 3}' % odd

        page = order_list(raw, requested_at=NOON)

        assert [order.order_id for order in page.orders] == ["a", "b"]
        assert [part.raw for part in page.unreadable] == [odd]
        assert page.total_count == 3

    def test_an_order_of_any_depth_keeps_its_bytes(self) -> None:
        deep = b'{"id": "deep", "x": ' + b'[{"]": ' * 50_000 + b"1" + b"}]" * 50_000 + b"}"

        broken = b'{"id": "broken", "x": ' + b"[" * 150 + b"no JSON" + b"]" * 150 + b"}"
        page = order_list(
            b'{"checkoutForms": [{"id": "a"},%b,%b], "totalCount": 3}' % (deep, broken), requested_at=NOON
        )

        orders = [("a", b'{"id": "a"}'), ("deep", deep), ("broken", broken)]
        assert [(order.order_id, order.raw) for order in page.orders] == orders

    def test_orders_keep_their_bytes(self) -> None:
        first = b'{ "id" : "a", "amount": 1.50, "x": "\\u0142\\u0000" }'
        second = bytes(an_order_body("b"))

        page = order_list(b'{"checkoutForms": [%b,%b], "totalCount": 2}' % (first, second), requested_at=NOON)

        assert page.orders == (ListedOrder("a", None, RawJson(first)), ListedOrder("b", NOON, RawJson(second)))
        assert (page.total_count, page.requested_at) == (2, NOON)

    @pytest.mark.parametrize("total", [None, "x", -1, {}, 1.5, [[]], 10**30 * -1])
    def test_a_strange_total_is_unknown(self, total: Any) -> None:
        assert order_list(encoded({"checkoutForms": [], "totalCount": total}), requested_at=NOON).total_count is None


class TestJournal:
    def test_an_event(self) -> None:
        raw = encoded(
            {
                "id": "1791640800000000",
                "type": "BOUGHT",
                "occurredAt": "2026-10-10T12:00:00.878Z",
                "order": {"checkoutForm": {"id": "o-1", "revision": "r"}, "lineItems": FULL["lineItems"]},
            }
        )

        assert journal_event(raw) == JournalEvent(1791640800000000, "BOUGHT", MOMENT, "o-1", "r", MOMENT, RawJson(raw))

    def test_an_event_may_lack_everything_but_its_id(self) -> None:
        raw = b'{"id": 17}'

        assert journal_event(raw) == JournalEvent(17, "UNKNOWN", None, None, None, None, RawJson(raw))

    @pytest.mark.parametrize("identifier", ["", "x", "-1", "1.5", "9223372036854775808", "١٧", None, True, {}])
    def test_an_id_that_is_no_position_is_refused(self, identifier: Any) -> None:
        with pytest.raises(UnreadableBodyError, match=r"event\.id"):
            journal_event(encoded({"id": identifier}))

    @pytest.mark.parametrize("odd", [b'{"id": "x"}', b"[]", b'{"id": ' + b"1" * 9000 + b"}", b'{"type": "BOUGHT"}'])
    def test_an_unreadable_line_costs_only_itself(self, odd: bytes) -> None:
        events, unreadable = journal_events(b'{"events": [{"id": "5"}, %b, {"id": "6"}]}' % odd)

        assert [event.event_id for event in events] == [5, 6]
        assert [(part.raw, part.after) for part in unreadable] == [(odd, 5)]

    def test_a_page_keeps_allegros_order(self) -> None:
        page, _ = journal_events(b'{"events": [{"id": "5"}, {"id": "3"}, {"id": "4"}], "more": 1}')

        assert [event.event_id for event in page] == [5, 3, 4]
