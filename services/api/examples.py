"""Examples for what the endpoints take and answer, where the models have none of their own (requirement C5).

A page of a list is made of the example of what it lists. The document gets all of them; a test validates each.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_SCHEMAS = "#/components/schemas/"
_PAIR = {"access_token": "<access token>", "refresh_token": "<refresh token>", "expires_in": 43199}

_OF_MODELS: Mapping[str, Any] = {
    "Probe": {"wrong": {}},
    "InitializeAuthorization": {"user_id": "my-shop"},
    "RegisterToken": {**_PAIR, "user_id": "my-shop"},
    "TokenPairBody": _PAIR,
    "Activate": {"user_id": "my-shop", "interval_seconds": 180},
    "Deactivate": {"user_id": "my-shop"},
    "TimeFrameSync": {"kind": "manual", "from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00Z"},
    "FullSync": {"kind": "full"},
    "JournalSync": {"kind": "journal", "from": "2026-10-01T00:00:00Z"},
    "OrdersSync": {"kind": "orders", "order_ids": ["004f5a50-c4f8-11f1-904f-89bb34047197"]},
    "OrderFields": {
        "order_id": "004f5a50-c4f8-11f1-904f-89bb34047197",
        "status": "READY_FOR_PROCESSING",
        "total_amount": "85.97",
        "currency": "PLN",
        "bought_at": "2026-10-10T22:14:54.878Z",
    },
}
# A record's example is that of its line in the list, with what the list leaves out.
_BEYOND_THE_LIST: Mapping[str, Any] = {
    "DeadLetterRecord": {
        "key": "NDI=",
        "value": "eyJzY2hlbWEiOjE=",
        "text": '{"schema":1',
        "headers": [{"name": "schema", "value": "MQ=="}],
    },
}
_STANDS_STILL = {"wrong": {"consume": "no progress for 187 s"}}


def complete(document: dict[str, Any]) -> None:
    """Give an example to every body and every answer of the document that has none."""
    schemas: dict[str, Any] = document["components"]["schemas"]
    for name, schema in schemas.items():
        if "example" in schema:
            given = schema["example"] | _BEYOND_THE_LIST.get(name, {})
            schema["example"] = _with_nulls(given, schema, schemas)
    for name, schema in schemas.items():
        if "example" not in schema and (example := _example(name, schemas)) is not None:
            schema["example"] = example
    for content in _contents(document):
        _complete(content, schemas)


def _with_nulls(example: Any, schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    """The example with its nulls, which the framework leaves out of a document even where the model requires them."""
    match schema:
        case {"$ref": str(reference)}:
            return _with_nulls(example, schemas[reference.removeprefix(_SCHEMAS)], schemas)
        case {"anyOf": [inner, {"type": "null"}]}:
            return _with_nulls(example, inner, schemas)
        case {"items": inner} if isinstance(example, list):
            return [_with_nulls(item, inner, schemas) for item in example]
        case {"properties": properties} if isinstance(example, dict):
            required = (name for name in schema.get("required", ()) if name not in example)
            missing = {name: None for name in required if {"type": "null"} in properties[name].get("anyOf", ())}
            given = {name: _with_nulls(value, properties.get(name, {}), schemas) for name, value in example.items()}
            return given | missing
    return example


def _contents(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every media type of every body and answer; a probe that fails shows what it says then."""
    for operations in document["paths"].values():
        for operation in operations.values():
            yield from operation.get("requestBody", {}).get("content", {}).values()
            for status, answer in operation["responses"].items():
                for content in answer.get("content", {}).values():
                    if status == "503" and content.get("schema", {}).get("$ref") == _SCHEMAS + "Probe":
                        content["example"] = _STANDS_STILL
                    yield content


def _complete(content: dict[str, Any], schemas: Mapping[str, Any]) -> None:
    if "example" in content or "examples" in content:
        return
    match content.get("schema"):
        case {"oneOf": alternatives}:
            names = [alternative["$ref"].removeprefix(_SCHEMAS) for alternative in alternatives]
            content["examples"] = {name: {"value": schemas[name]["example"]} for name in names}


def _example(name: str, schemas: Mapping[str, Any]) -> Any:
    """The example of a model; None if there is nothing to make one of."""
    properties = schemas[name].get("properties", {})
    match properties:
        case {"items": {"items": {"$ref": str(listed)}}, "next": _} if len(properties) == 2:
            item = _of(listed.removeprefix(_SCHEMAS), schemas)
            return None if item is None else {"items": [item], "next": None}
    match name:
        case "TokenValidation":
            return {"valid": True, "reason": None, "token": _of("Token", schemas)}
        case "SyncStatus":
            return {
                "user_id": "my-shop",
                "token_status": "active",
                "schedule": _of("Schedule", schemas),
                "running": [],
                "orders": 20417,
                "pending_orders": 0,
                "oldest_pending_at": None,
                "lag_seconds": 71.4,
                "stored_event_id": "1791670524086457",
            }
    return _OF_MODELS.get(name)


def _of(name: str, schemas: Mapping[str, Any]) -> Any:
    return schemas[name].get("example") or _OF_MODELS.get(name)
