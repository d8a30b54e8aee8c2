"""The way to Allegro's servers: our headers, and every failure on the way in our words."""

import time
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlencode

import httpx

from shared.allegro import metrics
from shared.allegro.answer import Answer
from shared.allegro.errors import AllegroTimeoutError, AllegroUnavailableError, AnswerTooLargeError
from shared.allegro.transport import TIMEOUTS, TRANSPORT_ERRORS, HttpxTransport, Request, ReqwestTransport, Transport
from shared.request_limits import Endpoint
from shared.settings import AllegroSettings
from shared.tracing import span, tell

ACCEPT = "application/vnd.allegro.public.v1+json"
_CONNECT_TIMEOUT_SECONDS = 10.0
_FORM = "application/x-www-form-urlencoded"
# Orders have a few kilobytes. What is read is held three or four times over until it is published (promise P10).
MAX_ANSWER_BYTES = 32 * 1024 * 1024


class AllegroHttp:
    """Requests as Allegro takes them, and answers of a size that can be held."""

    def __init__(self, transport: Transport):
        self._transport = transport

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        """One request, and its whole answer, whatever its status.

        Raises TRANSPORT_ERRORS, of which TIMEOUTS after `timeout_seconds` in all, and AnswerTooLargeError.
        """
        sent = headers or {}
        body = None
        if data is not None:
            sent = {**sent, "Content-Type": _FORM}
            body = urlencode(data).encode()
        if params:
            url = f"{url}?{urlencode(params)}"
        answer = await self._transport.send(Request(method, url, sent, body, timeout_seconds, max_bytes))
        if len(answer.body) <= max_bytes:
            return answer
        bare = Answer(answer.status, answer.headers, b"")
        del answer  # the traceback of an error must not hold the body
        if bare.status == httpx.codes.OK:
            raise AnswerTooLargeError(f"the answer is larger than {max_bytes} bytes")
        return bare  # of a refusal, only its status is then known

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._transport.aclose()


def open_http(settings: AllegroSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> AllegroHttp:
    """With the headers that Allegro demands (User-Agent: #13126, Accept: #11109); the caller closes it."""
    headers = {
        "User-Agent": settings.allegro_user_agent,
        "Accept": ACCEPT,
        "Accept-Language": settings.allegro_accept_language,
    }
    if transport is not None:
        return AllegroHttp(HttpxTransport(transport, headers=headers))
    connect_seconds = min(_CONNECT_TIMEOUT_SECONDS, settings.allegro_timeout_seconds)
    return AllegroHttp(ReqwestTransport(connect_seconds=connect_seconds, headers=headers))


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
        answer = await http.request(method, url, timeout_seconds=timeout_seconds, **arguments)
    except TIMEOUTS:
        metrics.request_count(endpoint.value, "timeout").inc()
        raise AllegroTimeoutError(f"no answer within {timeout_seconds:g} s").at(endpoint.value) from None
    except AnswerTooLargeError as error:
        metrics.request_count(endpoint.value, "too_large").inc()
        raise error.at(endpoint.value, httpx.codes.OK) from None
    except TRANSPORT_ERRORS as error:
        metrics.request_count(endpoint.value, "connection").inc()
        raise AllegroUnavailableError(f"no answer: {type(error).__name__}").at(endpoint.value) from None
    metrics.request_time(endpoint.value).observe(time.perf_counter() - started)
    metrics.request_count(endpoint.value, outcome_of(answer.status)).inc()
    return answer


def outcome_of(status: int) -> str:
    """A label of a small closed set."""
    return str(status) if status in (200, 401, 403, 404, 429) else f"{status // 100}xx"
