"""JSON with lone surrogates or bytes that are not UTF-8: read, and kept byte for byte (P9)."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from shared.allegro.bodies import journal_events, order_facts, order_list
from shared.json_text import may_lose_a_field, originals, readable, shallow
from shared.messages import OrderEvent, OrderObserved, RawJson, UnreadableRecordError, decode
from tests.builders import NOON, an_event, an_observation

# Strings with halves of pairs, whole pairs, escaped backslashes before a `u`, and what is near them.
_PIECES = ["a", "\\", "\\u", "\\ud800", "\ud800", "\udbff", "\udc00", "\U0001f600", '"', "ż", "\0"]
_TEXTS = st.lists(st.sampled_from(_PIECES), max_size=6).map("".join)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    _TEXTS | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(_TEXTS, inner), max_leaves=4
)
_DOCUMENTS = st.dictionaries(_TEXTS, _VALUES, max_size=3)


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def replaced(value: Any) -> Any:
    """What a reader should see: U+FFFD for each half of a pair."""
    match value:
        case str():
            whole = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
            return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in whole)
        case list():
            return [replaced(item) for item in value]
        case dict():
            return {replaced(name): replaced(item) for name, item in value.items()}
    return value


@given(_DOCUMENTS)
def test_every_document_can_be_read_in_its_place(document: dict[str, Any]) -> None:
    raw = encoded(document)

    stand_in = readable(raw)

    assert len(stand_in) == len(raw)
    # json.loads joins a high and a low half that stand together, as `replaced` does.
    assert msgspec.json.decode(stand_in) == replaced(json.loads(raw))


@given(st.binary())
def test_bytes_become_text_of_the_same_length(raw: bytes) -> None:
    stand_in = readable(raw)

    stand_in.decode()
    assert len(stand_in) == len(raw)


@given(st.text().map(lambda text: text.encode()))
def test_what_can_be_read_stays_as_it_is(text: bytes) -> None:
    if b"\\u" not in text:
        assert readable(text) == text


@given(st.lists(_DOCUMENTS, max_size=3))
def test_the_parts_of_a_page_are_cut_out_as_they_came(documents: list[dict[str, Any]]) -> None:
    parts = [encoded(document) for document in documents]
    raw = b"[" + b" , ".join(parts) + b"]"
    stand_in = readable(raw)

    cut = originals(raw, stand_in, msgspec.json.decode(stand_in, type=list[msgspec.Raw]))

    assert list(cut) == parts


TOXIC = pytest.mark.parametrize(
    "toxic",
    [
        rb'{"id":"bad","status":"NEW","note":"\ud800","n":1.10}',
        rb'{"id":"bad","status":"NEW","note":"\udc00\ud800 \\ud800 \ud83d\ude00"}',
        b'{"id":"bad","status":"NEW","buyer":{"login":"\xff\xc3("}}',
    ],
)


@TOXIC
def test_one_order_costs_a_list_no_other(toxic: bytes) -> None:
    good = b'{ "id" : "good", "status": "NEW" }'
    raw = b'{"checkoutForms":[%b,\n%b,%b],"totalCount":3}' % (good, toxic, good)

    page = order_list(raw, requested_at=NOON)

    assert [(order.order_id, order.raw) for order in page.orders] == [("good", good), ("bad", toxic), ("good", good)]
    assert page.total_count == 3
    assert (order_facts(toxic).order_id, order_facts(toxic).status) == ("bad", "NEW")


def test_one_event_costs_a_page_of_the_journal_no_other() -> None:
    good, toxic = b'{"id":"1","type":"BOUGHT"}', rb'{"id":"2","type":"BOUGHT","seller":{"note":"\ud800"}}'

    events, _ = journal_events(b'{"events":[%b,%b]}' % (good, toxic))

    assert [(event.event_id, event.raw) for event in events] == [(1, good), (2, toxic)]


@TOXIC
def test_a_record_carries_it_byte_for_byte(toxic: bytes) -> None:
    observed = an_observation(order_id="bad", body=RawJson(toxic))
    event = replace(an_event(), event=RawJson(toxic))

    read, read_event = decode(observed.encode()), decode(event.encode())

    assert isinstance(read, OrderObserved)
    assert isinstance(read_event, OrderEvent)
    assert (read, read.order) == (observed, toxic)
    assert (read_event, read_event.event) == (event, toxic)


@pytest.mark.parametrize("value", [rb'{"kind":"\ud800"', rb'["\ud800"]', b'{"a":"\xff","a":{"a":"\xff"},"b":1}'])
def test_what_is_no_record_is_still_none(value: bytes) -> None:
    with pytest.raises(UnreadableRecordError):
        decode(value)


@pytest.mark.parametrize(
    ("levels", "inside"),
    [
        pytest.param(100_000, b"", id="deeper than any stack"),
        pytest.param(150, b"no JSON", id="wrong where a higher stack would not have seen it"),
    ],
)
def test_a_record_carries_what_is_nested_too_deep_for_its_reader(levels: int, inside: bytes) -> None:
    deep = RawJson(b'{"id":"deep","x":' + b"[" * levels + inside + b"]" * levels + b"}")
    observed, event = an_observation(order_id="deep", body=deep), an_event(event=deep)

    assert (decode(observed.encode()), decode(event.encode())) == (observed, event)


@given(_DOCUMENTS)
def test_what_is_shallow_is_read_as_it_is(document: Any) -> None:
    assert shallow(encoded(document)) == encoded(document)


class Fields(list[tuple[str, Any]]):
    """An object, which may have a field twice."""


_FIELDS = st.recursive(
    st.integers() | st.booleans() | st.sampled_from(["12.50", 'a"b":1', "ż", 1e30, 0.1, None]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(st.tuples(st.sampled_from("abc"), inner), max_size=3).map(Fields)
    ),
    max_leaves=8,
)


def written(value: Any, space: str) -> str:
    match value:
        case Fields():
            return "{" + ",".join(f'{space}"{name}":{space}{written(inner, space)}' for name, inner in value) + "}"
        case list():
            return "[" + ",".join(written(inner, space) for inner in value) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)


def has_a_field_twice(value: Any) -> bool:
    match value:
        case Fields():
            names = [name for name, _ in value]
            return len(set(names)) < len(names) or any(has_a_field_twice(inner) for _, inner in value)
        case list():
            return any(map(has_a_field_twice, value))
    return False


@given(_FIELDS, st.sampled_from(["", " "]))
def test_a_field_that_an_object_has_twice_is_noticed_and_nothing_else(value: Any, space: str) -> None:
    assert may_lose_a_field(written(value, space).encode()) is has_a_field_twice(value)


@pytest.mark.parametrize("raw", [b'{"a":1', b"", b'{"a":"\xff"}', b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"])
def test_what_cannot_be_read_may_lose_something(raw: bytes) -> None:
    assert may_lose_a_field(raw)


def test_a_number_that_few_readers_take_is_no_field_that_is_lost() -> None:
    assert not may_lose_a_field(b'{"a":1e400}')
    assert may_lose_a_field(b'{"a":1e400,"b":1,"b":2}')


def test_a_number_in_another_form_does_not_hide_the_field_that_is_lost() -> None:
    """Written again, the document is as long as it was."""
    assert may_lose_a_field(b'{"a":1,"a":1,"b":1000E3}')
