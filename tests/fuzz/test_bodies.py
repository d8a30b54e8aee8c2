"""Whatever Allegro answers, reading it gives a result or a clear error, and never keeps a crash for later."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.allegro import bodies
from shared.allegro.bodies import UnreadableBodyError
from shared.allegro.errors import AllegroError, from_answer, from_oauth_answer
from shared.allegro.http import open_http
from shared.allegro.oauth import AllegroOAuth
from shared.encryption import Secret
from shared.request_limits import Endpoint
from tests.builders import NOON, an_order_body
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
    "access_token": "header.eyJ1c2VyX25hbWUiOiIxMTE1Nzg3NzMifQ.signature",
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
REFUSAL = {"error": "invalid_grant", "error_description": "Invalid refresh token: refresh-secret"}
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
        try:
            await (oauth.refresh(Secret("refresh-secret")) if document is PAIR else oauth.start_device_flow())
        except AllegroError as error:
            return str(error)
    return ""


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


@_QUICK
@given(data=st.data(), status=st.integers(300, 599))
def test_a_spoiled_refusal_is_one_of_our_errors_and_hides_the_token(data: st.DataObject, status: int) -> None:
    body = data.draw(spoiled(REFUSAL))

    error = from_oauth_answer(Endpoint.TOKEN.value, status, body, retry_after=None)

    assert "\0" not in str(error)


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
