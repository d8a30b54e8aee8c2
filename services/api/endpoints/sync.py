"""Synchronisation under control (requirements B5-B8): every request is a row that the poller claims."""

import json
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import asyncpg
from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, Field, model_validator

from services.api.context import Context, KnownUser
from services.api.endpoints.authorizations import UserId
from services.api.problems import ConflictError, NotFoundError, UnknownUserError
from shared.logs import current_correlation_id

router = APIRouter(prefix="/sync", tags=["synchronisation"])

_LISTING_KINDS = ["initial", "full", "manual", "reconcile"]

_TASK = """
SELECT task_id, user_id, kind, parameters, status, created_at, started_at, finished_at, stop_requested_at, error
  FROM task_history
"""

_RUN = """
SELECT run_id, task_id, kind, status, window_from, window_to, started_at, completed_at, orders_expected,
       orders_processed, orders_added, orders_updated, events_stored, requests, error
  FROM sync_history
"""

_SCHEDULE = """
SELECT s.user_id, s.user_token_id AS token_id, s.interval_seconds, s.status, s.last_run, s.last_success, s.next_run,
       s.next_full_run, s.last_error
  FROM active_sync_schedules s
"""

_SET_SCHEDULE = """
UPDATE active_sync_schedules
   SET status = $2, next_run = now(), interval_seconds = coalesce($3, interval_seconds)
 WHERE user_id = $1
RETURNING user_id, user_token_id AS token_id, interval_seconds, status, last_run, last_success, next_run,
          next_full_run, last_error
"""


class ManualSync(BaseModel):
    """What to do: list a time frame, list everything, read the journal again, or fetch certain orders."""

    kind: Literal["manual", "full", "journal", "orders"] = "manual"
    from_: AwareDatetime | None = Field(
        default=None, alias="from", description="manual, journal: purchases or events from"
    )
    to: AwareDatetime | None = Field(default=None, description="manual: purchases up to; now if left out")
    order_ids: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(default=[], max_length=1000)

    @model_validator(mode="after")
    def _is_complete(self) -> "ManualSync":
        if self.kind in ("manual", "journal") and self.from_ is None:
            raise ValueError(f"from: needed for kind {self.kind}")
        if self.kind == "orders" and not self.order_ids:
            raise ValueError("order_ids: needed for kind orders")
        if self.from_ is not None and self.to is not None and self.from_ >= self.to:
            raise ValueError("to: must be after from")
        return self

    def parameters(self) -> dict[str, Any]:
        """The part that the poller reads."""
        chosen = self.model_dump(mode="json", by_alias=True, include={"from_", "to", "order_ids"})
        return {name: value for name, value in chosen.items() if value}


class Task(BaseModel):
    task_id: UUID
    user_id: str
    kind: str
    parameters: dict[str, Any]
    status: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    stop_requested_at: datetime | None
    error: str | None


class Tasks(BaseModel):
    tasks: list[Task]


class Run(BaseModel):
    run_id: UUID
    task_id: UUID | None
    kind: str
    status: str
    window_from: datetime | None
    window_to: datetime | None
    started_at: datetime
    completed_at: datetime | None
    orders_expected: int | None
    orders_processed: int
    orders_added: int
    orders_updated: int
    events_stored: int
    requests: int
    error: str | None


class Runs(BaseModel):
    runs: list[Run]


class Schedule(BaseModel):
    user_id: str
    token_id: int
    interval_seconds: int
    status: str
    last_run: datetime | None
    last_success: datetime | None
    next_run: datetime
    next_full_run: datetime
    last_error: str | None


class Schedules(BaseModel):
    schedules: list[Schedule]


class SyncStatus(BaseModel):
    """How a user's copy stands."""

    user_id: str
    running: list[Run] = Field(description="with their live numbers")
    schedule: Schedule | None
    pending_orders: int = Field(description="orders known to have changed and not looked at yet")
    oldest_pending_at: datetime | None
    stored_event_id: int | None = Field(description="journal position up to which every event is stored")
    orders: int


class Activate(BaseModel):
    user_id: UserId
    interval_seconds: int | None = Field(default=None, ge=1, le=86400)


class Deactivate(BaseModel):
    user_id: UserId


@router.post("/manual/{user_id}", status_code=202)
async def start_manual_sync(user: KnownUser, body: ManualSync, context: Context) -> Task:
    """Start a run. A listing that is asked for while one is going on joins it: two never run at once."""
    async with context.pool.acquire() as connection, connection.transaction():
        # Two requests at the same moment must not both find none.
        await connection.execute("SELECT FROM user_tokens WHERE id = $1 FOR NO KEY UPDATE", user.token_id)
        if body.kind in _LISTING_KINDS:
            row = await connection.fetchrow(
                f"{_TASK} WHERE user_token_id = $1 AND kind = ANY($2) AND status IN ('queued', 'running')",
                user.token_id,
                _LISTING_KINDS,
            )
            if row is not None:
                return _task(row)
        task_id = uuid4()
        await connection.execute(
            "INSERT INTO task_history (task_id, user_token_id, user_id, kind, parameters, correlation_id)"
            " VALUES ($1, $2, $3, $4, $5, $6)",
            task_id,
            user.token_id,
            user.user_id,
            body.kind,
            json.dumps(body.parameters()).encode(),
            current_correlation_id(),
        )
        await connection.execute("SELECT pg_notify('orders_backup_tasks', '')")
        return _task(await connection.fetchrow(f"{_TASK} WHERE task_id = $1", task_id))


