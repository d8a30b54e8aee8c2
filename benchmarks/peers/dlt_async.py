"""dlt with async resources and transformers: its fastest way to ask an API. Nested data stays one JSON column."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import dlt
from job import EVENTS_PAGE, PAGE, Job, Stopwatch

_CONNECTIONS = 50
_CHUNK = 100
_COLUMNS = {
    name: {"data_type": "json"}
    for name in ("buyer", "payment", "fulfillment", "delivery", "invoice", "lineItems", "surcharges", "summary")
}

job = Job.read()
_session: aiohttp.ClientSession | None = None


def _client() -> aiohttp.ClientSession:
    global _session  # dlt runs every async resource on one loop of its own
    if _session is None:
        _session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_CONNECTIONS))
    return _session


async def _get(token: str, path: str, **params: Any) -> Any:
    async with _client().get(job.url + path, headers=job.headers(token), params=params) as answer:
        answer.raise_for_status()
        return await answer.json(content_type=None)


def pages_of(token: str) -> Any:
    """All orders of one seller by list pages."""

    async def pages() -> AsyncIterator[list[dict[str, Any]]]:
        offset = 0
        while orders := (await _get(token, "/order/checkout-forms", limit=PAGE, offset=offset))["checkoutForms"]:
            yield orders
            offset += PAGE

    return dlt.resource(pages, name=f"orders_{job.tokens.index(token)}", **_table())


@dlt.resource
async def journal() -> AsyncIterator[tuple[str, list[str]]]:
    """The orders that the journal names, each once, in chunks."""
    for token in job.tokens:
        seen: dict[str, None] = {}
        position = ""
        while events := (
            await _get(token, "/order/events", limit=EVENTS_PAGE, **({"from": position} if position else {}))
        )["events"]:
            position = events[-1]["id"]
            new = dict.fromkeys(event["order"]["checkoutForm"]["id"] for event in events)
            ids = [order_id for order_id in new if order_id not in seen]
            seen |= new
            for start in range(0, len(ids), _CHUNK):
                yield token, ids[start : start + _CHUNK]


async def _orders(chunk: tuple[str, list[str]]) -> list[dict[str, Any]]:
    token, ids = chunk
    return list(await asyncio.gather(*(_get(token, f"/order/checkout-forms/{order_id}") for order_id in ids)))


def _table() -> dict[str, Any]:
    return {
        "table_name": "orders",
        "primary_key": "id",
        "write_disposition": {"disposition": "merge", "strategy": "upsert"},
        "max_table_nesting": 0,
        "columns": _COLUMNS,
    }


def main() -> None:
    pipeline = dlt.pipeline("bench", destination=dlt.destinations.postgres(job.database), dataset_name="peer")
    watch = Stopwatch()
    if job.mode == "list":
        source: Any = [pages_of(token) for token in job.tokens]
    else:
        source = journal | dlt.transformer(_orders, name="orders", **_table())
    pipeline.run(source)
    watch.report()


if __name__ == "__main__":
    main()
