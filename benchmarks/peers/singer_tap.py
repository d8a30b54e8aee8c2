"""A Singer tap made with its SDK; `meltanolabs-target-postgres` reads what it writes."""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from job import EVENTS_PAGE, PAGE, Job
from singer_sdk import Stream, Tap
from singer_sdk.helpers._typing import TypeConformanceLevel
from singer_sdk.pagination import BaseOffsetPaginator
from singer_sdk.streams import RESTStream

job = Job.read()
_OBJECT = {"type": ["object", "null"], "additionalProperties": True}
_SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "status": {"type": ["string", "null"]},
        "revision": {"type": ["string", "null"]},
        "updatedAt": {"type": ["string", "null"]},
        "messageToSeller": {"type": ["string", "null"]},
        **dict.fromkeys(("buyer", "payment", "fulfillment", "delivery", "invoice", "summary"), _OBJECT),
        "lineItems": {"type": "array", "items": _OBJECT},
    },
}


class _OfOneSeller(RESTStream[Any]):
    """Partitioned by seller: each has a token."""

    url_base = job.url
    primary_keys = ("id",)
    # Everything below the first level is kept as it comes.
    TYPE_CONFORMANCE_LEVEL = TypeConformanceLevel.ROOT_ONLY
    schema = _SCHEMA

    @property
    def partitions(self) -> list[dict[str, Any]]:
        return [{"seller": number} for number in range(len(job.tokens))]

    def get_url_params(self, context: Mapping[str, Any] | None, next_page_token: Any | None) -> dict[str, Any]:
        return {"limit": PAGE, "offset": next_page_token or 0}

    def prepare_request(self, context: Any, next_page_token: Any) -> Any:
        prepared = super().prepare_request(context, next_page_token)
        prepared.headers.update(job.headers(job.tokens[context["seller"]]))
        return prepared


class Listed(_OfOneSeller):
    """All orders by list pages."""

    name = "orders"
    path = "/order/checkout-forms"
    records_jsonpath = "$.checkoutForms[*]"

    def get_new_paginator(self) -> BaseOffsetPaginator:
        return _Offsets(start_value=0, page_size=PAGE)


class _Offsets(BaseOffsetPaginator):
    def has_more(self, response: Any) -> bool:
        return bool(response.json()["checkoutForms"])


class Journal(_OfOneSeller):
    """Read only to know which orders to fetch."""

    name = "journal"
    path = "/order/events"
    records_jsonpath = "$.events[*]"
    next_page_token_jsonpath = "$.events[-1:].id"  # noqa: S105 - a journal position
    selected_by_default = False

    def get_url_params(self, context: Mapping[str, Any] | None, next_page_token: Any | None) -> dict[str, Any]:
        return {"limit": EVENTS_PAGE, **({"from": next_page_token} if next_page_token else {})}

    def get_child_context(self, record: dict[str, Any], context: Any) -> dict[str, Any]:
        return {"seller": context["seller"], "order_id": record["order"]["checkoutForm"]["id"]}


class Fetched(_OfOneSeller):
    """Each order that the journal names."""

    name = "orders"
    path = "/order/checkout-forms/{order_id}"
    records_jsonpath = "$"
    parent_stream_type = Journal
    state_partitioning_keys = ()

    @property
    def partitions(self) -> list[dict[str, Any]] | None:  # type: ignore[override]
        return None  # the journal tells

    def get_url_params(self, context: Mapping[str, Any] | None, next_page_token: Any | None) -> dict[str, Any]:
        return {}


class TapAllegro(Tap):
    """The tap."""

    name = "tap-allegro"
    config_jsonschema = {"type": "object", "properties": {}}  # noqa: RUF012 - the SDK's own form

    def discover_streams(self) -> Iterable[Stream]:
        return [Listed(self)] if job.mode == "list" else [Journal(self), Fetched(self)]


def main() -> None:
    if "--only-import" in sys.argv:
        return
    TapAllegro(config=json.loads("{}")).sync_all()


if __name__ == "__main__":
    main()
