"""A batch in parts: nothing is lost, and no seller's records are in two of them, which would wait for each other."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from services.writer.gathered import Gathered
from tests.builders import an_observation, consumed

_KEYS = st.lists(st.one_of(st.none(), st.integers(1, 6).map(lambda number: str(number).encode())), max_size=60)


def gathered(keys: Sequence[bytes | None], *, parts: int = 2) -> Gathered:
    batch = Gathered(parts)
    for number, key in enumerate(keys):
        batch.add(consumed(b"no record of ours", key=key, offset=number), dead_letter_topic="dead")
    return batch


@given(_KEYS, st.integers(1, 3))
def test_every_record_is_in_one_part_in_order_and_with_all_others_of_its_key(
    keys: list[bytes | None], parts: int
) -> None:
    batch = gathered(keys, parts=parts)

    places = [(record.offset, number) for number, part in enumerate(batch.parts) for record in part.records]
    assert sorted(offset for offset, _ in places) == list(range(len(keys)))
    assert len(batch) == len(keys)
    assert len({(keys[offset], number) for offset, number in places}) == len(set(keys))
    for part in batch.parts:
        offsets = [record.offset for record in part.records]
        assert offsets == sorted(offsets)
        assert [letter.offset for letter in part.batch.unreadable] == offsets


@given(_KEYS)
def test_the_offset_to_commit_is_that_of_the_last_record_in_whichever_part_it_is(keys: list[bytes | None]) -> None:
    assert list(gathered(keys).offsets.values()) == ([len(keys)] if keys else [])


def test_where_a_log_was_lost_and_began_again_the_last_record_counts_and_not_the_highest_offset() -> None:
    batch = Gathered(2)
    for offset in (5000, 5001, 0, 1):
        batch.add(consumed(b"x", key=str(offset % 2).encode(), offset=offset), dead_letter_topic="dead")

    assert list(batch.offsets.values()) == [2]


def test_the_parts_are_of_one_size_where_sellers_let_them_be() -> None:
    batch = gathered([b"1"] * 300 + [b"2"] * 200 + [b"3"] * 100 + [b"1"] * 50)

    assert [len(part.records) for part in batch.parts] == [350, 300]


def test_what_a_part_comes_to_is_what_its_records_say() -> None:
    batch = Gathered(2)
    for token_id in (1, 2, 1):
        record = an_observation(token_id=token_id, order_id=f"of-{token_id}")
        batch.add(consumed(record, key=record.key), dead_letter_topic="dead")

    assert [list(part.batch.observations) for part in batch.parts] == [[(1, "of-1")], [(2, "of-2")]]


def test_large_records_fill_a_batch_however_few_they_are() -> None:
    batch = Gathered(2)
    large = b"x" * (3 << 20)
    fullness = []
    for number in range(3):
        batch.add(consumed(large, offset=number), dead_letter_topic="dead")
        fullness.append(batch.is_large)

    assert fullness == [False, False, True]
