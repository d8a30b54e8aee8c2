"""Around every request: a correlation id, a deadline, the answer to every error, an access log and metrics by route.

Plain ASGI: Starlette's BaseHTTPMiddleware would run the endpoint in another context, and the correlation id with it.
Requests are named by their route, never by their path: a path may hold a device code.
"""

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from http import HTTPStatus
from typing import Any

from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException

from services.api.browsers import refuse_foreign_pages
from services.api.problems import (
    AddressTooLongError,
    BadRequestError,
    InternalError,
    Problem,
    TooLargeError,
    UnavailableError,
    problem_of,
)
from shared.logs import correlated
from shared.tracing import is_on, span, tell

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_CORRELATION_ID = re.compile(r"^[A-Za-z0-9._-]{1,100}$")
_MAX_BODY_BYTES = 1 << 20
_MAX_ADDRESS_BYTES = 1 << 16
# Longer than a refresh of a token may take, which holds a row lock for 45 s at most.
_DEADLINE_SECONDS = 60.0
_UNTRACED = frozenset({"/livez", "/readyz", "/health", "/metrics"})
# Methods are labels of metrics: a client must not invent any number of them.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Our answers are data. A page that is more says so itself (`endpoints/pages.py`).
_CSP = (b"content-security-policy", b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

_NO_STORE = (b"cache-control", b"no-store")
HEADERS = "answer_headers"
"""Name in the request's state: what is appended there goes out with the answer, whatever it is."""

REQUESTS = Counter("orders_backup_api_requests_total", "Answered requests.", ["method", "route", "status"])
SECONDS = Histogram(
    "orders_backup_api_request_seconds",
    "Time from the request to the last byte of the answer.",
    ["method", "route"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)

BROKEN = Counter(
    "orders_backup_api_broken_answers_total",
    "Answers that broke off after their start, whatever their status: many are exports that clients had to go on with.",
    ["method", "route"],
)


class RequestFrame:
    """Wraps the application. No error leaves it, whatever it is: this is the one edge where errors become answers."""

    def __init__(self, app: App, *, own_names_only: bool, welcome: Collection[str]) -> None:
        self._app = app
        self._own_names_only = own_names_only
        self._welcome = welcome

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        with (
            correlated(given if _CORRELATION_ID.match(given) else _fresh_id()) as identifier,
            _traced(scope, headers),
        ):
            own: list[tuple[bytes, bytes]] = []
            scope.setdefault("state", {})[HEADERS] = own
            answer = _Answer(send, identifier, own)
            started = time.perf_counter()
            try:
                await self._answer(scope, receive, answer, headers)
            finally:
                _measure(scope, answer, time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, answer: "_Answer", headers: dict[bytes, bytes]) -> None:
        try:
            _refuse_early(scope, headers)
            refuse_foreign_pages(scope["method"], headers, own_names_only=self._own_names_only, welcome=self._welcome)
            async with asyncio.timeout(_DEADLINE_SECONDS) as deadline:
                await self._app(scope, _limited(receive), answer.sending_before(deadline))
        except Exception as error:  # noqa: BLE001 - every error becomes an answer, here and nowhere else
            problem = problem_of(error)
            if isinstance(error, TimeoutError) and deadline.expired():
                problem = UnavailableError(f"No answer within {_DEADLINE_SECONDS:g} s; try again.")
            _log(problem, error)
            if answer.started:
                answer.broke_off = True
            else:
                await problem.response()(scope, receive, answer.send)


class _Answer:
    """What goes out: with our headers, and remembered by its status."""

    def __init__(self, send: Send, identifier: str, more: Sequence[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = ((b"x-request-id", identifier.encode()), *_SECURITY_HEADERS)
        self._more = more
        self.status = int(HTTPStatus.INTERNAL_SERVER_ERROR)
        self.started = False
        self.broke_off = False

    def sending_before(self, deadline: asyncio.Timeout) -> Send:
        """A long answer may take as long as it comes on: each piece that the client takes moves the deadline."""

        async def send(message: Message) -> None:
            await self.send(message)
            if message.get("more_body", False):
                deadline.reschedule(asyncio.get_running_loop().time() + _DEADLINE_SECONDS)

        return send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            own = list(message.get("headers", ()))
            names = {name for name, _ in own}
            own += [default for default in (_NO_STORE, _CSP) if default[0] not in names]
            message["headers"] = [*own, *self._headers, *self._more]
        await self._send(message)


def _fresh_id() -> str:
    """It tells requests apart and protects nothing: no call to the system, as `uuid4` makes one."""
    return f"{random.getrandbits(128):032x}"


def _refuse_early(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """What no endpoint takes. PostgreSQL's text cannot hold a NUL, so no name with one exists."""
    if b"%00" in scope.get("query_string", b"") or "\0" in scope["path"]:
        raise BadRequestError("The address holds a NUL character.")
    if len(scope.get("raw_path") or b"") + len(scope.get("query_string", b"")) > _MAX_ADDRESS_BYTES:
        raise AddressTooLongError(f"Path and query may have {_MAX_ADDRESS_BYTES} bytes.")
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > _MAX_BODY_BYTES:
        raise _too_large()


def _too_large() -> Problem:
    return TooLargeError(f"At most {_MAX_BODY_BYTES} bytes are accepted.")


class _BodyTooLargeError(HTTPException):
    """FastAPI hands on errors of reading a body only if they are of this kind."""


def _limited(receive: Receive) -> Receive:
    """A body that does not say its length is measured as it comes."""
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > _MAX_BODY_BYTES:
            raise _BodyTooLargeError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return message

    return receive_limited


def _log(problem: Problem, error: Exception) -> None:
    """Our own errors with a traceback, what is away as a warning, the client's mistakes not at all."""
    if isinstance(problem, InternalError):
        logger.error("unexpected error", exc_info=error)
    elif problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.warning("not answered", extra={"problem": problem.slug, "error": repr(error)})


def _traced(scope: Scope, headers: dict[bytes, bytes]) -> AbstractContextManager[None]:
    """A span around the request, in the caller's trace if it has one; looks at our health are no requests."""
    if scope["path"] in _UNTRACED:
        return nullcontext()
    given = headers.get(b"traceparent")
    return span(_method(scope), kind="server", parent=None if given is None else given.decode("latin-1"))


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in _METHODS else "other"


def _measure(scope: Scope, answer: _Answer, seconds: float) -> None:
    method, status = _method(scope), answer.status
    # The path of the route as its own module declares it: routers are included without a prefix.
    route = getattr(scope.get("route"), "path", "unmatched")
    _requests(method, route, status).inc()
    _seconds(method, route).observe(seconds)
    failed = str(status) if status >= HTTPStatus.INTERNAL_SERVER_ERROR else None
    outcome: dict[str, object] = {"status": status}
    if answer.broke_off:
        # The status went out before.
        BROKEN.labels(method, route).inc()
        failed, outcome["broke_off"] = "broke off", True
    if is_on():
        told = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
        tell(told, name=f"{method} {route}", failed=failed)
    if not logger.isEnabledFor(logging.INFO):
        return
    caller = scope["state"].get("caller")
    asked = {
        "method": method,
        "route": route,
        "caller": getattr(caller, "name", None),
        "user_id": getattr(caller, "subject", None),
    }
    logger.info("request", extra={**asked, **outcome, "ms": round(seconds * 1000, 2)})


# Prometheus' client looks for a child under a lock, by names that it makes of the labels at every call. There are as
# many as `_METHODS`, routes and statuses allow.
@cache
def _requests(method: str, route: str, status: int) -> Counter:
    return REQUESTS.labels(method, route, str(status))


@cache
def _seconds(method: str, route: str) -> Histogram:
    return SECONDS.labels(method, route)
