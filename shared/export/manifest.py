"""The last record of an export: how many orders there are, and the digest of all of them. Pure."""

import csv
import io
from datetime import datetime

import msgspec

from shared.errors import OrdersBackupError

FORMAT = "orders-backup-export/1"
CSV_MARK = "#manifest"
_CSV_START = CSV_MARK.encode() + b","
_CSV_CELLS = 2
_LINE_START = b'{"manifest":'


class UnreadableManifestError(OrdersBackupError):
    """The record looks like a manifest and is none of ours."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an export holds from its very beginning, also if it was gone on with."""

    format: str
    orders: int
    digest: str
    """Hexadecimal; see `ExportPosition.digest`."""
    finished_at: datetime
    filters: dict[str, str]
    next: str | None
    """Cursor of the following part; None: this is the end."""


class _Line(msgspec.Struct):
    manifest: Manifest


def as_line(manifest: Manifest) -> bytes:
    """The manifest as the last line of NDJSON."""
    return msgspec.json.encode(_Line(manifest)) + b"\n"


def as_csv(manifest: Manifest) -> bytes:
    """The manifest as the last record of CSV: two cells."""
    text = io.StringIO()
    csv.writer(text).writerow([CSV_MARK, msgspec.json.encode(manifest).decode()])
    return text.getvalue().encode()


def as_json(manifest: Manifest) -> bytes:
    """The manifest alone, as the footer of a Parquet file holds it."""
    return msgspec.json.encode(manifest)


def from_json(text: bytes) -> Manifest:
    """Raises UnreadableManifestError."""
    try:
        return _known(msgspec.json.decode(text, type=Manifest))
    except (msgspec.DecodeError, ValueError) as error:
        raise UnreadableManifestError(f"the manifest cannot be read: {error}") from error


def from_record(record: bytes) -> Manifest | None:
    """The manifest that this line of NDJSON or record of CSV is; None if it is an order.

    Raises UnreadableManifestError.
    """
    try:
        if record.startswith(_LINE_START):
            return _known(msgspec.json.decode(record, type=_Line).manifest)
        if record.startswith(_CSV_START):
            cells = next(csv.reader([record.decode()]))
            # An order of a user who is called like our mark has more cells.
            return _known(msgspec.json.decode(cells[1], type=Manifest)) if len(cells) == _CSV_CELLS else None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise UnreadableManifestError(f"the manifest cannot be read: {error}") from error
    return None


def _known(manifest: Manifest) -> Manifest:
    if manifest.format != FORMAT:
        raise UnreadableManifestError(f"the export is of the format {manifest.format!r}; this version knows {FORMAT!r}")
    return manifest
