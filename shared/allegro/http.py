"""The way to Allegro's servers: httpx's requests and answers, and every failure on the way in our words."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import httpx

from shared.allegro import metrics
from shared.allegro.errors import AllegroTimeoutError, AllegroUnavailableError
from shared.allegro.transport import PyreqwestError, ReqwestTransport
from shared.request_limits import Endpoint
from shared.settings import AllegroSettings
from shared.tracing import span, tell

ACCEPT = "application/vnd.allegro.public.v1+json"
# More than there are calls at a time: a permission to call must not grow old in the queue for a connection.
_CONNECTIONS = 1000
_CONNECT_TIMEOUT_SECONDS = 10.0

# What httpx raises, and its transport, and the deadline.
TRANSPORT_ERRORS = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, PyreqwestError, OSError)
_TIMEOUTS = (httpx.TimeoutException, TimeoutError)


@dataclass(frozen=True)
class Answer:
    """A complete answer."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def trace_id(self) -> str | None:
        """What Allegro wants to be told in every report; the authorisation server sends none (#7999)."""
        trace_id: str | None = self.headers.get("Trace-Id")
        return trace_id

    @property
    def retry_after(self) -> timedelta | None:
        """The wait that the answer asks for; only the form in seconds (RFC 9110, 10.2.3) is of use to us."""
        value = self.headers.get("Retry-After", "")
        return timedelta(seconds=int(value)) if value.isascii() and value.isdigit() and len(value) < 7 else None

    @property
    def remaining(self) -> int | None:
        """`X-RateLimit-Remaining`, seen in 2018 and 2019 (#589)."""
        value = self.headers.get("X-RateLimit-Remaining", "")
        return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None


class AllegroHttp:
    """httpx's requests and answers over a transport, without httpx's client.

    Redirects, cookies, hooks, proxies and login schemes are nothing that a call to Allegro needs, and cost a third of
    its time (`make bench-http`).
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, *, headers: Mapping[str, str]):
        self._transport = transport
        self._headers = headers

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """One request, and its whole answer, whatever its status; raises TRANSPORT_ERRORS."""
        request = httpx.Request(method, url, params=params, data=data, headers={**self._headers, **(headers or {})})
        response = await self._transport.handle_async_request(request)
        response.request = request
        try:
            await response.aread()
        finally:
            await response.aclose()
        return response

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._transport.aclose()


def open_http(settings: AllegroSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> AllegroHttp:
    """With the headers that Allegro demands (User-Agent: #13126, Accept: #11109); the caller closes it."""
    seconds = settings.allegro_timeout_seconds
    return AllegroHttp(
        transport
        or ReqwestTransport(
            connections=_CONNECTIONS, connect_seconds=min(_CONNECT_TIMEOUT_SECONDS, seconds), seconds=seconds
        ),
        headers={
            "User-Agent": settings.allegro_user_agent,
            "Accept": ACCEPT,
            "Accept-Language": settings.allegro_accept_language,
        },
    )


async def exchange(
    http: AllegroHttp, endpoint: Endpoint, method: str, url: str, *, timeout_seconds: float, **arguments: Any
) -> Answer:
    """One request and its whole answer, whatever its status.

    Raises AllegroTimeoutError after `timeout_seconds` in all, AllegroUnavailableError if the connection fails or the
    answer is cut off or garbled. The transport's exception is not chained: it holds the request, and the request
    holds the secret.
    """
    told = {"http.request.method": method, "orders_backup.endpoint": endpoint.value}
    with span(f"Allegro {endpoint.value}", told, kind="client"):
        answer = await _exchange(http, endpoint, method, url, timeout_seconds=timeout_seconds, **arguments)
        tell({"http.response.status_code": answer.status})
        if answer.trace_id is not None:
            tell({"allegro.trace_id": answer.trace_id})
        return answer


async def _exchange(
    http: AllegroHttp, endpoint: Endpoint, method: str, url: str, *, timeout_seconds: float, **arguments: Any
) -> Answer:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_seconds):
            response = await http.request(method, url, **arguments)
    except _TIMEOUTS:
        metrics.requests.labels(endpoint.value, "timeout").inc()
        raise AllegroTimeoutError(f"no answer within {timeout_seconds:g} s").at(endpoint.value) from None
    except TRANSPORT_ERRORS as error:
        metrics.requests.labels(endpoint.value, "connection").inc()
        raise AllegroUnavailableError(f"no answer: {type(error).__name__}").at(endpoint.value) from None
    metrics.request_seconds.labels(endpoint.value).observe(time.perf_counter() - started)
    metrics.requests.labels(endpoint.value, outcome_of(response.status_code)).inc()
    return Answer(response.status_code, response.headers, response.content)


def outcome_of(status: int) -> str:
    """A label of a small closed set."""
    return str(status) if status in (200, 401, 403, 404, 429) else f"{status // 100}xx"
