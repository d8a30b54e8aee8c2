"""Every body and every answer of the API is shown by an example, and every example is what it is an example of (C5)."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from services.api.openapi import export

_DOCUMENT: dict[str, Any] = json.loads(export())
_COMPONENTS = _DOCUMENT["components"]


def _shown() -> Iterator[Any]:
    for path, operations in _DOCUMENT["paths"].items():
        for method, operation in operations.items():
            for media, content in operation.get("requestBody", {}).get("content", {}).items():
                yield pytest.param(content, id=f"{method} {path} body {media}")
            for status, answer in operation["responses"].items():
                for media, content in answer.get("content", {}).items():
                    yield pytest.param(content, id=f"{method} {path} {status} {media}")


def _resolved(value: dict[str, Any]) -> dict[str, Any]:
    reference = value.get("$ref")
    if reference is None:
        return value
    found: Any = _DOCUMENT
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    assert isinstance(found, dict)
    return found


def _examples(content: dict[str, Any]) -> list[Any]:
    """Those of the media type, else those of its model."""
    if "example" in content:
        return [content["example"]]
    if "examples" in content:
        return [_resolved(example)["value"] for example in content["examples"].values()]
    schema = _resolved(content.get("schema", {}))
    return [schema["example"]] if "example" in schema else list(schema.get("examples", []))


@pytest.mark.parametrize("content", list(_shown()))
def test_it_has_examples_that_follow_its_model(content: dict[str, Any]) -> None:
    examples = _examples(content)

    assert examples
    for example in examples:
        validator = Draft202012Validator({**content.get("schema", {}), "components": _COMPONENTS})
        assert [error.message for error in validator.iter_errors(example)] == []


def test_a_wrong_example_would_be_found() -> None:
    validator = Draft202012Validator({"$ref": "#/components/schemas/SyncStatus", "components": _COMPONENTS})
    example = _COMPONENTS["schemas"]["SyncStatus"]["example"]

    assert validator.is_valid(example)
    assert not validator.is_valid({**example, "orders": "many"})
