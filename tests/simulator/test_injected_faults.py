"""Every fault does what its name says, to those whom it is told to hit, and nothing else."""

import json
import time
from typing import Any

import httpx
import pytest

from tests.simulator.conftest import BASIC, Connected, Simulator, Start

_CONNECTION_ERRORS = (httpx.RemoteProtocolError, httpx.ReadError)
QUICK = ("--history-orders=150", "--journal-delay=0", "--journal-jitter=0", "--live-step-seconds=0.02")


def faulty(start: Start, faults: dict[str, Any], *options: str) -> tuple[Simulator, Connected]:
    simulator = start(*QUICK, *options)
    seller = simulator.connect()
    simulator.put("/faults", faults)
    return simulator, seller


def statuses(seller: Connected, path: str, calls: int = 40) -> list[int]:
    return [seller.get(path).status_code for _ in range(calls)]


def wait_until_idle(simulator: Simulator) -> None:
    deadline = time.monotonic() + 30
    while simulator.look("/live")["active"]:
        assert time.monotonic() < deadline


def test_server_errors_hit_the_chosen_endpoint_in_all_their_forms(start: Start) -> None:
    simulator, seller = faulty(start, {"http_5xx": {"rate": 0.5, "endpoints": ["events"]}})

    answers = [seller.get("/order/events?limit=1") for _ in range(60)]

    broken = [answer for answer in answers if answer.status_code >= 500]
    assert 15 < len(broken) < 45
    assert {answer.status_code for answer in broken} == {502, 503, 504}
    assert len({answer.headers["content-type"] for answer in broken}) == 3
    assert statuses(seller, "/order/event-stats") == [200] * 40
    simulator.http.delete("/_sim/faults")
    assert statuses(seller, "/order/events?limit=1") == [200] * 40


def test_server_errors_hit_the_chosen_seller_alone(start: Start) -> None:
    simulator, seller = faulty(start, {})
    other = simulator.connect()
    simulator.put("/faults", {"http_5xx": {"sellers": [seller.seller_id]}})

    assert min(statuses(seller, "/order/event-stats")) >= 500
    assert statuses(other, "/order/event-stats") == [200] * 40


def test_faults_strike_the_same_calls_in_every_run(start: Start) -> None:
    runs = [statuses(faulty(start, {"http_429": 0.3})[1], "/order/event-stats") for _ in range(2)]

    assert runs[0] == runs[1]
    assert set(runs[0]) == {200, 429}


def test_a_connection_is_cut(start: Start) -> None:
    _, seller = faulty(start, {"cut_connection": {"endpoints": ["list"]}})

    for _ in range(2):
        with pytest.raises(_CONNECTION_ERRORS):
            seller.get("/order/checkout-forms")
    assert seller.get("/order/event-stats").status_code == 200


def test_json_breaks_off(start: Start) -> None:
    _, seller = faulty(start, {"malformed_json": {"endpoints": ["list"]}})

    with pytest.raises(json.JSONDecodeError):
        seller.get("/order/checkout-forms").json()


def test_nothing_is_answered(start: Start) -> None:
    _, seller = faulty(start, {"timeout": {"endpoints": ["events"], "amount": 0.2}})

    with pytest.raises(_CONNECTION_ERRORS):
        seller.get("/order/events")


def test_a_body_is_slow(start: Start) -> None:
    _, seller = faulty(start, {"slow_body": {"endpoints": ["list"], "amount": 0.3}})
    began = time.monotonic()

    answer = seller.get("/order/checkout-forms")

    assert answer.json()["count"] == 100
    assert time.monotonic() - began >= 0.25


def test_every_other_slow_body_takes_half_the_time(start: Start) -> None:
    _, seller = faulty(start, {"slow_body": {"endpoints": ["list"], "amount": 2}})
    seller.get("/order/checkout-forms")
    began = time.monotonic()

    seller.get("/order/checkout-forms")

    assert 0.95 <= time.monotonic() - began < 1.95


def test_lagging_lists_and_poisoned_bodies_are_counted(start: Start) -> None:
    simulator, seller = faulty(start, {"list_lag_seconds": 1, "toxic": {"rate": 1.0, "kinds": ["nul"]}})

    order_id = seller.json("/order/checkout-forms", limit=3)["checkoutForms"][0]["id"]
    seller.get(f"/order/checkout-forms/{order_id}")

    assert simulator.look("/stats")["faults_struck"] == {"list_lag_seconds": 1, "toxic": 4}


def test_the_ledger_names_what_the_journal_kept_back(start: Start) -> None:
    simulator, seller = faulty(start, {"journal_missing": {"rate": 1.0}}, "--live-history=0")
    silent = simulator.post("/orders", {"seller_id": seller.seller_id})["order_ids"][0]
    simulator.put("/faults", {})
    told = simulator.post("/orders", {"seller_id": seller.seller_id, "count": 2})["order_ids"]
    wait_until_idle(simulator)
    simulator.put("/faults", {"journal_missing": {"rate": 1.0}})
    simulator.post(f"/orders/{told[1]}/advance")

    lines = {line["order_id"]: line for line in simulator.ledger("orders", seller.seller_id)}

    assert {order_id: lines.pop(order_id)["announced"] for order_id in (silent, *told)} == {
        silent: False,
        told[0]: True,
        told[1]: False,
    }
    assert {(line["announced"], line["last_event_id"], line["hidden"]) for line in lines.values()} == {
        (None, None, False)
    }


