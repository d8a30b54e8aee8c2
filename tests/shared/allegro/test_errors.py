"""Every status, body and failure becomes an error with a meaning (E2); none tells a secret (A8)."""

import inspect
import json
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyreqwest.exceptions import PyreqwestError

from shared.allegro import errors
from shared.allegro.errors import (
    AccessDeniedError,
    AllegroError,
    AllegroTimeoutError,
    AllegroUnavailableError,
    AuthorizationEndedError,
    AuthorizationPendingError,
    CallRefusedError,
    InvalidClientError,
    InvalidGrantError,
    OrderNotFoundError,
    RateLimitedError,
    ReauthorizationRequiredError,
    RequestRejectedError,
    SlowDownError,
    UnauthorizedError,
    describe,
    from_answer,
    from_oauth_answer,
)
from shared.allegro.http import exchange, open_http
from shared.errors import PermanentError, TransientError
from shared.request_limits import Endpoint
from tests.shared.allegro.builders import settings

HTML = b"<html>Please enable JS and disable any ad blocker</html>"
CAPTCHA = b'{"url":"https://geo.captcha-delivery.com/captcha/?cid=1"}'
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJ1c2VyX25hbWUiOiIxIn0.c2ln"


def api_error(code: str, message: str = "m") -> bytes:
    return json.dumps(
        {"errors": [{"code": code, "message": message, "details": None, "path": None, "userMessage": None}]}
    ).encode()


def oauth_error(code: str, description: str = "d") -> bytes:
    return json.dumps({"error": code, "error_description": description}).encode()


NOT_FOUND = api_error("CheckoutFormNotFoundException", "Checkout form c93df771 not found")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, oauth_error("invalid_token", f"Access token expired: {TOKEN}"), UnauthorizedError),
        (401, b"", UnauthorizedError),
        (403, api_error("AccessDenied", "Access is denied"), AccessDeniedError),
        (403, HTML, AllegroUnavailableError),
        (403, CAPTCHA, AllegroUnavailableError),
        (404, NOT_FOUND, OrderNotFoundError),
        (404, HTML, AllegroUnavailableError),
        (404, b"", AllegroUnavailableError),
        (404, api_error("ERROR", "Feature unavailable"), RequestRejectedError),
        (400, api_error("BadRequestException"), RequestRejectedError),
        (400, HTML, CallRefusedError),
        (400, b"", CallRefusedError),
        (400, b'{"message":"invalid user agent"}', CallRefusedError),
        (400, b'{"errors":[]}', CallRefusedError),
        (406, api_error("NotAcceptableException"), CallRefusedError),
        (406, HTML, CallRefusedError),
        (415, api_error("X"), CallRefusedError),
        (451, b"", CallRefusedError),
        (422, HTML, CallRefusedError),
        (410, api_error("GoneException"), RequestRejectedError),
        (410, HTML, CallRefusedError),
        (451, api_error("X"), RequestRejectedError),
        (408, b"", AllegroUnavailableError),
        (422, api_error("VALIDATION_ERROR", "Not valid time UUID"), RequestRejectedError),
        (425, b"", AllegroUnavailableError),
        (429, "Przekroczono liczbę".encode(), RateLimitedError),
        (500, api_error("ERROR", "An error has occurred"), AllegroUnavailableError),
        (503, HTML, AllegroUnavailableError),
        (504, api_error("ServiceTimeoutException"), AllegroUnavailableError),
        (204, b"", AllegroUnavailableError),
        (301, b"", AllegroUnavailableError),
    ],
)
def test_an_api_answer_means(status: int, body: bytes, expected: type[AllegroError]) -> None:
    error = from_answer("detail", status, body, trace_id="t-1", retry_after=None)

    assert type(error) is expected
    assert (error.endpoint, error.status, error.trace_id) == ("detail", status, "t-1")
    assert "[detail, Trace-Id t-1]" in str(error)


def test_only_a_single_order_can_be_not_found() -> None:
    assert type(from_answer("list", 404, NOT_FOUND, trace_id=None, retry_after=None)) is CallRefusedError


