"""Orders as a Parquet file, written row group by row group, and proved by what stands in its footer.

The footer's key-value metadata hold the manifest and, where the file goes on with an export, the cursor that it began
with. A chunk of the digest is the bytes of one row group; the magic in front of the first one and the footer do not
count. Parquet files cannot be continued, so an export that is too large for one goes into several (`limit`, `next`).

pyarrow takes 44 MB of memory: only who reads or writes Parquet imports this module.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, BinaryIO, Final, cast

# pyarrow's own allocators keep what they once had. The writer of Parquet asks for its pages where this variable says,
# whatever pool is named in Python, and it is read once: when the library is loaded.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

import pyarrow as pa
from pyarrow import parquet as pq

from shared.export.columns import SUMMARY
from shared.export.manifest import Manifest, as_json, from_json
from shared.export.position import ExportPosition, ForeignPositionError
from shared.export.reading import DamagedExportError, Proof

MAGIC: Final = b"PAR1"
"""What every Parquet file begins and ends with."""

_MANIFEST: Final = b"orders_backup.manifest"
_CURSOR: Final = b"orders_backup.cursor"
# The system's keeps what lies between the things that the footer gathers, unless it is told to give it back.
_MEMORY: Final = pa.system_memory_pool()
pa.set_memory_pool(_MEMORY)
# Of one row group in memory. Each costs 20 kB until the file ends: of larger ones there are fewer.
_GROUP_BYTES: Final = 8 << 20
# The length of the footer, and the magic again.
_TAIL_BYTES: Final = 8
_AMOUNT: Final = pa.decimal128(38, 6)
_MOMENT: Final = pa.timestamp("us", tz="UTC")
_TYPES: Final[Mapping[str, pa.DataType]] = {
    "total_amount": _AMOUNT,
    **dict.fromkeys(("bought_at", "allegro_updated_at", "observed_at", "gone_at", "created_at", "updated_at"), _MOMENT),
}
_NEVER_NULL: Final = frozenset(
    {"user_id", "order_id", "status", "observed_at", "observed_by", "created_at", "updated_at"}
)
# Few different values in many rows.
_REPEATED: Final = ["user_id", "status", "fulfillment_status", "currency", "observed_by", "gone_reason"]

SCHEMA: Final = pa.schema(
    [
        *(pa.field(name, _TYPES.get(name, pa.string()), nullable=name not in _NEVER_NULL) for name in SUMMARY),
        pa.field("order_data", pa.string(), nullable=False),
        pa.field("order_raw", pa.binary()),
    ]
)


class OrdersFile:
    """A file that is written in memory and taken away piece by piece."""

    def __init__(self) -> None:
        self._sink = _Sink()
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._sink, mode="w"),
            SCHEMA,
            compression="zstd",
            # Documents are large: pages of fewer of them, or a page holds a thousand, several times over.
            write_batch_size=64,
            use_dictionary=_REPEATED,
            # Not of the documents: the least and the greatest of them say nothing, and stand in the footer as they are.
            write_statistics=list(SUMMARY),
        )
        self._held: list[pa.RecordBatch] = []

    def begin(self) -> bytes:
        """What comes before the first row group."""
        return self._sink.take()

    def add(self, rows: Sequence[Sequence[Any]]) -> bytes:
        """Rows as `SCHEMA` has them: amounts and documents as text, times as datetime.

        Returns the row group that they complete, with all that came before them, or nothing yet. As columns they are
        held in less than half of the memory that they need as Python's objects, so few may be given at a time.
        """
        columns = [
            pa.array([convert(row[place]) for row in rows], field.type)
            for place, field, convert in zip(range(len(SCHEMA)), SCHEMA, _CONVERSIONS, strict=True)
        ]
        self._held.append(pa.record_batch(columns, schema=SCHEMA))
        return self.rest() if sum(batch.nbytes for batch in self._held) >= _GROUP_BYTES else b""

    def rest(self) -> bytes:
        """The row group of what is held; nothing if nothing is."""
        if not self._held:
            return b""
        group = pa.Table.from_batches(self._held, SCHEMA)
        self._writer.write_table(group, row_group_size=len(group))
        del group
        self._held.clear()
        _MEMORY.release_unused()
        return self._sink.take()

    def end(self, manifest: Manifest | None, *, cursor: str | None) -> bytes:
        """The footer; nothing can follow."""
        notes = {} if manifest is None else {_MANIFEST: as_json(manifest)}
        self._writer.add_key_value_metadata(notes | ({} if cursor is None else {_CURSOR: cursor.encode()}))
        self._writer.close()
        return self._sink.take()


class _Sink:
    """What pyarrow takes for a file."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """What was written is taken by `take`."""

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


def _amount(text: str | None) -> Decimal | None:
    """None also for what has more digits than the column: the document has all of them."""
    if text is None:
        return None
    amount = Decimal(text)
    try:
        pa.scalar(amount, _AMOUNT)
    except pa.ArrowInvalid:
        return None
    return amount


def _same(value: object) -> object:
    return value


_CONVERSIONS: Final[Sequence[Callable[[Any], object]]] = [
    {"total_amount": _amount}.get(name, _same) for name in SCHEMA.names
]


def prove_parquet(file: BinaryIO, *, tell: Callable[[int], None] = lambda _offset: None) -> Proof:
    """Prove that a file holds every order that its manifest tells of, unchanged; raises DamagedExportError."""
    metadata = _metadata(file)
    notes = metadata.metadata or {}
    if _MANIFEST not in notes:
        raise DamagedExportError("the file has no manifest: it is none of our exports, or was made without")
    manifest = from_json(notes[_MANIFEST])
    cursor = notes[_CURSOR].decode("ascii", "replace") if _CURSOR in notes else None
    start = position = _begin(cursor)
    for begin, end, orders in _row_groups(metadata, _footer_offset(file)):
        file.seek(begin)
        position = position.past(file.read(end - begin), orders, token_id=0, after=0)
        tell(end)
    if (position.orders, position.digest.hex()) != (manifest.orders, manifest.digest):
        raise DamagedExportError(
            f"the orders are not those that were exported: {position.orders} are there, the manifest says"
            f" {manifest.orders}, or the bytes of some have changed"
        )
    return Proof(manifest, position.orders - start.orders, start.orders, cursor)


def _metadata(file: BinaryIO) -> pq.FileMetaData:
    file.seek(0)
    try:
        return pq.read_metadata(pa.PythonFile(file, mode="r"))
    except (pa.ArrowException, OSError) as error:
        raise DamagedExportError(f"the file is no whole Parquet file: {error}") from error


def _begin(cursor: str | None) -> ExportPosition:
    try:
        return ExportPosition(bytes(8), until=0) if cursor is None else ExportPosition.decode(cursor)
    except ForeignPositionError as error:
        raise DamagedExportError("the cursor that the file began with cannot be read") from error


def _footer_offset(file: BinaryIO) -> int:
    end = file.seek(-_TAIL_BYTES, 2)
    return end - int.from_bytes(file.read(4), "little")


def _row_groups(metadata: pq.FileMetaData, footer: int) -> list[tuple[int, int, int]]:
    """Of each row group where it begins, where the next one begins, and its number of orders."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    begins = [len(MAGIC), *(_offset(group) for group in groups[1:])]
    ends = [*begins[1:], footer]
    return [(begin, end, group.num_rows) for begin, end, group in zip(begins, ends, groups, strict=False)]


def _offset(group: pq.RowGroupMetaData) -> int:
    first = group.column(0)
    return cast("int", first.dictionary_page_offset if first.has_dictionary_page else first.data_page_offset)
