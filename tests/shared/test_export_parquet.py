"""Parquet files prove themselves: whatever changes in the orders is found."""

import io
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet as pq

from shared.export.columns import SUMMARY
from shared.export.manifest import FORMAT, Manifest
from shared.export.parquet import MAGIC, SCHEMA, OrdersFile, prove_parquet
from shared.export.position import ExportPosition
from shared.export.proof import joined
from shared.export.reading import DamagedExportError

_MOMENT = datetime(2026, 10, 10, 12, 30, 0, 123456, tzinfo=UTC)
_START = ExportPosition(bytes(8), until=100)


def a_row(number: int, **changes: Any) -> tuple[Any, ...]:
    values: dict[str, Any] = {
        "user_id": "shop",
        "order_id": f"order-{number}",
        "status": "BOUGHT",
        "total_amount": "12.30",
        "observed_at": _MOMENT,
        "observed_by": "list",
        "created_at": _MOMENT,
        "updated_at": _MOMENT,
        "order_data": b'{"n": 1.10}',
    } | changes
    return tuple(values.get(name) for name in SCHEMA.names)


def a_part(sizes: list[int], *, position: ExportPosition = _START, more: bool = False) -> tuple[bytes, ExportPosition]:
    """Row groups of so many orders each, as the API writes them; where the export stands then."""
    file, cursor = OrdersFile(), None if position.is_start else position.encode()
    body = file.begin()
    for size in sizes:
        chunk = file.add([a_row(position.orders + place) for place in range(size)]) + file.rest()
        position = position.past(chunk, size, token_id=1, after=position.orders + size)
        body += chunk
    manifest = Manifest(
        format=FORMAT,
        orders=position.orders,
        digest=position.digest.hex(),
        finished_at=_MOMENT,
        filters={},
        next=position.encode() if more else None,
    )
    return body + file.end(manifest, cursor=cursor), position


def test_columns_are_those_of_the_other_formats_and_typed() -> None:
    assert SCHEMA.names == [*SUMMARY, "order_data", "order_raw"]
    assert SCHEMA.field("total_amount").type == pa.decimal128(38, 6)
    assert SCHEMA.field("bought_at").type == pa.timestamp("us", tz="UTC")


def test_values_come_back() -> None:
    file = OrdersFile()
    rows = [
        a_row(1, bought_at=_MOMENT, order_raw=b"\x00", buyer_login="\u0142"),
        a_row(2, total_amount="0.1234567"),
        a_row(3, total_amount="-99999999999999999999999999999999.5"),
        a_row(4, total_amount=None),
    ]
    body = file.begin() + file.add(rows) + file.rest() + file.end(None, cursor=None)

    table = pq.read_table(io.BytesIO(body)).to_pylist()

    assert [row["total_amount"] for row in table] == [
        Decimal("12.30"),
        None,  # more digits than the column has: the document knows them
        Decimal("-99999999999999999999999999999999.5"),
        None,
    ]
    assert (table[0]["bought_at"], table[0]["order_raw"], table[0]["buyer_login"]) == (_MOMENT, b"\x00", "\u0142")
    assert table[0]["order_data"] == '{"n": 1.10}'


def test_orders_are_held_until_their_row_group_is_large() -> None:
    one = [a_row(1, order_data=b'"' + b"x" * 100_000 + b'"')]
    file = OrdersFile()
    file.begin()

    groups = [file.add(one) for _ in range(200)]

    written = [number for number, group in enumerate(groups, 1) if group]
    assert len(written) == 2
    assert written[1] == 2 * written[0]
    assert 6e6 < written[0] * 100_000 < 10e6
    assert (len(file.rest()) > 0, file.rest()) == (True, b"")


@given(st.lists(st.integers(1, 5), max_size=5))
def test_what_was_written_is_proved(sizes: list[int]) -> None:
    proof = prove_parquet(io.BytesIO(a_part(sizes)[0]))

    assert (proof.is_complete, proof.manifest.orders, proof.orders_in_file) == (True, sum(sizes), sum(sizes))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_no_byte_of_an_order_can_change(sizes: list[int], data: st.DataObject) -> None:
    body = bytearray(a_part(sizes)[0])
    footer = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    body[data.draw(st.integers(len(MAGIC), footer - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(DamagedExportError):
        prove_parquet(io.BytesIO(bytes(body)))


@given(st.data())
def test_what_was_cut_off_is_found(data: st.DataObject) -> None:
    body = a_part([3, 3])[0]

    with pytest.raises(DamagedExportError):
        prove_parquet(io.BytesIO(body[: data.draw(st.integers(0, len(body) - 1))]))


def test_a_file_without_manifest_proves_nothing() -> None:
    file = OrdersFile()
    body = file.begin() + file.add([a_row(1)]) + file.rest() + file.end(None, cursor=None)

    with pytest.raises(DamagedExportError, match="no manifest"):
        prove_parquet(io.BytesIO(body))


def test_parts_are_one_export_only_in_their_order() -> None:
    first, position = a_part([2, 1], more=True)
    second, position = a_part([4], position=position, more=True)
    third, _ = a_part([1], position=position)
    proofs = [prove_parquet(io.BytesIO(part)) for part in (first, second, third)]

    whole = joined(proofs)

    assert (whole.is_complete, whole.manifest.orders, whole.orders_in_file) == (True, 8, 8)
    assert not joined(proofs[:2]).is_complete
    assert not joined(proofs[1:]).is_complete
    for wrong in ([proofs[0], proofs[2]], [proofs[0], proofs[0]], [proofs[1], proofs[0]], []):
        with pytest.raises(DamagedExportError):
            joined(wrong)