@pytest.mark.parametrize("endpoint", ["list", "events", "event-stats", "me"])
@given(status=st.integers(400, 499), explained=st.booleans())
def test_nothing_but_an_order_is_rejected_for_good(endpoint: str, status: int, explained: bool) -> None:
    body = api_error("VALIDATION_ERROR") if explained else HTML

    error = from_answer(endpoint, status, body, trace_id=None, retry_after=None)

    assert type(error) is not RequestRejectedError


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, oauth_error("authorization_pending"), AuthorizationPendingError),
        (400, oauth_error("slow_down"), SlowDownError),
        (400, oauth_error("access_denied"), AuthorizationEndedError),
        (400, oauth_error("expired_token"), AuthorizationEndedError),
        (400, oauth_error("invalid_request", "Invalid device code"), RequestRejectedError),
        (400, oauth_error("invalid_grant", f"Invalid refresh token: {TOKEN}"), InvalidGrantError),
        (400, oauth_error("invalid_client"), InvalidClientError),
        (401, oauth_error("invalid_client", "Client authentication failed"), InvalidClientError),
        (401, oauth_error("Unauthorized", "Unauthorized"), InvalidClientError),
        (401, HTML, AllegroUnavailableError),
        (400, HTML, AllegroUnavailableError),
        (403, HTML, AllegroUnavailableError),
        (403, CAPTCHA, AllegroUnavailableError),
        (404, HTML, AllegroUnavailableError),
        (429, b"", RateLimitedError),
        (500, b"", AllegroUnavailableError),
        (503, HTML, AllegroUnavailableError),
    ],
)
def test_an_answer_of_the_authorisation_server_means(status: int, body: bytes, expected: type[AllegroError]) -> None:
    error = from_oauth_answer("token", status, body, retry_after=None)

    assert type(error) is expected
    assert (error.endpoint, error.status) == ("token", status)


@given(status=st.integers(100, 999).filter(lambda status: status != 200), body=st.binary(max_size=60))
def test_no_answer_is_left_without_a_meaning(status: int, body: bytes) -> None:
    for error in (
        from_answer("detail", status, body, trace_id=None, retry_after=None),
        from_oauth_answer("token", status, body, retry_after=None),
    ):
        # Nothing that may be a passing trouble of theirs is held against an order, a token or a seller.
        if status >= 500 or status < 400:
            assert isinstance(error, TransientError)
        assert not isinstance(error, ReauthorizationRequiredError)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["errors", "error", "code"]), inner),
    max_leaves=8,
)


@given(JSON)
def test_any_body_can_be_described(body: Any) -> None:
    assert isinstance(describe(json.dumps(body).encode()), str)


def test_the_wait_that_was_asked_for_is_kept() -> None:
    for status in (429, 503):
        error = from_answer("list", status, b"", trace_id=None, retry_after=timedelta(seconds=9))
        assert isinstance(error, TransientError)
        assert error.retry_after == timedelta(seconds=9)


@pytest.mark.parametrize("text", [f"Invalid refresh token: {TOKEN}", f"Access token expired: {TOKEN}", TOKEN])
def test_no_text_tells_a_token(text: str) -> None:
    for error in (
        from_answer("detail", 401, oauth_error("invalid_token", text), trace_id=None, retry_after=None),
        from_oauth_answer("token", 400, oauth_error("invalid_grant", text), retry_after=None),
        from_answer("detail", 422, api_error("E", text), trace_id=None, retry_after=None),
    ):
        assert "eyJ" not in str(error) + repr(error)
        assert "c2ln" not in str(error) + repr(error)


def test_each_error_is_either_waited_for_or_set_aside_and_never_both() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, AllegroError)]

    assert not [kind for kind in kinds if issubclass(kind, TransientError) and issubclass(kind, PermanentError)]
    undecided = {kind for kind in kinds if not issubclass(kind, (TransientError, PermanentError))}
    # These are told to those who ask for them; nobody else may meet them.
    assert undecided == {
        AllegroError,
        UnauthorizedError,
        ReauthorizationRequiredError,
        AuthorizationPendingError,
        SlowDownError,
    }


def _all(base: type[BaseException]) -> list[type[BaseException]]:
    return [base, *(kind for child in base.__subclasses__() for kind in _all(child))]


def _an_instance(kind: type[BaseException]) -> BaseException:
    """An instance without its constructor: some want half a connection."""
    error = kind.__new__(kind)
    error.args = (TOKEN,)
    return error


TRANSPORT = [
    *_all(httpx.HTTPError),
    *_all(httpx.StreamError),
    *_all(PyreqwestError),
    OSError,
    ConnectionResetError,
    TimeoutError,
]


@pytest.mark.parametrize("kind", TRANSPORT, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
async def test_every_failure_of_the_transport_is_an_outage(kind: type[BaseException]) -> None:
    def fail(_request: httpx.Request) -> httpx.Response:
        raise _an_instance(kind)

    async with open_http(settings("https://api.example"), transport=httpx.MockTransport(fail)) as http:
        with pytest.raises(AllegroUnavailableError) as raised:
            await exchange(http, Endpoint.ME, "GET", "https://api.example", timeout_seconds=1)

    timed_out = issubclass(kind, (httpx.TimeoutException, TimeoutError))
    assert isinstance(raised.value, AllegroTimeoutError) is timed_out
    assert TOKEN not in str(raised.value)
    assert raised.value.__cause__ is None
