"""The contracts: what is written can be read, what came from Allegro stays byte for byte, the rest is refused."""

import json
from contextlib import suppress
from datetime import datetime
from uuid import UUID

import pytest
from asyncpg.pgproto import pgproto
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from shared.messages import (
    CoveredRange,
    OrderEvent,
    OrderFetch,
    OrderFetchFailed,
    OrderMissing,
    OrderObserved,
    OrderState,
    OrderWindow,
    RawJson,
    Record,
    UnreadableRecordError,
    WantedBy,
    WindowFinished,
    WindowPlace,
    WindowProgressed,
    correlation_id_of,
    decode,
    headers,
    utc,
)
from tests.builders import A_RUN, NOON, after, an_event, an_observation, an_order_body

EVERY_KIND: list[Record] = [
    an_event(),
    OrderFetch(token_id=1, order_id="a", wanted_after=NOON, run_id=A_RUN),
    OrderWindow(token_id=1, run_id=A_RUN, bought_from=NOON, bought_to=NOON),
    an_observation(place=WindowPlace(run_id=A_RUN, attempt=1, sequence=0)),
    replace(an_observation(), wanted_by=(WantedBy(run_id=A_RUN, last_event_id=7),), requests=2),
    OrderMissing(token_id=1, order_id="a", observed_at=NOON, reason="404"),
    OrderFetchFailed(token_id=1, order_id="a", wanted_after=NOON, attempts=1, error="503"),
    OrderFetchFailed(
        token_id=1, order_id="a", wanted_after=NOON, attempts=1, retry_after_seconds=0.5, error="", requests=3
    ),
    WindowProgressed(token_id=1, run_id=A_RUN, attempt=1, page=1, requests=1),
    WindowProgressed(
        token_id=1,
        run_id=A_RUN,
        attempt=1,
        page=1,
        requests=1,
        covered=CoveredRange(bought_from=NOON, bought_until=NOON, order_ids=("a", "b"), observed_at=NOON),
    ),
    WindowFinished(token_id=1, run_id=A_RUN, attempt=1, orders=0, requests=1),
    OrderState(token_id=1, order_id="a", observed_at=NOON, updated_at=NOON, gone_at=NOON, order=RawJson(b"{}")),
]
# As they stand on topics since before the records were structs.
OLDER = [
    (
        b'{"schema":1,"token_id":1,"kind":"order-event","event_id":1791633600000000,"follows_event_id":0,'
        b'"event_type":"BOUGHT","occurred_at":"2026-10-10T12:00:00Z","order_id":"7721b2f0-c4e8-11f1-904f-89bb34047197",'
        b'"revision":null,"bought_at":"2026-10-10T12:00:00Z","fetch":true,"wanted_after":"2026-10-10T12:00:00Z",'
        b'"run_id":"00000000-0000-4000-8000-000000000001","run_last_event_id":1791633600000000,"run_requests":0,'
        b'"event":{"id": "1", "type": "BOUGHT"}}',
        an_event(1791633600000000, event=RawJson(b'{"id": "1", "type": "BOUGHT"}')),
    ),
    (
        b'{"schema":1,"token_id":1,"kind":"order-observed","order_id":"7721b2f0-c4e8-11f1-904f-89bb34047197",'
        b'"observed_at":"2026-10-10T12:00:00.000001Z","observed_by":"list","place":{"run_id":'
        b'"00000000-0000-4000-8000-000000000001","attempt":1,"sequence":0},"wanted_by":[],"requests":0,'
        b'"order":{"id": 1}}',
        an_observation(
            after(0.000001),
            by="list",
            place=WindowPlace(run_id=A_RUN, attempt=1, sequence=0),
            body=RawJson(b'{"id": 1}'),
        ),
    ),
]

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize("record", EVERY_KIND, ids=lambda record: record.kind)
def test_what_is_written_is_read_back(record: Record) -> None:
    assert decode(record.encode()) == record


@pytest.mark.parametrize(("value", "record"), OLDER, ids=["order-event", "order-observed"])
def test_what_an_older_version_wrote_is_read(value: bytes, record: Record) -> None:
    assert decode(value) == record


def test_a_run_id_may_be_of_the_drivers_class() -> None:
    record = OrderFetch(token_id=1, order_id="a", wanted_after=NOON, run_id=pgproto.UUID(str(A_RUN)))

    assert decode(record.encode()) == replace(record, run_id=A_RUN)


@pytest.mark.parametrize("body", [b'{"a":1}', RawJson(b"[]"), RawJson(b"")], ids=["no-raw-json", "array", "empty"])
def test_a_record_that_nobody_could_read_is_not_written(body: RawJson) -> None:
    with pytest.raises(ValueError, match="order-observed: order"):
        replace(an_observation(), order=body).encode()


@pytest.mark.parametrize("record", EVERY_KIND, ids=lambda record: record.kind)
def test_every_record_names_its_schema_and_kind(record: Record) -> None:
    fields = json.loads(record.encode())

    assert (fields["schema"], fields["kind"]) == (1, record.kind)


