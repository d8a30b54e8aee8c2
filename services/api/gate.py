"""The gate in front of everything under /api/: nothing behind it is reached by somebody we do not know.

Plain ASGI inside of the frame (`middleware.py`), which answers the problems raised here.
"""

from typing import Any

from services.api.access import ANONYMOUS, Caller
from services.api.keys import KeyStore
from services.api.middleware import App, Receive, Scope, Send
from services.api.problems import UnauthenticatedError
from shared.api_keys import AccessScope

_GUARDED = "/api/"
_SCHEME = "bearer"


class Gate:
    """Finds out who calls.

    `open_without_keys`: as long as no key was ever made, whoever reaches us may do everything. For loopback only.
    """

    def __init__(self, app: App, *, keys: KeyStore, open_without_keys: bool) -> None:
        self._app = app
        self._keys = keys
        self._open_without_keys = open_without_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_GUARDED):
            state: dict[str, Any] = scope.setdefault("state", {})
            state["caller"] = await self._identify(dict(scope["headers"]).get(b"authorization"))
        await self._app(scope, receive, send)

    async def _identify(self, header: bytes | None) -> Caller:
        """Raises UnauthenticatedError; never tells in what way a key is wrong."""
        if header is None:
            if self._open_without_keys and await self._keys.is_empty():
                return Caller(ANONYMOUS, AccessScope.ADMIN, None)
            raise UnauthenticatedError("Send a key of this API: `Authorization: Bearer aob_...`.")
        scheme, _, presented = header.decode("latin-1").partition(" ")
        key = await self._keys.find(presented.strip()) if scheme.lower() == _SCHEME else None
        if key is None:
            raise UnauthenticatedError("The key is unknown, revoked or expired.")
        return Caller(key.name, key.scope, None if key.user_ids is None else sorted(key.user_ids))
