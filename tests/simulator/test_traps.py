"""What a naive client gets wrong: the simulated Allegro does it as the real one (allegro-api.md)."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.simulator.conftest import ACCEPT, BASIC, DEVICE_GRANT, Connected, Simulator, Start

SECOND_US = 1_000_000


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


def bought_at(order: dict[str, Any]) -> str:
    times: list[str] = [line["boughtAt"] for line in order["lineItems"]]
    return max(times)


# -- headers and tokens


def test_only_allegros_media_type_is_accepted(seller: Connected) -> None:
    assert seller.get_with({"Accept": "application/json"}, "/order/events").status_code == 406
    assert seller.get_with({"Accept": ACCEPT}, "/order/events").status_code == 200


@pytest.mark.parametrize("agent", [None, "node", "python-httpx/0.28", "name/1.0", "name (+https://example.org)"])
def test_a_user_agent_without_name_version_and_page_is_refused(seller: Connected, agent: str | None) -> None:
    assert seller.get_with({"User-Agent": agent}, "/order/events").status_code == 403


def test_the_api_sends_a_trace_id_and_the_authorisation_server_does_not(
    simulator: Simulator, seller: Connected
) -> None:
    assert seller.get("/order/events").headers["Trace-Id"]
    assert seller.get("/order/checkout-forms/not-an-id").headers["Trace-Id"]
    assert "Trace-Id" not in simulator.token(grant_type="refresh_token", refresh_token="none").headers


@pytest.mark.parametrize("header", [None, "Basic nonsense", "Bearer token"])
def test_the_authorisation_server_wants_a_client(simulator: Simulator, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}

    for path in ("/auth/oauth/device", "/auth/oauth/token"):
        answer = simulator.http.post(path, headers=headers, data={"client_id": "tests"})
        assert answer.status_code == 401
        assert answer.json() == {"error": "invalid_client", "error_description": "Client authentication failed"}


def test_a_garbage_token_cannot_be_converted(seller: Connected) -> None:
    answer = seller.get_with({"Authorization": "Bearer garbage"}, "/order/event-stats")

    assert answer.status_code == 401
    assert answer.json() == {
        "error": "invalid_token",
        "error_description": "Cannot convert access token to JSON",
    }


def test_a_device_code_works_once(simulator: Simulator) -> None:
    device = simulator.device()
    simulator.post("/consent", {"user_code": device["user_code"]})

    answers = [simulator.token(grant_type=DEVICE_GRANT, device_code=device["device_code"]) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 400]
    assert answers[1].json() == {"error": "invalid_request", "error_description": "Invalid device code"}


def test_a_refusal_is_told(simulator: Simulator) -> None:
    device = simulator.device()
    simulator.post("/consent", {"user_code": device["user_code"], "decision": "deny"})

    answer = simulator.token(grant_type=DEVICE_GRANT, device_code=device["device_code"])

    assert answer.status_code == 400
    assert answer.json()["error"] == "access_denied"


def test_the_client_id_may_be_in_the_query(simulator: Simulator) -> None:
    answer = simulator.http.post("/auth/oauth/device?client_id=tests", headers={"Authorization": BASIC})

    assert answer.status_code == 200


def test_polling_in_haste_is_slowed_down(simulator: Simulator) -> None:
    device = simulator.device()

    answers = [
        simulator.token(grant_type=DEVICE_GRANT, device_code=device["device_code"]).json()["error"] for _ in range(2)
    ]

    assert answers == ["authorization_pending", "slow_down"]


def test_refresh_tokens_rotate_with_a_grace(start: Start) -> None:
    simulator = start("--refresh-grace=3")
    seller = simulator.connect()

    first = simulator.token(grant_type="refresh_token", refresh_token=seller.refresh_token)
    within = simulator.token(grant_type="refresh_token", refresh_token=seller.refresh_token)
    assert (first.status_code, within.status_code) == (200, 200)
    assert first.json()["refresh_token"] != within.json()["refresh_token"]
    while (late := simulator.token(grant_type="refresh_token", refresh_token=seller.refresh_token)).is_success:
        pass

    assert late.status_code == 400
    assert late.json() == {
        "error": "invalid_grant",
        "error_description": f"Invalid refresh token: {seller.refresh_token}",
    }
    assert simulator.look("/stats")["refreshes"][seller.seller_id] >= 2


def test_expired_tokens_are_echoed(start: Start) -> None:
    simulator = start()
    seller = simulator.connect()
    simulator.post("/tokens/expire")

    answer = seller.get("/order/events")

    assert answer.status_code == 401
    assert answer.json() == {
        "error": "invalid_token",
        "error_description": f"Access token expired: {seller.access_token}",
    }
    assert simulator.token(grant_type="refresh_token", refresh_token=seller.refresh_token).status_code == 200


def test_a_revoked_seller_has_to_consent_again(start: Start) -> None:
    simulator = start()
    seller = simulator.connect()
    simulator.post("/tokens/revoke", {"seller_id": seller.seller_id})

    assert seller.get("/order/events").status_code == 401
    refresh = simulator.token(grant_type="refresh_token", refresh_token=seller.refresh_token)
    assert refresh.json()["error"] == "invalid_grant"


# -- the journal


def test_the_position_is_exclusive_and_any_integer_will_do(seller: Connected) -> None:
    events = seller.events()
    middle = int(events[len(events) // 2]["id"])

    assert ids(seller.events(middle)) == ids(events[len(events) // 2 + 1 :])
    assert ids(seller.events(middle - 1)) == ids(events[len(events) // 2 :])
    assert seller.json("/order/events", **{"from": str(2**63 - 1)}) == {"events": []}
    assert seller.json("/order/events", **{"from": events[-1]["id"]}) == {"events": []}
    assert seller.get("/order/events", **{"from": str(2**63)}).status_code == 422


def test_without_a_position_the_oldest_events_come(seller: Connected) -> None:
    events = seller.events()

    assert ids(seller.json("/order/events", limit=10)["events"]) == ids(events[:10])
    assert ids(seller.json("/order/events", limit=10, frmo=events[-1]["id"])["events"]) == ids(events[:10])


def test_ids_rise_and_are_the_microseconds_of_writing(seller: Connected) -> None:
    events = seller.events()
    positions = [int(event["id"]) for event in events]

    assert positions == sorted(set(positions))
    for event, position in zip(events, positions, strict=True):
        occurred_us = datetime.fromisoformat(event["occurredAt"]).timestamp() * SECOND_US
        assert occurred_us < position < occurred_us + 60 * SECOND_US


def test_order_by_id_is_not_order_by_time(start: Start) -> None:
    seller = start("--history-orders=3000", "--history-days=15").connect()

    times = [event["occurredAt"] for event in seller.events()]

    assert times != sorted(times)


def test_sixty_days_are_kept(seller: Connected) -> None:
    oldest = datetime.fromisoformat(seller.events()[0]["occurredAt"])

    assert timedelta(days=50) < datetime.now(UTC) - oldest < timedelta(days=60, minutes=1)


def test_the_statistics_name_the_latest_event(seller: Connected) -> None:
    assert seller.json("/order/event-stats")["latestEvent"]["id"] == seller.events()[-1]["id"]


# -- the list


def test_the_default_order_is_newest_purchase_first(seller: Connected) -> None:
    times = [bought_at(order) for order in seller.orders()]

    assert times == sorted(times, reverse=True)
    ascending = [bought_at(order) for order in seller.orders(sort="lineItems.boughtAt")]
    assert ascending == sorted(times)


def test_purchase_times_are_filtered_inclusively_by_the_newest_line(seller: Connected) -> None:
    times = sorted(bought_at(order) for order in seller.orders())
    low, high = times[50], times[150]

    found = seller.orders(**{"lineItems.boughtAt.gte": low, "lineItems.boughtAt.lte": high})

    assert sorted(bought_at(order) for order in found) == times[50:151]


@pytest.mark.parametrize("time", ["2026-01-01T00:00:00", "2026-01-01T00:00:00+00:00", "yesterday", ""])
def test_times_need_a_z(seller: Connected, time: str) -> None:
    answer = seller.get("/order/checkout-forms", **{"lineItems.boughtAt.gte": time})

    assert 400 <= answer.status_code < 500


def test_unknown_parameters_are_ignored(seller: Connected) -> None:
    everything = seller.json("/order/checkout-forms")

    assert seller.json("/order/checkout-forms", **{"boughtAt.gte": "2099-01-01T00:00:00Z"}) == everything


@pytest.mark.parametrize(
    "filters",
    [{"status": "CANCELLED"}, {"status": "READY_FOR_PROCESSING"}, {"fulfillment.status": "SENT"}],
)
def test_status_filters(seller: Connected, filters: dict[str, str]) -> None:
    orders = seller.orders()
    found = seller.orders(**filters)

    if "status" in filters:
        assert ids(found) == [order["id"] for order in orders if order["status"] == filters["status"]]
    else:
        assert ids(found) == [order["id"] for order in orders if order["fulfillment"]["status"] == "SENT"]
    assert seller.json("/order/checkout-forms", limit=1, **filters)["totalCount"] == len(found) > 0


def test_updated_at_filters_and_sorts(seller: Connected) -> None:
    times = sorted(order["updatedAt"] for order in seller.orders())

    found = seller.orders(sort="updatedAt", **{"updatedAt.gte": times[10], "updatedAt.lte": times[90]})

    assert [order["updatedAt"] for order in found] == times[10:91]


def test_orders_older_than_a_year_are_neither_listed_nor_shown(start: Start) -> None:
    simulator = start("--history-orders=300", "--seed=3")
    seller = simulator.connect()
    ledger = simulator.ledger("orders", seller.seller_id)
    old = [entry for entry in ledger if entry["state"] == "aged_out"]
    listed = [entry["order_id"] for entry in ledger if entry["state"] == "listed"]

    assert old
    assert set(ids(seller.orders())) == set(listed)
    for entry in old:
        answer = seller.get(f"/order/checkout-forms/{entry['order_id']}")
        assert answer.status_code == 404
        assert answer.json()["errors"][0]["code"] == "CheckoutFormNotFoundException"
        assert entry["order"] is None


# -- single orders


def test_the_list_and_the_single_order_say_the_same(seller: Connected) -> None:
    for order in seller.orders()[::40]:
        assert seller.json(f"/order/checkout-forms/{order['id']}") == order


def test_anothers_order_is_not_found(simulator: Simulator, seller: Connected) -> None:
    other = simulator.connect()
    assert other.seller_id != seller.seller_id

    assert other.get(f"/order/checkout-forms/{seller.orders()[0]['id']}").status_code == 404


@pytest.mark.parametrize("order_id", ["5839372c-cd83-4fea-8c02-be307cf9e9eb", "1", "x" * 36])
def test_only_time_based_ids_are_valid(seller: Connected, order_id: str) -> None:
    answer = seller.get(f"/order/checkout-forms/{order_id}")

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"] == "getOrder.checkoutFormId"


def test_revisions_are_not_unique(seller: Connected) -> None:
    revisions = [order["revision"] for order in seller.orders()]

    assert len(set(revisions)) < len(revisions)


def test_a_sellers_change_moves_the_journal_and_not_updated_at(start: Start) -> None:
    simulator = start("--journal-delay=0", "--journal-jitter=0")
    seller = simulator.connect()
    order = next(order for order in seller.orders() if order["fulfillment"]["status"] == "NEW")
    before = seller.json("/order/event-stats")["latestEvent"]["id"]

    simulator.post(f"/orders/{order['id']}/fulfillment", {"status": "SENT"})

    now = seller.json(f"/order/checkout-forms/{order['id']}")
    assert now["fulfillment"]["status"] == "SENT"
    assert now["updatedAt"] == order["updatedAt"]
    (event,) = seller.events(int(before))
    assert (event["type"], event["order"]["checkoutForm"]["id"]) == ("FULFILLMENT_STATUS_CHANGED", order["id"])
    assert event["order"]["checkoutForm"]["revision"] == now["revision"]


def test_merging_leaves_one_new_order_with_the_old_lines(start: Start) -> None:
    simulator = start("--journal-delay=0", "--journal-jitter=0")
    seller = simulator.connect()
    made = simulator.post("/orders", {"seller_id": seller.seller_id, "count": 2})["order_ids"]
    before = [seller.json(f"/order/checkout-forms/{order_id}") for order_id in made]

    new = simulator.post("/merge", {"seller_id": seller.seller_id, "order_ids": made})["order_id"]

    assert [seller.get(f"/order/checkout-forms/{order_id}").status_code for order_id in made] == [404, 404]
    merged = seller.json(f"/order/checkout-forms/{new}")
    assert sorted(ids(merged["lineItems"])) == sorted(line for order in before for line in ids(order["lineItems"]))
    assert not set(made) & set(ids(seller.orders()))
    assert seller.events()[-1]["order"]["checkoutForm"]["id"] == new
    ledger = {entry["order_id"]: entry for entry in simulator.ledger("orders", seller.seller_id)}
    for order_id, body in zip(made, before, strict=True):
        assert ledger[order_id]["state"] == "merged"
        assert ledger[order_id]["successor"] == new
        assert ledger[order_id]["order"] is None
        assert ledger[order_id]["last_order"] == body
