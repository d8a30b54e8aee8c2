"""Around every request: a correlation id, an access log and metrics by route, security headers, a body limit.

Plain ASGI: Starlette's BaseHTTPMiddleware would run the endpoint in another context, and the correlation id with it.
Requests are named by their route, never by their path: a path may hold a device code.
"""

import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException

from shared.logs import correlated

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_CORRELATION_ID = re.compile(r"^[A-Za-z0-9._-]{1,100}$")
_MAX_BODY_BYTES = 1 << 20
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]

REQUESTS = Counter("orders_backup_api_requests_total", "Answered requests.", ["method", "route", "status"])
SECONDS = Histogram(
    "orders_backup_api_request_seconds",
    "Time from the request to the last byte of the answer.",
    ["method", "route"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)


class RequestFrame:
    """Wraps the application."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        identifier = given if _CORRELATION_ID.match(given) else uuid4().hex
        with correlated(identifier):
            await self._framed(scope, receive, send, identifier, headers)

    async def _framed(
        self, scope: Scope, receive: Receive, send: Send, identifier: str, headers: dict[bytes, bytes]
    ) -> None:
        started = time.perf_counter()
        status = 500

        async def send_framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", identifier.encode()),
                    *_SECURITY_HEADERS,
                ]
            await send(message)

        try:
            await self._app(scope, _limited(receive), send_framed)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            seconds = time.perf_counter() - started
            REQUESTS.labels(scope["method"], route, str(status)).inc()
            SECONDS.labels(scope["method"], route).observe(seconds)
            logger.info(
                "request",
                extra={"method": scope["method"], "route": route, "status": status, "ms": round(seconds * 1000, 2)},
            )


def _limited(receive: Receive) -> Receive:
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > _MAX_BODY_BYTES:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return message

    return receive_limited
