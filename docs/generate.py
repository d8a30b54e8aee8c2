"""Writes what the documentation says of the records, from `shared.messages`: run it after every change there.

    python -m docs.generate

It writes `docs/schemas/<topic>.json`, `docs/asyncapi.json`, and the parts of `docs/topics.md` between
`<!-- generated: <topic> -->` and `<!-- end of generated -->`; everything else on that page is written by hand.
`tests/docs` fails while they differ.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from shared import asyncapi
from shared.messages import (
    OrderEvent,
    OrderFetch,
    OrderFetchFailed,
    OrderMissing,
    OrderObserved,
    OrderState,
    OrderWindow,
    RawJson,
    Record,
    WindowFinished,
    WindowPlace,
    WindowProgressed,
    headers,
    json_schemas,
)
from shared.topics import Topics

_DOCS = Path(__file__).parent
_PAGE = _DOCS / "topics.md"
_GENERATED = re.compile(
    r"(?P<begin><!-- generated: (?P<topic>[a-z-]+) -->\n).*?(?=<!-- end of generated -->)", re.DOTALL
)

_TOKEN_ID = 42
_RUN_ID = UUID("0b9d64a8-3c5e-4c2e-9f53-6f4f9e0d2a11")
_CORRELATION_ID = "5f0c2b7e9d1a4c38b6e2f4a09c7d1e35"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _as_received(name: str) -> RawJson:
    """What Allegro's sandbox sent on 2026-10-10, personal data replaced; on one line, as it arrives."""
    body = json.loads((_DOCS / "examples" / f"{name}.json").read_text())
    return RawJson(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())


