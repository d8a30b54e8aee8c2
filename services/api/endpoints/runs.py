"""How a seller's copy stands, and what has been done for it (requirement B8)."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from services.api.access import READ
from services.api.context import Context, KnownUser, Resources
from services.api.cursor import Position
from services.api.endpoints.schedules import COLUMNS as SCHEDULE
from services.api.endpoints.schedules import Schedule
from services.api.pagination import Cursor, Limit, Page, cut, links
from services.api.problems import UnknownUserError, documented

router = APIRouter(prefix="/api/v1/sync", tags=["synchronisation"])

_ORDER = "runs"

# language=sql
_COLUMNS = """
SELECT r.run_id, r.task_id, r.kind, r.status, r.window_from, r.window_to, r.started_at, r.progress_at,
       r.completed_at,
       CASE WHEN r.kind = 'journal' AND r.completed_at IS NULL THEN r.orders_processed + (
           SELECT count(*) FROM pending_fetches f
            WHERE f.user_token_id = r.user_token_id AND r.run_id = ANY(f.run_ids)
       ) ELSE r.orders_expected END AS orders_expected,
       r.orders_processed, r.orders_added, r.orders_updated, r.events_stored, r.requests, r.error,
       CASE WHEN w.position IS NOT NULL THEN least(w.position, coalesce(r.completed_at, now())) END AS walked_to,
       r.orders_unseen
  FROM sync_history r LEFT JOIN run_windows w USING (run_id)
"""

# How old our knowledge may be: since the last look into the journal that went well, or since the first change that we
# know of and have not looked at.
_STATUS = """
SELECT t.status AS token_status, c.stored_event_id,
       coalesce(c.orders_stored, (SELECT count(*) FROM orders o WHERE o.user_token_id = t.id)) AS orders,
       p.orders AS pending_orders, p.oldest AS oldest_pending_at,
       extract(epoch FROM now() - least(p.oldest, s.last_success))::float8 AS lag_seconds
  FROM user_tokens t
  LEFT JOIN active_sync_schedules s ON s.user_token_id = t.id
  LEFT JOIN journal_cursors c ON c.user_token_id = t.id
 CROSS JOIN LATERAL (SELECT count(*) AS orders, min(f.wanted_after) AS oldest
                       FROM pending_fetches f WHERE f.user_token_id = t.id) p
 WHERE t.id = $1
"""

RunKind = Literal["initial", "full", "manual", "journal", "orders", "reconcile"]
RunStatus = Literal["running", "completed", "stopped", "stalled", "failed"]


class Run(BaseModel):
    """One execution of a task, or of a schedule's turn that found something new."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "run_id": "9d3f0f6e-5a51-4b7e-8a43-2f0c5a9d7e10",
                "task_id": "0b9d64a8-3c5e-4c2e-9f53-6f4f9e0d2a11",
                "kind": "initial",
                "status": "running",
                "window_from": "2025-10-09T22:15:31Z",
                "window_to": "2026-10-10T22:25:31Z",
                "walked_to": "2026-03-02T08:11:05Z",
                "started_at": "2026-10-10T22:15:32Z",
                "progress_at": "2026-10-10T22:17:04Z",
                "completed_at": None,
                "orders_expected": 20417,
                "orders_processed": 8120,
                "orders_added": 8120,
                "orders_updated": 0,
                "events_stored": 0,
                "orders_unseen": 0,
                "requests": 84,
                "progress": 0.398,
                "error": None,
            }
        }
    )

    run_id: UUID
    task_id: UUID | None
    kind: RunKind
    status: RunStatus
    window_from: datetime | None
    window_to: datetime | None
    walked_to: datetime | None = Field(description="everything bought before this is stored")
    started_at: datetime
    progress_at: datetime = Field(description="when it last came on")
    completed_at: datetime | None = Field(description="null: it goes on, also while it is `stalled`")
    orders_expected: int | None = Field(description="what Allegro said there is; of the journal: what is owed so far")
    orders_processed: int = Field(description="orders looked at and stored; of a listing, those that it lists")
    orders_added: int
    orders_updated: int
    events_stored: int
    orders_unseen: int = Field(
        description="so many orders at least it was to look at and cannot: Allegro refuses them, they are too large for"
        " Kafka, or there were too many at a time"
    )
    requests: int = Field(description="to Allegro: for pages of a list or of the journal, and for single orders")
    progress: float | None = Field(description="0 to 1, where it is known")
    error: str | None