@given(st.dictionaries(st.text(), _JSON, max_size=6), st.sampled_from([None, 1, 4]), st.booleans())
def test_an_order_passes_through_byte_for_byte(body: dict[str, object], indent: int | None, ascii_only: bool) -> None:
    raw = RawJson(json.dumps(body, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))

    record = decode(an_observation(body=raw).encode())

    assert isinstance(record, OrderObserved)
    assert record.order == raw


def test_numbers_escapes_and_repeated_keys_are_not_touched() -> None:
    raw = RawJson(rb'{"a": 1.10, "a":1e400 ,"n":"\u0000\/\ud83d\ude00","order":{"x":[]}}')

    record = decode(an_observation(body=raw).encode())

    assert isinstance(record, OrderObserved)
    assert record.order == raw


def test_the_fields_of_a_record_may_come_in_any_order_with_new_ones_among_them() -> None:
    fields = json.loads(an_observation().encode())
    shuffled = json.dumps(dict(reversed(fields.items())) | {"new_field": {"order": 1}}).encode()

    assert isinstance(decode(shuffled), OrderObserved)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        pytest.param(None, "no value", id="tombstone"),
        pytest.param(b"", "not a JSON object", id="empty"),
        pytest.param(b"\xff\xfe", "not a JSON object", id="not-utf-8"),
        pytest.param(b'{"kind": "order-event"', "not a JSON object", id="truncated"),
        pytest.param(b"[]", "not a JSON object", id="array"),
        pytest.param(b"{}", "kind", id="no-kind"),
        pytest.param(b'{"kind":"order-painted"}', "kind", id="unknown-kind"),
        pytest.param(
            OrderFetch(token_id=1, order_id="a", wanted_after=NOON).encode().replace(b'"schema":1', b'"schema":2'),
            "schema",
            id="unknown-schema",
        ),
        pytest.param(an_event().encode().replace(b'"token_id":1', b'"token_id":-1'), "token_id", id="negative-token"),
        pytest.param(
            an_observation(body=RawJson(b"{}")).encode().replace(b'"order":{}', b'"order":[]'),
            "order",
            id="order-no-object",
        ),
        pytest.param(b'{"kind":' + b"[" * 100_000, "not a JSON object", id="deep-nesting"),
        pytest.param(
            an_event().encode().replace(b'"token_id":1', b'"token_id":"1"'), "token_id", id="number-in-quotes"
        ),
        pytest.param(an_event().encode().replace(b'"token_id":1', b'"token_id":true'), "token_id", id="boolean"),
        pytest.param(
            an_event().encode().replace(b'"bought_at":"2026-10-10T12:00:00Z"', b'"bought_at":"2026-10-10T12:00:00"'),
            "bought_at",
            id="moment-without-offset",
        ),
        pytest.param(
            OrderFetch(token_id=1, order_id="a", wanted_after=NOON).encode().replace(b'"a"', b'"a\xff"'),
            "utf-8",
            id="name-that-is-not-utf-8",
        ),
    ],
)
def test_an_unreadable_record_is_refused_by_the_name_of_its_fault(value: bytes | None, complaint: str) -> None:
    with pytest.raises(UnreadableRecordError, match=complaint):
        decode(value)


@given(st.binary(max_size=200))
def test_no_bytes_whatsoever_crash_the_reader(value: bytes) -> None:
    with suppress(UnreadableRecordError):
        decode(value)


def test_a_complaint_does_not_quote_the_buyer() -> None:
    value = (
        an_observation(body=an_order_body(secret="buyer@example.com"))
        .encode()
        .replace(b'"token_id":1', b'"token_id":"x"')
    )

    with pytest.raises(UnreadableRecordError) as caught:
        decode(value)

    assert "buyer@example.com" not in str(caught.value)


@pytest.mark.parametrize("secret", ["buyer@example.com", "x - at `$.buyer@example.com` buyer@example.com"])
@pytest.mark.parametrize(
    "field", [b'"kind":"order-observed"', b'"observed_by":"detail"', b'"observed_at":"2026-10-10T12:00:00Z"']
)
def test_no_complaint_quotes_a_value(field: bytes, secret: str) -> None:
    name = field.partition(b":")[0]
    value = an_observation().encode().replace(field, name + b":" + json.dumps(secret).encode())

    with pytest.raises(UnreadableRecordError, match=name.decode().strip('"')) as caught:
        decode(value)

    assert "buyer@example.com" not in str(caught.value)


def test_headers_carry_correlation_run_and_schema_and_null_ones_do_not_matter() -> None:
    carried = headers(correlation_id="abc", run_id=UUID(int=1))

    assert [name for name, _ in carried] == ["correlation-id", "schema", "run-id"]
    assert correlation_id_of([("other", None), *carried]) == "abc"
    assert correlation_id_of([("correlation-id", None)]) is None
    assert correlation_id_of([("correlation-id", b"\xff")]) == "\ufffd"


def test_moments_are_written_as_allegro_reads_them() -> None:
    assert utc(datetime.fromisoformat("2026-10-10T12:00:00.123456+00:00")) == "2026-10-10T12:00:00.123Z"


def test_an_event_keeps_its_journal_line() -> None:
    record = decode(an_event(event=RawJson(b'{"id":"1", "x": 1.0}')).encode())

    assert isinstance(record, OrderEvent)
    assert record.event == b'{"id":"1", "x": 1.0}'
