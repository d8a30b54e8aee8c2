"""Who asked for which change, when, and how it ended (requirement G3): a row before it is made, the outcome after.

Plain ASGI behind the gate. A call that cannot be noted is not made. The row of a call that was never answered keeps
its empty status: what it did is for the logs of its correlation id to tell.
"""

import json
import logging
from collections.abc import Callable
from http import HTTPStatus

import asyncpg

from services.api.access import Caller
from services.api.changes import ChangeRoutes
from services.api.middleware import App, Message, Receive, Scope, Send
from services.api.problems import problem_of
from shared.database import TRANSIENT_DATABASE_ERRORS
from shared.logs import current_correlation_id

logger = logging.getLogger(__name__)

# language=sql
_BEGIN = """
INSERT INTO audit_log (caller, method, route, parameters, correlation_id) VALUES ($1, $2, $3, $4, $5) RETURNING id
"""

_END = "UPDATE audit_log SET status = $2, user_id = $3 WHERE id = $1"


class Audit:
    """Notes every call that may change something, also the refused ones, as soon as it is known who calls.

    Not those beyond a key's rate (`gate.py`): whoever calls too often must not make us write as often.
    """

    def __init__(self, app: App, *, changes: ChangeRoutes, pool: Callable[[], asyncpg.Pool]) -> None:
        self._app = app
        self._changes = changes
        self._pool = pool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        change = self._changes.find(scope)
        if change is None:
            await self._app(scope, receive, send)
            return
        caller: Caller = scope["state"]["caller"]
        parameters = json.dumps(change.parameters).encode()
        row_id: int = await self._pool().fetchval(
            _BEGIN, caller.name, scope["method"], change.route, parameters, current_correlation_id()
        )

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._end(row_id, message["status"], caller)
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            await self._end(row_id, problem_of(error).status, caller)
            raise

    async def _end(self, row_id: int, status: int, caller: Caller) -> None:
        """The change is made by now, so its answer goes out also where the outcome cannot be noted."""
        try:
            await self._pool().execute(_END, row_id, int(HTTPStatus(status)), caller.subject)
        except TRANSIENT_DATABASE_ERRORS as error:
            logger.warning("outcome not noted in the audit log", extra={"audit_id": row_id, "error": repr(error)})
