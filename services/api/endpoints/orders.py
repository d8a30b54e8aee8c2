"""Reading orders (requirement C1): what Allegro sent goes out as it is stored, never decoded and encoded."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import asyncpg
import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, BaseModel

from services.api.context import Context, KnownUser
from services.api.cursor import Position
from services.api.problems import NotFoundError

router = APIRouter(prefix="/orders", tags=["orders"])

_COLUMNS = """
SELECT id, allegro_order_id AS order_id, status, fulfillment_status, buyer_login, total_amount::text AS total_amount,
       currency, bought_at, observed_at, observed_by, gone_at, gone_reason, successor_order_id, created_at, updated_at,
       coalesce(order_raw, convert_to(order_data::text, 'UTF8')) AS order_data
  FROM orders
"""

_EVENTS = """
SELECT event_id, event_type, occurred_at, stored_at, coalesce(event_raw, convert_to(event_data::text, 'UTF8')) AS data
  FROM order_events WHERE user_token_id = $1 AND allegro_order_id = $2 ORDER BY event_id
"""


class OrderFilter(BaseModel):
    """Query parameters of the list; all that are given have to hold."""

    status: str | None = None
    fulfillment_status: str | None = None
    bought_from: AwareDatetime | None = None
    bought_to: AwareDatetime | None = None
    updated_since: AwareDatetime | None = None
    buyer_login: str | None = None
    gone: bool | None = None
    sort: Literal["bought_at", "-bought_at", "updated_at", "-updated_at"] = "-bought_at"
    cursor: str | None = None
    limit: Annotated[int, Query(ge=1, le=500)] = 50

    model_config = {"extra": "forbid"}

    def query(self, token_id: int) -> tuple[str, list[Any]]:
        """The statement and its arguments: a walk along an index, from where the cursor stands."""
        arguments: list[Any] = [token_id]
        conditions = ["user_token_id = $1"]

        def require(condition: str, value: object) -> None:
            arguments.append(value)
            conditions.append(condition.replace("?", f"${len(arguments)}"))

        for column in ("status", "fulfillment_status", "buyer_login"):
            if (value := getattr(self, column)) is not None:
                require(f"{column} = ?", value)
        if self.bought_from is not None:
            require("bought_at >= ?", self.bought_from)
        if self.bought_to is not None:
            require("bought_at <= ?", self.bought_to)
        if self.updated_since is not None:
            require("updated_at >= ?", self.updated_since)
        if self.gone is not None:
            conditions.append("gone_at IS NOT NULL" if self.gone else "gone_at IS NULL")
        key, descending = self.sort.lstrip("-"), self.sort.startswith("-")
        if self.cursor is not None:
            self._start_after(Position.decode(self.cursor), key, descending, arguments, conditions)
        order = f"{key} DESC NULLS LAST, id DESC" if descending else f"{key} NULLS FIRST, id"
        arguments.append(self.limit + 1)
        return f"{_COLUMNS} WHERE {' AND '.join(conditions)} ORDER BY {order} LIMIT ${len(arguments)}", arguments

    @staticmethod
    def _start_after(
        position: Position, key: str, descending: bool, arguments: list[Any], conditions: list[str]
    ) -> None:
        """Rows after the cursor's; those without a time come first in ascending order, last in descending."""
        compare = "<" if descending else ">"
        arguments.append(position.row_id)
        row = f"${len(arguments)}"
        if position.moment is None:
            same = f"({key} IS NULL AND id {compare} {row})"
            conditions.append(same if descending else f"({same} OR {key} IS NOT NULL)")
            return
        arguments.append(position.moment)
        moment = f"${len(arguments)}"
        after = f"({key}, id) {compare} ({moment}, {row})"
        conditions.append(f"({after} OR {key} IS NULL)" if descending else after)


@router.get("/{user_id}", response_class=Response, responses={200: {"content": {"application/json": {}}}})
async def list_orders(
    user: KnownUser, request: Request, context: Context, filters: Annotated[OrderFilter, Query()]
) -> Response:
    """Orders of a user, page by page; `next` and the `Link` header lead to the following page."""
    statement, arguments = filters.query(user.token_id)
    rows = await context.pool.fetch(statement, *arguments)
    page, more = rows[: filters.limit], len(rows) > filters.limit
    following = None
    if more:
        last = page[-1]
        following = Position(last[filters.sort.lstrip("-")], last["id"]).encode()
    body = msgspec.json.encode({"orders": [_order(row) for row in page], "next": following})
    headers = {}
    if following is not None:
        headers["Link"] = f'<{request.url.include_query_params(cursor=following)}>; rel="next"'
    return Response(body, media_type="application/json", headers=headers)


@router.get("/{user_id}/{order_id}", response_class=Response, responses={200: {"content": {"application/json": {}}}})
async def get_order(user: KnownUser, order_id: str, context: Context) -> Response:
    """One order with all of its events, in the order of the journal."""
    async with context.pool.acquire() as connection:
        row = await connection.fetchrow(
            f"{_COLUMNS} WHERE user_token_id = $1 AND allegro_order_id = $2", user.token_id, order_id
        )
        if row is None:
            raise NotFoundError(f"There is no order {order_id!r} of user {user.user_id!r}.")
        events = await connection.fetch(_EVENTS, user.token_id, order_id)
        predecessors = await connection.fetch(
            "SELECT allegro_order_id FROM orders WHERE user_token_id = $1 AND successor_order_id = $2"
            " ORDER BY allegro_order_id",
            user.token_id,
            order_id,
        )
    body = _order(row) | {
        "events": _events(events),
        "predecessor_order_ids": [predecessor["allegro_order_id"] for predecessor in predecessors],
    }
    return Response(msgspec.json.encode(body), media_type="application/json")


def _order(row: asyncpg.Record) -> dict[str, Any]:
    fields = dict(row)
    del fields["id"]
    fields["order_data"] = msgspec.Raw(fields["order_data"])
    return fields


def _events(rows: Sequence[asyncpg.Record]) -> list[dict[str, Any]]:
    return [
        {
            "event_id": str(row["event_id"]),
            "type": row["event_type"],
            "occurred_at": row["occurred_at"],
            "stored_at": row["stored_at"],
            "event_data": msgspec.Raw(row["data"]),
        }
        for row in rows
    ]
