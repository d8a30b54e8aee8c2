"""Lists of tasks and comparisons are read from an index, also for keys of a few users among many."""

import json
from typing import Any

import asyncpg
import httpx
import pytest

from services.api.endpoints import reconciliations, tasks
from services.api.order_query import Conditions
from services.api.pagination import newest_of
from shared.api_keys import AccessScope
from tests.api.test_order_indexes import nodes
from tests.api.two_sellers import a_key

pytestmark = pytest.mark.integration

# Of 200 sellers; the third one's are the oldest, and few.
_MANY = """
INSERT INTO user_tokens (user_id) SELECT 'shop-' || n FROM generate_series(1, 200) n;
INSERT INTO task_history (task_id, user_token_id, user_id, kind, created_at)
SELECT gen_random_uuid(), t, 'shop-' || t, 'full', now() - n * interval '1 minute'
  FROM generate_series(1, 20000) n
 CROSS JOIN LATERAL (SELECT CASE WHEN n > 19950 THEN 3 WHEN n % 200 = 2 THEN 4 ELSE 1 + n % 200 END AS t) t;
INSERT INTO sync_history (run_id, task_id, user_token_id, user_id, kind, started_at)
SELECT task_id, task_id, user_token_id, user_id, kind, created_at FROM task_history;
ANALYZE task_history; ANALYZE sync_history
"""


@pytest.fixture
async def many(pool: asyncpg.Pool) -> None:
    await pool.execute(_MANY)


@pytest.mark.parametrize(
    ("select", "column", "table"),
    [(tasks._COLUMNS, "created_at", "task_history"), (reconciliations._RUNS, "started_at", "sync_history")],
)
@pytest.mark.parametrize("token_ids", [[3], [1, 3], None])
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_a_page_of_a_few_users_meets_nobody_elses_rows(
    pool: asyncpg.Pool, many: None, select: str, column: str, table: str, token_ids: list[int] | None, mode: str
) -> None:
    order = f"ORDER BY {column} DESC, {'task_id' if table == 'task_history' else 'run_id'} DESC"
    statement, arguments = newest_of(select, Conditions(), order, token_ids)
    given = ", ".join("50" if value == 50 else f"'{{{','.join(map(str, value))}}}'" for value in [*arguments, 50])

    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(f"SET LOCAL plan_cache_mode = {mode}; PREPARE page AS {statement}")
        plan = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT json) EXECUTE page ({given})")
        await connection.execute("DEALLOCATE page")

    met: list[dict[str, Any]] = list(nodes(json.loads(plan)[0]["Plan"]))
    scans = [node for node in met if node.get("Relation Name") == table]
    of_token = f"ix_{table}_user_token_id_{column}"
    assert {node["Index Name"] for node in scans} == {f"ix_{table}_{column}" if token_ids is None else of_token}
    read = sum((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"] for node in scans)
    assert read <= 60 * len(token_ids or [1])


@pytest.mark.parametrize("path", ["/api/v1/sync/tasks", "/api/v1/reconciliations"])
async def test_pages_of_several_users_hold_each_row_once_in_order(
    api: httpx.AsyncClient, pool: asyncpg.Pool, many: None, path: str
) -> None:
    key = await a_key(pool, AccessScope.READ, "shop-1", "shop-3", "nobody")
    expected = await pool.fetch(
        "SELECT run_id::text FROM sync_history WHERE user_id IN ('shop-1', 'shop-3')"
        " ORDER BY started_at DESC, run_id DESC"
    )

    found: list[str] = []
    parameters: dict[str, Any] = {"limit": 40}
    while parameters:
        page = (await api.get(path, params=parameters, headers=key)).json()
        found += [item["task_id"] for item in page["items"]]
        parameters = {"limit": 40, "cursor": page["next"]} if page["next"] else {}
    one = (await api.get(path, params={"user_id": "shop-3", "limit": 100}, headers=key)).json()
    other = await api.get(path, params={"user_id": "shop-2"}, headers=key)

    assert found == [row["run_id"] for row in expected]
    assert {item["user_id"] for item in one["items"]} == {"shop-3"}
    assert len(one["items"]) == 50
    assert other.status_code == 404
