"""HEAD is answered as GET, without the body (RFC 9110, 9.3.2): for whoever looks whether we are there.

Plain ASGI inside of the frame: what is behind it sees a GET, and the frame still knows what was asked.
"""

from services.api.middleware import App, Message, Receive, Scope, Send

_MARK = "is_head"


def is_head(scope: Scope) -> bool:
    """Whether the body will be thrown away: for those who would go to great lengths for it."""
    return bool(scope.get("state", {}).get(_MARK))


class Heads:
    """Makes a GET of every HEAD."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})[_MARK] = True
        asked = {**scope, "method": "GET"}

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        try:
            await self._app(asked, receive, send_head)
        finally:
            # By which the frame names the request.
            if "route" in asked:
                scope["route"] = asked["route"]
