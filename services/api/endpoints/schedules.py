"""Whose journal is looked into regularly (requirement B6)."""

from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from services.api.access import CONTROL, READ, KnownCaller, visible
from services.api.context import Context, Resources, user_of
from services.api.cursor import Position
from services.api.pagination import Cursor, Limit, Page, cut, links
from services.api.parameters import RequestBody, UserId
from services.api.problems import ConsentRequiredError, UnknownUserError, documented

router = APIRouter(prefix="/api/v1/sync", tags=["synchronisation"])

_ORDER = "schedules"

# language=sql
COLUMNS = """
SELECT user_id, user_token_id AS token_id, interval_seconds, status, last_run, last_success, next_run, next_full_run,
       last_error, consecutive_failures
  FROM active_sync_schedules
"""

_ACTIVATE = """
UPDATE active_sync_schedules
   SET status = 'active', next_run = now(), interval_seconds = coalesce($2, interval_seconds), last_error = NULL,
       consecutive_failures = 0
 WHERE user_token_id = $1
RETURNING pg_notify('orders_backup_schedules', '')
"""

_PAUSE = """
UPDATE active_sync_schedules SET status = 'paused', lease_owner = NULL, lease_until = NULL WHERE user_token_id = $1
"""


class Schedule(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "user_id": "my-shop",
                "token_id": 42,
                "interval_seconds": 180,
                "status": "active",
                "last_run": "2026-10-10T22:18:31Z",
                "last_success": "2026-10-10T22:18:31Z",
                "next_run": "2026-10-10T22:21:31Z",
                "next_full_run": "2026-10-11T04:15:31Z",
                "last_error": None,
                "consecutive_failures": 0,
            }
        }
    )

    user_id: str
    token_id: int
    interval_seconds: int = Field(description="between two looks into the journal")
    status: Literal["active", "paused"]
    last_run: datetime | None
    last_success: datetime | None
    next_run: datetime
    next_full_run: datetime = Field(description="of the next complete listing")
    last_error: str | None
    consecutive_failures: int


class Schedules(Page[Schedule]):
    """Schedules, by rising token id."""


class Activate(RequestBody):
    user_id: UserId
    interval_seconds: int | None = Field(default=None, strict=True, ge=1, le=86400, description="as before if left out")


class Deactivate(RequestBody):
    user_id: UserId


@router.post("/activate", dependencies=[CONTROL], responses=documented(UnknownUserError, ConsentRequiredError))
async def activate(body: Activate, context: Context, caller: KnownCaller) -> Schedule:
    """Look into the seller's journal regularly from now on, and at once. After a pause it is read on without a gap."""
    user = await user_of(body.user_id, context, caller)
    if user.status not in ("active", "refresh_failed"):
        raise ConsentRequiredError(user.status_reason or f"The token of {body.user_id!r} is {user.status}.")
    await context.pool.execute(_ACTIVATE, user.token_id, body.interval_seconds)
    return await _schedule(context, body.user_id, user.token_id)


@router.post("/deactivate", dependencies=[CONTROL], responses=documented(UnknownUserError))
async def deactivate(body: Deactivate, context: Context, caller: KnownCaller) -> Schedule:
    """Pause; nothing stored is touched, and for 60 days Allegro keeps the events that happen meanwhile."""
    user = await user_of(body.user_id, context, caller)
    await context.pool.execute(_PAUSE, user.token_id)
    return await _schedule(context, body.user_id, user.token_id)


@router.get("/active", dependencies=[READ])
async def list_active(
    request: Request,
    response: Response,
    context: Context,
    caller: KnownCaller,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Schedules:
    """All schedules that are not paused."""
    after = 0 if cursor is None else Position.decode(cursor, order=_ORDER).row_id
    rows = await context.pool.fetch(
        f"{COLUMNS} WHERE status = 'active' AND user_token_id > $1 AND {visible('user_id', 2)}"
        " ORDER BY user_token_id LIMIT $3",
        after,
        caller.users,
        limit + 1,
    )
    page, following = cut(rows, limit, lambda row: Position(_ORDER, None, str(row["token_id"])))
    response.headers.update(links(request, following))
    return Schedules(items=[Schedule(**row) for row in page], next=following)


async def _schedule(context: Resources, user_id: str, token_id: int) -> Schedule:
    row: Any = await context.pool.fetchrow(f"{COLUMNS} WHERE user_token_id = $1", token_id)
    if row is None:
        raise UnknownUserError(user_id)
    return Schedule(**row)
