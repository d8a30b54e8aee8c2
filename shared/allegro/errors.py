"""What can go wrong with Allegro, in our words; one table turns answers into errors.

    AllegroError
    ├── AllegroUnavailableError (TransientError)   5xx, cut connections, unreadable bodies, bot protection
    │   └── AllegroTimeoutError                    no answer in time: worth another try at once
    ├── AllegroOutageError      (TransientError)   not called at all: most sellers' calls fail
    ├── RateLimitedError        (TransientError)   429
    ├── NotPermittedError       (TransientError)   not called at all: the limits gave no permission in time
    ├── InvalidClientError      (TransientError)   our app is not accepted: nothing of a seller's is wrong
    ├── CallRefusedError        (TransientError)   any other 4xx: our headers, a gateway, not the order asked for
    ├── AccessDeniedError       (PermanentError)   403: a scope is missing, or the API key is blocked (#11939, #10913)
    ├── OrderNotFoundError      (PermanentError)   404: merged, older than a year, or another seller's
    ├── RequestRejectedError    (PermanentError)   400, 404, 410, 422, 451 by Allegro itself: no such order can be had
    ├── AnswerTooLargeError     (PermanentError)   longer than we read: asking for less may help
    ├── InvalidGrantError       (PermanentError)   the refresh token was not accepted, this time
    ├── UnauthorizedError                          401: refreshing the access token may help
    ├── ReauthorizationRequiredError               the seller has to consent again
    ├── AuthorizationPendingError                  device flow: the seller has not decided yet
    ├── SlowDownError                              device flow: polled too fast
    └── AuthorizationEndedError (PermanentError)   device flow: over, without tokens

Texts are scrubbed: Allegro's OAuth errors echo the token (allegro-api.md 2).
"""

from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any, Self

import msgspec

from shared.errors import OrdersBackupError, PermanentError, TransientError
from shared.logs import scrub
from shared.request_limits import Endpoint

_MAX_TEXT = 300
# What Allegro itself says of an order by these will be as true tomorrow.
_FOR_GOOD = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.GONE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS,
)


class AllegroError(OrdersBackupError):
    """Base: which call, the HTTP status if there was an answer, and the Trace-Id that Allegro asks for in reports."""

    endpoint: str = ""
    status: int | None = None
    trace_id: str | None = None

    def at(self, endpoint: str, status: int | None = None, trace_id: str | None = None) -> Self:
        """The same error, with where it happened."""
        self.endpoint, self.status, self.trace_id = endpoint, status, trace_id
        return self

    def __str__(self) -> str:
        where = f" [{self.endpoint}" + (f", Trace-Id {self.trace_id}" if self.trace_id else "") + "]"
        return super().__str__() + (where if self.endpoint else "")


class AllegroUnavailableError(AllegroError, TransientError):
    """Allegro did not answer, or not with what it promises; the same call may succeed later."""


class AllegroTimeoutError(AllegroUnavailableError):
    """No complete answer within ALLEGRO_TIMEOUT_SECONDS; the call may have had its effect."""


class AllegroOutageError(AllegroError, TransientError):
    """The call was not made: most sellers' calls fail (shared.allegro.outage). Ask again after `retry_after`.

    `is_for_all` is False where so few have called that a seller of whom nothing is known may be well.
    """

    is_for_all: bool = True


class RateLimitedError(AllegroError, TransientError):
    """429: everybody who uses this client id has to stop for a while (`retry_after`)."""


class NotPermittedError(AllegroError, TransientError):
    """The call was not made: the limits did not permit it for as long as its caller could wait."""


class InvalidClientError(AllegroError, TransientError):
    """ALLEGRO_CLIENT_ID or ALLEGRO_CLIENT_SECRET is wrong, or the application was deleted (#11371).

    Transient, since the operator can repair it and nothing may be given up for it.
    """


class AccessDeniedError(AllegroError, PermanentError):
    """403 on an API call: consent lacks a scope, or the application is blocked."""


class ReauthorizationRequiredError(AllegroError):
    """The seller's tokens are of no use any more: consent has to be given again."""


class OrderNotFoundError(AllegroError, PermanentError):
    """404 on an order; `requested_at` is when it was asked for, after any wait for the limits."""

    requested_at: datetime | None = None


class CallRefusedError(AllegroError, TransientError):
    """A 4xx that says nothing of what was asked for: a header of ours that Allegro does not like, or a gateway.

    Transient, since it meets every call alike: nothing may be given up for it.
    """


class RequestRejectedError(AllegroError, PermanentError):
    """Allegro will never take this request as it is."""


class UnauthorizedError(AllegroError):
    """401: the access token was not accepted; refreshing it may help. `generation` is the pair it was of."""

    generation: int = 0


class AnswerTooLargeError(AllegroError, PermanentError):
    """The answer is longer than what is read of one (`shared.allegro.http`); nothing of it is kept."""


class InvalidGrantError(AllegroError, PermanentError):
    """The refresh token was not accepted; not always the last word (#3622, #9592)."""


class AuthorizationPendingError(AllegroError):
    """The seller has not decided yet."""


class SlowDownError(AllegroError):
    """Polled too fast: the interval grows by 5 s (RFC 8628, 3.5)."""


