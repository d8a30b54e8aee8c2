"""The HTTP client for Allegro: httpx's interface on aiohttp's transport.

httpx's own transport slows down as concurrency grows (benchmarks/http_transport.py measures it here); aiohttp's does
not. Proxies of the environment, redirects and cookies are off: a token goes to Allegro and nowhere else.
"""

import httpx
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from httpx_aiohttp import AiohttpTransport

from shared.settings import AllegroSettings

ACCEPT = "application/vnd.allegro.public.v1+json"
_CONNECTIONS = 100
_CONNECT_TIMEOUT_SECONDS = 10.0


def open_http(settings: AllegroSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """A client with the headers that Allegro demands (User-Agent: #13126, Accept: #11109); the caller closes it."""
    return httpx.AsyncClient(
        transport=transport or AiohttpTransport(client=_session),
        headers={
            "User-Agent": settings.allegro_user_agent,
            "Accept": ACCEPT,
            "Accept-Language": settings.allegro_accept_language,
        },
        timeout=httpx.Timeout(settings.allegro_timeout_seconds, connect=_CONNECT_TIMEOUT_SECONDS),
        follow_redirects=False,
        trust_env=False,
    )


def _session() -> ClientSession:
    return ClientSession(
        connector=TCPConnector(limit=_CONNECTIONS, ttl_dns_cache=60),
        cookie_jar=DummyCookieJar(),
        timeout=ClientTimeout(),  # httpx's own timeouts hold
        auto_decompress=False,
    )
