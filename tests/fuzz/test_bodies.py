"""Whatever Allegro answers, reading it gives a result or a clear error, and never keeps a crash for later."""

import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import httpx
import pytest
from aiokafka import ConsumerRecord
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.enricher.live import LiveHandler
from services.enricher.recent import RecentLooks
from services.poller.positions import Cursor
from services.poller.reading import PageReader
from shared.allegro import bodies
from shared.allegro.bodies import UnreadableBodyError, UnreadablePart
from shared.allegro.errors import AllegroError, from_answer, from_oauth_answer
from shared.allegro.http import open_http
from shared.allegro.oauth import AllegroOAuth
from shared.encryption import Secret
from shared.messages import OrderEvent, OrderObserved, Record, decode
from shared.request_limits import Endpoint
from tests.builders import A_RUN, NOON, after, an_event, an_order_body, consumed, none_stopped
from tests.fuzz.allegro import an_allegro
from tests.fuzz.mutations import every_surprise, spoiled
from tests.shared.allegro import builders

AN_ORDER: dict[str, Any] = json.loads(an_order_body())
AN_EVENT: dict[str, Any] = {
    "id": "1790000000000000",
    "type": "BOUGHT",
    "occurredAt": "2026-10-10T12:00:00.000Z",
    "order": {
        "seller": {"id": "111578773"},
        "buyer": AN_ORDER["buyer"],
        "lineItems": AN_ORDER["lineItems"],
        "checkoutForm": {"id": AN_ORDER["id"], "revision": "b3a81206"},
    },
}
STATS = {"latestEvent": {"id": "1790000000000000", "occurredAt": "2026-10-10T12:00:00.000Z"}}
PAIR = {
    "access_token": "header.eyJ1c2VyX25hbWUiOiIxMTE1Nzg3NzMifQ.secret",
    "refresh_token": "refresh-secret",
    "expires_in": 43199,
    "scope": "allegro:api:orders:read",
    "token_type": "bearer",
}
DEVICE = {
    "device_code": "device-secret",
    "user_code": "cbt3zdu4g",
    "verification_uri": "https://allegro.pl/skojarz-aplikacje",
    "verification_uri_complete": "https://allegro.pl/skojarz-aplikacje?code=cbt3zdu4g",
    "expires_in": "3600",
    "interval": "5",
}
_SIGNATURE = "c2VjcmV0LXNpZ25hdHVyZQ"
A_TOKEN = f"eyJhbGciOiJSUzI1NiJ9.eyJ1c2VyX25hbWUiOiIxIn0.{_SIGNATURE}"
REFUSAL = {"error": "invalid_grant", "error_description": f"Invalid refresh token: {A_TOKEN}"}
API_ERRORS = {"errors": [{"code": "NotFound", "message": "No such order", "details": None, "path": None}]}

Read = Callable[[bytes], object]
READERS: dict[str, tuple[Any, Read]] = {
    "journal page": ({"events": [AN_EVENT, AN_EVENT]}, bodies.journal_events),
    "event": (AN_EVENT, bodies.journal_event),
    "list": (
        {"checkoutForms": [AN_ORDER, AN_ORDER], "count": 2, "totalCount": 2},
        lambda body: bodies.order_list(body, requested_at=NOON),
    ),
    "listed order": (AN_ORDER, bodies.listed_order),
    "order": (AN_ORDER, bodies.order_facts),
    "event-stats": (STATS, bodies.latest_event_id),
    "me": ({"id": "111578773", "login": "shop"}, bodies.seller),
}
_QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


class NoLimits:
    """Lets everything through."""

    async def acquire(self, *_: object, **__: object) -> None:
        return

    async def block(self, *_: object) -> None:
        return


@pytest.mark.parametrize("kind", READERS)
@_QUICK
@given(data=st.data())
def test_a_spoiled_body_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    document, read = READERS[kind]
    body = data.draw(spoiled(document))

    with contextlib.suppress(UnreadableBodyError):
        read(body)


@pytest.mark.parametrize("kind", READERS)
def test_any_value_may_be_a_surprise(kind: str) -> None:
    document, read = READERS[kind]

    for body in every_surprise(document):
        with contextlib.suppress(UnreadableBodyError):
            read(body)


