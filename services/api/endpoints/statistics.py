"""Statistics (requirement C2): how many orders, of what value, and how well the copies are kept."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Annotated, Any
from zoneinfo import available_timezones

import asyncpg
from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.api.access import READ, KnownCaller
from services.api.context import Context, KnownUser, tokens_of
from services.api.order_query import Conditions
from services.api.parameters import Moment
from services.api.problems import InvalidField, InvalidInputError, UnknownUserError, documented

router = APIRouter(prefix="/api/v1/statistics", tags=["orders"])

# Read from one index (`ix_orders_by_purchase`) into a row a status, currency and day, which PostgreSQL may do with
# several processes; the groups are made of those few rows.
# language=sql
_GROUPS = """
SELECT CASE grouping(status, day) WHEN 1 THEN 'status' WHEN 2 THEN 'day' ELSE 'currency' END AS grouped_by,
       status, day, currency, sum(orders)::bigint AS orders, sum(value)::text AS value
  FROM (SELECT status, currency, (bought_at AT TIME ZONE $1)::date AS day, count(*) AS orders,
               sum(total_amount) AS value
          FROM orders WHERE {where} GROUP BY 1, 2, 3) o
 GROUP BY GROUPING SETS ((currency), (status, currency), (day, currency))
 ORDER BY status, day, currency
"""

# How old our knowledge may be is counted as in the status of one seller (`runs.py`); the oldest counts.
_HEALTH = """
WITH sellers AS (SELECT id, status FROM user_tokens WHERE $1::bigint[] IS NULL OR id = ANY($1)),
     owed AS (SELECT user_token_id, count(*) AS orders, min(wanted_after) AS oldest FROM pending_fetches
               WHERE $1::bigint[] IS NULL OR user_token_id = ANY($1) GROUP BY user_token_id)
SELECT count(*) AS sellers,
       count(*) FILTER (WHERE t.status = 'active') AS active,
       count(*) FILTER (WHERE t.status = 'refresh_failed') AS refresh_failed,
       count(*) FILTER (WHERE t.status = 'reauthorization_required') AS reauthorization_required,
       count(*) FILTER (WHERE t.status = 'deactivated') AS deactivated,
       count(*) FILTER (WHERE s.status = 'paused') AS paused_schedules,
       coalesce(sum(p.orders), 0)::bigint AS pending_orders,
       min(p.oldest) AS oldest_pending_at,
       max(extract(epoch FROM now() - least(p.oldest, s.last_success))) FILTER (WHERE s.status = 'active')::float8
           AS lag_seconds,
       (SELECT count(*) FROM sync_history r WHERE r.completed_at IS NULL AND r.status = 'running'
           AND ($1::bigint[] IS NULL OR r.user_token_id = ANY($1))) AS running,
       (SELECT count(*) FROM sync_history r WHERE r.completed_at IS NULL AND r.status = 'stalled'
           AND ($1::bigint[] IS NULL OR r.user_token_id = ANY($1))) AS stalled,
       (SELECT count(*) FROM dead_letters d WHERE d.status = 'open'
           AND ($1::bigint[] IS NULL OR d.user_token_id = ANY($1))) AS open_dead_letters
  FROM sellers t
  LEFT JOIN active_sync_schedules s ON s.user_token_id = t.id
  LEFT JOIN owed p ON p.user_token_id = t.id
