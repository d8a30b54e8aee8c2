"""Every filter and sort order of the list walks an index: no page costs more because there are many orders."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import asyncpg
import pytest

from services.api.cursor import Position
from services.api.order_query import OrderFilter, Query
from tests.builders import a_token

pytestmark = pytest.mark.integration

# One status and one buyer of many are rare: the case in which a walk along the purchases would meet everything else.
_MANY = """
INSERT INTO orders (user_token_id, allegro_order_id, status, fulfillment_status, buyer_login, bought_at, order_data,
                    observed_at, observed_by, updated_at, gone_at)
SELECT 1 + n % 2, md5(n::text), CASE WHEN n % 5000 < 2 THEN 'CANCELLED' ELSE 'READY_FOR_PROCESSING' END,
       CASE WHEN n % 5000 < 2 THEN 'SENT' ELSE 'NEW' END, 'buyer-' || n % 3001, now() - n * interval '1 minute', '{}',
       now(), 'list', now() - n * interval '1 second', CASE WHEN n % 3000 < 2 THEN now() END
  FROM generate_series(1, 30000) n
"""


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


_BY_PURCHASE, _BY_UPDATE = "ix_orders_by_purchase", "ix_orders_user_token_id_updated_at"
# With one of all values, and with a rare one where there is such a thing.
FILTERS: dict[str, dict[str, str]] = {
    "none": {},
    "bought": {"bought_from": "2020-01-01T00:00:00Z", "bought_to": "2040-01-01T00:00:00Z"},
    "present": {"gone": "false"},
    "status": {"status": "CANCELLED"},
    "fulfillment": {"fulfillment_status": "SENT"},
    "buyer": {"buyer_login": "buyer-7"},
    "updated": {"updated_since": "2020-01-01T00:00:00Z"},
    "gone": {"gone": "true"},
}
WALKS: dict[tuple[str, str], str] = {
    **{("bought_at", name): _BY_PURCHASE for name in ("none", "bought", "present")},
    ("bought_at", "status"): "ix_orders_user_token_id_status_bought_at",
    ("bought_at", "fulfillment"): "ix_orders_user_token_id_fulfillment_status_bought_at",
    ("bought_at", "buyer"): "ix_orders_user_token_id_buyer_login_bought_at",
    **{("updated_at", name): _BY_UPDATE for name in ("none", "updated", "present")},
}
"""By sort key and filter: the index that has the answer in its order."""


@pytest.fixture
async def many(pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await a_token(pool, user_id="shop-2")
    await pool.execute(_MANY)
    await pool.execute("ANALYZE orders")


async def planned(pool: asyncpg.Pool, query: Query, mode: str, options: str = "") -> list[dict[str, Any]]:
    """The nodes of the plan, as PostgreSQL makes it for values (custom) or for any (generic)."""
    values = [f"'{value}'" for value in (*query.arguments, 50)]
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(f"SET LOCAL plan_cache_mode = force_{mode}_plan; PREPARE page AS {query.statement}")
        plan = await connection.fetchval(f"EXPLAIN ({options}FORMAT json) EXECUTE page ({', '.join(values)})")
        await connection.execute("DEALLOCATE page")
    return list(nodes(json.loads(plan)[0]["Plan"]))


@pytest.mark.parametrize("minus", ["", "-"], ids=["rising", "falling"])
async def test_a_page_is_read_from_an_index_in_its_order_whatever_the_plan(
    pool: asyncpg.Pool, many: None, minus: str
) -> None:
    for (key, name), index in WALKS.items():
        query = next(OrderFilter(sort=minus + key, **FILTERS[name]).queries(1))
        for mode in ("custom", "generic"):
            met = await planned(pool, query, mode)

            assert query.walks
            assert {node["Node Type"] for node in met} == {"Limit", "Index Scan"}, (key, name, mode)
            assert [node["Index Name"] for node in met if "Index Name" in node] == [index], (key, name, mode)


@pytest.mark.parametrize("minus", ["", "-"], ids=["rising", "falling"])
async def test_behind_a_cursor_orders_with_and_without_a_time_are_read_from_an_index_in_order(
    pool: asyncpg.Pool, many: None, minus: str
) -> None:
    cursor = Position(f"orders:{minus}bought_at", datetime.now(UTC), "1").encode()
    for (key, name), index in WALKS.items():
        if key == "bought_at":
            (query,) = OrderFilter(sort=f"{minus}bought_at", cursor=cursor, **FILTERS[name]).queries(1)
            for mode in ("custom", "generic"):
                met = await planned(pool, query, mode)

                indexes = [node["Index Name"] for node in met if "Index Name" in node]
                # Where all orders have a time, any index that begins with the token finds none without.
                assert (len(indexes), indexes[0]) == (2, index), (name, mode)
                kinds = [node["Node Type"] for node in met]
                assert not any("Sort" in kind for kind in kinds[kinds.index("Append") :]), (name, mode)


async def test_what_no_index_has_in_order_is_planned_for_its_values(pool: asyncpg.Pool, many: None) -> None:
    """Every filter with every order is either a walk along one index, or looks at few orders for a rare value."""
    rare = FILTERS | {"updated": {"updated_since": (datetime.now(UTC) - timedelta(seconds=60)).isoformat()}}
    pairs = [{"status": "CANCELLED", "buyer_login": "buyer-7"}, {"status": "CANCELLED", "fulfillment_status": "NEW"}]
    for minus, key in product(("", "-"), ("bought_at", "updated_at")):
        others = [filters for name, filters in rare.items() if (key, name) not in WALKS and name != "bought"]
        for filters in [*others, *pairs]:
            query = next(OrderFilter(sort=minus + key, **filters).queries(1))
            met = await planned(pool, query, "custom", "ANALYZE, ")

            scans = [node for node in met if "Scan" in node["Node Type"]]
            read = sum(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in scans)
            assert not query.walks
            assert read < 500, (minus + key, filters)


async def test_a_plan_for_values_is_made_anew_every_time(pool: asyncpg.Pool, many: None) -> None:
    query = next(OrderFilter(sort="updated_at", status="CANCELLED").queries(1))

    rows = [await query.fetch(pool, 50) for _ in range(8)]

    times = 0
    async with pool.acquire() as one, pool.acquire() as two:
        for connection in (one, two):
            times += await connection.fetchval(
                "SELECT coalesce(max(generic_plans + custom_plans), 0)::int FROM pg_prepared_statements"
                " WHERE statement LIKE 'SELECT allegro_order_id%'"
            )
    assert {len(each) for each in rows} == {6}
    assert times <= 2, "none of the statements was run again"
