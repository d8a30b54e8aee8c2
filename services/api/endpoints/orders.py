"""Reading orders (requirement C1): what Allegro sent goes out as it is stored, never decoded and encoded."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import asyncpg
import msgspec
from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from services.api.access import READ, caller_of
from services.api.context import resources_of, user_of
from services.api.cursor import Position
from services.api.order_query import FIELDS, OrderFilter
from services.api.pagination import NEXT, links
from services.api.parameters import UserIdInPath
from services.api.problems import UnknownOrderError, UnknownUserError, documented

router = APIRouter(prefix="/api/v1/orders", tags=["orders"])

_PRIVATE = "private, no-cache"
_ALL = tuple(FIELDS)
# These two endpoints are asked most, and take what they need from the request themselves: only such endpoints can be
# reached by the short way (`short_way.py`), which saves as much as a small query costs (`make bench-api`).

# language=sql
# One row where the user is known; its order is null where there is no such order.
ONE = f"""
SELECT o.*, t.id AS token_id, ARRAY(
           SELECT p.allegro_order_id FROM orders p
            WHERE p.user_token_id = t.id AND p.successor_order_id = $2 ORDER BY p.allegro_order_id
       ) AS predecessor_order_ids
  FROM user_tokens t
  LEFT JOIN (SELECT {", ".join(FIELDS.values())}, user_token_id FROM orders) o
       ON o.user_token_id = t.id AND o.order_id = $2
 WHERE t.user_id = $1
"""  # noqa: S608 - names of columns only

EVENTS = """
SELECT event_id, event_type, occurred_at, revision, stored_at, event_data, event_raw
  FROM order_events WHERE user_token_id = $1 AND allegro_order_id = $2 ORDER BY event_id
"""


class OrderFields(TypedDict, total=False):
    """An order; which fields there are is said by `fields`."""

    order_id: str
    status: Annotated[str, Field(description="as Allegro says: BOUGHT, READY_FOR_PROCESSING, CANCELLED, ...")]
    fulfillment_status: str | None
    buyer_id: str | None
    buyer_login: str | None
    buyer_email: str | None
    total_amount: Annotated[str | None, Field(description="to pay, as a decimal number")]
    currency: str | None
    bought_at: Annotated[datetime | None, Field(description="of the newest line item")]
    allegro_updated_at: Annotated[datetime | None, Field(description="blind to what the seller does")]
    revision: str | None
    observed_at: Annotated[datetime, Field(description="when we looked: the version of the copy")]
    observed_by: Literal["detail", "list"]
    gone_at: Annotated[datetime | None, Field(description="since when Allegro no longer has it; the copy stays")]
    gone_reason: str | None
    successor_order_id: Annotated[str | None, Field(description="the order that it was merged into")]
    created_at: Annotated[datetime, Field(description="of the copy")]
    updated_at: Annotated[datetime, Field(description="last change of the copy")]
    order_data: Annotated[dict[str, Any], Field(description="complete, as Allegro sent it")]


class Orders(BaseModel):
    """One page of a user's orders."""

    items: list[OrderFields]
    next: str | None = NEXT


class OrderEvent(BaseModel):
    event_id: str = Field(description="position in Allegro's journal")
    type: str
    occurred_at: datetime | None
    revision: str | None
    stored_at: datetime
    event_data: dict[str, Any] = Field(description="as Allegro sent it")