"""


# Read once: that means hundreds of files.
_ZONES = frozenset(available_timezones())


def _known_zone(name: str) -> str:
    if name not in _ZONES:
        raise ValueError("no such time zone; named as Europe/Warsaw")
    return name


class StatisticsFilter(BaseModel):
    """Query parameters."""

    model_config = ConfigDict(extra="forbid")

    bought_from: Moment | None = Field(default=None, description="orders bought at or after")
    bought_to: Moment | None = Field(default=None, description="orders bought before")
    timezone: Annotated[str, AfterValidator(_known_zone)] = Field(
        default="UTC", max_length=100, description="whose days `by_day` counts", examples=["Europe/Warsaw"]
    )


class Value(BaseModel):
    """Orders of one currency, and what they add up to."""

    currency: str | None
    orders: int
    value: str | None = Field(description="to pay, as a decimal number; null: Allegro names no amount")


class ByStatus(Value):
    status: str = Field(description="as Allegro says: BOUGHT, READY_FOR_PROCESSING, CANCELLED, ...")


class ByDay(Value):
    day: date | None = Field(description="of the purchase; null: Allegro names no time")


class SyncHealth(BaseModel):
    """How well the copies are kept."""

    sellers: int
    active: int
    refresh_failed: int
    reauthorization_required: int
    deactivated: int
    paused_schedules: int
    pending_orders: int = Field(description="orders that something happened to, and that we have not looked at since")
    oldest_pending_at: datetime | None
    lag_seconds: float | None = Field(description="how old our knowledge of the seller is that lags most")
    running: int = Field(description="runs that come on")
    stalled: int = Field(description="runs that stand still")
    open_dead_letters: int


class Statistics(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "user_id": "my-shop",
                "orders": 20417,
                "by_currency": [{"currency": "PLN", "orders": 20417, "value": "1754201.35"}],
                "by_status": [
                    {"status": "CANCELLED", "currency": "PLN", "orders": 312, "value": "20511.90"},
                    {"status": "READY_FOR_PROCESSING", "currency": "PLN", "orders": 20105, "value": "1733689.45"},
                ],
                "by_day": [{"day": "2026-10-10", "currency": "PLN", "orders": 71, "value": "6101.12"}],
                "sync": {
                    "sellers": 1,
                    "active": 1,
                    "refresh_failed": 0,
                    "reauthorization_required": 0,
                    "deactivated": 0,
                    "paused_schedules": 0,
                    "pending_orders": 2,
                    "oldest_pending_at": "2026-10-10T22:15:30.918305Z",
                    "lag_seconds": 41.2,
                    "running": 0,
                    "stalled": 0,
                    "open_dead_letters": 0,
                },
            }
        }
    )

    user_id: str | None = Field(description="null: all sellers")
    orders: int
    by_currency: list[Value]
    by_status: list[ByStatus]
    by_day: list[ByDay] = Field(description="in the order of the days")
    sync: SyncHealth = Field(description="at this moment, whatever the filters")


@router.get("", dependencies=[READ])
async def statistics(context: Context, caller: KnownCaller, asked: Annotated[StatisticsFilter, Query()]) -> Statistics:
    """Of all sellers that the key is for: orders and value by currency, status and day, and how well all is kept."""
    return await _statistics(context.pool, None, await tokens_of(context, caller), asked)


@router.get("/{user_id}", dependencies=[READ], responses=documented(UnknownUserError))
async def statistics_of_user(
    user: KnownUser, context: Context, asked: Annotated[StatisticsFilter, Query()]
) -> Statistics:
    """The same of one seller."""
    return await _statistics(context.pool, user.user_id, [user.token_id], asked)


async def _statistics(
    pool: asyncpg.Pool, user_id: str | None, token_ids: Sequence[int] | None, asked: StatisticsFilter
) -> Statistics:
    """`token_ids`: of these sellers only; None: of all."""
    conditions = Conditions(arguments=[asked.timezone])
    for condition, value in (
        ("user_token_id = ANY(?)", token_ids),
        ("bought_at >= ?", asked.bought_from),
        ("bought_at < ?", asked.bought_to),
    ):
        if value is not None:
            conditions.require(condition, value)
    where = " AND ".join(conditions.texts) or "true"
    try:
        groups = await pool.fetch(_GROUPS.format(where=where), *conditions.arguments)
    except asyncpg.InvalidParameterValueError as error:
        # PostgreSQL has zones of its own, which may be of another year than ours.
        field = InvalidField(location="query", field="timezone", message="PostgreSQL knows no such time zone")
        raise InvalidInputError(f"{field.field}: {field.message}", errors=[field.model_dump()]) from error
    health = await pool.fetchrow(_HEALTH, token_ids)
    by_currency = [Value(**_fields(row)) for row in groups if row["grouped_by"] == "currency"]
    return Statistics(
        user_id=user_id,
        orders=sum(each.orders for each in by_currency),
        by_currency=by_currency,
        by_status=[ByStatus(**_fields(row, "status")) for row in groups if row["grouped_by"] == "status"],
        by_day=[ByDay(**_fields(row, "day")) for row in groups if row["grouped_by"] == "day"],
        sync=SyncHealth(**health),
    )


def _fields(row: asyncpg.Record, *keys: str) -> dict[str, Any]:
    return {name: row[name] for name in (*keys, "currency", "orders", "value")}
