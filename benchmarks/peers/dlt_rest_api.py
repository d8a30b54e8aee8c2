"""dlt's declarative `rest_api` source."""

from typing import Any

import dlt
from dlt.sources.rest_api import rest_api_source
from job import ACCEPT, EVENTS_PAGE, PAGE, USER_AGENT, Job, Stopwatch

job = Job.read()
_HEADERS = {"Accept": ACCEPT, "User-Agent": USER_AGENT}
_ORDERS: dict[str, Any] = {
    "table_name": "orders",
    "primary_key": "id",
    "write_disposition": {"disposition": "merge", "strategy": "upsert"},
    "max_table_nesting": 0,
}


def _list_resources() -> list[dict[str, Any]]:
    return [
        {
            "name": "orders",
            **_ORDERS,
            "endpoint": {
                "path": "order/checkout-forms",
                "data_selector": "checkoutForms",
                "params": {"limit": PAGE},
                "paginator": {"type": "offset", "limit": PAGE, "total_path": "totalCount"},
            },
        }
    ]


def _event_resources() -> list[dict[str, Any]]:
    return [
        {
            "name": "journal",
            "selected": False,
            "endpoint": {
                "path": "order/events",
                "data_selector": "events",
                "params": {"limit": EVENTS_PAGE},
                # The next page follows the last id of this one.
                "paginator": {"type": "cursor", "cursor_path": "events.[-1].id", "cursor_param": "from"},
            },
        },
        {
            "name": "orders",
            **_ORDERS,
            "endpoint": {"path": "order/checkout-forms/{resources.journal.order.checkoutForm.id}"},
        },
    ]


def main() -> None:
    pipeline = dlt.pipeline("bench", destination=dlt.destinations.postgres(job.database), dataset_name="peer")
    watch = Stopwatch()
    for token in job.tokens:
        client = {"base_url": job.url, "headers": _HEADERS, "auth": {"type": "bearer", "token": token}}
        resources = _list_resources() if job.mode == "list" else _event_resources()
        pipeline.run(rest_api_source({"client": client, "resources": resources}))  # type: ignore[typeddict-item]
    watch.report()


if __name__ == "__main__":
    main()
