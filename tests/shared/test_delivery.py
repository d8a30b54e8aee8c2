"""Dead letters on their way over the topic: what comes out is what was set aside (D2)."""

from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from shared.delivery import DeadLetter
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