class Order(BaseModel):
    """An order with everything we know of it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "order_id": "7721b2f0-c4e8-11f1-904f-89bb34047197",
                "status": "READY_FOR_PROCESSING",
                "fulfillment_status": "NEW",
                "buyer_id": "111578773",
                "buyer_login": "Client:111578773",
                "buyer_email": "k1+4f5a@allegromail.pl",
                "total_amount": "85.97",
                "currency": "PLN",
                "bought_at": "2026-10-10T22:14:54.878Z",
                "allegro_updated_at": "2026-10-10T22:15:05.650Z",
                "revision": "1ab823c2",
                "observed_at": "2026-10-10T22:15:31.204118Z",
                "observed_by": "detail",
                "gone_at": None,
                "gone_reason": None,
                "successor_order_id": None,
                "created_at": "2026-10-10T22:15:02.118305Z",
                "updated_at": "2026-10-10T22:15:31.318305Z",
                "order_data": {"id": "7721b2f0-c4e8-11f1-904f-89bb34047197", "status": "READY_FOR_PROCESSING"},
                "events": [
                    {
                        "event_id": "1791670524086457",
                        "type": "READY_FOR_PROCESSING",
                        "occurred_at": "2026-10-10T22:15:05.650Z",
                        "revision": "1ab823c2",
                        "stored_at": "2026-10-10T22:15:30.918305Z",
                        "event_data": {"id": "1791670524086457", "type": "READY_FOR_PROCESSING"},
                    }
                ],
                "predecessor_order_ids": [],
            }
        }
    )

    order_id: str
    status: str
    fulfillment_status: str | None
    buyer_id: str | None
    buyer_login: str | None
    buyer_email: str | None
    total_amount: str | None
    currency: str | None
    bought_at: datetime | None
    allegro_updated_at: datetime | None
    revision: str | None
    observed_at: datetime
    observed_by: Literal["detail", "list"]
    gone_at: datetime | None
    gone_reason: str | None
    successor_order_id: str | None
    created_at: datetime
    updated_at: datetime
    order_data: dict[str, Any] = Field(description="complete, as Allegro sent it")
    events: list[OrderEvent] = Field(description="in the order of the journal")
    predecessor_order_ids: list[str] = Field(description="orders that were merged into this one")


@router.get(
    "/{user_id}",
    dependencies=[READ],
    response_class=Response,
    responses={200: {"model": Orders}, **documented(UnknownUserError)},
)
async def list_orders(user_id: UserIdInPath, request: Request, filters: Annotated[OrderFilter, Query()]) -> Response:
    """Orders of a user, page by page; `next` and the `Link` header lead to the following page.

    All filters that are given have to hold. Orders without a purchase time come last in either order.
    """
    context = resources_of(request)
    user = await user_of(user_id, context, caller_of(request))
    rows: list[asyncpg.Record] = []
    for query in filters.queries(user.token_id):
        rows += await query.fetch(context.pool, filters.limit + 1 - len(rows))
        if len(rows) > filters.limit:
            break
    following: str | None = None
    if len(rows) > filters.limit:
        rows = rows[: filters.limit]
        following = _position(filters, rows[-1]).encode()
    body = msgspec.json.encode({"items": [_order(row, filters.fields) for row in rows], "next": following})
    return Response(body, media_type="application/json", headers=links(request, following))


@router.get(
    "/{user_id}/{order_id}",
    dependencies=[READ],
    response_class=Response,
    responses={
        200: {"model": Order},
        304: {"description": "Nothing changed since the `ETag` of `If-None-Match`"},
        **documented(UnknownUserError, UnknownOrderError),
    },
)
async def get_order(
    user_id: UserIdInPath,
    order_id: Annotated[str, Path(max_length=100)],
    request: Request,
    if_none_match: Annotated[str, Header(max_length=1000)] = "",
) -> Response:
    """One order: complete, with its events in the order of the journal, and what it was merged from and into."""
    async with resources_of(request).pool.acquire() as connection:
        row = await connection.fetchrow(ONE, user_id, order_id)
        if row is None or not caller_of(request).sees(user_id):
            raise UnknownUserError(user_id)
        if row["order_id"] is None:
            raise UnknownOrderError(f"There is no order {order_id!r} of user {user_id!r}.")
        events = await connection.fetch(EVENTS, row["token_id"], order_id)
    body = msgspec.json.encode(
        {
            **_order(row, _ALL),
            "events": _events(events),
            "predecessor_order_ids": row["predecessor_order_ids"],
        }
    )
    # Weak: compressed, the bytes are others.
    tag = f'W/"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": _PRIVATE}
    if matches(if_none_match, tag):
        return Response(status_code=304, headers={**headers, "Vary": "Accept-Encoding"})
    return Response(body, media_type="application/json", headers=headers)


def matches(if_none_match: str, tag: str) -> bool:
    """Whether the client has this version (RFC 9110, 13.1.2: compared weakly)."""
    known = {candidate.strip().removeprefix("W/") for candidate in if_none_match.split(",")}
    return tag.removeprefix("W/") in known or "*" in known


def _position(filters: OrderFilter, row: asyncpg.Record) -> Position:
    return Position(filters.order, row["sort_key"], str(row["row_id"]))


def _order(row: asyncpg.Record, fields: Sequence[str]) -> dict[str, Any]:
    # The columns of the fields come first, in their order.
    order = dict(zip(fields, row, strict=False))
    if "order_data" in order:
        # The exact bytes stand beside the column only where jsonb could not hold them.
        order["order_data"] = msgspec.Raw(row["order_raw"] or row["order_data"])
    return order


def _events(rows: Sequence[asyncpg.Record]) -> list[dict[str, Any]]:
    return [
        {
            "event_id": str(row["event_id"]),
            "type": row["event_type"],
            "occurred_at": row["occurred_at"],
            "revision": row["revision"],
            "stored_at": row["stored_at"],
            "event_data": msgspec.Raw(row["event_raw"] or row["event_data"]),
        }
        for row in rows
    ]
