"""What is written about the API agrees with it."""

import json
import re
from pathlib import Path

import pytest

from services.api.openapi import export
from services.api.problems import TYPE_PREFIX, Problem, all_types

_DOCS = Path(__file__).parents[2] / "docs"


def test_the_exported_description_is_up_to_date() -> None:
    assert (_DOCS / "openapi.json").read_text() == export(), "python -m services.api.openapi > docs/openapi.json"


def test_every_kind_of_problem_is_explained_with_its_status() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", (_DOCS / "api.md").read_text(), re.MULTILINE)

    assert rows == [(kind.slug, str(int(kind.status))) for kind in all_types()]


@pytest.mark.parametrize("kind", all_types(), ids=lambda kind: kind.slug)
def test_no_two_kinds_share_a_name(kind: type[Problem]) -> None:
    assert [other for other in all_types() if other.slug == kind.slug] == [kind]


def test_every_answer_has_a_model_and_every_endpoint_a_text() -> None:
    description = json.loads(export())

    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), (method, path)
            for status, answer in operation["responses"].items():
                if status in ("204", "304"):
                    continue
                assert answer["content"], (method, path, status)
                for content in answer["content"].values():
                    assert content.get("schema", content.get("itemSchema")), (method, path, status)


def test_every_problem_is_of_the_documented_media_type() -> None:
    description = json.loads(export())

    assert set(description["components"]["examples"]) == {kind.slug for kind in all_types()}
    for example in description["components"]["examples"].values():
        assert example["value"]["type"].startswith(TYPE_PREFIX)
    assert "HTTPValidationError" not in description["components"]["schemas"]