class Runs(Page[Run]):
    """Runs, newest first."""


class SyncStatus(BaseModel):
    """How a user's copy stands."""

    user_id: str
    token_status: str
    schedule: Schedule | None
    running: list[Run] = Field(description="with their live numbers")
    orders: int = Field(description="stored")
    pending_orders: int = Field(description="known to have changed and not looked at yet")
    oldest_pending_at: datetime | None
    lag_seconds: float | None = Field(description="how far the copy may be behind; null: never looked yet")
    stored_event_id: str | None = Field(description="journal position up to which every event is stored")


@router.get("/status/{user_id}", dependencies=[READ], responses=documented(UnknownUserError))
async def sync_status(user: KnownUser, context: Context) -> SyncStatus:
    """Live progress of what is running, lag, and the next run."""
    async with context.pool.acquire() as connection:
        status = dict(await connection.fetchrow(_STATUS, user.token_id))
        running = await connection.fetch(
            f"{_COLUMNS} WHERE r.user_token_id = $1 AND r.completed_at IS NULL ORDER BY r.started_at LIMIT 100",
            user.token_id,
        )
        schedule = await connection.fetchrow(f"{SCHEDULE} WHERE user_token_id = $1", user.token_id)
    position = status.pop("stored_event_id")
    return SyncStatus(
        user_id=user.user_id,
        schedule=None if schedule is None else Schedule(**schedule),
        running=[_run(row) for row in running],
        stored_event_id=None if position is None else str(position),
        **status,
    )


@router.get("/history/{user_id}", dependencies=[READ], responses=documented(UnknownUserError))
async def sync_history(
    user: KnownUser,
    request: Request,
    response: Response,
    context: Context,
    status: Annotated[RunStatus | None, Query()] = None,
    kind: Annotated[RunKind | None, Query()] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Runs:
    """Runs, newest first."""
    after = None if cursor is None else Position.decode(cursor, order=_ORDER)
    rows = await context.pool.fetch(
        f"{_COLUMNS} WHERE r.user_token_id = $1 AND ($2::text IS NULL OR r.status = $2)"
        " AND ($3::text IS NULL OR r.kind = $3)"
        " AND ($4::timestamptz IS NULL OR (r.started_at, r.run_id) < ($4, $5::uuid))"
        " ORDER BY r.started_at DESC, r.run_id DESC LIMIT $6",
        user.token_id,
        status,
        kind,
        None if after is None else after.time,
        None if after is None else after.row_uuid,
        limit + 1,
    )
    page, following = cut(rows, limit, lambda row: Position(_ORDER, row["started_at"], str(row["run_id"])))
    response.headers.update(links(request, following))
    return Runs(items=[_run(row) for row in page], next=following)


async def run_of(context: Resources, task_id: UUID) -> Run | None:
    """The run that a task has become; None while it waits, and once the run has aged."""
    row = await context.pool.fetchrow(f"{_COLUMNS} WHERE r.task_id = $1 ORDER BY r.started_at DESC LIMIT 1", task_id)
    return None if row is None else _run(row)


def _run(row: asyncpg.Record) -> Run:
    fields: dict[str, Any] = dict(row)
    return Run(progress=progress(fields["status"], fields["orders_processed"], fields["orders_expected"]), **fields)


def progress(status: str, processed: int, expected: int | None) -> float | None:
    """The part that is done, between 0 and 1; what Allegro expected may be less than it then showed."""
    if status == "completed":
        return 1.0
    return min(1.0, round(processed / expected, 3)) if expected else None