@_QUICK
@given(data=st.data())
def test_what_was_read_of_an_order_fits_into_the_columns(data: st.DataObject) -> None:
    try:
        facts = bodies.order_facts(data.draw(spoiled(AN_ORDER)))
    except UnreadableBodyError:
        return

    texts = (facts.order_id, facts.status, facts.buyer_login, facts.buyer_email, facts.currency, facts.revision)
    assert not any("\0" in text for text in texts if text is not None)
    assert facts.total_amount is None or facts.total_amount.is_finite()


async def _error_of(document: dict[str, Any], body: bytes) -> str:
    """What the call says that was answered with this body; nothing if it was read."""
    allegro = builders.settings()
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, content=body))
    async with open_http(allegro, transport=transport) as http:
        oauth = AllegroOAuth(http, allegro, NoLimits())  # type: ignore[arg-type]
        said = []
        for ask in _ASKING[document is PAIR]:
            try:
                await ask(oauth)
            except AllegroError as error:
                said.append(str(error))
    return "; ".join(said)


_ASKING: dict[bool, list[Callable[[AllegroOAuth], Awaitable[object]]]] = {
    True: [
        lambda oauth: oauth.refresh(Secret("refresh-secret")),
        lambda oauth: oauth.poll_device_code(Secret("device-secret")),
    ],
    False: [lambda oauth: oauth.start_device_flow()],
}
_DOCUMENTS = pytest.mark.parametrize("document", [PAIR, DEVICE], ids=["pair of tokens", "device code"])


@_DOCUMENTS
@_QUICK
@given(data=st.data())
async def test_a_spoiled_oauth_answer_is_read_or_is_a_clear_error_without_a_secret(
    document: dict[str, Any], data: st.DataObject
) -> None:
    assert "secret" not in await _error_of(document, data.draw(spoiled(document)))


@_DOCUMENTS
async def test_any_value_of_an_oauth_answer_may_be_a_surprise(document: dict[str, Any]) -> None:
    for body in every_surprise(document):
        assert "secret" not in await _error_of(document, body)