def test_the_ledger_names_what_the_list_left_out(start: Start) -> None:
    simulator, seller = faulty(start, {"list_skip": True})

    shown = {order["id"] for order in seller.json("/order/checkout-forms", limit=50)["checkoutForms"]}

    everything = [line for line in simulator.ledger("orders", seller.seller_id) if line["state"] == "listed"]
    hidden = [line["order_id"] for line in everything if line["hidden"]]
    assert len(shown) == 49
    assert len(hidden) == 1
    assert not shown & set(hidden)


def test_bot_protection_stands_before_authorisation(start: Start) -> None:
    simulator, seller = faulty(start, {"captcha_403": True})

    answers = [
        simulator.http.post("/auth/oauth/device", headers={"Authorization": BASIC}, data={"client_id": "tests"})
        for _ in range(2)
    ]

    assert [answer.status_code for answer in answers] == [403, 403]
    assert sum("html" in answer.headers["content-type"] for answer in answers) == 1
    assert seller.get("/order/event-stats").status_code == 200


def test_maintenance_stops_everything(start: Start) -> None:
    _, seller = faulty(start, {"maintenance": {"endpoints": ["list", "detail"]}})

    assert seller.get("/order/checkout-forms").status_code == 503
    assert seller.get("/order/event-stats").status_code == 200


def test_a_good_refresh_token_is_refused_once(start: Start) -> None:
    simulator, seller = faulty(start, {"invalid_grant_once": True})

    answers = [simulator.token(grant_type="refresh_token", refresh_token=seller.refresh_token) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [400, 200]
    assert answers[0].json()["error"] == "invalid_grant"


def test_the_answer_to_a_refresh_is_lost_though_it_happened(start: Start) -> None:
    simulator, seller = faulty(start, {"refresh_answer_lost": True}, "--refresh-grace=0")

    with pytest.raises(_CONNECTION_ERRORS):
        simulator.token(grant_type="refresh_token", refresh_token=seller.refresh_token)
    simulator.http.delete("/_sim/faults")

    again = simulator.token(grant_type="refresh_token", refresh_token=seller.refresh_token)
    assert again.json()["error"] == "invalid_grant"


def test_too_many_tokens(start: Start) -> None:
    simulator, seller = faulty(start, {"token_endpoint_429": {"rate": 1.0, "amount": 2}})

    refused = simulator.token(grant_type="refresh_token", refresh_token=seller.refresh_token)

    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "2")


def test_unlinking_yields_useless_tokens(start: Start) -> None:
    simulator, seller = faulty(start, {"unlink": {"sellers": ["110000001"]}})

    fresh = simulator.token(grant_type="refresh_token", refresh_token=seller.refresh_token).json()["access_token"]

    assert seller.get_with({"Authorization": f"Bearer {fresh}"}, "/order/events").status_code == 401


def test_the_journal_loses_events(start: Start) -> None:
    simulator, seller = faulty(start, {"journal_missing": True})
    before = seller.events()

    simulator.post("/live", {"orders": 3, "rate": 100})
    wait_until_idle(simulator)

    assert seller.events() == before
    assert len(seller.orders(**{"lineItems.boughtAt.gte": "2000-01-01T00:00:00Z"})) > 0


def test_the_journal_repeats_events_with_new_ids(start: Start) -> None:
    simulator, seller = faulty(start, {"journal_duplicate": {"amount": 0.05}})
    last = int(seller.json("/order/event-stats")["latestEvent"]["id"])

    simulator.post("/orders", {"seller_id": seller.seller_id, "count": 3})
    wait_until_idle(simulator)

    new = seller.events(last)
    assert len(new) == 6
    told = [json.dumps({**event, "id": None}) for event in new]
    assert all(told.count(one) == 2 for one in told)


def test_the_journal_is_late(start: Start) -> None:
    simulator, seller = faulty(start, {"journal_late": {"amount": 1.0}})
    last = int(seller.json("/order/event-stats")["latestEvent"]["id"])

    simulator.post("/orders", {"seller_id": seller.seller_id})
    early = seller.events(last)
    wait_until_idle(simulator)

    assert early == []
    (event,) = seller.events(last)
    assert int(event["id"]) - last > 1_000_000


def test_the_statistics_have_no_latest_event(start: Start) -> None:
    _, seller = faulty(start, {"event_stats_null": True})

    assert seller.json("/order/event-stats") == {"latestEvent": None}


