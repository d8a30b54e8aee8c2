"""PyAirbyte with a low-code manifest, into its PostgreSQL cache."""

from typing import Any
from urllib.parse import urlsplit

import airbyte
from airbyte.caches import PostgresCache
from airbyte.secrets import SecretString
from job import ACCEPT, EVENTS_PAGE, PAGE, USER_AGENT, Job, Stopwatch

job = Job.read()
_SCHEMA = {
    "type": "object",
    "additionalProperties": True,
    "properties": {
        "id": {"type": "string"},
        "status": {"type": "string"},
        "revision": {"type": "string"},
        "updatedAt": {"type": "string"},
        **{
            name: {"type": ["object", "null"], "additionalProperties": True}
            for name in ("buyer", "payment", "fulfillment", "delivery", "invoice", "summary")
        },
        "lineItems": {"type": "array", "items": {"type": "object", "additionalProperties": True}},
    },
}


def _requester(path: str, params: dict[str, str], token: str) -> dict[str, Any]:
    return {
        "type": "HttpRequester",
        "url_base": job.url,
        "path": path,
        "http_method": "GET",
        "request_parameters": params,
        "request_headers": {"Authorization": f"Bearer {token}", "Accept": ACCEPT, "User-Agent": USER_AGENT},
    }


def _stream(name: str, retriever: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "DeclarativeStream",
        "name": name,
        "primary_key": ["id"],
        "retriever": {"type": "SimpleRetriever", **retriever},
        "schema_loader": {"type": "InlineSchemaLoader", "schema": _SCHEMA},
    }


def _selector(*path: str) -> dict[str, Any]:
    return {"type": "RecordSelector", "extractor": {"type": "DpathExtractor", "field_path": list(path)}}


def _listed(token: str) -> dict[str, Any]:
    paging = {
        "type": "DefaultPaginator",
        "pagination_strategy": {"type": "OffsetIncrement", "page_size": PAGE},
        "page_token_option": {"type": "RequestOption", "inject_into": "request_parameter", "field_name": "offset"},
        "page_size_option": {"type": "RequestOption", "inject_into": "request_parameter", "field_name": "limit"},
    }
    requester = _requester("/order/checkout-forms", {}, token)
    return _stream(
        "orders", {"requester": requester, "record_selector": _selector("checkoutForms"), "paginator": paging}
    )


def _named_by_the_journal(token: str) -> dict[str, Any]:
    paging = {
        "type": "DefaultPaginator",
        "pagination_strategy": {
            "type": "CursorPagination",
            "cursor_value": "{{ response['events'][-1]['id'] }}",
            "stop_condition": "{{ not response['events'] }}",
        },
        "page_token_option": {"type": "RequestOption", "inject_into": "request_parameter", "field_name": "from"},
    }
    journal = _stream(
        "journal",
        {
            "requester": _requester("/order/events", {"limit": str(EVENTS_PAGE)}, token),
            "record_selector": _selector("events"),
            "paginator": paging,
        },
    )
    router = {
        "type": "SubstreamPartitionRouter",
        "parent_stream_configs": [
            {
                "type": "ParentStreamConfig",
                "parent_key": "order/checkoutForm/id",
                "partition_field": "order_id",
                "stream": journal,
            }
        ],
    }
    return _stream(
        "orders",
        {
            "requester": _requester("/order/checkout-forms/{{ stream_partition.order_id }}", {}, token),
            "record_selector": _selector(),
            "partition_router": router,
        },
    )


def _manifest(token: str) -> dict[str, Any]:
    return {
        "version": "6.0.0",
        "type": "DeclarativeSource",
        "check": {"type": "CheckStream", "stream_names": ["orders"]},
        "streams": [_listed(token) if job.mode == "list" else _named_by_the_journal(token)],
        "spec": {
            "type": "Spec",
            "connection_specification": {"type": "object", "properties": {}, "additionalProperties": True},
        },
    }


def main() -> None:
    database = urlsplit(job.database)
    cache = PostgresCache(
        host=database.hostname or "",
        port=database.port or 5432,
        username=database.username or "",
        password=SecretString(database.password or ""),
        database=database.path.lstrip("/"),
        schema_name="peer",
    )
    watch = Stopwatch()
    for token in job.tokens:
        source = airbyte.get_source("source-allegro", config={}, source_manifest=_manifest(token))
        source.select_all_streams()
        source.read(cache=cache)
    watch.report()


if __name__ == "__main__":
    main()
