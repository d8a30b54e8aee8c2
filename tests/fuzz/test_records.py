"""Spoiled records of every kind, on the real writer and enricher: each is stored or set aside, no other suffers."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from aiokafka import ConsumerRecord
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.enricher.bulk import BulkHandler
from services.enricher.live import LiveHandler
from services.enricher.recent import RecentLooks
from services.writer.consume import Writer
from services.writer.store import Store
from shared.allegro.errors import OrderNotFoundError
from shared.clock import to_event_id
from shared.database import open_pool
from shared.messages import (
    OrderEvent,
    OrderFetch,
    OrderFetchFailed,
    OrderMissing,
    OrderObserved,
    OrderState,
    OrderWindow,
    Record,
    UnreadableRecordError,
    WindowFinished,
    WindowPlace,
    WindowProgressed,
    decode,
)
from shared.topics import Topics
from tests.builders import (
    A_RUN,
    AN_ORDER,
    NOON,
    a_run,
    a_token,
    after,
    an_event,
    an_observation,
    an_order_body,
    consumed,
    none_stopped,
)
from tests.fuzz.mutations import every_surprise, spoiled

_PLACE = WindowPlace(run_id=A_RUN, attempt=1, sequence=0)
RECORDS: dict[str, Record] = {
    "order-event": an_event(),
    "order-fetch": OrderFetch(token_id=1, order_id=AN_ORDER, wanted_after=NOON, bought_at=NOON, run_id=A_RUN),
    "order-window": OrderWindow(token_id=1, run_id=A_RUN, bought_from=NOON, bought_to=after(60)),
    "order-observed": an_observation(place=_PLACE),
    "order-missing": OrderMissing(token_id=1, order_id=AN_ORDER, observed_at=NOON, reason="404"),
    "order-fetch-failed": OrderFetchFailed(
        token_id=1, order_id=AN_ORDER, wanted_after=NOON, attempts=1, retry_after_seconds=5, error="502"
    ),
    "window-progressed": WindowProgressed(token_id=1, run_id=A_RUN, attempt=1, page=1, requests=1, orders_expected=100),
    "window-finished": WindowFinished(
        token_id=1, run_id=A_RUN, attempt=1, orders=1, orders_expected=1, requests=2, outcome="completed"
    ),
    "order-state": OrderState(token_id=1, order_id=AN_ORDER, observed_at=NOON, updated_at=NOON, order=an_order_body()),
}
_OF_THE_WRITER = [kind for kind in RECORDS if kind != "order-window"]
_PURE = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
_STORED = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def _document(kind: str) -> Any:
    return json.loads(RECORDS[kind].encode())


@pytest.mark.parametrize("kind", RECORDS)
@_PURE
@given(data=st.data())
def test_a_spoiled_record_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    with contextlib.suppress(UnreadableRecordError):
        decode(data.draw(spoiled(_document(kind))))


@pytest.mark.parametrize("kind", RECORDS)
def test_any_value_of_a_record_may_be_a_surprise(kind: str) -> None:
    for value in every_surprise(_document(kind)):
        with contextlib.suppress(UnreadableRecordError):
            decode(value)


class Announced:
    """Stands for the producer of dead letters and notes what is announced."""

    def __init__(self) -> None:
        self.letters = 0

    async def publish_all(self, _topic: str, records: Iterable[object]) -> None:
        self.letters += len(list(records))


class NoMetrics:
    """The writer's metrics are not what is tested here."""


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=4)
    await a_token(opened)
    await a_run(opened)
    yield opened
    await opened.close()


def _no_consumer() -> Any:
    raise AssertionError("nothing is consumed here")


def a_writer(pool: asyncpg.Pool, announced: Announced) -> Writer:
    return Writer(
        _no_consumer,
        Store(pool),
        announced,  # type: ignore[arg-type]
        Topics(),
        NoMetrics(),  # type: ignore[arg-type]
        max_records=500,
        progressed=lambda: None,
        stored=lambda: None,
    )


class Numbers:
    """Offsets: no two records of a test have the same."""

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        self.last += 1
        return self.last


# What they say is about rows that may not be there; they leave none of their own.
_WITHOUT_A_ROW = (OrderFetch, WindowProgressed, WindowFinished)
_LONG_AGO = after(-86_400)
_THE_EVENT = str(to_event_id(NOON))


