"""What `bench-api` measures against: a minimal Starlette application that runs the same SQL on asyncpg and answers with
the same bytes. It logs each request as uvicorn does by default; no validation, no problems, no metrics, no
correlation id, no compression.

`python -m benchmarks.reference_api PORT`, with DATABASE_URL.
"""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.api.cursor import Position
from services.api.endpoints.orders import EVENTS, ONE
from services.api.order_query import FIELDS, SUMMARY, OrderFilter
from shared.database import open_pool

# language=sql
_USER = "SELECT user_id, id AS token_id, status, status_reason FROM user_tokens WHERE user_id = $1"
_LIMIT = 50
_LIST = next(OrderFilter(limit=_LIMIT).queries(0)).statement


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.pool = await open_pool(os.environ["DATABASE_URL"], service="reference", max_size=10)
    yield
    await app.state.pool.close()


async def _ready(_request: Request) -> Response:
    return Response()


async def _list(request: Request) -> Response:
    pool: asyncpg.Pool = request.app.state.pool
    user = await pool.fetchrow(_USER, request.path_params["user_id"])
    rows = await pool.fetch(_LIST, user["token_id"], _LIMIT + 1)
    items: list[dict[str, Any]] = [dict(zip(SUMMARY, row, strict=False)) for row in rows[:_LIMIT]]
    last = rows[_LIMIT - 1]
    following = Position("orders:-bought_at", last["sort_key"], str(last["row_id"])).encode()
    return Response(msgspec.json.encode({"items": items, "next": following}), media_type="application/json")


async def _one(request: Request) -> Response:
    pool: asyncpg.Pool = request.app.state.pool
    order_id = request.path_params["order_id"]
    async with pool.acquire() as connection:
        row = await connection.fetchrow(ONE, request.path_params["user_id"], order_id)
        events = await connection.fetch(EVENTS, row["token_id"], order_id)
    order: dict[str, Any] = dict(zip(FIELDS, row, strict=False))
    order["order_data"] = msgspec.Raw(row["order_data"])
    order["events"] = [dict(event) for event in events]
    order["predecessor_order_ids"] = row["predecessor_order_ids"]
    return Response(msgspec.json.encode(order), media_type="application/json")


def main() -> None:
    """Serve until a signal."""
    app = Starlette(
        routes=[
            Route("/readyz", _ready),
            Route("/api/v1/orders/{user_id}", _list),
            Route("/api/v1/orders/{user_id}/{order_id}", _one),
        ],
        lifespan=_lifespan,
    )
    uvicorn.run(app, port=int(sys.argv[1]))


if __name__ == "__main__":
    main()
