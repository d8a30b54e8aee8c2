"""The topics as AsyncAPI 3.0 describes them, made of the records' models (requirement C5).

Our consumers are plain aiokafka, so FastStream has nothing to generate this from; and what counts is the contract of
the records, which `shared.messages` holds. The API serves the document, `docs/asyncapi.json` is its copy with examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from shared.messages import (
    SCHEMA_VERSION,
    OrderEvent,
    OrderFetch,
    OrderFetchFailed,
    OrderMissing,
    OrderObserved,
    OrderState,
    OrderWindow,
    WindowFinished,
    WindowProgressed,
)
from shared.topics import Topics

_SCHEMAS = "#/components/schemas/"
_BY_TOKEN = {"type": "string", "pattern": "^[0-9]+$", "description": "our id of the connected seller, in decimal"}
_BY_ORDER = {"type": "string", "description": "Allegro's order id"}


@dataclass(frozen=True)
class _Channel:
    """One topic: what it is for, what its records are keyed by, and which kinds of records it holds."""

    name: str
    address: str
    description: str
    key: Mapping[str, Any]
    records: Sequence[type[BaseModel]]


def document(topics: Topics) -> dict[str, Any]:
    """The description of the topics under their real names."""
    schemas: dict[str, Any] = {}
    messages = {"dead-letter": _dead_letter()}
    for channel in _channels(topics):
        for model in channel.records:
            messages[_kind(model)] = _message(model, channel.key, schemas)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Allegro Orders Backup: topics",
            "version": str(SCHEMA_VERSION),
            "description": "At least once; the later look wins. Rules of compatibility: docs/topics.md.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {channel.name: _described(channel) for channel in _channels(topics)}
        | {"dead-letters": _dead_letters(topics)},
        "operations": {
            f"publish-{name}": {"action": "send", "channel": {"$ref": f"#/channels/{name}"}, "summary": summary}
            for name, summary in (
                ("order-events", "Every order event, as it is read from the journal."),
                ("orders", "Every look at an order, and what became of attempts to look."),
                ("order-state", "The latest state of each order."),
            )
        },
        "components": {"messages": messages, "schemas": schemas},
    }


def _channels(topics: Topics) -> Sequence[_Channel]:
    return (
        _Channel(
            "order-events",
            topics.order_events,
            "What happened, and which orders to look at.",
            _BY_TOKEN,
            (OrderEvent, OrderFetch),
        ),
        _Channel("order-windows", topics.order_windows, "Bulk loads to walk through.", _BY_TOKEN, (OrderWindow,)),
        _Channel(
            "orders",
            topics.orders,
            "Complete orders, and what became of attempts to get them.",
            _BY_TOKEN,
            (OrderObserved, OrderMissing, OrderFetchFailed, WindowProgressed, WindowFinished),
        ),
        _Channel(
            "order-state", topics.order_state, "The latest state of each order, compacted.", _BY_ORDER, (OrderState,)
        ),
    )


def _described(channel: _Channel) -> dict[str, Any]:
    kinds = [_kind(model) for model in channel.records]
    return {
        "address": channel.address,
        "description": channel.description,
        "messages": {kind: {"$ref": f"#/components/messages/{kind}"} for kind in kinds},
    }


def _dead_letters(topics: Topics) -> dict[str, Any]:
    return {
        "address": topics.dead_letters,
        "description": "Records that nobody could process, as they came.",
        "messages": {"dead-letter": {"$ref": "#/components/messages/dead-letter"}},
    }


def _kind(model: type[BaseModel]) -> str:
    kind: str = model.model_fields["kind"].default
    return kind


def _message(model: type[BaseModel], key: Mapping[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """The message of a kind; the models that its own model refers to are put beside the others."""
    schema = model.model_json_schema(by_alias=True, ref_template=_SCHEMAS + "{model}")
    schemas |= schema.pop("$defs", {})
    schemas[model.__name__] = schema
    return {
        "name": _kind(model),
        "title": model.__name__,
        "summary": (model.__doc__ or "").strip().partition("\n")[0],
        "contentType": "application/json",
        "correlationId": {"location": "$message.header#/correlation-id"},
        "headers": {
            "type": "object",
            "properties": {
                "correlation-id": {
                    "type": "string",
                    "description": "follows a request or a poll through it all",
                },
                "schema": {"type": "string", "description": "version of the record's contract"},
                "run-id": {"type": "string", "format": "uuid", "description": "the run that caused the record"},
                "traceparent": {
                    "type": "string",
                    "description": "the span that sent it (W3C Trace Context), where traces are on",
                },
            },
        },
        "payload": {"$ref": _SCHEMAS + model.__name__},
        "bindings": {"kafka": {"key": dict(key), "bindingVersion": "0.5.0"}},
    }


def _dead_letter() -> dict[str, Any]:
    return {
        "name": "dead-letter",
        "title": "DeadLetter",
        "summary": "A record that cannot be processed: as it came, with the cause as its last headers.",
        "contentType": "application/octet-stream",
        "headers": {
            "type": "object",
            "properties": {
                f"dead-letter-{name}": {"type": "string", "description": meaning}
                for name, meaning in (
                    ("service", "who set it aside"),
                    ("topic", "where it stood"),
                    ("partition", "where it stood, in decimal"),
                    ("offset", "where it stood, in decimal"),
                    ("error-type", "the kind of cause"),
                    ("error", "the cause"),
                    ("attempts", "how often it was tried, in decimal"),
                    ("null", "which of key and value were null: they are empty here"),
                )
            },
        },
        "payload": {"type": "string", "format": "binary"},
    }