@dataclass(frozen=True)
class Own:
    """What one value of a test speaks of and no other does, unless just that is spoiled."""

    number: int

    @property
    def order_id(self) -> str:
        return f"own-{self.number}"

    @property
    def event_id(self) -> int:
        return int(_THE_EVENT) + self.number

    def given_to(self, value: bytes) -> bytes:
        own = value.replace(AN_ORDER.encode(), self.order_id.encode())
        return own.replace(_THE_EVENT.encode(), str(self.event_id).encode())

    async def prepare(self, pool: asyncpg.Pool) -> None:
        """There is an older copy of the order, and a look at it is owed."""
        older = an_observation(_LONG_AGO, order_id=self.order_id, body=an_order_body(self.order_id, status="BEFORE"))
        await a_writer(pool, Announced()).store([consumed(older)])
        await pool.execute(
            "INSERT INTO pending_fetches (user_token_id, allegro_order_id, wanted_after, next_attempt_at)"
            " VALUES (1, $1, $2, now())",
            self.order_id,
            NOON,
        )


async def _store_around(
    pool: asyncpg.Pool,
    values: Sequence[bytes],
    numbers: Numbers,
    *,
    topic: str = "orders",
    key: bytes | None = b"1",
    headers: tuple[tuple[str, bytes | None], ...] = (),
) -> None:
    """Store the values in one batch with a sound order before and after them; none of them all may vanish."""
    announced = Announced()
    sound = [f"sound-{numbers.next()}" for _ in range(2)]
    first, last = (consumed(an_observation(order_id=order_id), offset=numbers.next()) for order_id in sound)
    spoiled_ones = []
    for value in values:
        own = Own(numbers.next())
        await own.prepare(pool)
        spoiled_ones.append(
            (own, consumed(own.given_to(value), offset=own.number, topic=topic, key=key, headers=headers))
        )
    records = [first, *(record for _, record in spoiled_ones), last]
    before = await pool.fetchval("SELECT count(*) FROM dead_letters")

    written = await a_writer(pool, announced).store(records)
    again = await a_writer(pool, announced).store(records)

    assert await pool.fetchval("SELECT count(*) FROM orders WHERE allegro_order_id = ANY($1)", sound) == 2
    assert await pool.fetchval("SELECT count(*) FROM dead_letters") == before + written.dead_letters
    assert again.dead_letters == again.orders_added == again.events == 0
    letters = await pool.fetch("SELECT key, value FROM dead_letters ORDER BY id DESC LIMIT $1", written.dead_letters)
    aside = {(row["key"], row["value"]) for row in letters}
    for own, record in spoiled_ones:
        assert (record.key, record.value) in aside or await _has_its_effect(pool, own, record), record


async def _has_its_effect(pool: asyncpg.Pool, own: Own, raw: ConsumerRecord) -> bool:
    """Whether what is no dead letter is stored as it says, or is of a kind that leaves no row; all else is lost.

    Where several name the same order or event, since just that is spoiled, the first one has it.
    """
    if raw.topic == Topics().dead_letters:
        return False
    record = decode(raw.value)
    match record:
        case OrderObserved():
            row = await _row(pool, record)
            is_older = record.order_id != own.order_id or record.observed_at <= _LONG_AGO
            return row is not None and (is_older or _holds(row["order_data"], row["order_raw"], record.order))
        case OrderMissing():
            row = await _row(pool, record)
            is_older = record.order_id != own.order_id or record.observed_at <= _LONG_AGO
            return row is None or is_older or row["gone_at"] is not None
        case OrderFetchFailed():
            attempts = await pool.fetchval(
                "SELECT attempts FROM pending_fetches WHERE user_token_id = $1 AND allegro_order_id = $2",
                record.token_id,
                record.order_id,
            )
            return attempts is None or attempts >= record.attempts or record.wanted_after < NOON
        case OrderEvent():
            row = await pool.fetchrow(
                "SELECT event_data::text, event_raw FROM order_events WHERE user_token_id = $1 AND event_id = $2",
                record.token_id,
                record.event_id,
            )
            is_another = record.event_id != own.event_id
            return row is not None and (is_another or _holds(row["event_data"], row["event_raw"], record.event))
        case _:
            return isinstance(record, _WITHOUT_A_ROW)


