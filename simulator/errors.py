"""Error bodies, as they were recorded or quoted in issues; where none is known, the comment says so."""

from math import ceil
from typing import Final

import msgspec

from simulator.wire import Answer

API_JSON: Final = b"application/vnd.allegro.public.v1+json"
PLAIN_JSON: Final = b"application/json;charset=UTF-8"


def api_error(status: int, code: str, message: str, path: str | None = None, user_message: str | None = None) -> Answer:
    body: dict[str, object] = {
        "errors": [
            {
                "code": code,
                "message": message,
                "details": None,
                "path": path,
                "userMessage": user_message or message,
                "metadata": {},
            }
        ]
    }
    return Answer(status, msgspec.json.encode(body), API_JSON)


def oauth_error(status: int, error: str, description: str) -> Answer:
    return Answer(status, msgspec.json.encode({"error_description": description, "error": error}), PLAIN_JSON)


def order_not_found(order_id: str) -> Answer:
    """Merged, too old or somebody else's: the same answer (#13539, with the final dot of 2026)."""
    message = f"Checkout form {order_id} not found."
    return api_error(404, "CheckoutFormNotFoundException", message, f"/order/checkout-forms/{order_id}")


def not_a_time_uuid() -> Answer:
    return api_error(422, "VALIDATION_ERROR", "Not valid time UUID", "getOrder.checkoutFormId")


def too_many_requests(retry_after: float = 0.0) -> Answer:
    """The message is known (#11152), the rest of the body is not; 0 seconds: no Retry-After."""
    text = "Przekroczono liczbę dozwolonej ilości zapytań na aplikację. Spróbuj ponownie za chwilę."
    answer = api_error(429, "TooManyRequests", text)
    if retry_after:
        answer.headers.append((b"retry-after", b"%d" % ceil(retry_after)))
    return answer


def no_token() -> Answer:
    return oauth_error(401, "unauthorized", "Full authentication is required to access this resource")


def bad_token(description: str) -> Answer:
    return oauth_error(401, "invalid_token", description)


def bad_client() -> Answer:
    return oauth_error(401, "invalid_client", "Client authentication failed")


def not_acceptable() -> Answer:
    return api_error(406, "NotAcceptableException", "Not Acceptable")


def no_accept() -> Answer:
    """Without an Accept header the answer is odd (#11109)."""
    return api_error(403, "ERROR", "Feature unavailable")


def bad_user_agent() -> Answer:
    """Refused since July 2026 (#13271); the body is not known."""
    return api_error(403, "AccessDenied", "User-Agent header is missing or does not name the application")


def no_such_resource(path: str) -> Answer:
    return api_error(404, "NotFoundException", "Resource not found", path)


def wrong_method(path: str) -> Answer:
    return api_error(405, "MethodNotAllowed", "Method not allowed", path)


def unavailable(status: int, variety: int) -> Answer:
    """A 5xx as JSON (#11045), HTML or text (#1806, #3622)."""
    if variety % 3 == 1:
        page = f"<html><head><title>{status}</title></head><body><h1>{status} Service Unavailable</h1></body></html>"
        return Answer(status, page.encode(), b"text/html")
    if variety % 3 == 2:
        return Answer(status, b"upstream request timeout", b"text/plain")
    text = "Query response time exceeded. Try again."
    return api_error(status, "ServiceTimeoutException", "An error occurred", None, text)


def captcha(variety: int) -> Answer:
    """The bot protection before the authorisation server: a page or JSON (#13093, #12463). Passes by itself."""
    if variety % 2:
        return Answer(403, b'{"url":"https://geo.captcha-delivery.com/captcha/?initialCid=simulated"}')
    page = b"<html><head><title>allegro.pl</title></head><body><p>Please enable JS and disable any ad blocker</p>"
    return Answer(
        403, page + b"<script src='https://ct.captcha-delivery.com/c.js'></script></body></html>", b"text/html"
    )
