"""What comparisons with Allegro's list brought to light (requirement B11)."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from services.api.access import READ, KnownCaller
from services.api.context import Context, tokens_of
from services.api.cursor import Position
from services.api.endpoints.runs import RunStatus
from services.api.order_query import Conditions
from services.api.pagination import NEXT, Cursor, Limit, Page, cut, links, newest_of
from services.api.problems import UnknownReconciliationError, UnknownUserError, documented

router = APIRouter(prefix="/api/v1/reconciliations", tags=["synchronisation"])

_ORDER = "reconciliations"
_FINDINGS_ORDER = "findings"

# The first load of a seller compares nothing: everything is missing.
# language=sql
_RUNS = """
SELECT run_id, task_id, user_id, user_token_id, kind, status, window_from, window_to, started_at, completed_at,
       orders_processed AS orders_compared, requests, error
  FROM sync_history
"""

_COMPARES = "kind IN ('reconcile', 'full', 'manual')"

_REPORTS = """
SELECT r.*, f.*
  FROM ({runs}) r
 CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE finding = 'missing') AS missing,
                            count(*) FILTER (WHERE finding = 'stale') AS stale,
                            count(*) FILTER (WHERE finding = 'merged') AS merged,
                            count(*) FILTER (WHERE finding = 'gone') AS gone,
                            count(*) FILTER (WHERE cause = 'unannounced') AS unannounced,
                            count(*) FILTER (WHERE cause = 'owed') AS owed
                       FROM reconciliation_findings c WHERE c.run_id = r.run_id) f
"""

_FINDINGS = """
SELECT f.allegro_order_id AS order_id, f.finding, f.cause, f.found_at, o.successor_order_id
  FROM reconciliation_findings f
  JOIN orders o ON o.user_token_id = f.user_token_id AND o.allegro_order_id = f.allegro_order_id
 WHERE f.run_id = $1 AND ($2::text IS NULL OR f.allegro_order_id > $2) AND ($3::text IS NULL OR f.finding = $3)
 ORDER BY f.allegro_order_id LIMIT $4
"""

FindingKind = Literal["missing", "stale", "merged", "gone"]

_EXAMPLE: dict[str, JsonValue] = {
    "run_id": "9d3f0f6e-5a51-4b7e-8a43-2f0c5a9d7e10",
    "task_id": "0b9d64a8-3c5e-4c2e-9f53-6f4f9e0d2a11",
    "user_id": "my-shop",
    "kind": "reconcile",
    "status": "completed",
    "window_from": "2025-10-09T22:15:31Z",
    "window_to": "2026-10-10T22:25:31Z",
    "started_at": "2026-10-10T22:15:32Z",
    "completed_at": "2026-10-10T22:18:40Z",
    "orders_compared": 20417,
    "requests": 207,
    "findings": {"missing": 2, "stale": 31, "merged": 4, "gone": 0},
    "causes": {"unannounced": 35, "owed": 2},
    "error": None,
}


class Findings(BaseModel):
    """Orders whose copy was not as Allegro had it, and is now."""

    missing: int = Field(description="Allegro listed them, and there was no copy")
    stale: int = Field(description="the copy was older than what Allegro listed")
    merged: int = Field(description="no longer at Allegro; another order has their line items")
    gone: int = Field(description="no longer at Allegro, nobody knows why")


class Causes(BaseModel):
    """Why these orders were not as they should be."""

    unannounced: int = Field(description="the journal had told nothing of them: only the comparison found them")
    owed: int = Field(description="the journal had told, or somebody else had asked; the look was still to be made")


class Reconciliation(BaseModel):
    """One comparison of a seller's copy with what Allegro lists."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    run_id: UUID
    task_id: UUID | None
    user_id: str
    kind: Literal["reconcile", "full", "manual"]
    status: RunStatus
    window_from: datetime | None
    window_to: datetime | None
    started_at: datetime
    completed_at: datetime | None = Field(description="null: it goes on, and may find more")
    orders_compared: int = Field(description="orders that the listing showed; looks at others come on top")
    requests: int = Field(description="for pages of the list, and for orders that it did not show")
    findings: Findings
    causes: Causes
    error: str | None


class Reconciliations(Page[Reconciliation]):
    """Comparisons, newest first."""


class Finding(BaseModel):
    """An order whose copy had to be corrected."""

    order_id: str
    finding: FindingKind
    cause: Literal["unannounced", "owed"]
    found_at: datetime
    successor_order_id: str | None = Field(description="the order that it was merged into")


class ReconciliationReport(Reconciliation):
    """A comparison with its orders, page by page in the order of their ids."""

    model_config = ConfigDict(json_schema_extra={"example": {**_EXAMPLE, "items": [], "next": None}})

    items: list[Finding]
    next: str | None = NEXT


@router.get("", dependencies=[READ], responses=documented(UnknownUserError))
async def list_reconciliations(
    request: Request,
    response: Response,
    context: Context,
    caller: KnownCaller,
    user_id: Annotated[str | None, Query(max_length=255, description="of this user only")] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Reconciliations:
    """What comparisons found, newest first; `GET /api/v1/reconciliations/{run_id}` names the orders."""
    after = None if cursor is None else Position.decode(cursor, order=_ORDER)
    token_ids = await tokens_of(context, caller, None if user_id is None else [user_id])
    conditions = Conditions([_COMPARES])
    if after is not None:
        conditions.require("(started_at, run_id) < (?, ?)", after.time, after.row_uuid)
    order = "ORDER BY started_at DESC, run_id DESC"
    runs, arguments = newest_of(_RUNS, conditions, order, token_ids)
    rows = await context.pool.fetch(f"{_REPORTS.format(runs=runs)} {order}", *arguments, limit + 1)
    page, following = cut(rows, limit, lambda row: Position(_ORDER, row["started_at"], str(row["run_id"])))
    response.headers.update(links(request, following))
    return Reconciliations(items=[Reconciliation(**_fields(row)) for row in page], next=following)


@router.get("/{run_id}", dependencies=[READ], responses=documented(UnknownReconciliationError))
async def get_reconciliation(
    run_id: Annotated[UUID, Path(description="as the list of runs or reconciliations shows it")],
    request: Request,
    response: Response,
    context: Context,
    caller: KnownCaller,
    finding: Annotated[FindingKind | None, Query(description="orders of this finding only")] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> ReconciliationReport:
    """One comparison with the orders that it found: missing, stale, merged or gone, and why."""
    after = None if cursor is None else Position.decode(cursor, order=_FINDINGS_ORDER)
    async with context.pool.acquire() as connection:
        report = await connection.fetchrow(_REPORTS.format(runs=f"{_RUNS} WHERE {_COMPARES} AND run_id = $1"), run_id)
        if report is None or not caller.sees(report["user_id"]):
            raise UnknownReconciliationError(f"There is no run {run_id} that compared anything.")
        rows = await connection.fetch(_FINDINGS, run_id, None if after is None else after.tie, finding, limit + 1)
    page, following = cut(rows, limit, lambda row: Position(_FINDINGS_ORDER, None, row["order_id"]))
    response.headers.update(links(request, following))
    return ReconciliationReport(**_fields(report), items=[Finding(**row) for row in page], next=following)


def _fields(row: asyncpg.Record) -> Mapping[str, Any]:
    return {
        **row,
        "findings": {name: row[name] for name in Findings.model_fields},
        "causes": {name: row[name] for name in Causes.model_fields},
    }
