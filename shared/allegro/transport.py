"""HTTP to Allegro over reqwest (Rust's HTTP client): the only module that knows which library does it.

A request costs a fifth of what it did with httpx's interface over aiohttp, and httpx's own transport slows down as
concurrency grows (`make bench-http`). httpx's transports can be used as well: tests give one of theirs.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import httpx
from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import PyreqwestError

from shared.allegro.answer import Answer

# More than there are calls at a time: a permission to call must not grow old in the queue for a connection.
_CONNECTIONS = 1000
_IDLE_SECONDS = 15.0

TRANSPORT_ERRORS = (PyreqwestError, httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError)
"""What `Transport.send` raises when no answer comes, or none that is HTTP; a time-out is one of TIMEOUTS."""

TIMEOUTS = (httpx.TimeoutException, TimeoutError)


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, how long all of it may take, and how long the body of the answer may be."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None
    timeout_seconds: float
    max_bytes: int


class Transport(Protocol):
    """One request, one answer, whatever its status; no redirects, cookies, or proxies of the environment.

    All of it ends within its `timeout_seconds`, or in one of TIMEOUTS. No more than `max_bytes + 1` bytes of a body are
    read: one that is longer is cut off. Raises TRANSPORT_ERRORS.
    """

    async def send(self, asked: Request) -> Answer: ...

    async def aclose(self) -> None: ...


class ReqwestTransport:
    """A pool of connections; HTTP/1.1, as it was always spoken to Allegro. `headers` go with every request."""

    def __init__(self, *, connect_seconds: float, headers: Mapping[str, str]) -> None:
        self._client = (
            ClientBuilder()
            .http1_only()
            .no_proxy()
            .follow_redirects(False)
            .default_headers(headers)
            .max_connections(_CONNECTIONS)
            .connect_timeout(timedelta(seconds=connect_seconds))
            .pool_idle_timeout(timedelta(seconds=_IDLE_SECONDS))
            .build()
        )

    async def send(self, asked: Request) -> Answer:
        # Its own clock: one of asyncio's for each request costs a quarter of the request.
        timeout = timedelta(seconds=asked.timeout_seconds)
        request = self._client.request(asked.method, asked.url).headers(asked.headers).timeout(timeout)
        if asked.body is not None:
            request = request.body_bytes(asked.body)
        async with request.build_streamed() as answer:
            received = await answer.body_reader.read(asked.max_bytes + 1)
            return Answer(answer.status, answer.headers, b"" if received is None else bytes(received))

    async def aclose(self) -> None:
        await self._client.close()


class HttpxTransport:
    """Any transport of httpx; `headers` go with every request."""

    def __init__(self, transport: httpx.AsyncBaseTransport, *, headers: Mapping[str, str]) -> None:
        self._transport = transport
        self._headers = headers

    async def send(self, asked: Request) -> Answer:
        headers = {**self._headers, **asked.headers}
        request = httpx.Request(asked.method, asked.url, headers=headers, content=asked.body)
        async with asyncio.timeout(asked.timeout_seconds):
            return await self._exchange(request, asked.max_bytes)

    async def _exchange(self, request: httpx.Request, max_bytes: int) -> Answer:
        answer = await self._transport.handle_async_request(request)
        try:
            received = bytearray()
            async for part in answer.aiter_bytes():
                received += part[: max_bytes + 1 - len(received)]
                if len(received) > max_bytes:
                    break
        finally:
            await answer.aclose()
        return Answer(answer.status_code, answer.headers, bytes(received))

    async def aclose(self) -> None:
        await self._transport.aclose()
