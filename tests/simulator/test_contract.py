"""Answers have the shapes of Allegro's: by our own schemas always, by Allegro's where its papers are at hand."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.simulator import schemas
from tests.simulator.conftest import DEVICE_GRANT, Connected, Simulator

_PAPERS = Path(__file__).parents[3] / "shared"
_SPECIFICATION = _PAPERS / "allegro-openapi.json"
_SAMPLES = _PAPERS / "allegro-samples"
needs_specification = pytest.mark.skipif(
    not _SPECIFICATION.exists(), reason="Allegro's OpenAPI document is not beside the project"
)
needs_samples = pytest.mark.skipif(not _SAMPLES.exists(), reason="recorded answers are not beside the project")


def check(document: Any, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema).validate(document)


# -- our own schemas


def test_orders_have_their_shape(seller: Connected) -> None:
    page = seller.json("/order/checkout-forms")

    check(page, schemas.ORDERS)
    assert page["count"] == len(page["checkoutForms"]) == 100
    for order in page["checkoutForms"][:10]:
        check(seller.json(f"/order/checkout-forms/{order['id']}"), schemas.ORDER)


def test_events_have_their_shape(seller: Connected) -> None:
    page = seller.json("/order/events")

    check(page, schemas.EVENTS)
    assert len(page["events"]) == 100
    check(seller.json("/order/event-stats"), schemas.EVENT_STATS)


def test_me_tells_id_and_login(seller: Connected) -> None:
    me = seller.json("/me")

    assert me["id"] == seller.seller_id
    assert {"id", "login", "firstName", "lastName", "email", "baseMarketplace", "company", "features"} <= set(me)


def test_the_device_flow_has_its_shape(simulator: Simulator) -> None:
    device = simulator.device()
    pending = simulator.token(grant_type=DEVICE_GRANT, device_code=device["device_code"])

    check(device, schemas.DEVICE)
    assert device["verification_uri_complete"].endswith(f"?code={device['user_code']}")
    assert pending.status_code == 400
    check(pending.json(), schemas.OAUTH_ERROR)


@pytest.mark.parametrize(
    ("path", "parameters", "status"),
    [
        ("/order/events", {"limit": 1001}, 422),
        ("/order/events", {"limit": 0}, 422),
        ("/order/events", {"from": "2026-01-01T00:00:00Z"}, 422),
        ("/order/events", {"from": "-1"}, 422),
        ("/order/checkout-forms", {"limit": 101}, 422),
        ("/order/checkout-forms", {"offset": 9901, "limit": 100}, 422),
        ("/order/checkout-forms/7b1f7ac0-0000-4000-8000-000000000000", {}, 422),
        ("/order/checkout-forms/not-an-id", {}, 422),
        ("/order/checkout-forms/c93df771-353e-11ee-9e0d-11d3ebef3a15", {}, 404),
    ],
)
def test_refusals_have_their_shape(seller: Connected, path: str, parameters: dict[str, Any], status: int) -> None:
    answer = seller.get(path, **parameters)

    assert answer.status_code == status
    check(answer.json(), schemas.ERRORS)


def test_statuses_and_types_of_all_kinds_occur(seller: Connected) -> None:
    orders = seller.orders()
    events = seller.events()

    assert {order["status"] for order in orders} == {"BOUGHT", "FILLED_IN", "READY_FOR_PROCESSING", "CANCELLED"} - (
        # Unpaid orders of the past have long been cancelled.
        {"BOUGHT", "FILLED_IN"} - {order["status"] for order in orders}
    )
    assert {order["fulfillment"]["status"] for order in orders} >= {"NEW", "SENT", "PICKED_UP"}
    assert {order["payment"]["type"] for order in orders} >= {"ONLINE", "CASH_ON_DELIVERY"}
    assert {event["type"] for event in events} >= {
        "BOUGHT",
        "FILLED_IN",
        "READY_FOR_PROCESSING",
        "FULFILLMENT_STATUS_CHANGED",
    }


# -- Allegro's specification


def without_nulls(value: Any) -> Any:
    """Allegro sends null for what its specification calls optional."""
    if isinstance(value, dict):
        return {name: without_nulls(member) for name, member in value.items() if member is not None}
    return [without_nulls(member) for member in value] if isinstance(value, list) else value


def specification_schema(name: str) -> dict[str, Any]:
    document = json.loads(_SPECIFICATION.read_text().replace("#/components/schemas/", "#/$defs/"))
    return {"$ref": f"#/$defs/{name}", "$defs": document["components"]["schemas"]}


@needs_specification
@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/me", "MeResponse"),
        ("/order/events", "OrderEventsList"),
        ("/order/event-stats", "OrderEventStats"),
        ("/order/checkout-forms", "CheckoutForms"),
    ],
)
def test_answers_fit_the_specification(seller: Connected, path: str, schema: str) -> None:
    jsonschema.Draft4Validator(specification_schema(schema)).validate(without_nulls(seller.json(path)))


@needs_specification
def test_single_orders_fit_the_specification(seller: Connected) -> None:
    validator = jsonschema.Draft4Validator(specification_schema("CheckoutForm"))

    for order in seller.orders():
        validator.validate(without_nulls(order))


# -- recorded answers


def sample(name: str) -> Any:
    return json.loads((_SAMPLES / f"sandbox_2026-10-10_{name}.json").read_text())


def names(value: Any, path: str = "$") -> Iterator[str]:
    """Every name in a document, with its path; `{}` and null have none."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield f"{path}.{name}"
            yield from names(member, f"{path}.{name}")
    elif isinstance(value, list):
        for member in value:
            yield from names(member, f"{path}[]")


@needs_samples
def test_our_schemas_fit_the_recorded_answers() -> None:
    check(sample("checkout_forms_list"), schemas.ORDERS)
    check(sample("form_two_lines"), schemas.ORDER)
    check(sample("order_events_page"), schemas.EVENTS)
    check(sample("event_stats"), schemas.EVENT_STATS)


@needs_samples
def test_orders_have_the_names_of_the_recorded_ones_in_their_order(seller: Connected) -> None:
    recorded = sample("form_two_lines")

    for order in seller.orders()[:100]:
        assert [name for name in order if name not in schemas.MORE] == list(recorded)
        for part in ("buyer", "payment", "fulfillment", "delivery", "invoice", "summary"):
            assert list(order[part]) == list(recorded[part])
        assert list(order["lineItems"][0]) == list(recorded["lineItems"][0])
    assert set(names(recorded)) <= {name for order in seller.orders() for name in names(order)}


@needs_samples
def test_events_have_the_names_of_the_recorded_ones_in_their_order(seller: Connected) -> None:
    recorded = sample("order_events_page")["events"][0]

    for event in seller.json("/order/events")["events"]:
        assert list(names({**event, "order": {**event["order"], "lineItems": event["order"]["lineItems"][:1]}})) == [
            name
            for name in names(recorded)
            # An offer need not have an id of the seller's.
            if not (name.endswith(".external.id") and event["order"]["lineItems"][0]["offer"]["external"] is None)
        ]
