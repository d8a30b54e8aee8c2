"""Statistics agree with the orders, of one seller and of all."""

from collections import Counter
from decimal import Decimal
from zoneinfo import ZoneInfo

import asyncpg
import httpx
import pytest

from services.api.endpoints import statistics
from tests.builders import NOON, a_run, a_token

pytestmark = pytest.mark.integration

_FILL = """
INSERT INTO orders (user_token_id, allegro_order_id, status, total_amount, currency, bought_at, order_data, observed_at,
                    observed_by)
SELECT 1 + n % 2, 'order-' || n, (ARRAY['BOUGHT', 'CANCELLED', 'READY_FOR_PROCESSING'])[1 + n % 3],
       CASE WHEN n % 11 <> 0 THEN n * 1.10 END, (ARRAY['PLN', 'CZK'])[1 + n % 5 / 4],
       CASE WHEN n % 13 <> 0 THEN $1::timestamptz - n * interval '1 hour' END, '{}', now(), 'list'
  FROM generate_series(1, 500) n
"""


@pytest.fixture
async def orders(pool: asyncpg.Pool) -> list[asyncpg.Record]:
    await a_token(pool)
    await a_token(pool, user_id="shop-2")
    await pool.execute(_FILL, NOON)
    rows: list[asyncpg.Record] = await pool.fetch("SELECT * FROM orders")
    return rows


def tallied(rows: list[asyncpg.Record], *keys: object) -> tuple[Counter[object], dict[object, Decimal]]:
    """Numbers and values by the keys, which are functions of a row, counted without SQL."""
    orders: Counter[object] = Counter()
    values: dict[object, Decimal] = {}
    for row in rows:
        key = tuple(each(row) for each in keys)  # type: ignore[operator]
        orders[key] += 1
        values[key] = values.get(key, Decimal(0)) + (row["total_amount"] or 0)
    return orders, values


@pytest.mark.parametrize("user_id", [None, "shop-1", "shop-2"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Warsaw"])
async def test_they_agree_with_the_orders(
    api: httpx.AsyncClient, orders: list[asyncpg.Record], user_id: str | None, zone: str
) -> None:
    token_id = {"shop-1": 1, "shop-2": 2}.get(user_id or "")
    mine = [row for row in orders if token_id in (None, row["user_token_id"])]
    path = "/api/v1/statistics" + (f"/{user_id}" if user_id else "")

    found = (await api.get(path, params={"timezone": zone})).json()

    def day(row: asyncpg.Record) -> str | None:
        moment = row["bought_at"]
        return None if moment is None else str(moment.astimezone(ZoneInfo(zone)).date())

    for name, keys in {
        "by_currency": (lambda row: row["currency"],),
        "by_status": (lambda row: row["status"], lambda row: row["currency"]),
        "by_day": (day, lambda row: row["currency"]),
    }.items():
        fields = {"by_currency": (), "by_status": ("status",), "by_day": ("day",)}[name]
        numbers, values = tallied(mine, *keys)
        assert {tuple(each[f] for f in (*fields, "currency")): each["orders"] for each in found[name]} == numbers
        assert {
            tuple(each[f] for f in (*fields, "currency")): Decimal(each["value"] or 0) for each in found[name]
        } == values
    assert (found["user_id"], found["orders"]) == (user_id, len(mine))


async def test_a_window_counts_what_was_bought_in_it(api: httpx.AsyncClient, orders: list[asyncpg.Record]) -> None:
    window = {"bought_from": "2026-10-01T00:00:00Z", "bought_to": "2026-10-03T00:00:00Z"}

    found = (await api.get("/api/v1/statistics", params=window)).json()

    assert {each["day"] for each in found["by_day"]} == {"2026-10-01", "2026-10-02"}
    assert found["orders"] == sum(
        row["bought_at"] is not None and row["bought_at"].isoformat()[:10] in ("2026-10-01", "2026-10-02")
        for row in orders
    )


async def test_health_counts_sellers_what_is_owed_runs_and_dead_letters(
    api: httpx.AsyncClient, pool: asyncpg.Pool
) -> None:
    await a_token(pool)
    await a_token(pool, user_id="shop-2")
    await pool.execute("UPDATE user_tokens SET status = 'refresh_failed' WHERE id = 2")
    await pool.execute(
        "INSERT INTO active_sync_schedules (user_token_id, user_id, interval_seconds, next_full_run, last_success)"
        " VALUES (1, 'shop-1', 60, now(), now() - interval '100 seconds')"
    )
    await pool.execute(
        "INSERT INTO pending_fetches (user_token_id, allegro_order_id, wanted_after, next_attempt_at)"
        " VALUES (1, 'a', now() - interval '200 seconds', now()), (2, 'b', now(), now())"
    )
    await a_run(pool)
    await pool.execute(
        'INSERT INTO dead_letters (user_token_id, service, topic, partition, "offset", digest, error_type, error)'
        " VALUES (2, 'writer', 'orders', 0, 1, '', 'Unreadable', 'x')"
    )

    overall = (await api.get("/api/v1/statistics")).json()["sync"]
    second = (await api.get("/api/v1/statistics/shop-2")).json()["sync"]

    assert (overall["sellers"], overall["active"], overall["refresh_failed"]) == (2, 1, 1)
    assert (overall["pending_orders"], overall["running"], overall["open_dead_letters"]) == (2, 1, 1)
    assert 200 <= overall["lag_seconds"] < 300
    assert (second["sellers"], second["pending_orders"], second["running"], second["open_dead_letters"]) == (1, 1, 0, 1)
    assert second["lag_seconds"] is None


@pytest.mark.parametrize(
    ("path", "status"),
    [("?timezone=Mars/Olympus", 422), ("?bought_from=now", 422), ("?paint=red", 422), ("/nobody", 404)],
)
async def test_bad_questions_are_refused(api: httpx.AsyncClient, path: str, status: int) -> None:
    answer = await api.get(f"/api/v1/statistics{path}")

    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_a_zone_that_postgresql_does_not_know_is_the_clients_mistake(
    api: httpx.AsyncClient, orders: list[asyncpg.Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_ZONES", frozenset({"Mars/Olympus"}))

    answer = await api.get("/api/v1/statistics", params={"timezone": "Mars/Olympus"})

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "timezone")


async def test_zones_are_not_looked_for_at_every_request(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow() -> set[str]:
        raise AssertionError("reads hundreds of files while everybody waits")

    monkeypatch.setattr(statistics, "available_timezones", slow)

    assert (await api.get("/api/v1/statistics", params={"timezone": "Europe/Warsaw"})).status_code == 200