@_DOCUMENTS
async def test_fifty_megabytes_of_an_oauth_answer_are_a_clear_error(document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()[:-1] + b',"padding":"' + b"x" * 50_000_000 + b'"}'

    error = await _error_of(document, body)

    assert "secret" not in error
    assert "larger" in error or "bytes" in error


@_QUICK
@given(data=st.data(), status=st.integers(300, 599))
def test_a_spoiled_refusal_is_one_of_our_errors_and_hides_the_token(data: st.DataObject, status: int) -> None:
    body = data.draw(spoiled(REFUSAL))

    error = from_oauth_answer(Endpoint.TOKEN.value, status, body, retry_after=None)

    assert isinstance(error, AllegroError)
    assert "\0" not in str(error)
    assert _SIGNATURE not in str(error)


@_QUICK
@given(data=st.data(), status=st.integers(201, 599), endpoint=st.sampled_from(Endpoint))
def test_a_spoiled_error_body_is_one_of_our_errors(data: st.DataObject, status: int, endpoint: Endpoint) -> None:
    error = from_answer(endpoint.value, status, data.draw(spoiled(API_ERRORS)), trace_id=None, retry_after=None)

    assert isinstance(error, AllegroError)
    assert "\0" not in str(error)


@pytest.mark.parametrize("kind", READERS)
def test_fifty_megabytes_are_read_or_refused(kind: str) -> None:
    document, read = READERS[kind]
    padding = b',"padding":"' + b"x" * 50_000_000 + b'"}'
    body = json.dumps(document).encode()[:-1] + padding

    assert read(body) is not None


class Noon:
    """The time at which everything happens."""

    now = staticmethod(lambda: NOON)


class Published:
    """Notes what the enricher tells the writer."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.letters = 0

    async def results(self, records: Iterable[Record]) -> None:
        self.records += records

    async def dead_letter(self, _record: ConsumerRecord, _error: Exception, **_: object) -> None:
        self.letters += 1


async def _looked_at(body: bytes) -> None:
    """A look that is answered with this body ends as one result that the writer can read, whatever it is."""
    published = Published()
    async with an_allegro(lambda _request: httpx.Response(200, content=body), Noon()) as allegro:
        handler = LiveHandler(
            allegro,
            published,  # type: ignore[arg-type]
            Noon(),
            RecentLooks(),
            none_stopped,
            list_lag=timedelta(seconds=30),
            detail_concurrency=1,
        )
        await handler.handle([consumed(an_event(), topic="order-events")])

    (result,) = published.records
    assert published.letters == 0
    read = decode(result.encode())
    if isinstance(result, OrderObserved):
        assert isinstance(read, OrderObserved)
        assert read.order == body.strip()


@_QUICK
@given(data=st.data())
async def test_a_look_that_is_answered_with_a_spoiled_order_ends_as_one_result(data: st.DataObject) -> None:
    await _looked_at(data.draw(spoiled(AN_ORDER)))


async def test_any_value_of_an_order_that_is_looked_at_may_be_a_surprise() -> None:
    for body in every_surprise(AN_ORDER):
        await _looked_at(body)


class SetAside:
    """Takes what cannot be read."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    async def unreadable(self, _token_id: int, lines: Sequence[UnreadablePart], *, after: int) -> None:
        assert after == 0
        self.lines += [line.raw for line in lines]


def _elements(body: bytes, name: str) -> list[Any]:
    """What a page holds by another reader's word: nothing where that one cannot read it either."""
    try:
        page = json.loads(body)
    except (ValueError, RecursionError):
        return []
    found = page.get(name) if isinstance(page, dict) else None
    return found if isinstance(found, list) else []


def _written(parts: Iterable[bytes]) -> set[str]:
    """The parts of a page as that reader writes them, but those that it cannot read."""
    written = set()
    for part in parts:
        with contextlib.suppress(ValueError, RecursionError):
            written.add(json.dumps(json.loads(part)))
    return written


class NothingKnown:
    """A database without events."""

    async def fetch(self, *_: object) -> list[Any]:
        return []


async def _journal_read(body: bytes) -> None:
    """A page of the journal is unbroken records that can be read, or one of our errors."""
    cursor = Cursor(stored_event_id=0, published_event_id=0, unconfirmed_for=None, rewinds=0, covered_event_id=0)
    aside: Any = SetAside()
    async with an_allegro(lambda _request: httpx.Response(200, content=body), Noon()) as allegro:
        reader = PageReader(NothingKnown(), allegro, aside, tracked_event_types=())
        try:
            page = await reader.page(1, cursor, after=0)
        except AllegroError:
            return

    position = 0
    kept = list(aside.lines)
    for record in reader.records(1, page, cursor, run_id=A_RUN, run_last=2**63 - 1):
        read = decode(record.encode())
        assert isinstance(read, OrderEvent)
        assert (read.event, read.follows_event_id) == (record.event, position)
        position = read.event_id
        kept.append(record.event)
    parts = _written(kept)
    lost = [line for line in _elements(body, "events") if json.dumps(line) not in parts]
    assert [line for line in lost if line["id"] != 0] == []  # at 0 the cursor stands: that line was read before


@_QUICK
@given(data=st.data())
async def test_a_spoiled_page_of_the_journal_is_records_in_unbroken_steps_or_an_error(data: st.DataObject) -> None:
    await _journal_read(data.draw(spoiled({"events": [AN_EVENT, {**AN_EVENT, "id": "1790000000000001"}]})))


async def test_any_value_of_a_journal_line_that_the_poller_reads_may_be_a_surprise() -> None:
    for body in every_surprise({"events": [AN_EVENT]}):
        await _journal_read(body)


@_QUICK
@given(data=st.data())
async def test_a_spoiled_page_of_the_list_is_orders_or_an_error(data: st.DataObject) -> None:
    document = {"checkoutForms": [AN_ORDER, AN_ORDER], "count": 2, "totalCount": 2}
    body = data.draw(spoiled(document))

    async with an_allegro(lambda _request: httpx.Response(200, content=body), Noon()) as allegro:
        with contextlib.suppress(AllegroError):
            page = await allegro.list_orders(1, bought_from=NOON, bought_to=after(60), traffic="bulk")
            assert all(bytes(order.raw) in body for order in page.orders)
            parts = _written([*(order.raw for order in page.orders), *(part.raw for part in page.unreadable)])
            assert [order for order in _elements(body, "checkoutForms") if json.dumps(order) not in parts] == []
