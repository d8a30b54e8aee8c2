"""What happens while it runs: live orders, the ledger of truth, restarts, the same past in every run."""

import time
from pathlib import Path
from typing import Any

from tests.simulator.conftest import ACCEPT, USER_AGENT, Connected, Simulator, Start, process

_LIMIT_SECONDS = 30.0
EPOCH = "--epoch=2026-10-10T12:00:00Z"


def live_to_the_end(simulator: Simulator, orders: int, **wishes: Any) -> dict[str, Any]:
    simulator.post("/live", {"orders": orders, "rate": 200, **wishes})
    deadline = time.monotonic() + _LIMIT_SECONDS
    while (state := simulator.look("/live"))["active"]:
        assert time.monotonic() < deadline, state
    return dict(state)


def check_ledger(simulator: Simulator, seller: Connected) -> None:
    """The ledger says what the API says."""
    listed = {row["order_id"]: row for row in simulator.ledger("orders", seller.seller_id) if row["state"] == "listed"}
    orders = {order["id"]: order for order in seller.orders()}
    assert {order_id: row["order"] for order_id, row in listed.items()} == orders
    events = seller.events()
    visible = simulator.ledger("events", seller.seller_id)
    assert [row["event"] for row in visible if not row["expired"]] == events
    assert [row["event_id"] for row in visible if not row["expired"]] == [event["id"] for event in events]
    summary = simulator.look("/ledger/summary", seller_id=seller.seller_id)
    assert (summary["orders"], summary["events"]) == (len(orders), len(events))


def test_the_ledger_says_what_the_api_says(start: Start) -> None:
    simulator = start("--history-orders=300", "--journal-delay=0.05", "--live-step-seconds=0.05")
    seller = simulator.connect()
    check_ledger(simulator, seller)

    state = live_to_the_end(simulator, 40)

    assert (state["orders_created"], state["remaining"]) == (40, 0)
    assert state["events_written"] >= 40
    check_ledger(simulator, seller)


def test_merging_keeps_the_ledger_true(start: Start) -> None:
    simulator = start("--history-orders=20", "--journal-delay=0.02", "--live-step-seconds=0.05")
    seller = simulator.connect()
    simulator.put("/faults", {"merges": 0.5})

    live_to_the_end(simulator, 40)

    merged = [row for row in simulator.ledger("orders", seller.seller_id) if row["state"] == "merged"]
    assert merged
    for row in merged:
        assert seller.get(f"/order/checkout-forms/{row['order_id']}").status_code == 404
        successor = seller.json(f"/order/checkout-forms/{row['successor']}")
        assert set(row["line_item_ids"]) <= {line["id"] for line in successor["lineItems"]}
    check_ledger(simulator, seller)


def test_live_orders_go_to_the_chosen_sellers(start: Start) -> None:
    simulator = start("--history-orders=0", "--sellers=3", "--live-step-seconds=0.02")
    sellers = [simulator.connect() for _ in range(3)]

    live_to_the_end(simulator, 9, sellers=[sellers[1].seller_id], events_per_order=1)

    assert [len(seller.orders()) for seller in sellers] == [0, 9, 0]


def test_live_can_be_stopped(start: Start) -> None:
    simulator = start("--history-orders=0")
    simulator.connect()
    simulator.post("/live", {"orders": 1000, "rate": 1})

    state = simulator.post("/live/stop")

    assert state["remaining"] == 0
    assert simulator.look("/live")["orders_created"] < 1000


def test_statistics_count_requests_by_endpoint_and_status(start: Start) -> None:
    simulator = start("--history-orders=10")
    seller = simulator.connect()
    seller.orders()
    seller.get("/order/checkout-forms/none")

    stats = simulator.look("/stats")

    assert stats["requests"] == {"device": 1, "token": 1, "list": 1, "detail": 1}
    assert stats["statuses"]["detail"] == {"422": 1}
    assert stats["too_many_requests"] == 0
    simulator.post("/stats/reset")
    assert simulator.look("/stats")["requests"] == {}


