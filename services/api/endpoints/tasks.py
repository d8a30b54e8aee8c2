"""Work on demand and its control (requirements B5, B7): a task is a row that the poller claims."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import asyncpg
from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, ValidationInfo, field_validator

from services.api.access import CONTROL, READ, Caller, KnownCaller
from services.api.context import Context, KnownUser, Resources, tokens_of
from services.api.cursor import Position
from services.api.endpoints.runs import Run, RunKind, run_of
from services.api.order_query import Conditions
from services.api.pagination import Cursor, Limit, Page, cut, links, newest_of
from services.api.parameters import Moment, RequestBody, TaskId
from services.api.problems import (
    ConsentRequiredError,
    TaskEndedError,
    UnknownTaskError,
    UnknownUserError,
    documented,
)
from shared.logs import current_correlation_id
from shared.tracing import traceparent

router = APIRouter(prefix="/api/v1/sync", tags=["synchronisation"])

_ORDER = "tasks"
LISTING_KINDS = ("initial", "full", "manual", "reconcile")
_USABLE = ("active", "refresh_failed")

# language=sql
_COLUMNS = """
SELECT task_id, user_id, user_token_id AS token_id, kind, parameters, status, requested_by, correlation_id, created_at,
       started_at, finished_at, stop_requested_at, error
  FROM task_history
"""

# Two requests at the same moment must not both find none. The token's row is not locked for this: whoever refreshes
# the token holds it for the length of a call to Allegro.
_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtextextended('orders_backup_tasks', $1))"

# A re-reading that has read to the end waits for its orders only: it would not see what is asked for now.
_JOINABLE = f"""{_COLUMNS}
 WHERE user_token_id = $1 AND kind = ANY($2)
   AND (status = 'queued' OR status = 'running' AND (kind <> 'journal' OR lease_until IS NOT NULL))
 ORDER BY created_at
"""

# Nor would a listing see what changes where it has been, or what is bought after its end; it sees all before it begins.
_STILL_LISTS = """
SELECT NOT EXISTS (SELECT FROM sync_history r JOIN run_windows w USING (run_id)
                    WHERE r.task_id = $1 AND r.completed_at IS NULL
                      AND (w.position > $2 OR w.bought_to < least($3::timestamptz, now())))
"""

# Nor a run of orders those that it has looked at.
_STILL_OWES = """
SELECT NOT EXISTS (SELECT FROM sync_history WHERE task_id = $1)
    OR (SELECT count(*) FROM sync_history r
          JOIN pending_fetches p ON p.user_token_id = r.user_token_id AND r.run_id = ANY(p.run_ids)
         WHERE r.task_id = $1 AND r.completed_at IS NULL AND p.allegro_order_id = ANY($2::text[]))
       = cardinality($2::text[])
"""

# Whoever asks again wants what was tried in vain to be tried now. Rows that the writer has locked are being settled.
_TRY_NOW = """
WITH parked AS (
    SELECT user_token_id, allegro_order_id FROM pending_fetches
     WHERE user_token_id = $1 AND allegro_order_id = ANY($2::text[]) AND attempts > 0 AND next_attempt_at > now()
       FOR UPDATE SKIP LOCKED
)
UPDATE pending_fetches p SET next_attempt_at = now()
  FROM parked WHERE p.user_token_id = parked.user_token_id AND p.allegro_order_id = parked.allegro_order_id
"""

_INSERT = """
INSERT INTO task_history (task_id, user_token_id, user_id, kind, parameters, requested_by, correlation_id, traceparent)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
RETURNING pg_notify('orders_backup_tasks', task_id::text)
"""

_STOP = """
UPDATE task_history
   SET stop_requested_at = coalesce(stop_requested_at, now()),
       status = CASE status WHEN 'queued' THEN 'stopped' ELSE 'stopping' END,
       finished_at = CASE status WHEN 'queued' THEN now() END
 WHERE task_id = $1 AND status IN ('queued', 'running', 'stopping')
