"""The endpoints of the requirements' sections A to C, by their behaviour."""

import asyncio
import json

import asyncpg
import httpx
import pytest

from services.writer.batch import collect
from services.writer.store import Store
from shared.messages import Record
from tests.api.conftest import Allegro
from tests.builders import (
    A_RUN,
    AN_ORDER,
    ANOTHER_RUN,
    a_run,
    a_token,
    after,
    an_event,
    an_observation,
    an_order_body,
    consumed,
)
from tests.canary import a_secret

pytestmark = pytest.mark.integration


async def store(pool: asyncpg.Pool, *records: Record) -> None:
    await Store(pool).apply(collect([consumed(record) for record in records], dead_letter_topic="dead"))


class TestAuthorization:
    async def test_a_started_flow_is_pending_by_task_and_by_device_code(self, api: httpx.AsyncClient) -> None:
        started = await api.post("/api/v1/tokens/auth/initialize", json={"user_id": "shop-1"})
        by_task = await api.get(f"/api/v1/tokens/auth/task/{started.json()['task_id']}")
        by_code = await api.get(f"/api/v1/tokens/auth/status/{started.json()['device_code']}")

        assert started.status_code == 201
        assert started.json()["user_code"] == "abcd1234"
        assert by_task.json() == by_code.json()
        assert (by_task.json()["status"], by_task.json()["token_id"]) == ("PENDING", None)

    async def test_the_device_code_is_stored_encrypted_only(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        await api.post("/api/v1/tokens/auth/initialize", json={"user_id": "shop-1"})

        row = await pool.fetchrow("SELECT device_authorizations::text AS everything FROM device_authorizations")
        assert "abcd1234" in row["everything"]
        assert a_secret("device-code") not in row["everything"]
        assert a_secret("device-code").encode().hex() not in row["everything"]

    async def test_an_allegro_that_does_not_answer_is_a_bad_gateway(
        self, api: httpx.AsyncClient, allegro: Allegro
    ) -> None:
        allegro.respond = lambda _request: httpx.Response(403, text="<html>captcha</html>")

        answer = await api.post("/api/v1/tokens/auth/initialize", json={"user_id": "shop-1"})

        assert (answer.status_code, answer.headers["content-type"]) == (502, "application/problem+json")

    async def test_an_unknown_task_is_not_found(self, api: httpx.AsyncClient) -> None:
        answer = await api.get("/api/v1/tokens/auth/task/00000000-0000-4000-8000-000000000000")

        assert (answer.status_code, answer.json()["status"]) == (404, 404)


class TestTokens:
    async def test_a_registered_pair_is_never_shown_and_starts_the_load(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        body = {
            "user_id": "shop-1",
            "access_token": a_secret("access"),
            "refresh_token": a_secret("refresh"),
            "expires_in": 43199,
        }

        created = await api.post("/api/v1/tokens/", json=body)
        listed = await api.get("/api/v1/tokens/")
        by_user = await api.get("/api/v1/tokens/user/shop-1")

        assert created.status_code == 201
        assert listed.json()["items"] == [by_user.json()]
        assert by_user.json()["status"] == "active"
        for answer in (created, listed, by_user):
            assert a_secret("access") not in answer.text
            assert a_secret("refresh") not in answer.text
        assert await pool.fetchval("SELECT kind FROM task_history") == "initial"
        assert await pool.fetchval("SELECT status FROM active_sync_schedules") == "active"

    async def test_a_deactivated_token_keeps_its_orders(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        token_id = await a_token(pool)
        await store(pool, an_observation())

        answer = await api.delete(f"/api/v1/tokens/{token_id}")
        order = await api.get(f"/api/v1/orders/shop-1/{AN_ORDER}")

        assert answer.json()["status"] == "deactivated"
        assert order.status_code == 200


class TestSync:
    async def test_a_listing_that_is_going_on_is_joined(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        await a_token(pool)

        first = await api.post("/api/v1/sync/manual/shop-1", json={"kind": "full"})
        second = await api.post("/api/v1/sync/manual/shop-1", json={"kind": "manual", "from": "2026-10-01T00:00:00Z"})

        assert (first.status_code, second.status_code) == (202, 202)
        assert first.json()["task_id"] == second.json()["task_id"]

    async def test_a_queued_task_stops_at_once_and_a_stopped_one_cannot_be_stopped(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await a_token(pool)
        task = (await api.post("/api/v1/sync/manual/shop-1", json={"kind": "orders", "order_ids": ["a"]})).json()

        stopped = await api.post(f"/api/v1/sync/tasks/{task['task_id']}/stop")
        again = await api.post(f"/api/v1/sync/tasks/{task['task_id']}/stop")

        assert stopped.json()["status"] == "stopped"
        assert again.status_code == 409

    async def test_a_task_shows_how_far_its_run_is(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        await a_token(pool)
        waiting = (await api.post("/api/v1/sync/manual/shop-1", json={"kind": "orders", "order_ids": ["a"]})).json()
        await a_run(pool)
        await pool.execute(
            "UPDATE sync_history SET orders_processed = 30, orders_expected = 40, requests = 2, status = 'stalled'"
        )

        queued = (await api.get(f"/api/v1/sync/tasks/{waiting['task_id']}")).json()
        running = (await api.get(f"/api/v1/sync/tasks/{A_RUN}")).json()

        assert (queued["status"], queued["run"]) == ("queued", None)
        assert (running["status"], running["run"]["status"]) == ("running", "stalled")
        assert (running["run"]["progress"], running["run"]["requests"]) == (0.75, 2)

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            pytest.param({"kind": "manual"}, "from", id="no-from"),
            pytest.param({"kind": "orders"}, "order_ids", id="no-orders"),
            pytest.param({"kind": "paint"}, "kind", id="unknown-kind"),
            pytest.param({"kind": "manual", "from": "yesterday"}, "from", id="no-date"),
            pytest.param({"kind": "manual", "from": "2026-10-01T00:00:00"}, "from", id="no-zone"),
        ],
    )
    async def test_bad_input_names_the_field(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, body: dict[str, object], field: str
    ) -> None:
        await a_token(pool)

        answer = await api.post("/api/v1/sync/manual/shop-1", json=body)

        assert answer.status_code == 422
        assert answer.json()["type"].endswith(":invalid-input")
        assert field in answer.json()["detail"]

    async def test_status_reads_the_number_of_orders_and_counts_only_where_nobody_has(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await a_token(pool)
        await store(pool, an_observation(order_id="a"), an_observation(order_id="b"))
        kept = (await api.get("/api/v1/sync/status/shop-1")).json()["orders"]
        await pool.execute("UPDATE journal_cursors SET orders_stored = 1000000")
        read = (await api.get("/api/v1/sync/status/shop-1")).json()["orders"]
        await pool.execute("UPDATE journal_cursors SET orders_stored = NULL")
        counted = (await api.get("/api/v1/sync/status/shop-1")).json()["orders"]

        assert (kept, read, counted) == (2, 1_000_000, 2)

    async def test_a_run_of_the_journal_has_a_progress_while_orders_are_owed_to_it(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await a_token(pool)
        events = [an_event(number, follows=number - 1, order_id=f"o-{number}", last=4) for number in range(1, 5)]
        await store(pool, *events)
        await store(pool, an_observation(after(1), order_id="o-1"))

        [run] = (await api.get("/api/v1/sync/status/shop-1")).json()["running"]

        assert (run["kind"], run["orders_processed"], run["orders_expected"], run["progress"]) == (
            "journal",
            1,
            4,
            0.25,
        )

    async def test_status_and_history_tell_of_runs_and_of_what_is_owed(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await a_token(pool)
        await a_run(pool)
        await store(pool, an_event(100, run_id=ANOTHER_RUN), an_observation(after(-1), order_id="b"))

        status = (await api.get("/api/v1/sync/status/shop-1")).json()
        history = (await api.get("/api/v1/sync/history/shop-1")).json()

        assert (status["pending_orders"], status["orders"], status["stored_event_id"]) == (1, 1, "100")
        assert {run["kind"] for run in status["running"]} == {"full", "journal"}
        # A look that nobody asked for is a run of its own.
        assert len(history["items"]) == 3


class TestOrders:
    async def test_an_order_goes_out_as_it_came_with_its_events(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await a_token(pool)
        await store(pool, an_event(100), an_event(200, follows=100), an_observation(newField={"x": [1.10, "ł"]}))

        answer = await api.get(f"/api/v1/orders/shop-1/{AN_ORDER}")

        order = answer.json()
        assert order["order_data"] == json.loads(an_order_body(newField={"x": [1.10, "ł"]}))
        assert [event["event_id"] for event in order["events"]] == ["100", "200"]
        assert order["observed_at"] == "2026-10-10T12:00:00Z"

    @pytest.mark.parametrize("sort", ["bought_at", "-bought_at", "updated_at", "-updated_at"])
    async def test_pages_hold_every_order_once_also_those_without_a_time(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, sort: str
    ) -> None:
        await a_token(pool)
        await store(
            pool, *[an_observation(order_id=f"o-{number}", bought_at=after(number // 3)) for number in range(20)]
        )
        await pool.execute("UPDATE orders SET bought_at = NULL WHERE allegro_order_id IN ('o-3', 'o-11', 'o-12')")

        seen: list[str] = []
        url = f"/api/v1/orders/shop-1?sort={sort}&limit=3"
        while url:
            answer = await api.get(url)
            seen += [order["order_id"] for order in answer.json()["items"]]
            url = str(answer.url.join(answer.links["next"]["url"])) if "next" in answer.links else ""

        assert sorted(seen) == sorted(f"o-{number}" for number in range(20))

    async def test_filters_have_to_hold_all_together(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        await a_token(pool)
        await store(
            pool,
            an_observation(order_id="a", bought_at=after(0)),
            an_observation(order_id="b", bought_at=after(60), status="CANCELLED"),
            an_observation(order_id="c", bought_at=after(120), status="CANCELLED"),
        )

        answer = await api.get(
            "/api/v1/orders/shop-1", params={"status": "CANCELLED", "bought_from": after(100).isoformat()}
        )

        assert [order["order_id"] for order in answer.json()["items"]] == ["c"]

    @pytest.mark.parametrize("query", ["cursor=x", "limit=0", "sort=price", "unknown=1", "bought_from=now"])
    async def test_bad_queries_are_refused(self, api: httpx.AsyncClient, pool: asyncpg.Pool, query: str) -> None:
        await a_token(pool)

        answer = await api.get(f"/api/v1/orders/shop-1?{query}")

        assert answer.status_code in (400, 422)
        assert answer.headers["content-type"] == "application/problem+json"

    async def test_an_unknown_user_is_a_problem(self, api: httpx.AsyncClient) -> None:
        answer = await api.get("/api/v1/orders/nobody", headers={"X-Request-ID": "my-id"})

        problem = answer.json()
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["type"].endswith(":unknown-user")
        assert (problem["status"], problem["correlation_id"]) == (404, "my-id")
        assert "nobody" in problem["detail"]


class TestFrame:
    async def test_unknown_routes_and_methods_are_problems(self, api: httpx.AsyncClient) -> None:
        missing = await api.get("/api/v1/paintings")
        wrong = await api.delete("/api/v1/sync/active")

        assert (missing.status_code, wrong.status_code) == (404, 405)
        assert {answer.headers["content-type"] for answer in (missing, wrong)} == {"application/problem+json"}

    async def test_health_measures_its_three_components(self, api: httpx.AsyncClient) -> None:
        async with asyncio.timeout(60):
            while True:
                components = (await api.get("/health")).json()["components"]
                if components["database"]["status"] == components["kafka"]["status"] == "ok":
                    break
                await asyncio.sleep(0.1)  # a busy machine takes its time

        assert set(components) == {"database", "kafka", "allegro"}
        assert all(component["latency_ms"] >= 0 for component in components.values())

    async def test_alive_ready_and_measured(self, api: httpx.AsyncClient) -> None:
        answers = [await api.get(path) for path in ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json")]

        assert [answer.status_code for answer in answers] == [200] * 5
        assert "orders_backup_api_requests_total" in answers[2].text

    async def test_a_large_body_is_refused(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        await a_token(pool)

        answer = await api.post("/api/v1/sync/manual/shop-1", content=b"x" * (2 << 20))

        assert answer.status_code == 413

    async def test_answers_carry_security_headers_and_no_cors(self, api: httpx.AsyncClient) -> None:
        answer = await api.get("/livez", headers={"Origin": "https://evil.example"})

        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