class AuthorizationEndedError(AllegroError, PermanentError):
    """The device flow is over without tokens; `reason` is machine-readable, the text is for a person."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self._message = message

    def __str__(self) -> str:
        return self._message


def from_answer(
    endpoint: str, status: int, body: bytes, *, trace_id: str | None, retry_after: timedelta | None
) -> AllegroError:
    """The error that an API answer other than 200 stands for."""
    text = f"{status}: {describe(body)}"
    error: AllegroError
    match status:
        case HTTPStatus.UNAUTHORIZED:
            error = UnauthorizedError(text)
        case HTTPStatus.FORBIDDEN if _json_object(body) is None or _is_captcha(body):
            # Bot protection answers with HTML, or with JSON that points to a captcha (#13093, #12463).
            error = AllegroUnavailableError(f"403: bot protection, {describe(body)}", retry_after=retry_after)
        case HTTPStatus.FORBIDDEN:
            error = AccessDeniedError(text)
        case HTTPStatus.NOT_FOUND if _json_object(body) is None:
            # A gateway's 404 says nothing about the order; taking it for one would mark the order as gone.
            error = AllegroUnavailableError(text, retry_after=retry_after)
        case HTTPStatus.NOT_FOUND if endpoint == Endpoint.DETAIL.value and _says_not_found(body):
            error = OrderNotFoundError(text)
        case HTTPStatus.TOO_MANY_REQUESTS:
            error = RateLimitedError(text, retry_after=retry_after)
        case HTTPStatus.REQUEST_TIMEOUT | HTTPStatus.TOO_EARLY:
            error = AllegroUnavailableError(text, retry_after=retry_after)
        case _ if status in _FOR_GOOD and endpoint == Endpoint.DETAIL.value and _is_from_the_api(body):
            error = RequestRejectedError(text)
        case _ if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            error = CallRefusedError(text, retry_after=retry_after)
        case _:  # 5xx, and redirects or successes without the promised body
            error = AllegroUnavailableError(text, retry_after=retry_after)
    return error.at(endpoint, status, trace_id)


def from_oauth_answer(endpoint: str, status: int, body: bytes, *, retry_after: timedelta | None) -> AllegroError:
    """The error that an answer other than 200 of the authorisation server stands for; it sends no Trace-Id (#7999)."""
    code = _oauth_code(body)
    text = f"{status}: {describe(body)}"
    error: AllegroError
    match status, code:
        case HTTPStatus.TOO_MANY_REQUESTS, _:
            error = RateLimitedError(text, retry_after=retry_after)
        case HTTPStatus.UNAUTHORIZED, _ if code is not None:
            error = InvalidClientError(f"ALLEGRO_CLIENT_ID / ALLEGRO_CLIENT_SECRET not accepted: {text}")
        case HTTPStatus.BAD_REQUEST, "invalid_client" | "unauthorized_client":
            error = InvalidClientError(f"ALLEGRO_CLIENT_ID / ALLEGRO_CLIENT_SECRET not accepted: {text}")
        case HTTPStatus.BAD_REQUEST, "authorization_pending":
            error = AuthorizationPendingError(text)
        case HTTPStatus.BAD_REQUEST, "slow_down":
            error = SlowDownError(text)
        case HTTPStatus.BAD_REQUEST | HTTPStatus.FORBIDDEN, "access_denied":
            error = AuthorizationEndedError("denied", "The seller refused access.")
        case HTTPStatus.BAD_REQUEST, "expired_token":
            error = AuthorizationEndedError("expired", "The code expired before the seller decided. Start again.")
        case HTTPStatus.BAD_REQUEST, "invalid_grant":
            error = InvalidGrantError(text)
        case HTTPStatus.BAD_REQUEST, str():
            error = RequestRejectedError(text)
        # Bot protection (403), 5xx, and whatever did not come from the authorisation server itself.
        case _:
            error = AllegroUnavailableError(text, retry_after=retry_after)
    return error.at(endpoint, status)


def describe(body: bytes) -> str:
    """What an error body says, without secrets; HTML and unreadable bodies only by their size."""
    parsed = _json_object(body)
    if parsed is None:
        return f"{len(body)} bytes that are no JSON object"
    errors = parsed.get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        parts = [str(errors[0].get(name)) for name in ("code", "message") if errors[0].get(name)]
    else:
        parts = [str(parsed.get(name)) for name in ("error", "error_description") if parsed.get(name)]
    return scrub(": ".join(parts))[:_MAX_TEXT].replace("\0", " ") or "no explanation"


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _is_from_the_api(body: bytes) -> bool:
    """Whether the API itself explains an error; what stands before it answers in other forms."""
    errors = (_json_object(body) or {}).get("errors")
    return isinstance(errors, list) and any(isinstance(error, dict) and error.get("code") for error in errors)


def _is_captcha(body: bytes) -> bool:
    return b"captcha" in body.lower()


def _says_not_found(body: bytes) -> bool:
    """Whether a 404 names the thing that is missing (`CheckoutFormNotFoundException`, allegro-api.md 5)."""
    return "notfound" in describe(body).lower().replace("_", "")


def _oauth_code(body: bytes) -> str | None:
    code = (_json_object(body) or {}).get("error")
    return code if isinstance(code, str) else None
