"""What is written about the API agrees with it."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.api.endpoints.tasks import TaskWithRun
from services.api.openapi import export
from services.api.problems import MEDIA_TYPE, TYPE_PREFIX, Problem, all_types
from shared.export.reading import prove

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


_OF_NO_OPERATION = {"not-found", "method-not-allowed"}
"""An address or a method that no operation has."""


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in json.loads(export())["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def problems_of(operation: dict[str, Any]) -> dict[str, str]:
    """Kinds of problems with their statuses."""
    return {
        slug: status
        for status, answer in operation["responses"].items()
        for slug in answer.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {})
    }


def test_every_kind_of_problem_is_documented_under_its_status_where_it_may_come() -> None:
    found: dict[str, set[str]] = {}
    for method, path, operation in operations():
        of_this = problems_of(operation)
        for slug, status in of_this.items():
            found.setdefault(slug, set()).add(status)
        assert {"bad-request", "address-too-long", "foreign-host", "internal", "unavailable"} <= of_this.keys(), path
        if path.startswith("/api/"):
            # Beside those of the same status that the endpoint names itself.
            everywhere = {"unauthenticated", "not-allowed", "invalid-input", "too-many-requests"}
            assert everywhere | {"database-unavailable"} <= of_this.keys(), (method, path)
            assert method == "get" or {"foreign-origin", "too-large"} <= of_this.keys(), (method, path)
            asked = {given["name"] for given in operation.get("parameters", ())}
            assert ("invalid-cursor" in of_this) is ("cursor" in asked), (method, path)

    assert found == {kind.slug: {str(int(kind.status))} for kind in all_types() if kind.slug not in _OF_NO_OPERATION}


def test_headers_of_answers_are_documented() -> None:
    of_lists = set()
    for method, path, operation in operations():
        answers = operation["responses"]
        headers = {status: set(answer.get("headers", ())) for status, answer in answers.items()}
        assert all("X-Request-ID" in names for names in headers.values()), path
        if not path.startswith("/api/"):
            continue
        assert all({"RateLimit", "RateLimit-Policy"} <= names for names in headers.values()), path
        assert "WWW-Authenticate" in headers["401"]
        assert all("Retry-After" in headers[status] for status in ("429", "503"))
        well = [names for status, names in headers.items() if status.startswith("2")]
        assert all(("Idempotent-Replayed" in names) is (method == "post") for names in well), path
        of_lists |= {path for names in well if "Link" in names}
    by_path = {path: operation["responses"] for _, path, operation in operations()}

    assert of_lists == {
        *("/api/v1/orders/{user_id}", "/api/v1/sync/history/{user_id}", "/api/v1/sync/active", "/api/v1/sync/tasks"),
        *("/api/v1/reconciliations", "/api/v1/reconciliations/{run_id}", "/api/v1/tokens/", "/api/v1/dead-letters"),
        "/api/v1/audit",
    }
    assert "Content-Disposition" in by_path["/api/v1/exports/orders"]["200"]["headers"]
    order = by_path["/api/v1/orders/{user_id}/{order_id}"]
    assert all("ETag" in order[status]["headers"] for status in ("200", "304"))


def test_examples_that_are_not_json_are_what_their_media_type_says() -> None:
    shown = {
        media: content["example"]
        for _, _, operation in operations()
        for answer in operation["responses"].values()
        for media, content in answer.get("content", {}).items()
        if media not in ("application/json", MEDIA_TYPE) and "example" in content
    }
    event = dict(line.split(": ", 1) for line in shown["text/event-stream"].splitlines() if line)
    (family,) = text_string_to_metric_families(shown["text/plain"])

    assert set(shown) == {
        *("application/x-ndjson", "text/csv", "application/vnd.apache.parquet"),
        *("text/event-stream", "text/plain"),
    }
    for text in (shown["application/x-ndjson"], shown["text/csv"]):
        assert prove(io.BytesIO(text.encode())).is_complete
    assert len({*map(len, csv.reader(shown["text/csv"].splitlines()[:2]))}) == 1
    assert shown["application/vnd.apache.parquet"].startswith("PAR1")
    assert event["event"] == "progress"
    assert TaskWithRun.model_validate_json(event["data"]).status == "queued"
    assert family.name == "orders_backup_api_requests"
