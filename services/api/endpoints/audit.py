"""Who asked for which change, when, and how it ended (requirement G3)."""

import json
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from services.api.access import ADMIN, KnownCaller, visible
from services.api.context import Context
from services.api.cursor import Position
from services.api.pagination import Cursor, Limit, Page, cut, links
from services.api.parameters import NO_NUL, Moment

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])

_ORDER = "audit"

# language=sql
_COLUMNS = """
SELECT id, called_at, caller, method, route, parameters, user_id, correlation_id, status FROM audit_log
"""

Name = Annotated[str | None, Query(min_length=1, max_length=255, pattern=NO_NUL)]


class AuditRow(BaseModel):
    """One call that was to change something."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": 311,
                "called_at": "2026-10-10T22:15:31.204118Z",
                "caller": "ops",
                "method": "POST",
                "route": "/api/v1/sync/manual/{user_id}",
                "parameters": {"user_id": "my-shop"},
                "user_id": "my-shop",
                "correlation_id": "5f0c2b7e9d1a4c38b6e2f4a09c7d1e35",
                "status": 202,
            }
        }
    )

    id: int
    called_at: datetime
    caller: str = Field(description="name of the key; `anonymous` where none was needed")
    method: str
    route: str
    parameters: dict[str, str] = Field(description="what stood in the path")
    user_id: str | None = Field(
        description="whose data it was about; null: of nobody, or refused before that was known"
    )
    correlation_id: str | None = Field(description="finds what it did in the logs of all services, and its task")
    status: int | None = Field(description="of the answer; null: it goes on, or was never answered")


class AuditRows(Page[AuditRow]):
    """Calls, newest first."""


@router.get("", dependencies=[ADMIN])
async def list_audit(
    request: Request,
    response: Response,
    context: Context,
    caller: KnownCaller,
    by: Annotated[Name, Query(alias="caller", description="name of the key")] = None,
    user_id: Name = None,
    called_from: Annotated[Moment | None, Query(description="called at or after")] = None,
    called_to: Annotated[Moment | None, Query(description="called before")] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> AuditRows:
    """Every call that was to change something, also the refused ones, newest first."""
    after = None if cursor is None else Position.decode(cursor, order=_ORDER).row_id
    rows = await context.pool.fetch(
        f"{_COLUMNS} WHERE ($1::bigint IS NULL OR id < $1) AND ($2::text IS NULL OR caller = $2)"
        " AND ($3::text IS NULL OR user_id = $3) AND ($4::timestamptz IS NULL OR called_at >= $4)"
        f" AND ($5::timestamptz IS NULL OR called_at < $5) AND {visible('user_id', 6)} ORDER BY id DESC LIMIT $7",
        after,
        by,
        user_id,
        called_from,
        called_to,
        caller.users,
        limit + 1,
    )
    page, following = cut(rows, limit, lambda row: Position(_ORDER, None, str(row["id"])))
    response.headers.update(links(request, following))
    return AuditRows(
        items=[AuditRow(**{**row, "parameters": json.loads(row["parameters"])}) for row in page], next=following
    )