async def _row(pool: asyncpg.Pool, record: OrderObserved | OrderMissing) -> asyncpg.Record | None:
    return await pool.fetchrow(
        "SELECT order_data::text, order_raw, gone_at FROM orders WHERE user_token_id = $1 AND allegro_order_id = $2",
        record.token_id,
        record.order_id,
    )


def _holds(data: str, raw: bytes | None, document: bytes) -> bool:
    """Whether a row has the document: byte for byte, or equal as JSON."""
    return raw == document or (raw is None and _exactly(data) == _exactly(document))


_TOPICS = pytest.mark.parametrize("topic", [Topics().order_events, Topics().orders, Topics().dead_letters])


@pytest.mark.integration
@_TOPICS
async def test_the_writer_keeps_every_kind_on_every_topic(pool: asyncpg.Pool, topic: str) -> None:
    numbers = Numbers()
    values = [value for kind in RECORDS for value in [RECORDS[kind].encode(), *every_surprise(_document(kind))][::40]]

    for start in range(0, len(values), 40):
        await _store_around(pool, values[start : start + 40], numbers, topic=topic)


@pytest.mark.integration
@_TOPICS
async def test_the_writer_keeps_records_with_any_key_and_headers(pool: asyncpg.Pool, topic: str) -> None:
    numbers = Numbers()
    texts = (b"9" * 5000, "\u00b2".encode(), b"a\0b", b"\xff", b"", b"-1", None)
    odd = (("a\0b", b"x"), ("\0", None), ("", b"\0"), ("x" * 5000, b"y" * 5000))

    for number, text in enumerate(texts):
        headers = (*odd, *((f"dead-letter-{name}", text) for name in _CAUSES))
        value = b"no json %d" % number
        await _store_around(pool, [value], numbers, topic=topic, key=text or b"key", headers=headers)


_CAUSES = ("service", "topic", "partition", "offset", "error-type", "error", "attempts")


@pytest.mark.integration
@pytest.mark.parametrize("kind", _OF_THE_WRITER)
async def test_the_writer_stores_or_sets_aside_whatever_one_value_is(pool: asyncpg.Pool, kind: str) -> None:
    values, numbers = list(every_surprise(_document(kind))), Numbers()

    for start in range(0, len(values), 40):
        await _store_around(pool, values[start : start + 40], numbers)


@pytest.mark.integration
async def test_the_writer_stores_or_sets_aside_spoiled_records(pool: asyncpg.Pool) -> None:
    numbers = Numbers()
    loop = asyncio.get_running_loop()
    drawn: list[list[bytes]] = []

    @_STORED
    @given(data=st.data())
    def draw(data: st.DataObject) -> None:
        kinds = data.draw(st.lists(st.sampled_from(_OF_THE_WRITER), min_size=1, max_size=12))
        drawn.append([data.draw(spoiled(_document(kind))) for kind in kinds])

    await loop.run_in_executor(None, draw)
    for values in drawn:
        await _store_around(pool, values, numbers)


_TOXINS = pytest.mark.parametrize(
    "toxin",
    [
        b'"toxic":"a\\u0000b"',
        b'"toxic":1,"toxic":2',
        b'"toxic":1e400',
        b'"toxic":1e200000',
        b'"toxic":' + b"9" * 200_000,
        b'"toxic":"\xff\xc3("',
        b'"toxic":"\\ud800"',
        b'"toxic":"' + b"x" * 10_000_000 + b'"',
        b'"toxic":' + b"[" * 150 + b"no JSON" + b"]" * 150,
    ],
    ids=[
        *("nul", "twice", "1e400", "1e200000", "long number", "invalid UTF-8", "half a surrogate pair", "10 MB"),
        "no JSON far down",
    ],
)


@pytest.mark.integration
@_TOXINS
async def test_a_toxic_order_is_kept_byte_for_byte_or_json_equal(pool: asyncpg.Pool, toxin: bytes) -> None:
    body = an_order_body()[:-1] + b"," + toxin + b"}"
    record = an_observation().encode().replace(bytes(an_order_body()), body)

    await a_writer(pool, Announced()).store([consumed(record)])

    row = await pool.fetchrow("SELECT order_data::text, order_raw FROM orders")
    assert row is not None
    assert _holds(row["order_data"], row["order_raw"], body)


