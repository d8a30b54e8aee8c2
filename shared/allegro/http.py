"""The way to Allegro's servers: httpx's interface on aiohttp's transport, and every failure of it in our words.

httpx's own transport slows down as concurrency grows (benchmarks/http_transport.py measures it here); aiohttp's does
not. Proxies of the environment, redirects and cookies are off: a token goes to Allegro and nowhere else.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from shared.allegro import metrics
from shared.allegro.errors import AllegroTimeoutError, AllegroUnavailableError, AnswerTooLargeError
from shared.request_limits import Endpoint
from shared.settings import AllegroSettings
from shared.tracing import span, tell

ACCEPT = "application/vnd.allegro.public.v1+json"
# More than there are calls at a time: a permission to call must not grow old in the queue for a connection.
_CONNECTIONS = 1000
_CONNECT_TIMEOUT_SECONDS = 10.0
# Orders have a few kilobytes. What is read is held three or four times over until it is published (promise P10).
MAX_ANSWER_BYTES = 32 * 1024 * 1024

# What the transport raises: httpx's own, what httpx-aiohttp leaves untranslated, and what the deadline raises.
TRANSPORT_ERRORS = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, aiohttp.ClientError, OSError)
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

    def __init__(self, transport: httpx.AsyncBaseTransport, *, headers: Mapping[str, str], timeout: httpx.Timeout):
        self._transport = transport
        self._headers = headers
        self._extensions = {"timeout": timeout.as_dict()}

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> httpx.Response:
        """One request, and its whole answer, whatever its status; raises TRANSPORT_ERRORS, AnswerTooLargeError."""
        request = httpx.Request(
            method,
            url,
            params=params,
            data=data,
            headers={**self._headers, **(headers or {})},
            extensions=self._extensions,
        )
        response = await self._transport.handle_async_request(request)
        response.request = request
        try:
            await _read(response, max_bytes)
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


async def _read(response: httpx.Response, max_bytes: int) -> None:
    """As `aread`, but of an answer that is longer than `max_bytes`, unpacked, no more than that is ever held."""
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > max_bytes:
            if response.status_code == httpx.codes.OK:
                raise AnswerTooLargeError(f"the answer is larger than {max_bytes} bytes")
            parts.clear()  # of a refusal, only its status is then known
            break
        parts.append(part)
    response._content = b"".join(parts)


def open_http(settings: AllegroSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> AllegroHttp:
    """With the headers that Allegro demands (User-Agent: #13126, Accept: #11109); the caller closes it."""
    return AllegroHttp(
        transport or AiohttpTransport(client=_session),
        headers={
            "User-Agent": settings.allegro_user_agent,
            "Accept": ACCEPT,
            "Accept-Language": settings.allegro_accept_language,
        },
        timeout=httpx.Timeout(
            settings.allegro_timeout_seconds, connect=min(_CONNECT_TIMEOUT_SECONDS, settings.allegro_timeout_seconds)
        ),
    )


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=_CONNECTIONS, ttl_dns_cache=60),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(),  # httpx's own timeouts hold
        auto_decompress=False,
    )


async def exchange(
    http: AllegroHttp, endpoint: Endpoint, method: str, url: str, *, timeout_seconds: float, **arguments: Any
) -> Answer:
    """One request and its whole answer, whatever its status.

    Raises AllegroTimeoutError after `timeout_seconds` in all, AllegroUnavailableError if the connection fails or the
    answer is cut off or garbled, AnswerTooLargeError if it is larger than `max_bytes`. The transport's exception is not
    chained: it holds the request, and the request holds the secret.
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
    except AnswerTooLargeError as error:
        metrics.requests.labels(endpoint.value, "too_large").inc()
        raise error.at(endpoint.value, httpx.codes.OK) from None
    except TRANSPORT_ERRORS as error:
        metrics.requests.labels(endpoint.value, "connection").inc()
        raise AllegroUnavailableError(f"no answer: {type(error).__name__}").at(endpoint.value) from None
    metrics.request_seconds.labels(endpoint.value).observe(time.perf_counter() - started)
    metrics.requests.labels(endpoint.value, outcome_of(response.status_code)).inc()
    return Answer(response.status_code, response.headers, response.content)


def outcome_of(status: int) -> str:
    """A label of a small closed set."""
    return str(status) if status in (200, 401, 403, 404, 429) else f"{status // 100}xx"
