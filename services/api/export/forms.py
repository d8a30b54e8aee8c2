"""Orders as lines of NDJSON, records of CSV, and row groups of Parquet. Pure.

NDJSON and Parquet hold everything: the document is the text of `jsonb`, never decoded; where `jsonb` could not hold
what Allegro sent, `order_raw` has the exact bytes (in NDJSON in base64). CSV holds the summary.
"""

import asyncio
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
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_BLANKS = "".join(char for char in map(chr, range(0x3001)) if char.isspace() and char not in _FORMULA_STARTS)
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


class Writing(Protocol):
    """One answer while it is written."""

    def begin(self, *, header: bool) -> bytes:
        """What comes before the orders; `header`: with the names of the columns, where that is a choice."""
        ...

    async def chunk(self, rows: Sequence[Row], users: Mapping[int, str], cursor: str | None) -> bytes:
        """Orders; names of users by token; the cursor of the first order. Nothing: they are held for a later chunk."""
        ...

    async def rest(self) -> bytes:
        """A chunk of the orders that are held; nothing if none are."""
        ...

    def end(self, manifest: Manifest | None) -> bytes:
        """What comes after the last order."""
        ...


@dataclass(frozen=True)
class Form:
    """One way to write orders."""

    name: str
    media_type: str
    columns: tuple[str, ...]
    open: Callable[[], Writing]


class _Records:
    """What is written order by order holds none."""

    async def rest(self) -> bytes:
        return b""


class _Ndjson(_Records):
    _encoder = msgspec.json.Encoder()

    def begin(self, *, header: bool) -> bytes:
        return b""

    async def chunk(self, rows: Sequence[Row], users: Mapping[int, str], cursor: str | None) -> bytes:
        lines = [_Line(*(users[row[1]], *row[2:-2], msgspec.Raw(row[-2]), row[-1])) for row in rows]
        if lines and cursor is not None:
            lines[0].cursor = cursor
        return self._encoder.encode_lines(lines)

    def end(self, manifest: Manifest | None) -> bytes:
        return b"" if manifest is None else as_line(manifest)


class _Csv(_Records):
    def begin(self, *, header: bool) -> bytes:
        return CSV_HEADER if header else b""

    async def chunk(self, rows: Sequence[Row], users: Mapping[int, str], cursor: str | None) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text)
        for number, row in enumerate(rows):
            values = (users[row[1]], *row[2:])
            cells = [_cell(name, value) for name, value in zip(SUMMARY, values, strict=True)]
            writer.writerow([*cells, cursor if number == 0 and cursor is not None else ""])
        return text.getvalue().encode()

    def end(self, manifest: Manifest | None) -> bytes:
        return b"" if manifest is None else as_csv(manifest)


class _Parquet:
    def __init__(self) -> None:
        # 44 MB that only those need who ask for Parquet.
        from shared.export.parquet import OrdersFile

        self._file = OrdersFile()
        self._cursor: str | None = None
        self._is_first = True

    def begin(self, *, header: bool) -> bytes:
        return self._file.begin()

    async def chunk(self, rows: Sequence[Row], users: Mapping[int, str], cursor: str | None) -> bytes:
        if self._is_first:
            self._cursor, self._is_first = cursor, False
        # It compresses: some milliseconds that others should not wait for.
        return await asyncio.to_thread(self._file.add, [(users[row[1]], *row[2:]) for row in rows])

    async def rest(self) -> bytes:
        return await asyncio.to_thread(self._file.rest)

    def end(self, manifest: Manifest | None) -> bytes:
        return self._file.end(manifest, cursor=self._cursor)


def _cell(name: str, value: str | datetime | None) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return value if name in _NUMBERS else harmless(value)


def harmless(text: str) -> str:
    """The text with an apostrophe in front if a spreadsheet would take it for a formula, blanks in front or not."""
    return "'" + text if text.lstrip(_BLANKS).startswith(_FORMULA_STARTS) else text


NDJSON = Form("ndjson", "application/x-ndjson", (*COLUMNS, *DOCUMENT), _Ndjson)
CSV = Form("csv", "text/csv", COLUMNS, _Csv)
PARQUET = Form("parquet", "application/vnd.apache.parquet", (*COLUMNS, *DOCUMENT), _Parquet)
FORMS = {form.name: form for form in (NDJSON, CSV, PARQUET)}