def test_the_list_lags_and_the_single_order_does_not(start: Start) -> None:
    simulator, seller = faulty(start, {"list_lag_seconds": 60})
    (new,) = simulator.post("/orders", {"seller_id": seller.seller_id})["order_ids"]

    assert new not in {order["id"] for order in seller.orders()}
    assert seller.json(f"/order/checkout-forms/{new}")["id"] == new
    simulator.put("/faults", {})
    assert new in {order["id"] for order in seller.orders()}


def test_pages_repeat_and_skip_rows(start: Start) -> None:
    simulator, seller = faulty(start, {"list_repeat": True})

    repeated = [order["id"] for order in seller.json("/order/checkout-forms")["checkoutForms"]]
    simulator.put("/faults", {"list_skip": True})
    skipped = seller.json("/order/checkout-forms")["checkoutForms"]

    assert (len(repeated), len(set(repeated))) == (100, 99)
    assert len(skipped) == 99


def test_a_page_leaves_out_a_row_and_is_full_all_the_same(start: Start) -> None:
    simulator, seller = faulty(start, {})
    before = [order["id"] for order in seller.json("/order/checkout-forms", limit=100)["checkoutForms"]]
    simulator.put("/faults", {"list_slip": True})

    after = [order["id"] for order in seller.json("/order/checkout-forms", limit=100)["checkoutForms"]]

    [left_out] = set(before) - set(after)
    [line] = [line for line in simulator.ledger("orders", seller.seller_id) if line["order_id"] == left_out]
    assert (len(after), len(set(after) - set(before))) == (100, 1)
    assert line["hidden"]


def test_a_page_is_wrongly_empty(start: Start) -> None:
    _, seller = faulty(start, {"list_empty": {"times": 1}})

    empty, whole = seller.json("/order/checkout-forms"), seller.json("/order/checkout-forms")

    assert (empty["checkoutForms"], empty["totalCount"]) == ([], 0)
    assert (len(whole["checkoutForms"]), whole["totalCount"] > 0) == (100, True)


def test_the_total_lies(start: Start) -> None:
    simulator, seller = faulty(start, {})
    truth = seller.json("/order/checkout-forms", limit=1)["totalCount"]

    simulator.put("/faults", {"total_count_lies": True})

    assert {seller.json("/order/checkout-forms", limit=1)["totalCount"] for _ in range(20)} > {truth}


def test_toxic_bodies_are_as_the_ledger_says(start: Start) -> None:
    simulator, seller = faulty(start, {"toxic": {"rate": 0.3, "kinds": ["nul", "big"], "amount": 1000}})

    for row in simulator.ledger("orders", seller.seller_id):
        if row["state"] == "listed":
            assert seller.json(f"/order/checkout-forms/{row['order_id']}") == row["order"]
    assert any("toxic" in order for order in seller.orders())


@pytest.mark.parametrize(
    "faults",
    [
        {"unknown": 1},
        {"timeout": 2},
        {"timeout": "often"},
        {"timeout": {"often": True}},
        {"http_5xx": {"endpoints": ["nowhere"]}},
        {"toxic": {"kinds": ["mild"]}},
    ],
)
def test_a_wrong_fault_is_refused_and_changes_nothing(simulator: Simulator, faults: dict[str, Any]) -> None:
    before = simulator.look("/faults")

    assert simulator.http.patch("/_sim/faults", json=faults).status_code == 422
    assert simulator.look("/faults") == before


def test_faults_can_be_added_and_taken_away_one_by_one(start: Start) -> None:
    simulator, seller = faulty(start, {"http_429": True})

    assert simulator.http.patch("/_sim/faults", json={"http_429": None, "event_stats_null": 1}).status_code == 200
    assert seller.json("/order/event-stats") == {"latestEvent": None}


def test_the_clients_limit_blocks_and_is_prolonged(start: Start) -> None:
    simulator = start("--history-orders=5", "--client-limit=20", "--time-scale=20", "--retry-after")
    sellers = [simulator.connect() for _ in range(2)]

    answers = [sellers[call % 2].get("/order/event-stats") for call in range(25)]

    assert [answer.status_code for answer in answers] == [200] * 20 + [429] * 5
    assert answers[-1].headers["Retry-After"] == "3"
    assert simulator.look("/stats")["too_many_requests"] == 5
    began = time.monotonic()
    while sellers[0].get("/order/event-stats").status_code == 429 and time.monotonic() - began < 3.2:
        time.sleep(0.2)  # each call in the block begins it anew
    assert time.monotonic() - began >= 3.2


def test_a_tokens_limit_is_its_own(start: Start) -> None:
    simulator = start("--history-orders=5", "--events-limit=3")
    sellers = [simulator.connect() for _ in range(2)]

    assert statuses(sellers[0], "/order/events", 4) == [200, 200, 200, 429]
    assert statuses(sellers[1], "/order/events", 3) == [200, 200, 200]
    assert statuses(sellers[0], "/order/event-stats", 5) == [200] * 5


def test_latency_is_added(start: Start) -> None:
    _, seller = faulty(start, {}, "--latency-ms=150", "--latency-jitter-ms=20")
    began = time.monotonic()

    seller.get("/order/event-stats")

    assert time.monotonic() - began >= 0.15
