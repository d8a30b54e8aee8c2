"""Compressed answers for who takes them. Starlette's middleware does that; most of what it costs the others is spared.

Plain ASGI. It makes its list of media types ready anew at each request, and looks at every part of an answer through
objects of its own: a third of what surrounds an endpoint (`make bench-api`).
"""

from collections.abc import Mapping
from functools import lru_cache

from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware

from services.api.middleware import App, Message, Receive, Scope, Send

_VARIES = "Accept-Encoding"
# Without a body, or with a part of one.
_UNTOUCHED = frozenset({204, 206, 304})


class Compression:
    """gzip of answers of at least `minimum_size` bytes; caches are told that others may get others.

    `excluded`: media types that are compressed in themselves, or go out as they come; `image/*` means all of a kind.
    """

    def __init__(self, app: App, *, minimum_size: int, level: int, excluded: tuple[str, ...]) -> None:
        self._app = app
        self._minimum_size = minimum_size
        self._excluded = frozenset(excluded)
        self._gzip = GZipMiddleware(app, minimum_size=minimum_size, compresslevel=level, exclude_content_types=excluded)
        self._is_excluded = lru_cache(maxsize=256)(self._find_excluded)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if any(name == b"accept-encoding" and b"gzip" in value for name, value in scope["headers"]):
            await self._gzip(scope, receive, send)
            return

        async def send_plain(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._tell_caches(message)
            await send(message)

        await self._app(scope, receive, send_plain)

    def _tell_caches(self, start: Message) -> None:
        headers = start.setdefault("headers", [])
        given = dict(headers)
        if not self._could_be_compressed(start["status"], given):
            return
        if b"vary" in given:
            MutableHeaders(raw=headers).add_vary_header(_VARIES)
        else:
            headers.append((b"vary", _VARIES.encode()))

    def _could_be_compressed(self, status: int, given: Mapping[bytes, bytes]) -> bool:
        if status in _UNTOUCHED or b"content-encoding" in given:
            return False
        length = given.get(b"content-length")
        is_small = length is not None and int(length) < self._minimum_size
        return not is_small and not self._is_excluded(given.get(b"content-type", b""))

    def _find_excluded(self, content_type: bytes) -> bool:
        media_type = content_type.decode("latin-1").partition(";")[0].strip().lower()
        return not self._excluded.isdisjoint({media_type, f"{media_type.partition('/')[0]}/*"})
