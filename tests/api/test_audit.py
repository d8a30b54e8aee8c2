"""Who asked for which change, when, and how it ended."""

from typing import Any

import asyncpg
import httpx
import pytest

from shared.api_keys import AccessScope
from tests.api.conftest import Allegro
from tests.api.two_sellers import MINE, OTHERS, a_busy_seller, a_key
from tests.builders import a_token

pytestmark = pytest.mark.integration

AUDIT = "/api/v1/audit"
INITIALIZE = "/api/v1/tokens/auth/initialize"


async def rows(pool: asyncpg.Pool) -> list[tuple[Any, ...]]:
    found = await pool.fetch("SELECT caller, method, route, user_id, status FROM audit_log ORDER BY id")
    return [tuple(row) for row in found]


async def test_changes_are_noted_with_their_outcome_and_reading_is_not(
    api: httpx.AsyncClient, pool: asyncpg.Pool
) -> None:
    await a_token(pool, user_id=MINE)
    ops = await a_key(pool, AccessScope.ADMIN, name="ops")
    reader = await a_key(pool, AccessScope.READ, name="reader")

    await api.get("/api/v1/tokens/", headers=ops)
    await api.post(f"/api/v1/sync/manual/{MINE}", json={"kind": "full"}, headers=ops | {"X-Request-ID": "mine"})
    await api.post(f"/api/v1/sync/manual/{MINE}", json={"kind": "full"}, headers=reader)
    await api.post("/api/v1/sync/manual/nobody", json={"kind": "full"}, headers=ops)
    await api.post(INITIALIZE, json={"user": "misspelt"}, headers=ops)
    await api.delete("/api/v1/tokens/1", headers=ops)
    await api.post("/api/v1/nothing", headers=ops)
    await api.post(INITIALIZE, json={"user_id": MINE})

    manual = "/api/v1/sync/manual/{user_id}"
    assert await rows(pool) == [
        ("ops", "POST", manual, MINE, 202),
        ("reader", "POST", manual, None, 403),
        ("ops", "POST", manual, None, 404),
        ("ops", "POST", INITIALIZE, None, 422),
        ("ops", "DELETE", "/api/v1/tokens/{token_id}", MINE, 200),
    ]
    (first,) = (await api.get(AUDIT, params={"user_id": MINE, "limit": 1, "caller": "ops"}, headers=ops)).json()[
        "items"
    ]
    assert (first["parameters"], first["status"]) == ({"token_id": "1"}, 200)
    assert await pool.fetchval("SELECT correlation_id FROM audit_log ORDER BY id LIMIT 1") == "mine"


async def test_the_row_is_there_before_the_change_is_made(
    api: httpx.AsyncClient, pool: asyncpg.Pool, allegro: Allegro
) -> None:
    answer = allegro.respond
    seen: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        return answer(request)

    allegro.respond = respond
    await pool.execute("ALTER TABLE audit_log RENAME TO gone")

    refused = await api.post(INITIALIZE, json={"user_id": MINE})

    assert refused.status_code == 500
    assert seen == []
    assert await pool.fetchval("SELECT count(*) FROM device_authorizations") == 0


async def test_an_unanswered_call_keeps_its_empty_status(
    api: httpx.AsyncClient, pool: asyncpg.Pool, allegro: Allegro
) -> None:
    def fail(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("away")

    allegro.respond = fail
    await pool.execute(
        "CREATE FUNCTION no_end() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'the server is shutting down' USING ERRCODE = '57P01'; END $$;"
        " CREATE TRIGGER no_end BEFORE UPDATE ON audit_log FOR EACH ROW EXECUTE FUNCTION no_end()"
    )

    answer = await api.post(INITIALIZE, json={"user_id": MINE})

    assert (answer.status_code, [row[-1] for row in await rows(pool)]) == (502, [None]), (
        "the outcome is answered also where it cannot be noted"
    )


async def test_a_key_of_one_user_reads_what_was_about_this_user(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_busy_seller(pool, MINE)
    await a_busy_seller(pool, OTHERS)
    ops = await a_key(pool, AccessScope.ADMIN, name="ops")
    mine = await a_key(pool, AccessScope.ADMIN, MINE, name="mine")
    for user_id in (MINE, OTHERS, "nobody"):
        await api.post("/api/v1/sync/deactivate", json={"user_id": user_id}, headers=ops)
    await api.post("/api/v1/sync/deactivate", json={"user_id": OTHERS}, headers=mine)

    shown = (await api.get(AUDIT, headers=mine)).json()["items"]
    everything = (await api.get(AUDIT, headers=ops)).json()["items"]

    assert [(row["caller"], row["user_id"]) for row in shown] == [("ops", MINE)]
    assert [(row["caller"], row["status"]) for row in everything] == [
        *[("mine", 404), ("ops", 404), ("ops", 200), ("ops", 200)]
    ]


async def test_it_is_read_page_by_page(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    ops = await a_key(pool, AccessScope.ADMIN, name="ops")
    for _ in range(5):
        await api.post("/api/v1/sync/deactivate", json={"user_id": "nobody"}, headers=ops)

    found: list[int] = []
    cursor: str | None = None
    while cursor is not None or not found:
        page = await api.get(AUDIT, params={"limit": 2} | ({"cursor": cursor} if cursor else {}), headers=ops)
        found += [row["id"] for row in page.json()["items"]]
        cursor = page.json()["next"]

    assert found == [5, 4, 3, 2, 1]
