"""The gate in front of everything under /api/: nothing behind it is reached by somebody we do not know.

Plain ASGI inside of the frame (`middleware.py`), which answers the problems raised here.
"""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from services.api.access import Caller
from services.api.browsers import came_through_a_proxy
from services.api.keys import KeyStore
from services.api.middleware import HEADERS, App, Receive, Scope, Send
from services.api.problems import TooManyRequestsError, UnauthenticatedError
from services.api.rates import Rates
from shared.api_keys import ANONYMOUS, AccessScope, ApiKey

_GUARDED = "/api/"
_SCHEME = "bearer"


class Gate:
    """Finds out who calls, and whether this key calls too often.

    `open_without_keys`: as long as no key was ever made, whoever reaches us may do everything, as often as they like,
    unless a proxy says that it hands on what others ask. For loopback only. `requests_per_minute`: of a key without a
    rate of its own; each process counts for itself.
    """

    def __init__(
        self,
        app: App,
        *,
        keys: KeyStore,
        open_without_keys: bool,
        requests_per_minute: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._keys = keys
        self._open_without_keys = open_without_keys
        self._requests_per_minute = requests_per_minute
        self._clock = clock
        self._rates = Rates()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_GUARDED):
            state: dict[str, Any] = scope.setdefault("state", {})
            headers = dict(scope["headers"])
            key = await self._identify(headers)
            check_again = partial(self._identify_again, headers)
            if key is None:
                state["caller"] = Caller(ANONYMOUS, AccessScope.ADMIN, None, check_again)
            else:
                users = None if key.user_ids is None else sorted(key.user_ids)
                state["caller"] = Caller(key.name, key.scope, users, check_again)
                self._count(key, state[HEADERS])
        await self._app(scope, receive, send)

    async def _identify_again(self, headers: Mapping[bytes, bytes]) -> None:
        await self._identify(headers)

    async def _identify(self, headers: Mapping[bytes, bytes]) -> ApiKey | None:
        """The key; None: none is needed. Raises UnauthenticatedError; never tells in what way a key is wrong."""
        header = headers.get(b"authorization")
        if header is None:
            if self._open_without_keys and await self._keys.is_empty():
                if came_through_a_proxy(headers):
                    raise UnauthenticatedError(
                        "The request came through a proxy, and there is no key yet: make one with"
                        " `orders-backup keys create NAME --scope admin`."
                    )
                return None
            raise UnauthenticatedError("Send a key of this API: `Authorization: Bearer aob_...`.")
        scheme, _, presented = header.decode("latin-1").partition(" ")
        key = await self._keys.find(presented.strip()) if scheme.lower() == _SCHEME else None
        if key is None:
            raise UnauthenticatedError("The key is unknown, revoked or expired.")
        return key

    def _count(self, key: ApiKey, headers: list[tuple[bytes, bytes]]) -> None:
        """Raises TooManyRequestsError; every answer tells what is left."""
        standing = self._rates.take(key.name, key.requests_per_minute or self._requests_per_minute, self._clock())
        headers += standing.headers()
        if not standing.is_allowed:
            raise TooManyRequestsError(
                f"The key {key.name!r} is good for {standing.limit} requests a minute.",
                retry_after=timedelta(seconds=standing.retry_after),
            )
