"""The topics as AsyncAPI 3.0 describes them, made of the records' structs (requirement C5).

Our consumers are plain aiokafka, so FastStream has nothing to generate this from; and what counts is the contract of
the records, which `shared.messages` holds. The API serves the document, `docs/asyncapi.json` is its copy with examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from shared.messages import KINDS, SCHEMA_VERSION, Record, kind_of
from shared.topics import Topics

_SCHEMAS = "#/components/schemas/"
_BY_TOKEN = {"type": "string", "pattern": "^[0-9]+$", "description": "our id of the connected seller, in decimal"}
_BY_ORDER = {"type": "string", "description": "Allegro's order id"}


@dataclass(frozen=True)
class _Channel:
    """One topic: what it is for, and what its records are keyed by."""

    name: str
    address: str
    description: str
    key: Mapping[str, Any]

    @property
    def records(self) -> Sequence[type[Record]]:
        """The kinds that it holds."""
        return KINDS[self.name]


def document(topics: Topics) -> dict[str, Any]:
    """The description of the topics under their real names."""
    messages = {"dead-letter": _dead_letter()}
    for channel in _channels(topics):
        for record in channel.records:
            messages[kind_of(record)] = _message(record, channel.key)
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
        "components": {"messages": messages, "schemas": _schemas()},
    }


def _channels(topics: Topics) -> Sequence[_Channel]:
    return (
        _Channel("order-events", topics.order_events, "What happened, and which orders to look at.", _BY_TOKEN),
        _Channel("order-windows", topics.order_windows, "Bulk loads to walk through.", _BY_TOKEN),
        _Channel("orders", topics.orders, "Complete orders, and what became of attempts to get them.", _BY_TOKEN),
        _Channel("order-state", topics.order_state, "The latest state of each order, compacted.", _BY_ORDER),
    )


def always_there(schema: Mapping[str, Any]) -> frozenset[str]:
    """The fields of a record that a reader finds in each: those that it needs, and the version, which has a default."""
    return frozenset(schema["required"]) | {"schema"}


def _described(channel: _Channel) -> dict[str, Any]:
    kinds = [kind_of(record) for record in channel.records]
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


def _schemas() -> dict[str, Any]:
    """Of all records, and of what they are made of."""
    records = [record for kinds in KINDS.values() for record in kinds]
    _, schemas = msgspec.json.schema_components(records, ref_template=_SCHEMAS + "{name}")
    return schemas


def _message(record: type[Record], key: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": kind_of(record),
        "title": record.__name__,
        "summary": (record.__doc__ or "").strip().partition("\n")[0],
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
        "payload": {"$ref": _SCHEMAS + record.__name__},
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