RETURNING pg_notify('orders_backup_tasks', task_id::text)
"""

# As the poller lists them (services/poller/parameters.py).
_LISTED = timedelta(days=366)

TaskStatus = Literal["queued", "running", "stopping", "completed", "stopped", "stalled", "failed"]
OrderId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z-]+$")]


def _in_the_past(moment: datetime) -> datetime:
    if moment > datetime.now(UTC):
        raise ValueError("lies in the future")
    return moment


class _Sync(RequestBody):
    def parameters(self) -> dict[str, Any]:
        """What the poller gets to know, in the form in which it is stored."""
        return self.model_dump(mode="json", by_alias=True, exclude={"kind"}, exclude_none=True)


class TimeFrameSync(_Sync):
    """List everything bought within a time frame."""

    kind: Literal["manual"] = "manual"
    from_: Moment = Field(alias="from", description="purchases from", examples=["2026-01-01T00:00:00Z"])
    to: Moment | None = Field(default=None, description="purchases up to; now if left out")

    _from_is_past = field_validator("from_")(_in_the_past)

    @field_validator("to")
    @classmethod
    def _ends_after_it_began(cls, to: datetime | None, info: ValidationInfo) -> datetime | None:
        start = info.data.get("from_")
        if to is not None and start is not None and to <= start:
            raise ValueError("lies before `from`")
        return to


class FullSync(_Sync):
    """List everything that Allegro still has (12 months)."""

    kind: Literal["full"]


class JournalSync(_Sync):
    """Read the event journal again from a date; Allegro keeps 60 days."""

    kind: Literal["journal"]
    from_: Moment = Field(alias="from", description="events from")

    _from_is_past = field_validator("from_")(_in_the_past)


class OrdersSync(_Sync):
    """Look at exactly these orders."""

    kind: Literal["orders"]
    order_ids: list[OrderId] = Field(min_length=1, max_length=1000)

    @field_validator("order_ids")
    @classmethod
    def _names_each_once(cls, order_ids: list[str]) -> list[str]:
        return sorted(set(order_ids))


def _kind(body: Any) -> str:
    kind = body.get("kind", "manual") if isinstance(body, Mapping) else getattr(body, "kind", "manual")
    return str(kind)


ManualSync = Annotated[
    Annotated[TimeFrameSync, Tag("manual")]
    | Annotated[FullSync, Tag("full")]
    | Annotated[JournalSync, Tag("journal")]
    | Annotated[OrdersSync, Tag("orders")],
    Discriminator(
        _kind,
        custom_error_type="unknown_kind",
        custom_error_message="kind: must be manual, full, journal or orders",
    ),
]


EXAMPLE: dict[str, JsonValue] = {
    "task_id": "0b9d64a8-3c5e-4c2e-9f53-6f4f9e0d2a11",
    "user_id": "my-shop",
    "token_id": 42,
    "kind": "manual",
    "parameters": {"from": "2026-01-01T00:00:00Z"},
    "status": "queued",
    "requested_by": "anonymous",
    "correlation_id": "5f0c2b7e9d1a4c38b6e2f4a09c7d1e35",
    "created_at": "2026-10-10T22:15:31Z",
    "started_at": None,
    "finished_at": None,
    "stop_requested_at": None,
    "error": None,
}


class Task(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": EXAMPLE})

    task_id: UUID
    user_id: str
    token_id: int
    kind: RunKind
    parameters: dict[str, Any] = Field(description="what was asked for; empty: everything")
    status: TaskStatus
    requested_by: str | None
    correlation_id: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    stop_requested_at: datetime | None
    error: str | None


class TaskWithRun(Task):
    model_config = ConfigDict(json_schema_extra={"example": {**EXAMPLE, "run": None}})

    run: Run | None = Field(description="how far it is; null while it waits")


class StartedTask(Task):
    model_config = ConfigDict(json_schema_extra={"example": {**EXAMPLE, "joined": False}})

    joined: bool = Field(description="it was going on or waiting already, and does what was asked for")


class Tasks(Page[Task]):
    """What was asked for, newest first."""


@router.post(
    "/manual/{user_id}",
    status_code=202,
    dependencies=[CONTROL],
    responses=documented(UnknownUserError, ConsentRequiredError),
)
async def start_manual_sync(
    user: KnownUser, body: Annotated[ManualSync, Body()], context: Context, caller: KnownCaller
) -> StartedTask:
    """Start a run: a time frame (`manual`, the default), everything (`full`), the `journal` again, or certain `orders`.

    A listing that is asked for while one that covers it is waiting, or goes on and has not come to its beginning yet,
    joins it; any other waits until that has ended: two listings of a seller never run at once, nor do two readings of
    the journal. Certain orders join a task that asks for all of them and has looked at none of them yet; else they wait
    until no other run is to look at any of them.
    """
    if user.status not in _USABLE:
        raise ConsentRequiredError(user.status_reason or f"The token of user {user.user_id!r} is {user.status}.")
    async with context.pool.acquire() as connection, connection.transaction():
        await connection.execute(_ONE_AT_A_TIME, user.token_id)
        for row in await connection.fetch(_JOINABLE, user.token_id, _joinable_kinds(body.kind)):
            if await _does(connection, row, body.parameters()):
                return StartedTask(**_fields(row), joined=True)
        task_id = uuid4()
        await connection.execute(
            _INSERT,
            task_id,
            user.token_id,
            user.user_id,
            body.kind,
            json.dumps(body.parameters()).encode(),
            caller.name,
            current_correlation_id(),
            traceparent(),
        )
        row = await connection.fetchrow(f"{_COLUMNS} WHERE task_id = $1", task_id)
    return StartedTask(**_fields(row), joined=False)


@router.get("/tasks", dependencies=[READ], responses=documented(UnknownUserError))
async def list_tasks(
    request: Request,
    response: Response,
    context: Context,
    caller: KnownCaller,
    user_id: Annotated[str | None, Query(max_length=255, description="of this user only")] = None,
    status: Annotated[TaskStatus | None, Query()] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Tasks:
    """What was asked for, by a person, a schedule or a consent, newest first."""
    after = None if cursor is None else Position.decode(cursor, order=_ORDER)
    token_ids = await tokens_of(context, caller, None if user_id is None else [user_id])
    conditions = Conditions()
    if status is not None:
        conditions.require("status = ?", status)
    if after is not None:
        conditions.require("(created_at, task_id) < (?, ?)", after.time, after.row_uuid)
    order = "ORDER BY created_at DESC, task_id DESC"
    statement, arguments = newest_of(_COLUMNS, conditions, order, token_ids)
    rows = await context.pool.fetch(statement, *arguments, limit + 1)
    page, following = cut(rows, limit, lambda row: Position(_ORDER, row["created_at"], str(row["task_id"])))
    response.headers.update(links(request, following))
    return Tasks(items=[Task(**_fields(row)) for row in page], next=following)


@router.get("/tasks/{task_id}", dependencies=[READ], responses=documented(UnknownTaskError))
async def get_task(task_id: TaskId, context: Context, caller: KnownCaller) -> TaskWithRun:
    """One task, with the live numbers of its run."""
    task = await _task(task_id, context, caller)
    return TaskWithRun(**dict(task), run=await run_of(context, task_id))


@router.post(
    "/tasks/{task_id}/stop",
    status_code=202,
    dependencies=[CONTROL],
    responses=documented(UnknownTaskError, TaskEndedError),
)
async def stop_task(task_id: TaskId, context: Context, caller: KnownCaller) -> Task:
    """Ask a task to stop: one that waits does at once, any other within a second or two; its run tells what it did."""
    await _task(task_id, context, caller)
    stopped = await context.pool.fetchrow(_STOP, task_id)
    task = await _task(task_id, context, caller)
    if stopped is None:
        raise TaskEndedError(f"The task has ended: it is {task.status}.")
    return task


async def _task(task_id: UUID, context: Resources, caller: Caller) -> Task:
    row = await context.pool.fetchrow(f"{_COLUMNS} WHERE task_id = $1", task_id)
    if row is None or not caller.sees(row["user_id"]):
        raise UnknownTaskError(f"There is no task {task_id}.")
    return Task(**_fields(row))


def _joinable_kinds(kind: str) -> Sequence[str]:
    """The kinds of tasks that may do what a new one of this kind is for."""
    if kind in LISTING_KINDS:
        return LISTING_KINDS
    return (kind,)


async def _does(connection: asyncpg.Connection, task: asyncpg.Record, wanted: Mapping[str, Any]) -> bool:
    """Whether a task that waits or goes on will still do everything that is wanted now."""
    if not covers(json.loads(task["parameters"]), wanted):
        return False
    order_ids = wanted.get("order_ids")
    if order_ids is None:
        end = wanted.get("to")
        bounds = _start(wanted), None if end is None else _moment(end)
        return bool(await connection.fetchval(_STILL_LISTS, task["task_id"], *bounds))
    if not await connection.fetchval(_STILL_OWES, task["task_id"], order_ids):
        return False
    await connection.execute(_TRY_NOW, task["token_id"], order_ids)
    return True


def covers(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a task with the parameters `present` brings everything that one of its kind with `wanted` would."""
    if "order_ids" in wanted:
        return set(wanted["order_ids"]) <= set(present.get("order_ids", ()))
    start, wanted_start = present.get("from"), wanted.get("from")
    end, wanted_end = present.get("to"), wanted.get("to")
    from_early_enough = start is None or (wanted_start is not None and _moment(start) <= _moment(wanted_start))
    to_late_enough = end is None or (wanted_end is not None and _moment(wanted_end) <= _moment(end))
    return from_early_enough and to_late_enough


def _start(wanted: Mapping[str, Any]) -> datetime:
    """The purchases that a listing begins with; without a date it lists all that Allegro keeps (366 days)."""
    start = wanted.get("from")
    return datetime.now(UTC) - _LISTED if start is None else _moment(start)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _fields(row: asyncpg.Record) -> dict[str, Any]:
    return {**row, "parameters": json.loads(row["parameters"])}
