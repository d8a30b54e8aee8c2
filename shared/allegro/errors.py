"""What can go wrong with Allegro, in our words; one table turns answers into errors.

    AllegroError
    ├── AllegroUnavailableError (TransientError)   5xx, timeouts, cut connections, unreadable bodies, bot protection
    ├── RateLimitedError        (TransientError)   429
    ├── AccessDeniedError                          403: a scope is missing, or the API key is blocked (#11939, #10913)
    ├── ReauthorizationRequiredError               the seller has to consent again
    ├── OrderNotFoundError      (PermanentError)   404: merged, older than a year, or another seller's
    └── RequestRejectedError    (PermanentError)   any other 4xx: our request was wrong

Texts are scrubbed: Allegro's OAuth errors echo the token (allegro-api.md 2).
"""

from datetime import timedelta
from http import HTTPStatus

import msgspec

from shared.errors import OrdersBackupError, PermanentError, TransientError
from shared.logs import scrub

_MAX_TEXT = 300


class AllegroError(OrdersBackupError):
    """Base: which call, the HTTP status if there was an answer, and the Trace-Id that Allegro asks for in reports."""

    endpoint: str = ""
    status: int | None = None
    trace_id: str | None = None

    def at(self, endpoint: str, status: int | None = None, trace_id: str | None = None) -> "AllegroError":
        """The same error, with where it happened."""
        self.endpoint, self.status, self.trace_id = endpoint, status, trace_id
        return self

    def __str__(self) -> str:
        where = f" [{self.endpoint}" + (f", Trace-Id {self.trace_id}" if self.trace_id else "") + "]"
        return super().__str__() + (where if self.endpoint else "")


class AllegroUnavailableError(AllegroError, TransientError):
    """Allegro did not answer, or not with what it promises; the same call may succeed later."""


class RateLimitedError(AllegroError, TransientError):
    """429: everybody who uses this client id has to stop for a while (`retry_after`)."""


class AccessDeniedError(AllegroError):
    """403 on an API call: consent lacks a scope, or the application is blocked."""


class ReauthorizationRequiredError(AllegroError):
    """The seller's tokens are of no use any more: consent has to be given again."""


class OrderNotFoundError(AllegroError, PermanentError):
    """404 on an order."""


class RequestRejectedError(AllegroError, PermanentError):
    """Allegro will never take this request as it is."""


class UnauthorizedError(AllegroError):
    """401: the access token was not accepted; refreshing it may help."""


def from_answer(
    endpoint: str, status: int, body: bytes, *, trace_id: str | None, retry_after: timedelta | None
) -> AllegroError:
    """The error that an answer other than 200 stands for."""
    text = f"{status}: {describe(body)}"
    error: AllegroError
    match status:
        case HTTPStatus.UNAUTHORIZED:
            error = UnauthorizedError(text)
        case HTTPStatus.FORBIDDEN if _is_bot_protection(body):
            error = AllegroUnavailableError("403: bot protection", retry_after=retry_after)
        case HTTPStatus.FORBIDDEN:
            error = AccessDeniedError(text)
        case HTTPStatus.NOT_FOUND:
            error = OrderNotFoundError(text)
        case HTTPStatus.TOO_MANY_REQUESTS:
            error = RateLimitedError(text, retry_after=retry_after)
        case HTTPStatus.REQUEST_TIMEOUT:
            error = AllegroUnavailableError(text, retry_after=retry_after)
        case _ if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            error = RequestRejectedError(text)
        case _:  # 5xx, and redirects or successes without the promised body
            error = AllegroUnavailableError(text, retry_after=retry_after)
    return error.at(endpoint, status, trace_id)


def _is_bot_protection(body: bytes) -> bool:
    """Bot protection answers with HTML, or with JSON that points to a captcha (#13093, #12463)."""
    start = body.lstrip()[:1]
    return start == b"<" or b"captcha-delivery.com" in body


def describe(body: bytes) -> str:
    """What an error body says, without secrets; HTML and unreadable bodies only by their size."""
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return f"{len(body)} bytes that are no JSON"
    if not isinstance(parsed, dict):
        return "an unexpected body"
    errors = parsed.get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        parts = [str(errors[0].get(name)) for name in ("code", "message") if errors[0].get(name)]
    else:
        parts = [str(parsed.get(name)) for name in ("error", "error_description") if parsed.get(name)]
    return scrub(": ".join(parts))[:_MAX_TEXT].replace("\0", " ") or "no explanation"
