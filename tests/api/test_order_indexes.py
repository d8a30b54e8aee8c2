"""Every filter and sort order of the list walks an index: no page costs more because there are many orders."""

import json
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from services.api.order_query import OrderFilter
from tests.builders import a_token

pytestmark = pytest.mark.integration

# One status and one buyer of many are rare: the case in which a walk along the purchases would meet everything else.
_MANY = """
INSERT INTO orders (user_token_id, allegro_order_id, status, fulfillment_status, buyer_login, bought_at, order_data,
                    observed_at, observed_by, updated_at)
SELECT 1 + n % 2, md5(n::text), CASE WHEN n % 5000 < 2 THEN 'CANCELLED' ELSE 'READY_FOR_PROCESSING' END,
       CASE WHEN n % 5000 < 2 THEN 'SENT' ELSE 'NEW' END, 'buyer-' || n % 3001, now() - n * interval '1 minute', '{}',
       now(), 'list', now() - n * interval '1 second'
  FROM generate_series(1, 30000) n
"""


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


@pytest.mark.parametrize(
    ("parameters", "index"),
    [
        ({}, "ix_orders_by_purchase"),
        ({"sort": "bought_at"}, "ix_orders_by_purchase"),
        ({"sort": "-updated_at"}, "ix_orders_user_token_id_updated_at"),
        ({"sort": "updated_at", "updated_since": "2026-01-01T00:00:00Z"}, "ix_orders_user_token_id_updated_at"),
        (
            {"bought_from": "2020-01-01T00:00:00Z", "bought_to": "2040-01-01T00:00:00Z"},
            "ix_orders_by_purchase",
        ),
        ({"status": "CANCELLED"}, "ix_orders_user_token_id_status_bought_at"),
        ({"status": "CANCELLED", "sort": "bought_at"}, "ix_orders_user_token_id_status_bought_at"),
        ({"fulfillment_status": "SENT"}, "ix_orders_user_token_id_fulfillment_status_bought_at"),
        ({"buyer_login": "buyer-7"}, "ix_orders_user_token_id_buyer_login_bought_at"),
    ],
)
async def test_a_page_is_read_from_an_index_in_its_order(
    pool: asyncpg.Pool, parameters: dict[str, str], index: str
) -> None:
    await a_token(pool)
    await a_token(pool, user_id="shop-2")
    await pool.execute(_MANY)
    await pool.execute("ANALYZE orders")
    query = next(OrderFilter(**parameters).queries(1))

    plan = await pool.fetchval(f"EXPLAIN (FORMAT json) {query.statement}", *query.arguments, 50)

    met = list(nodes(json.loads(plan)[0]["Plan"]))
    assert {node["Node Type"] for node in met} == {"Limit", "Index Scan"}
    assert [node["Index Name"] for node in met if "Index Name" in node] == [index]