def test_equal_seeds_have_equal_pasts(start: Start) -> None:
    first, second = (start("--history-orders=150", "--seed=11", EPOCH) for _ in range(2))
    other = start("--history-orders=150", "--seed=12", EPOCH)

    for kind in ("orders", "events"):
        assert first.ledger(kind, "110000002") == second.ledger(kind, "110000002")
        assert first.ledger(kind, "110000002") != other.ledger(kind, "110000002")


def test_pages_and_single_orders_need_no_memory_of_the_past(start: Start) -> None:
    simulator = start("--history-orders=2000000", "--sellers=2")
    seller = simulator.connect()

    page = seller.json("/order/checkout-forms")

    assert page["totalCount"] > 1_800_000
    deep = seller.json("/order/checkout-forms", offset=9900)["checkoutForms"]
    assert len(deep) == 100
    assert seller.json(f"/order/checkout-forms/{deep[-1]['id']}") == deep[-1]


def test_everything_survives_a_kill(tmp_path: Path) -> None:
    options = ("--history-orders=50", f"--state-file={tmp_path / 'state.json'}", "--live-step-seconds=0.02")
    with process(*options) as simulator:
        seller = simulator.connect()
        live_to_the_end(simulator, 10)
        order_id = seller.orders()[-1]["id"]
        simulator.post(f"/orders/{order_id}/fulfillment", {"status": "RETURNED"})
        orders = {order["id"]: order for order in seller.orders()}
        waiting = simulator.device()

    with process(*options) as simulator:
        again = Connected(seller.seller_id, seller.access_token, seller.refresh_token, simulator.http)
        assert {order["id"]: order for order in again.orders()} == orders
        check_ledger(simulator, again)
        assert simulator.token(grant_type="refresh_token", refresh_token=seller.refresh_token).status_code == 200
        assert simulator.post("/consent", {"user_code": waiting["user_code"]})["seller_id"] != seller.seller_id
        live_to_the_end(simulator, 5)
        assert len(again.orders()) > len(orders)


def test_the_page_lets_a_seller_agree(start: Start) -> None:
    simulator = start()
    device = simulator.device()

    page = simulator.http.get(device["verification_uri_complete"])
    answer = simulator.http.post(
        "/skojarz-aplikacje",
        data={"code": device["user_code"], "seller_id": "110000003", "decision": "allow"},
    )

    assert page.status_code == answer.status_code == 200
    assert device["user_code"] in page.text
    tokens = simulator.token(
        grant_type="urn:ietf:params:oauth:grant-type:device_code", device_code=device["device_code"]
    ).json()
    headers = {"Authorization": f"Bearer {tokens['access_token']}", "Accept": ACCEPT, "User-Agent": USER_AGENT}
    assert simulator.http.get("/me", headers=headers).json()["id"] == "110000003"


def test_waiting_codes_are_listed(start: Start) -> None:
    simulator = start()
    device = simulator.device()

    codes = simulator.look("/device-codes")["device_codes"]

    assert [code["user_code"] for code in codes] == [device["user_code"]]


def test_when_a_new_event_was_first_served_is_remembered_on_request(start: Start) -> None:
    simulator = start("--history-orders=20", "--journal-delay=0.05", "--live-step-seconds=0.05", "--note-served")
    seller = simulator.connect()
    past = {event["id"] for event in seller.events()}
    live_to_the_end(simulator, 5)
    unseen = simulator.look("/served")["first_served"][seller.seller_id]
    before_us = time.time_ns() // 1000
    new = {event["id"] for event in seller.events()} - past
    seen = simulator.look("/served")["first_served"][seller.seller_id]

    seller.events()

    assert (unseen, set(seen)) == ({}, new)
    assert min(seen.values()) >= before_us
    assert simulator.look("/served")["first_served"][seller.seller_id] == seen
