"""Dead letters on their way over the topic: what comes out is what was set aside (D2)."""

import base64

import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from shared.delivery import DeadLetter, stored_headers
from shared.errors import PermanentError
from tests.builders import consumed

BYTES = st.binary(max_size=20)
NAMES = st.sampled_from(["odd", "dead-letter-service", "dead-letter-attempts", "dead-letter-null"]) | st.text(
    max_size=5
)
HEADERS = st.lists(st.tuples(NAMES, st.none() | BYTES), max_size=6).map(tuple)
RECORDS = st.builds(
    consumed,
    st.none() | BYTES,
    key=st.none() | BYTES,
    headers=HEADERS,
    offset=st.integers(0, 2**40),
    topic=st.sampled_from(["orders", "order-events"]),
)


def on_the_topic(letter: DeadLetter) -> ConsumerRecord:
    key, value, headers = letter.outgoing()
    return consumed(value, key=key, headers=tuple(headers), topic="dead-letters", offset=99)


@given(RECORDS, st.text(max_size=30), st.integers(1, 9))
def test_a_record_set_aside_is_read_back_as_it_came(record: ConsumerRecord, error: str, attempts: int) -> None:
    letter = DeadLetter.of(record, PermanentError(error), service="enricher", attempts=attempts)

    assert DeadLetter.from_record(on_the_topic(letter)) == letter


@given(RECORDS)
def test_a_record_that_was_set_aside_twice_keeps_the_headers_of_the_first_time(record: ConsumerRecord) -> None:
    first = on_the_topic(DeadLetter.of(record, PermanentError("first"), service="enricher"))

    second = DeadLetter.from_record(on_the_topic(DeadLetter.of(first, PermanentError("second"), service="writer")))

    assert (second.error, second.headers) == ("second", tuple(first.headers))


@given(RECORDS)
def test_a_stranger_on_the_topic_is_read_as_well(record: ConsumerRecord) -> None:
    letter = DeadLetter.from_record(consumed(record.value, key=record.key, headers=(("odd", b"\xff"),), topic="dead"))

    assert (letter.topic, letter.service, letter.value, letter.headers) == (
        "dead",
        "unknown",
        record.value,
        (("odd", b"\xff"),),
    )


@given(RECORDS)
def test_the_headers_of_a_dead_letter_are_stored_without_a_nul_and_read_back_as_they_came(
    record: ConsumerRecord,
) -> None:
    document = DeadLetter.of(record, PermanentError("odd"), service="enricher").header_json()

    read = [(name, None if value is None else base64.b64decode(value)) for name, value in stored_headers(document)]
    assert read == list(record.headers)
    assert b"\\u0000" not in document


@pytest.mark.parametrize(
    ("toxin", "read"),
    [
        (b"9" * 5000, 1),
        ("²".encode(), 1),
        ("٣".encode(), 1),
        (b"9" * 19, 1),
        (b"2147483648", 1),
        (b"2147483647", 2147483647),
        (b"1\n", 1),
        (b" 1", 1),
        (b"", 1),
        (b"\xff", 1),
        (b"12", 12),
    ],
)
def test_a_number_that_is_none_or_that_no_column_holds_is_as_good_as_absent(toxin: bytes, read: int) -> None:
    headers = tuple((f"dead-letter-{name}", toxin) for name in ("attempts", "partition", "offset"))

    letter = DeadLetter.from_record(consumed(b"x", topic="dead-letters", offset=5, headers=headers))

    assert letter.attempts == read
    assert letter.partition in (0, read)
    assert 0 <= letter.offset < 2**63


def test_what_a_stranger_writes_as_the_cause_fits_into_the_columns() -> None:
    toxin = b"a\0b" * 5000
    names = ("service", "topic", "error-type", "error")
    headers = tuple((f"dead-letter-{name}", toxin) for name in names)

    letter = DeadLetter.from_record(consumed(b"x", topic="dead-letters", headers=headers))

    texts = (letter.service, letter.topic, letter.error_type, letter.error)
    assert [len(text) for text in texts] == [249, 249, 249, 2000]
    assert not any("\0" in text for text in texts)
