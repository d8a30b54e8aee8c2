"""Reading an export again, without trusting it: records, the cursors that they carry, and what they prove.

A file is read record by record; memory does not grow with it.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import msgspec

from shared.errors import OrdersBackupError
from shared.export.columns import CSV_HEADER
from shared.export.manifest import Manifest, UnreadableManifestError, from_record
from shared.export.position import ExportPosition, ForeignPositionError

_CSV_END = b"\r\n"


class DamagedExportError(OrdersBackupError):
    """What the file holds is not what was exported; the message says where it differs."""


class _Order(msgspec.Struct):
    order_id: str
    cursor: str | None = None


@dataclass(frozen=True)
class Record:
    """One order or the manifest, with its place in the file."""

    offset: int
    content: bytes
    cursor: str | None
    manifest: Manifest | None


@dataclass(frozen=True)
class Proof:
    """What a file has been found to hold."""

    manifest: Manifest
    orders_in_file: int
    begins_after: int
    """Orders that went before this file; 0: it is the first part, or the whole."""
    begins_at: str | None
    """The cursor that it goes on from."""

    @property
    def is_complete(self) -> bool:
        return self.begins_after == 0 and self.manifest.next is None


def prove(file: BinaryIO, *, tell: Callable[[int], None] = lambda _offset: None) -> Proof:
    """Prove that a file holds every order that the export had, unchanged; raises DamagedExportError.

    `tell` hears from time to time how far the file has been read, in bytes.
    """
    chain: _Chain | None = None
    for record in records(file):
        if record.manifest is not None:
            return _end(file, chain or _Chain(None), record.manifest)
        if chain is None:
            chain = _Chain(record.cursor)
        elif record.cursor is not None:
            chain.check(record)
            tell(record.offset)
        chain.add(record.content)
    raise DamagedExportError("the export ends without its manifest: it was cut off")


def last_cursor(file: BinaryIO) -> Record | None:
    """The last order that carries a cursor, or None: what comes before it can be kept, and gone on with there."""
    found = None
    try:
        for record in records(file):
            if record.cursor is not None:
                found = record
    except DamagedExportError:
        # The end of what was cut off; whatever stands before it is proved when the whole is there.
        return found
    return found


def records(file: BinaryIO) -> Iterator[Record]:
    """The records of an export; raises DamagedExportError where one is cut off or none of ours."""
    head = file.readline()
    is_csv = head == CSV_HEADER or not head.startswith(b"{")
    offset = 0
    if head == CSV_HEADER:
        offset, head = len(head), file.readline()
    while head:
        content = _whole_csv(head, file, offset) if is_csv else head
        if not content.endswith(b"\n"):
            raise DamagedExportError(f"the record at byte {offset} is cut off")
        yield _read(content, offset, is_csv=is_csv)
        offset += len(content)
        head = file.readline()


def _whole_csv(head: bytes, file: BinaryIO, offset: int) -> bytes:
    """A record of CSV goes on over line ends within quotes."""
    content = head
    while content.count(b'"') % 2 or not content.endswith(_CSV_END):
        more = file.readline()
        if not more:
            raise DamagedExportError(f"the record at byte {offset} is cut off")
        content += more
    return content


def _read(content: bytes, offset: int, *, is_csv: bool) -> Record:
    try:
        manifest = from_record(content)
        if manifest is not None:
            return Record(offset, content, None, manifest)
        cursor = _csv_cursor(content) if is_csv else msgspec.json.decode(content, type=_Order).cursor
    except (msgspec.DecodeError, UnicodeDecodeError, UnreadableManifestError, csv.Error) as error:
        raise DamagedExportError(f"the record at byte {offset} is not one of an export: {error}") from error
    return Record(offset, content, cursor, None)


def _csv_cursor(content: bytes) -> str | None:
    """The last cell, which is never quoted."""
    return content[: -len(_CSV_END)].rpartition(b",")[2].decode("ascii") or None


class _Chain:
    """Follows the digests from one cursor to the next."""

    def __init__(self, cursor: str | None) -> None:
        self._position = None if cursor is None else _decode(cursor, 0)
        self.begins_at = cursor
        self.begins_after = 0 if self._position is None else self._position.orders
        self.orders = 0
        self._chunk: list[bytes] = []

    def add(self, order: bytes) -> None:
        self._chunk.append(order)
        self.orders += 1

    def check(self, record: Record) -> None:
        """A cursor says what went before it."""
        assert record.cursor is not None  # noqa: S101 - asked by the caller
        said = _decode(record.cursor, record.offset)
        self._close()
        if not self._agrees(said.orders, said.digest.hex()):
            raise DamagedExportError(
                f"something before byte {record.offset} is not as it was exported: {self._counted} orders are there,"
                f" and {said.orders} were written"
            )
        self._position = said

    def agrees_with(self, manifest: Manifest) -> bool:
        self._close()
        return self._agrees(manifest.orders, manifest.digest)

    @property
    def _counted(self) -> int:
        return self.begins_after + self.orders

    def _close(self) -> None:
        before = self._position or ExportPosition(bytes(8), until=0)
        if self._chunk:
            self._position = before.past(b"".join(self._chunk), len(self._chunk), token_id=0, after=0)
            self._chunk.clear()

    def _agrees(self, orders: int, digest: str) -> bool:
        found = self._position or ExportPosition(bytes(8), until=0)
        return (found.orders, found.digest.hex()) == (orders, digest)


def _decode(cursor: str, offset: int) -> ExportPosition:
    try:
        return ExportPosition.decode(cursor)
    except ForeignPositionError as error:
        raise DamagedExportError(f"the cursor of the record at byte {offset} cannot be read") from error


def _end(file: BinaryIO, chain: _Chain, manifest: Manifest) -> Proof:
    if not chain.agrees_with(manifest):
        raise DamagedExportError(
            f"the orders are not those that were exported: {chain.begins_after + chain.orders} are there, the manifest"
            f" says {manifest.orders}, or the bytes of some have changed"
        )
    if file.read(1):
        raise DamagedExportError("something follows after the manifest")
    return Proof(manifest, chain.orders, chain.begins_after, chain.begins_at)