@router.get("/tasks")
async def list_tasks(
    context: Context,
    user_id: Annotated[str | None, Query(max_length=255)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Tasks:
    """What was asked for, newest first."""
    rows = await context.pool.fetch(
        f"{_TASK} WHERE $1::text IS NULL OR user_id = $1 ORDER BY created_at DESC, task_id LIMIT $2", user_id, limit
    )
    return Tasks(tasks=[_task(row) for row in rows])


@router.get("/tasks/{task_id}")
async def get_task(task_id: UUID, context: Context) -> Task:
    """One task."""
    return _task(await context.pool.fetchrow(f"{_TASK} WHERE task_id = $1", task_id))


@router.post("/tasks/{task_id}/stop", status_code=202)
async def stop_task(task_id: UUID, context: Context) -> Task:
    """Ask a task to stop; a bulk load stops at its next page and leaves a truthful run."""
    row = await context.pool.fetchrow(
        "UPDATE task_history SET stop_requested_at = coalesce(stop_requested_at, now()),"
        " status = CASE status WHEN 'queued' THEN 'stopped' ELSE 'stopping' END,"
        " finished_at = CASE status WHEN 'queued' THEN now() END"
        " WHERE task_id = $1 AND status IN ('queued', 'running', 'stopping') RETURNING task_id",
        task_id,
    )
    task = await get_task(task_id, context)
    if row is None:
        raise ConflictError(f"The task has ended already: {task.status}.")
    return task


@router.post("/activate")
async def activate(body: Activate, context: Context) -> Schedule:
    """Look into the journal regularly from now on."""
    return await _set_schedule(context, body.user_id, "active", body.interval_seconds)


@router.post("/deactivate")
async def deactivate(body: Deactivate, context: Context) -> Schedule:
    """Pause the schedule; nothing stored is touched, and no event is lost within Allegro's 60 days."""
    return await _set_schedule(context, body.user_id, "paused", None)


@router.get("/active")
async def list_active(context: Context) -> Schedules:
    """All schedules that are not paused."""
    rows = await context.pool.fetch(f"{_SCHEDULE} WHERE s.status = 'active' ORDER BY s.user_token_id")
    return Schedules(schedules=[Schedule(**row) for row in rows])


@router.get("/status/{user_id}")
async def sync_status(user: KnownUser, context: Context) -> SyncStatus:
    """Live progress, lag and the next run."""
    async with context.pool.acquire() as connection:
        running = await connection.fetch(
            f"{_RUN} WHERE user_token_id = $1 AND status = 'running' ORDER BY started_at", user.token_id
        )
        schedule = await connection.fetchrow(f"{_SCHEDULE} WHERE s.user_token_id = $1", user.token_id)
        pending = await connection.fetchrow(
            "SELECT count(*) AS orders, min(wanted_after) AS oldest FROM pending_fetches WHERE user_token_id = $1",
            user.token_id,
        )
        return SyncStatus(
            user_id=user.user_id,
            running=[Run(**row) for row in running],
            schedule=None if schedule is None else Schedule(**schedule),
            pending_orders=pending["orders"],
            oldest_pending_at=pending["oldest"],
            stored_event_id=await connection.fetchval(
                "SELECT stored_event_id FROM journal_cursors WHERE user_token_id = $1", user.token_id
            ),
            orders=await connection.fetchval("SELECT count(*) FROM orders WHERE user_token_id = $1", user.token_id),
        )


@router.get("/history/{user_id}")
async def sync_history(
    user: KnownUser,
    context: Context,
    before: Annotated[AwareDatetime | None, Query(description="only runs started before this")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Runs:
    """Runs, newest first."""
    rows = await context.pool.fetch(
        f"{_RUN} WHERE user_token_id = $1 AND ($2::timestamptz IS NULL OR started_at < $2)"
        " ORDER BY started_at DESC, run_id LIMIT $3",
        user.token_id,
        before,
        limit,
    )
    return Runs(runs=[Run(**row) for row in rows])


async def _set_schedule(context: Context, user_id: str, status: str, interval: int | None) -> Schedule:
    row = await context.pool.fetchrow(_SET_SCHEDULE, user_id, status, interval)
    if row is None:
        raise UnknownUserError(user_id)
    return Schedule(**row)


def _task(row: asyncpg.Record | None) -> Task:
    if row is None:
        raise NotFoundError("There is no such task.")
    fields = dict(row)
    return Task(parameters=json.loads(fields.pop("parameters")), **fields)