@pytest.mark.integration
@_TOXINS
async def test_a_toxic_event_is_kept_byte_for_byte_or_json_equal(pool: asyncpg.Pool, toxin: bytes) -> None:
    body = bytes(an_event().event)[:-1] + b"," + toxin + b"}"
    record = an_event().encode().replace(bytes(an_event().event), body)

    await a_writer(pool, Announced()).store([consumed(record, topic="order-events")])

    row = await pool.fetchrow("SELECT event_data::text, event_raw FROM order_events")
    assert row is not None
    assert _holds(row["event_data"], row["event_raw"], body)


@pytest.mark.integration
async def test_an_order_nested_too_deep_for_any_reader_is_kept_byte_for_byte(pool: asyncpg.Pool) -> None:
    body = an_order_body()[:-1] + b',"toxic":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    record = an_observation().encode().replace(bytes(an_order_body()), body)

    await a_writer(pool, Announced()).store([consumed(record)])

    assert [row["order_raw"] for row in await pool.fetch("SELECT order_raw FROM orders")] == [body]


def _exactly(document: str | bytes) -> Any:
    """Numbers without loss, and every field: an object that has one twice is a list of its fields."""
    return json.loads(document, parse_float=Decimal, parse_int=Decimal, object_pairs_hook=_fields)


def _fields(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    return found if len(found) == len(pairs) else pairs


class NoOrders:
    """An Allegro that must not be asked."""

    async def order(self, *_: object, **__: object) -> Any:
        raise AssertionError("a record that cannot be read asks for nothing")

    list_orders = order


class Published:
    """Notes dead letters and results."""

    def __init__(self) -> None:
        self.letters: list[ConsumerRecord] = []

    async def dead_letter(self, record: ConsumerRecord, _error: Exception, **_: object) -> None:
        self.letters.append(record)

    async def results(self, _records: Iterable[object]) -> None:
        return


class Noon:
    now: Callable[[], object] = staticmethod(lambda: NOON)


class NoRows:
    """A database without a run: what a readable window asks for is over."""

    def __init__(self) -> None:
        self.asked = 0

    async def fetchrow(self, *_: object) -> None:
        self.asked += 1


async def test_a_spoiled_window_is_walked_or_set_aside() -> None:
    windows, published = NoRows(), Published()
    handler = BulkHandler(
        NoOrders(),  # type: ignore[arg-type]
        published,  # type: ignore[arg-type]
        windows,
        list_lag=after(1) - NOON,
        walks=1,
    )
    values = [value for kind in RECORDS for value in every_surprise(_document(kind))][::3]

    await handler.handle([consumed(value, topic="order-windows", offset=at) for at, value in enumerate(values)])

    assert windows.asked + len(published.letters) == len(values)
    assert windows.asked > 0


def a_live_handler(allegro: NoOrders, published: Published) -> LiveHandler:
    return LiveHandler(
        allegro,  # type: ignore[arg-type]
        published,  # type: ignore[arg-type]
        Noon(),  # type: ignore[arg-type]
        RecentLooks(),
        none_stopped,
        list_lag=after(1) - NOON,
        detail_concurrency=2,
    )


@pytest.mark.parametrize(
    "value", [None, b"", b"{", b"\xff", b"null", b"[]", b"[" * 200_000, b'{"kind":"order-window"}']
)
async def test_the_enricher_sets_aside_what_it_cannot_read(value: bytes | None) -> None:
    published = Published()
    handler = a_live_handler(NoOrders(), published)

    await handler.handle([consumed(value, topic="order-events")])

    assert len(published.letters) == 1


class Gone(NoOrders):
    """An Allegro that has no such order."""

    async def order(self, *_: object, **__: object) -> Any:
        raise OrderNotFoundError("404")


class Told(Published):
    """Notes results as well."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[Record] = []

    async def results(self, records: Iterable[Any]) -> None:
        self.looks += records


async def test_a_spoiled_event_or_fetch_is_looked_at_or_set_aside() -> None:
    values = [value for kind in ("order-event", "order-fetch") for value in every_surprise(_document(kind))]

    for value in values:
        told = Told()
        await a_live_handler(Gone(), told).handle([consumed(value, topic="order-events")])
        # An event that wants no look, or names no order, is for the writer alone.
        wants_none = not told.letters and isinstance(event := decode(value), OrderEvent) and not _wants_a_look(event)
        assert len(told.letters) + len(told.looks) == (0 if wants_none else 1), value


def _wants_a_look(event: OrderEvent) -> bool:
    return event.fetch and event.order_id is not None
