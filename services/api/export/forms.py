"""Orders as lines of NDJSON and records of CSV. Pure.

NDJSON holds everything: the document is the text of `jsonb`, never decoded; where `jsonb` could not hold what Allegro
sent, `order_raw` has the exact bytes in base64. CSV holds the summary.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import msgspec

from shared.export.columns import CSV_HEADER, SUMMARY
from shared.export.manifest import Manifest, as_csv, as_line

COLUMNS = (
    *("allegro_order_id", "status", "fulfillment_status", "buyer_id", "buyer_login", "buyer_email"),
    *("total_amount::text", "currency", "bought_at", "allegro_updated_at", "revision", "observed_at", "observed_by"),
    *("gone_at", "gone_reason", "successor_order_id", "created_at", "updated_at"),
)
"""Where the summary comes from, but for the user."""

DOCUMENT = ("order_data", "order_raw")

# A spreadsheet takes a cell that begins with one of these for a formula (OWASP, "CSV Injection").
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBERS = frozenset({"total_amount"})


class _Line(msgspec.Struct):
    """A line; the names are those of `SUMMARY`, and a test compares them."""

    user_id: str
    order_id: str
    status: str
    fulfillment_status: str | None
    buyer_id: str | None
    buyer_login: str | None
    buyer_email: str | None
    total_amount: str | None
    currency: str | None
    bought_at: datetime | None
    allegro_updated_at: datetime | None
    revision: str | None
    observed_at: datetime
    observed_by: str
    gone_at: datetime | None
    gone_reason: str | None
    successor_order_id: str | None
    created_at: datetime
    updated_at: datetime
    order_data: msgspec.Raw
    order_raw: bytes | None
    cursor: str | msgspec.UnsetType = msgspec.UNSET


class Row(Protocol):
    """A row of the database: id, token, `COLUMNS`, and `DOCUMENT` where the form has it."""

    def __getitem__(self, key: Any) -> Any: ...


@dataclass(frozen=True)
class Form:
    """One way to write orders."""

    name: str
    media_type: str
    columns: tuple[str, ...]
    header: bytes
    chunk: Callable[[Sequence[Row], Mapping[int, str], str | None], bytes]
    """Rows, names of users by token, cursor for the first row."""
    manifest: Callable[[Manifest], bytes]


_ENCODER = msgspec.json.Encoder()


def _ndjson(rows: Sequence[Row], users: Mapping[int, str], cursor: str | None) -> bytes:
    lines = [_Line(*(users[row[1]], *row[2:-2], msgspec.Raw(row[-2]), row[-1])) for row in rows]
    if lines and cursor is not None:
        lines[0].cursor = cursor
    return _ENCODER.encode_lines(lines)


def _csv(rows: Sequence[Row], users: Mapping[int, str], cursor: str | None) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    for number, row in enumerate(rows):
        values = (users[row[1]], *row[2:])
        cells = [_cell(name, value) for name, value in zip(SUMMARY, values, strict=True)]
        writer.writerow([*cells, cursor if number == 0 and cursor is not None else ""])
    return text.getvalue().encode()


def _cell(name: str, value: str | datetime | None) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return value if name in _NUMBERS else harmless(value)


def harmless(text: str) -> str:
    """The text with an apostrophe in front if a spreadsheet would take it for a formula."""
    return "'" + text if text.startswith(_FORMULA_STARTS) else text


NDJSON = Form("ndjson", "application/x-ndjson", (*COLUMNS, *DOCUMENT), b"", _ndjson, as_line)
CSV = Form("csv", "text/csv", COLUMNS, CSV_HEADER, _csv, as_csv)
FORMS = {form.name: form for form in (NDJSON, CSV)}
