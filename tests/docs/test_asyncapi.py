"""The AsyncAPI document is well formed, complete, and its examples are records (C5)."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from faststream.specification.asyncapi.v3_0_0.schema import ApplicationSchema
from jsonschema import Draft7Validator

from docs import generate
from services.api.app import build_app
from services.api.settings import ApiSettings
from shared.asyncapi import document
from shared.messages import KINDS, kind_of
from shared.topics import Topics

_DOCUMENT = generate.asyncapi_document()
_MESSAGES: dict[str, Any] = _DOCUMENT["components"]["messages"]
_KINDS = sorted(_MESSAGES.keys() - {"dead-letter"})


def references(value: Any) -> Iterator[str]:
    match value:
        case {"$ref": str(target)}:
            yield target
        case dict():
            for item in value.values():
                yield from references(item)
        case list():
            for item in value:
                yield from references(item)


def resolved(target: str) -> Any:
    found: Any = _DOCUMENT
    for name in target.removeprefix("#/").split("/"):
        found = found[name]
    return found


def test_it_follows_asyncapi() -> None:
    read = ApplicationSchema.model_validate(_DOCUMENT)

    assert read.asyncapi == "3.0.0"
    assert {channel.address for channel in read.channels.values()} == set(Topics().all())
    assert all(resolved(target) for target in references(_DOCUMENT))


def test_it_has_every_kind_of_every_topic() -> None:
    described = {name: set(channel["messages"]) for name, channel in _DOCUMENT["channels"].items()}

    kinds = {topic: {kind_of(record) for record in records} for topic, records in KINDS.items()}
    assert described == kinds | {"dead-letters": {"dead-letter"}}


@pytest.mark.parametrize("kind", _KINDS)
def test_every_example_is_a_record_of_its_kind(kind: str) -> None:
    message = _MESSAGES[kind]
    payload = {"$ref": message["payload"]["$ref"], "components": _DOCUMENT["components"]}
    Draft7Validator.check_schema(resolved(message["payload"]["$ref"]))

    for example in message["examples"]:
        Draft7Validator(payload).validate(example["payload"])
        Draft7Validator(message["headers"]).validate(example["headers"])
        assert example["payload"]["kind"] == kind


def test_a_record_that_lacks_something_is_no_example() -> None:
    message = _MESSAGES["order-event"]
    payload = {"$ref": message["payload"]["$ref"], "components": _DOCUMENT["components"]}
    broken = {name: value for name, value in message["examples"][0]["payload"].items() if name != "event_id"}

    assert not Draft7Validator(payload).is_valid(broken)


async def test_the_api_serves_it_with_the_real_names_of_the_topics() -> None:
    settings = ApiSettings.model_validate(
        {
            "database_url": "postgresql://nobody@127.0.0.1:1/none",
            "kafka_bootstrap_servers": "127.0.0.1:1",
            "kafka_topic_prefix": "ours-",
            "allegro_client_id": "id",
            "allegro_client_secret": "secret",
            "allegro_user_agent": "Shop/1.0 (+https://example.com)",
            "encryption_keys": "key1:" + "A" * 43 + "=",
        }
    )
    transport = httpx.ASGITransport(build_app(settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        served = await client.get("/asyncapi.json")
        page = await client.get("/asyncapi")

    assert served.json() == json.loads(json.dumps(document(Topics("ours-"))))
    assert all(f"<code>{topic}</code>" in page.text for topic in Topics("ours-").all())
    assert "<script" not in page.text
    assert "<tr><td><code>schema</code></td><td>yes</td>" in page.text
    assert "<tr><td><code>schema</code></td><td>no</td>" not in page.text
