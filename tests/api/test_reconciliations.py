"""The report of what comparisons found (requirement B11), as the writer noted it."""

from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from services.api.problems import TYPE_PREFIX
from services.writer.batch import collect
from services.writer.store import Store
from shared.messages import (
    CoveredRange,
    OrderMissing,
    OrderObserved,
    Record,
    WindowFinished,
    WindowPlace,
    WindowProgressed,
)
from tests.builders import A_RUN, a_run, a_token, after, an_event, an_observation, an_order_body, consumed

pytestmark = pytest.mark.integration


async def store(pool: asyncpg.Pool, *records: Record) -> None:
    await Store(pool).apply(collect([consumed(record) for record in records], dead_letter_topic="dead"))


def listed(order_id: str, sequence: int, **fields: Any) -> OrderObserved:
    place = WindowPlace(run_id=A_RUN, attempt=1, sequence=sequence)
    return an_observation(after(100), order_id=order_id, by="list", place=place, body=an_order_body(order_id, **fields))


async def a_comparison(pool: asyncpg.Pool) -> None:
    """One order missing of which the journal had told, one stale, one merged, one gone, one as it should be."""
    await a_token(pool)
    await a_run(pool, kind="reconcile")
    items = [{"id": "item-of-merged", "boughtAt": "2026-10-10T12:00:00.000Z"}, {"id": "more"}]
    await store(pool, *(an_observation(order_id=name) for name in ("gone", "merged", "same", "stale")))
    await store(pool, an_event(order_id="missing", run_id=uuid4(), wanted_after=after(90)))
    covered = CoveredRange(
        bought_from=after(-60), bought_until=after(60), order_ids=("missing", "same", "stale"), observed_at=after(100)
    )
    await store(
        pool,
        WindowProgressed(token_id=1, run_id=A_RUN, attempt=1, page=1, requests=1, covered=covered),
        listed("missing", 0),
        listed("same", 1),
        listed("stale", 2, note="new"),
        WindowFinished(token_id=1, run_id=A_RUN, attempt=1, orders=3, requests=1),
    )
    await store(
        pool,
        *(OrderMissing(token_id=1, order_id=name, observed_at=after(200), reason="404") for name in ("gone", "merged")),
    )
    await store(pool, an_observation(order_id="successor", lineItems=items))


async def test_a_report_counts_what_was_found_and_why(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_comparison(pool)

    (report,) = (await api.get("/api/v1/reconciliations", params={"user_id": "shop-1"})).json()["items"]

    assert report["findings"] == {"missing": 1, "stale": 1, "merged": 1, "gone": 1}
    assert report["causes"] == {"unannounced": 3, "owed": 1}
    assert (report["status"], report["kind"], report["orders_compared"]) == ("completed", "reconcile", 3)
    assert (report["run_id"], report["requests"]) == (str(A_RUN), 1)


async def test_it_names_the_orders_page_by_page(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_comparison(pool)
    found, cursor = [], None
    for _ in range(4):
        page = await api.get(
            f"/api/v1/reconciliations/{A_RUN}", params={"limit": 1} | ({"cursor": cursor} if cursor else {})
        )
        found += page.json()["items"]
        cursor = page.json()["next"]

    assert cursor is None
    assert [(one["order_id"], one["finding"], one["cause"], one["successor_order_id"]) for one in found] == [
        ("gone", "gone", "unannounced", None),
        ("merged", "merged", "unannounced", "successor"),
        ("missing", "missing", "owed", None),
        ("stale", "stale", "unannounced", None),
    ]


async def test_orders_of_one_finding_alone(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_comparison(pool)

    report = (await api.get(f"/api/v1/reconciliations/{A_RUN}", params={"finding": "stale"})).json()

    assert [one["order_id"] for one in report["items"]] == ["stale"]
    assert report["findings"]["missing"] == 1


async def test_both_orders_of_a_merge_name_each_other(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_comparison(pool)

    merged = (await api.get("/api/v1/orders/shop-1/merged")).json()
    successor = (await api.get("/api/v1/orders/shop-1/successor")).json()

    assert merged["successor_order_id"] == "successor"
    assert successor["predecessor_order_ids"] == ["merged"]


async def test_reports_come_newest_first_and_each_once(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    token_id = await a_token(pool)
    runs = [UUID(int=number) for number in range(1, 6)]
    for run_id in runs:
        await a_run(pool, token_id=token_id, run_id=run_id, kind="reconcile")
    await pool.execute("UPDATE sync_history SET started_at = '2026-10-10T12:00:00Z'")
    met, cursor = [], None
    for _ in range(3):
        page = (
            await api.get("/api/v1/reconciliations", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
        ).json()
        met += [report["run_id"] for report in page["items"]]
        cursor = page["next"]

    assert met == [str(run_id) for run_id in reversed(runs)]
    assert cursor is None


@pytest.mark.parametrize("kind", ["initial", "journal", "orders"])
async def test_a_run_that_compares_nothing_has_no_report(api: httpx.AsyncClient, pool: asyncpg.Pool, kind: str) -> None:
    await a_token(pool)
    await a_run(pool, kind=kind)

    answer = await api.get(f"/api/v1/reconciliations/{A_RUN}")
    reports = await api.get("/api/v1/reconciliations")

    assert (answer.status_code, answer.json()["type"]) == (404, f"{TYPE_PREFIX}unknown-reconciliation")
    assert reports.json()["items"] == []


async def test_reports_of_an_unknown_user_are_refused(api: httpx.AsyncClient) -> None:
    assert (await api.get("/api/v1/reconciliations", params={"user_id": "nobody"})).status_code == 404


async def test_cursors_of_other_lists_are_refused(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_comparison(pool)
    page = (await api.get(f"/api/v1/reconciliations/{A_RUN}", params={"limit": 1})).json()

    assert (await api.get("/api/v1/reconciliations", params={"cursor": page["next"]})).status_code == 400
