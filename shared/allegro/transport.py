"""httpx's requests over reqwest (Rust's HTTP client): the only place that knows which library speaks HTTP to Allegro.

httpx's own transport slows down as concurrency grows, and aiohttp's costs more than twice as much CPU a request
(`make bench-http`). The transport that pyreqwest brings along reads each answer in pieces, which nobody needs here.
"""

from datetime import timedelta

import httpx
from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import PyreqwestError

__all__ = ["PyreqwestError", "ReqwestTransport"]

_IDLE_SECONDS = 15.0


class ReqwestTransport(httpx.AsyncBaseTransport):
    """One pool of connections, HTTP/1.1, at most `connections` requests at a time.

    Proxies of the environment, redirects and cookies are off: a token goes to Allegro and nowhere else. Raises
    PyreqwestError; a time-out is a TimeoutError, too.
    """

    def __init__(self, *, connections: int, connect_seconds: float, seconds: float) -> None:
        self._client = (
            ClientBuilder()
            .http1_only()
            .no_proxy()
            .follow_redirects(False)
            .max_connections(connections)
            .connect_timeout(timedelta(seconds=connect_seconds))
            .timeout(timedelta(seconds=seconds))
            .pool_idle_timeout(timedelta(seconds=_IDLE_SECONDS))
            .build()
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The whole answer, decompressed, whatever its status."""
        outgoing = self._client.request(request.method, str(request.url)).headers(request.headers.multi_items())
        answer = await outgoing.body_bytes(request.content).build().send()
        body = await answer.bytes()
        return httpx.Response(answer.status, headers=list(answer.headers.items()), content=bytes(body))

    async def aclose(self) -> None:
        await self._client.close()
