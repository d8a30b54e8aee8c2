"""What the documentation says of the records is what the code does."""

import json

import pytest
from jsonschema import Draft202012Validator

from docs import generate
from shared.messages import KINDS, Record, decode, json_schemas, kind_of

_EXAMPLES = [
    pytest.param(topic, record, id=record.kind) for topic, records in generate.examples().items() for record in records
]


def test_schemas_and_tables_are_up_to_date() -> None:
    outdated = [path.name for path in generate.outdated()]

    assert not outdated, f"{', '.join(outdated)}: out of date. Run `.venv/bin/python -m docs.generate` and commit."


@pytest.mark.parametrize(("topic", "record"), _EXAMPLES)
def test_every_example_is_valid_and_read_back_as_it_was(topic: str, record: Record) -> None:
    Draft202012Validator(json_schemas()[topic]).validate(json.loads(record.encode()))

    assert decode(record.encode()) == record


def test_every_kind_of_every_topic_has_an_example() -> None:
    kinds = {topic: {kind_of(record) for record in records} for topic, records in KINDS.items()}

    assert {topic: {record.kind for record in records} for topic, records in generate.examples().items()} == kinds
