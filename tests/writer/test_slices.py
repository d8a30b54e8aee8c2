"""Records are decoded a slice at a time: all of them, in order, and few in each."""

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from services.writer.slices import slices
from tests.builders import consumed

_SIZES = st.lists(st.one_of(st.none(), st.integers(0, 20_000)), max_size=60)


@given(_SIZES)
def test_no_record_is_lost_and_no_slice_is_long(sizes: list[int | None]) -> None:
    records = [consumed(None if size is None else b"x" * size, offset=number) for number, size in enumerate(sizes)]

    parts = list(slices(records))

    assert list(chain.from_iterable(parts)) == records
    for part in parts:
        assert 1 <= len(part) <= 8
        assert sum(len(record.value or b"") for record in part[:-1]) < 8 * 1024


def test_a_slice_ends_when_it_is_full() -> None:
    large, small = consumed(b"x" * 3000), consumed(b"")

    assert [len(part) for part in slices([large] * 7)] == [3, 3, 1]
    assert [len(part) for part in slices([small] * 17)] == [8, 8, 1]