def examples() -> Mapping[str, Sequence[Record]]:
    """One record of every kind, by topic: the life of one order of one seller."""
    order_id = "004f5a50-c4f8-11f1-904f-89bb34047197"
    bought_at = _moment("2026-10-10T22:14:54.878Z")
    wanted_after = _moment("2026-10-10T22:15:24.086457Z")
    return {
        "order-events": [
            OrderEvent(
                token_id=_TOKEN_ID,
                event_id=1791670524086457,
                follows_event_id=1791670513499962,
                event_type="READY_FOR_PROCESSING",
                occurred_at=_moment("2026-10-10T22:15:05.650Z"),
                order_id=order_id,
                revision="1ab823c2",
                bought_at=bought_at,
                wanted_after=wanted_after,
                run_id=_RUN_ID,
                run_last_event_id=1791670524086457,
                event=_as_received("event"),
            ),
            OrderFetch(
                token_id=_TOKEN_ID,
                order_id=order_id,
                wanted_after=wanted_after,
                bought_at=bought_at,
                attempts=3,
                run_id=_RUN_ID,
            ),
        ],
        "order-windows": [
            OrderWindow(
                token_id=_TOKEN_ID,
                run_id=_RUN_ID,
                bought_from=_moment("2025-10-10T00:00:00Z"),
                bought_to=_moment("2026-10-10T22:20:00Z"),
            ),
        ],
        "orders": [
            OrderObserved(
                token_id=_TOKEN_ID,
                order_id=order_id,
                observed_at=_moment("2026-10-10T22:15:31.204118Z"),
                observed_by="list",
                place=WindowPlace(run_id=_RUN_ID, attempt=1, sequence=1234),
                order=_as_received("order"),
            ),
            OrderMissing(
                token_id=_TOKEN_ID,
                order_id="db2dbcd0-c4f7-11f1-904f-89bb34047197",
                observed_at=_moment("2026-10-10T22:16:02.118305Z"),
                reason="404: CheckoutFormNotFoundException: Checkout form not found [detail]",
            ),
            OrderFetchFailed(
                token_id=_TOKEN_ID,
                order_id=order_id,
                wanted_after=wanted_after,
                attempts=3,
                retry_after_seconds=30.0,
                error="AllegroUnavailableError: 503: ServiceTimeoutException [detail]",
            ),
            WindowProgressed(
                token_id=_TOKEN_ID, run_id=_RUN_ID, attempt=1, page=12, requests=13, orders_expected=20_417
            ),
            WindowFinished(
                token_id=_TOKEN_ID, run_id=_RUN_ID, attempt=1, orders=20_417, orders_expected=20_417, requests=207
            ),
        ],
        "order-state": [
            OrderState(
                token_id=_TOKEN_ID,
                order_id=order_id,
                observed_at=_moment("2026-10-10T22:15:31.204118Z"),
                updated_at=_moment("2026-10-10T22:15:31.391720Z"),
                order=_as_received("order"),
            ),
        ],
    }


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _type_of(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A property's type in words: `integer`, `date-time or null`, `"detail" or "list"`."""
    match schema:
        case {"anyOf": alternatives}:
            return " or ".join(_type_of(one, definitions) for one in alternatives)
        case {"$ref": reference}:
            fields = definitions[str(reference).rpartition("/")[2]]["properties"]
            return "{" + ", ".join(f"{name}: {_type_of(field, definitions)}" for name, field in fields.items()) + "}"
        case {"enum": values}:
            return " or ".join(json.dumps(value) for value in values)
        case {"format": form}:
            return str(form)
        case {"type": name}:
            return str(name)
    raise LookupError(f"a property without a type: {schema}")


def _rows(record: Record) -> Iterator[str]:
    _, definitions = msgspec.json.schema_components([type(record)])
    schema = definitions[type(record).__name__]
    for name, field in schema["properties"].items():
        required = "yes" if name in asyncapi.always_there(schema) else f"no: `{json.dumps(field.get('default'))}`"
        kind = _type_of(field, definitions).replace("|", "\\|")
        yield f"| `{name}` | {kind} | {required} | {field.get('description', '')} |"


def _kind_section(record: Record) -> str:
    run_id: UUID | None = getattr(record, "run_id", None)
    carried = {name: value.decode() for name, value in headers(correlation_id=_CORRELATION_ID, run_id=run_id)}
    lines = [
        f"### `{record.kind}`",
        "",
        (type(record).__doc__ or "").strip().replace("\n    ", "\n"),
        "",
        "| field | type | required | meaning |",
        "| --- | --- | --- | --- |",
        *_rows(record),
        "",
        "<details><summary>Example</summary>",
        "",
        "```",
        f"key:     {record.key.decode()}",
        f"headers: {json.dumps(carried)}",
        "```",
        "",
        "```json",
        _pretty(json.loads(record.encode())),
        "```",
        "",
        "</details>",
        "",
    ]
    return "\n".join(lines)


def topics_page(current: str) -> str:
    """The page with its generated parts made anew; raises LookupError if a topic has no place on it."""
    by_topic = examples()
    placed = set()

    def section(found: re.Match[str]) -> str:
        placed.add(found["topic"])
        return found["begin"] + "\n" + "\n".join(_kind_section(record) for record in by_topic[found["topic"]])

    page = _GENERATED.sub(section, current)
    if missing := by_topic.keys() - placed:
        raise LookupError(f"docs/topics.md has no place for {', '.join(sorted(missing))}")
    return page


def asyncapi_document() -> dict[str, Any]:
    """The description of the topics that the API serves, with an example of every kind."""
    document = asyncapi.document(Topics())
    for records in examples().values():
        for record in records:
            message = document["components"]["messages"][record.kind]
            run_id: UUID | None = getattr(record, "run_id", None)
            carried = {name: value.decode() for name, value in headers(correlation_id=_CORRELATION_ID, run_id=run_id)}
            message["examples"] = [{"headers": carried, "payload": json.loads(record.encode())}]
    return document


def files() -> Mapping[Path, str]:
    """Every generated file with the content it should have."""
    schemas = {_DOCS / "schemas" / f"{topic}.json": _pretty(schema) + "\n" for topic, schema in json_schemas().items()}
    described = {_DOCS / "asyncapi.json": _pretty(asyncapi_document()) + "\n"}
    return {**schemas, **described, _PAGE: topics_page(_PAGE.read_text())}


def outdated() -> list[Path]:
    """The files that are not as they should be."""
    return [path for path, content in files().items() if not path.exists() or path.read_text() != content]


if __name__ == "__main__":
    for path, content in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
