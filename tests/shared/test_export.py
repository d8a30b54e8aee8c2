"""Positions of exports, and the chain that proves them: pure."""

import io
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.export.manifest import FORMAT, Manifest, UnreadableManifestError, as_csv, as_line, from_record
from shared.export.position import ExportPosition, ForeignPositionError, selection_of
from shared.export.reading import DamagedExportError, last_cursor, prove

_IDS = st.integers(0, 2**63 - 1)
_START = ExportPosition(selection_of(["format=ndjson"]), until=100)


def an_export(sizes: list[int], *, following: str | None = None) -> bytes:
    """Chunks of so many orders each, as the API writes them."""
    body, position, number = b"", _START, 0
    for size in sizes:
        chunk = b""
        for place in range(size):
            number += 1
            cursor = f',"cursor":"{position.encode()}"' if place == 0 and not position.is_start else ""
            chunk += f'{{"user_id":"a","order_id":"o-{number}"{cursor}}}\n'.encode()
        position = position.past(chunk, size, token_id=0, after=number)
        body += chunk
    manifest = Manifest(
        format=FORMAT,
        orders=position.orders,
        digest=position.digest.hex(),
        finished_at=datetime(2026, 10, 10, tzinfo=UTC),
        filters={"user_id": "a,b\r\n"},
        next=following,
    )
    return body + as_line(manifest)


def is_proved_complete(content: bytes) -> bool:
    try:
        return prove(io.BytesIO(content)).is_complete
    except DamagedExportError:
        return False


@given(st.binary(min_size=8, max_size=8), _IDS, _IDS, _IDS, _IDS, st.binary(min_size=32, max_size=32))
def test_a_cursor_says_what_the_position_was(
    selection: bytes, until: int, token_id: int, after: int, orders: int, digest: bytes
) -> None:
    position = ExportPosition(selection, until, token_id, after, orders, digest)

    assert ExportPosition.decode(position.encode()) == position


@given(st.text(max_size=200))
def test_nothing_else_is_a_cursor(text: str) -> None:
    with pytest.raises(ForeignPositionError):
        ExportPosition.decode(text)


@given(st.lists(st.integers(1, 6), max_size=6))
def test_what_was_written_is_proved(sizes: list[int]) -> None:
    proof = prove(io.BytesIO(an_export(sizes)))

    assert (proof.is_complete, proof.manifest.orders, proof.orders_in_file) == (True, sum(sizes), sum(sizes))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_no_byte_of_an_order_can_change(sizes: list[int], data: st.DataObject) -> None:
    body = bytearray(an_export(sizes))
    place = data.draw(st.integers(0, body.rindex(b"\n", 0, len(body) - 1)))
    body[place] ^= data.draw(st.integers(1, 255))

    with pytest.raises(DamagedExportError):
        prove(io.BytesIO(bytes(body)))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_no_order_can_be_missing_or_come_twice(sizes: list[int], data: st.DataObject) -> None:
    lines = an_export(sizes).splitlines(keepends=True)
    place = data.draw(st.integers(0, len(lines) - 2))
    changed = data.draw(
        st.sampled_from([lines[:place] + lines[place + 1 :], lines[:place] + lines[place : place + 1] + lines[place:]])
    )

    assert not is_proved_complete(b"".join(changed))


@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.integers(0, 10_000))
def test_what_stands_before_the_last_cursor_can_be_kept(sizes: list[int], cut: int) -> None:
    body = an_export(sizes)
    found = last_cursor(io.BytesIO(body[:cut]))

    if found is not None and found.cursor is not None:
        kept = body[: found.offset]
        assert ExportPosition.decode(found.cursor).orders == kept.count(b"\n")


def test_a_part_is_proved_and_is_not_the_whole() -> None:
    whole = an_export([3, 4])
    found = last_cursor(io.BytesIO(whole))
    assert found is not None

    rest = prove(io.BytesIO(whole[found.offset :]))
    first = prove(io.BytesIO(an_export([3], following="x")))

    assert (rest.begins_after, rest.orders_in_file, rest.is_complete) == (3, 4, False)
    assert (first.begins_after, first.is_complete) == (0, False)


def test_a_manifest_is_the_same_in_either_form() -> None:
    line = an_export([]).splitlines(keepends=True)[-1]
    manifest = from_record(line)
    assert manifest is not None

    assert from_record(as_csv(manifest)) == manifest


@pytest.mark.parametrize("record", [b'{"manifest":{}}\n', b'#manifest,"{}"\r\n', b"#manifest,\xff\r\n"])
def test_a_broken_manifest_is_told(record: bytes) -> None:
    with pytest.raises(UnreadableManifestError):
        from_record(record)


@pytest.mark.parametrize("content", [b"", b"user_id\r\n", b"{}\n", b"[1]\n", b'{"order_id":"a"', b"\x00\xff\n"])
def test_other_files_are_no_exports(content: bytes) -> None:
    with pytest.raises(DamagedExportError):
        prove(io.BytesIO(content))
