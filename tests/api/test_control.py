"""Control by rows: tasks that join or wait, tokens that are replaced, refused or given up, schedules that pause."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.endpoints.tasks import covers
from tests.api.conftest import Allegro
from tests.builders import a_token
from tests.canary import a_secret

pytestmark = pytest.mark.integration

PAIR = {"access_token": a_secret("access-1"), "refresh_token": a_secret("refresh-1"), "expires_in": 43199}
MOMENTS = st.none() | st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat)
FRAMES = st.fixed_dictionaries({"from": MOMENTS, "to": MOMENTS})


def slug(answer: httpx.Response) -> str:
    """The last part of a problem's type."""
    return str(answer.json()["type"]).rpartition(":")[2]


async def a_connected_seller(api: httpx.AsyncClient, user_id: str = "shop-1") -> int:
    """Registered over the API; the initial load is out of the way."""
    answer = await api.post("/api/v1/tokens/", json={"user_id": user_id, **PAIR})
    token_id: int = answer.json()["token_id"]
    (task,) = (await api.get("/api/v1/sync/tasks", params={"user_id": user_id})).json()["items"]
    await api.post(f"/api/v1/sync/tasks/{task['task_id']}/stop")
    return token_id


async def start(api: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await api.post("/api/v1/sync/manual/shop-1", json=body)
    assert answer.status_code == 202, answer.text
    task: dict[str, Any] = answer.json()
    return task


async def a_run_of(pool: asyncpg.Pool, task: dict[str, Any]) -> None:
    """The poller has begun the task."""
    task_id = UUID(task["task_id"])
    await pool.execute("UPDATE task_history SET status = 'running' WHERE task_id = $1", task_id)
    await pool.execute(
        "INSERT INTO sync_history (run_id, task_id, user_token_id, user_id, kind)"
        " SELECT task_id, task_id, user_token_id, user_id, kind FROM task_history WHERE task_id = $1",
        task_id,
    )


async def a_listing_that_runs(api: httpx.AsyncClient, pool: asyncpg.Pool, *, but: str = "position = position") -> None:
    """Of everything that a seller has; it stands at its beginning, `but` for what is set otherwise."""
    await a_connected_seller(api)
    await a_run_of(pool, await start(api, kind="full"))
    await pool.execute(
        "INSERT INTO run_windows (run_id, user_token_id, bought_from, bought_to, position)"
        " SELECT run_id, user_token_id, now() - interval '366 days', now() + interval '10 minutes',"
        " now() - interval '366 days' FROM sync_history"
    )
    await pool.execute(f"UPDATE run_windows SET {but}")


class TestCovering:
    @given(FRAMES, FRAMES, FRAMES)
    def test_covering_is_an_order(self, one: Any, two: Any, three: Any) -> None:
        assert covers(one, one)
        assert covers({}, one)
        if covers(one, two) and covers(two, three):
            assert covers(one, three)

    @pytest.mark.parametrize(
        ("present", "wanted", "expected"),
        [
            ({"from": "2026-01-01T00:00:00Z"}, {}, False),
            ({"from": "2026-01-01T00:00:00Z"}, {"from": "2026-02-01T00:00:00Z"}, True),
            ({"from": "2026-01-01T00:00:00Z", "to": "2026-03-01T00:00:00Z"}, {"from": "2026-02-01T00:00:00Z"}, False),
            ({"from": "2026-01-01T00:00:00Z"}, {"from": "2026-01-01T01:00:00+02:00"}, False),
            ({"to": "2026-03-01T00:00:00Z"}, {"to": "2026-02-01T00:00:00Z"}, True),
            ({"order_ids": ["a", "b"]}, {"order_ids": ["b"]}, True),
            ({"order_ids": ["a", "b"]}, {"order_ids": ["b", "c"]}, False),
        ],
    )
    def test_examples(self, present: dict[str, Any], wanted: dict[str, Any], expected: bool) -> None:
        assert covers(present, wanted) is expected


class TestTasks:
    async def test_a_listing_joins_one_that_covers_it_and_waits_behind_any_other(self, api: httpx.AsyncClient) -> None:
        await a_connected_seller(api)

        month = await start(api, **{"from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00Z"})
        week = await start(api, **{"from": "2026-01-08T00:00:00Z", "to": "2026-01-15T00:00:00Z"})
        everything = await start(api, kind="full")
        year = await start(api, **{"from": "2026-01-01T00:00:00Z"})

        assert (week["task_id"], week["joined"]) == (month["task_id"], True)
        assert (everything["joined"], everything["task_id"] == month["task_id"]) == (False, False)
        assert (year["task_id"], year["joined"]) == (everything["task_id"], True)

    async def test_of_many_at_the_same_moment_one_starts_and_the_others_join(self, api: httpx.AsyncClient) -> None:
        await a_connected_seller(api)

        tasks = await asyncio.gather(*(start(api, kind="full") for _ in range(20)))

        assert len({task["task_id"] for task in tasks}) == 1
        assert sorted(task["joined"] for task in tasks) == [False] + [True] * 19

    async def test_a_reading_of_the_journal_joins_one_that_has_not_ended_and_covers_it(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await a_connected_seller(api)
        listing = await start(api, **{"from": "2026-01-01T00:00:00Z"})

        week = await start(api, kind="journal", **{"from": "2026-01-08T00:00:00Z"})
        day = await start(api, kind="journal", **{"from": "2026-01-14T00:00:00Z"})
        month = await start(api, kind="journal", **{"from": "2025-12-15T00:00:00Z"})
        await pool.execute("UPDATE task_history SET status = 'running', lease_until = now()")
        again = await start(api, kind="journal", **{"from": "2026-01-14T00:00:00Z"})
        await pool.execute("UPDATE task_history SET lease_until = NULL")
        after_its_end = await start(api, kind="journal", **{"from": "2026-01-14T00:00:00Z"})

        assert not any(task["joined"] for task in (listing, week, month, after_its_end))
        assert (day["task_id"], day["joined"]) == (week["task_id"], True)
        assert (again["task_id"], again["joined"]) == (week["task_id"], True)
        assert after_its_end["task_id"] not in (week["task_id"], month["task_id"])

    async def test_a_listing_that_has_passed_what_is_asked_for_is_not_joined(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        """It would not see what changes where it has been."""
        await a_listing_that_runs(api, pool)
        at_the_beginning = await start(api, kind="full")
        await pool.execute("UPDATE run_windows SET position = '2026-06-01T00:00:00Z'")

        ahead = await start(api, **{"from": "2026-06-01T00:00:00Z"})
        passed = await start(api, **{"from": "2026-05-31T00:00:00Z"})
        everything = await start(api, kind="full")
        again = await start(api, kind="full")

        assert [task["joined"] for task in (at_the_beginning, ahead, passed, everything, again)] == [
            *(True, True),
            *(False, False, True),
        ]
        assert again["task_id"] == everything["task_id"]

    async def test_a_listing_that_waited_so_long_that_its_end_has_passed_is_joined_for_what_lies_before_that(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await a_listing_that_runs(
            api, pool, but="bought_to = '2026-09-01T00:00:00Z', position = '2026-01-01T00:00:00Z'"
        )
        start_of_year = {"from": "2026-01-01T00:00:00Z"}

        before = await start(api, **start_of_year, to="2026-09-01T00:00:00Z")
        beyond = await start(api, **start_of_year, to="2026-09-01T00:00:01Z")
        until_now = await start(api, **start_of_year)
        everything = await start(api, kind="full")

        assert [task["joined"] for task in (before, beyond, until_now, everything)] == [True, False, False, False]

    async def test_a_run_says_how_far_its_walk_has_come_and_only_that(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        """An ended walk stands at the end of its window, minutes ahead; a reading of the journal walks nowhere."""
        await a_listing_that_runs(api, pool, but="position = bought_to")
        await a_run_of(pool, await start(api, kind="journal", **{"from": "2026-01-08T00:00:00Z"}))

        runs = (await api.get("/api/v1/sync/history/shop-1")).json()["items"]

        walked = {run["kind"]: run["walked_to"] for run in runs}
        assert walked["journal"] is None
        assert datetime.now(UTC) - timedelta(minutes=1) < datetime.fromisoformat(walked["full"]) < datetime.now(UTC)

    async def test_orders_join_a_task_that_asks_for_all_of_them(self, api: httpx.AsyncClient) -> None:
        await a_connected_seller(api)

        same = await asyncio.gather(*(start(api, kind="orders", order_ids=["a", "b"]) for _ in range(20)))
        fewer = await start(api, kind="orders", order_ids=["b"])
        more = await start(api, kind="orders", order_ids=["b", "c"])

        assert len({task["task_id"] for task in [*same, fewer]}) == 1
        assert sorted(task["joined"] for task in same) == [False] + [True] * 19
        assert (fewer["joined"], more["joined"]) == (True, False)

    async def test_orders_join_a_run_that_has_looked_at_none_of_them_and_what_was_tried_in_vain_is_tried_now(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await a_connected_seller(api)
        first = await start(api, kind="orders", order_ids=["a", "b", "c"])
        await a_run_of(pool, first)
        await pool.execute(
            "INSERT INTO pending_fetches (user_token_id, allegro_order_id, wanted_after, run_ids, attempts,"
            " next_attempt_at) SELECT user_token_id, o, now(), ARRAY[run_id], 1, now() + interval '6 hours'"
            " FROM sync_history, unnest(ARRAY['b', 'c']) o"
        )

        owed = await start(api, kind="orders", order_ids=["b"])
        looked_at = await start(api, kind="orders", order_ids=["a", "b"])

        assert (owed["task_id"], owed["joined"], looked_at["joined"]) == (first["task_id"], True, False)
        due = await pool.fetch("SELECT allegro_order_id FROM pending_fetches WHERE next_attempt_at <= now()")
        assert [row["allegro_order_id"] for row in due] == ["b"]

    async def test_a_listing_that_is_being_stopped_is_not_joined(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await a_connected_seller(api)
        first = await start(api, kind="full")
        await pool.execute("UPDATE task_history SET status = 'running' WHERE task_id = $1", first["task_id"])

        stopping = await api.post(f"/api/v1/sync/tasks/{first['task_id']}/stop")
        second = await start(api, kind="full")

        assert (stopping.json()["status"], stopping.json()["finished_at"]) == ("stopping", None)
        assert second["task_id"] != first["task_id"]

    async def test_the_row_tells_the_poller_everything(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        await a_connected_seller(api)

        answer = await api.post(
            "/api/v1/sync/manual/shop-1",
            json={"kind": "orders", "order_ids": ["b", "a", "b"]},
            headers={"X-Request-ID": "follow-me"},
        )

        row = await pool.fetchrow("SELECT * FROM task_history WHERE task_id = $1", answer.json()["task_id"])
        assert (row["kind"], row["status"], row["correlation_id"]) == ("orders", "queued", "follow-me")
        assert json.loads(row["parameters"]) == {"order_ids": ["a", "b"]}
        assert row["requested_by"] == "anonymous"

    async def test_the_poller_is_woken(self, api: httpx.AsyncClient, database_url: str) -> None:
        await a_connected_seller(api)
        heard: asyncio.Queue[str] = asyncio.Queue()
        listener = await asyncpg.connect(database_url)
        channels = ["orders_backup_tasks", "orders_backup_devices", "orders_backup_schedules"]
        for channel in channels:
            await listener.add_listener(channel, lambda _connection, _pid, name, _text: heard.put_nowait(name))

        await start(api, kind="full")
        await api.post("/api/v1/tokens/auth/initialize", json={"user_id": "shop-2"})
        await api.post("/api/v1/sync/activate", json={"user_id": "shop-1"})

        async with asyncio.timeout(10):
            assert [await heard.get() for _ in channels] == channels
        await listener.close()

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"from": "2999-01-01T00:00:00Z"}, "from"),
            ({"from": "2026-02-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "to"),
            ({"kind": "journal"}, "from"),
            ({"kind": "orders", "order_ids": []}, "order_ids"),
            ({"kind": "orders", "order_ids": ["a/../b"]}, "order_ids.0"),
            ({"kind": "full", "from": "2026-01-01T00:00:00Z"}, "from"),
        ],
    )
    async def test_a_wrong_field_is_named_as_the_client_wrote_it(
        self, api: httpx.AsyncClient, body: dict[str, Any], field: str
    ) -> None:
        await a_connected_seller(api)

        answer = await api.post("/api/v1/sync/manual/shop-1", json=body)

        assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, [field])

    async def test_lists_of_tasks_page_without_loss(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        token_id = await a_token(pool)
        await pool.execute(
            "INSERT INTO task_history (task_id, user_token_id, user_id, kind, created_at)"
            " SELECT gen_random_uuid(), $1, 'shop-1', 'full', '2026-10-10Z'::timestamptz + n / 3 * interval '1 second'"
            " FROM generate_series(1, 25) n",
            token_id,
        )

        seen: list[str] = []
        url = "/api/v1/sync/tasks?user_id=shop-1&limit=4"
        while url:
            answer = await api.get(url)
            seen += [task["task_id"] for task in answer.json()["items"]]
            url = str(answer.url.join(answer.links["next"]["url"])) if "next" in answer.links else ""

        assert (len(seen), len(set(seen))) == (25, 25)


class TestTokens:
    async def test_a_pair_is_replaced_and_a_given_up_seller_comes_back(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        token_id = await a_connected_seller(api)
        before = await pool.fetchval("SELECT refresh_token FROM user_tokens")
        await api.delete(f"/api/v1/tokens/{token_id}")

        replaced = await api.put(f"/api/v1/tokens/{token_id}", json=PAIR | {"refresh_token": a_secret("refresh-2")})

        assert (replaced.status_code, replaced.json()["status"]) == (200, "active")
        assert "refresh-2" not in replaced.text
        assert await pool.fetchval("SELECT refresh_token FROM user_tokens") not in (None, before)
        assert await pool.fetchval("SELECT status FROM active_sync_schedules") == "active"

    async def test_deactivation_forgets_the_secrets_and_stops_what_runs(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        token_id = await a_connected_seller(api)
        await start(api, kind="full")

        first = await api.delete(f"/api/v1/tokens/{token_id}")
        second = await api.delete(f"/api/v1/tokens/{token_id}")
        refused = await api.post("/api/v1/sync/manual/shop-1", json={"kind": "full"})
        activated = await api.post("/api/v1/sync/activate", json={"user_id": "shop-1"})

        assert (first.json()["status"], second.status_code) == ("deactivated", 200)
        row = await pool.fetchrow("SELECT access_token, refresh_token, key_id FROM user_tokens")
        assert tuple(row) == (None, None, None)
        assert await pool.fetchval("SELECT count(*) FROM task_history WHERE status = 'queued'") == 0
        assert await pool.fetchval("SELECT status FROM active_sync_schedules") == "paused"
        assert {(answer.status_code, slug(answer)) for answer in (refused, activated)} == {(409, "consent-required")}

    async def test_validation_says_what_allegro_says(self, api: httpx.AsyncClient, allegro: Allegro) -> None:
        token_id = await a_connected_seller(api)
        allegro.respond = lambda _request: httpx.Response(200, json={"latestEvent": None})
        good = (await api.post(f"/api/v1/tokens/{token_id}/validate")).json()
        forbidden = {"errors": [{"code": "AccessDenied", "message": "no scope"}]}
        allegro.respond = lambda _request: httpx.Response(403, json=forbidden)
        bad = (await api.post(f"/api/v1/tokens/{token_id}/validate")).json()

        assert (good["valid"], good["reason"]) == (True, None)
        assert good["token"]["validated_at"] is not None
        assert bad["valid"] is False
        assert "no scope" in bad["reason"]

    async def test_a_seller_who_has_withdrawn_consent_is_told_to_consent_again(
        self, api: httpx.AsyncClient, allegro: Allegro
    ) -> None:
        """A refresh brings a pair still, which does not work (#13133)."""
        token_id = await a_connected_seller(api)
        fresh = {"access_token": a_secret("access-2"), "refresh_token": a_secret("refresh-2"), "expires_in": 43199}
        echo = {"error": "invalid_token", "error_description": f"Access token expired: {a_secret('access-2')}"}
        allegro.respond = lambda request: (
            httpx.Response(200, json=fresh) if request.method == "POST" else httpx.Response(401, json=echo)
        )

        told = (await api.post(f"/api/v1/tokens/{token_id}/validate")).json()
        refused = await api.post("/api/v1/sync/manual/shop-1", json={"kind": "full"})
        activated = await api.post("/api/v1/sync/activate", json={"user_id": "shop-1"})
        active = (await api.get("/api/v1/sync/active")).json()["items"]

        assert (told["valid"], told["token"]["status"]) == (False, "reauthorization_required")
        assert told["reason"].startswith(told["token"]["status_reason"])
        assert "withdrawn consent" in told["reason"]
        assert {(answer.status_code, slug(answer)) for answer in (refused, activated)} == {(409, "consent-required")}
        assert active == []

    async def test_a_refresh_brings_a_new_pair_and_shows_none(
        self, api: httpx.AsyncClient, allegro: Allegro, pool: asyncpg.Pool
    ) -> None:
        token_id = await a_connected_seller(api)
        fresh = {
            "access_token": a_secret("access-2"),
            "refresh_token": a_secret("refresh-2"),
            "expires_in": 43199,
            "scope": "a b",
        }
        allegro.respond = lambda _request: httpx.Response(200, json=fresh)

        answer = await api.post(f"/api/v1/tokens/{token_id}/refresh")

        assert (answer.status_code, answer.json()["scopes"]) == (200, ["a", "b"])
        assert "access-2" not in answer.text
        assert "refresh-2" not in answer.text
        assert await pool.fetchval("SELECT generation FROM user_tokens") == 3

    async def test_allegros_limit_is_passed_on_with_its_wait(self, api: httpx.AsyncClient, allegro: Allegro) -> None:
        allegro.respond = lambda _request: httpx.Response(429, headers={"Retry-After": "17"}, json={})

        answer = await api.post("/api/v1/tokens/auth/initialize", json={"user_id": "shop-1"})

        assert (answer.status_code, slug(answer), answer.headers["retry-after"]) == (503, "allegro-limit", "17")

    async def test_a_wrong_client_secret_is_told_as_such(self, api: httpx.AsyncClient, allegro: Allegro) -> None:
        allegro.respond = lambda _request: httpx.Response(401, json={"error": "invalid_client"})

        answer = await api.post("/api/v1/tokens/auth/initialize", json={"user_id": "shop-1"})

        assert (answer.status_code, slug(answer)) == (502, "allegro-refuses")
        assert "ALLEGRO_CLIENT_SECRET" in answer.json()["detail"]

    @pytest.mark.parametrize(
        ("method", "path"), [("GET", ""), ("PUT", ""), ("DELETE", ""), ("POST", "/refresh"), ("POST", "/validate")]
    )
    async def test_an_unknown_token_is_not_found(self, api: httpx.AsyncClient, method: str, path: str) -> None:
        answer = await api.request(method, f"/api/v1/tokens/4711{path}", json=PAIR if method == "PUT" else None)

        assert (answer.status_code, slug(answer)) == (404, "unknown-token")

    async def test_lists_filter_and_page(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        for number in range(5):
            await a_token(pool, user_id=f"shop-{number}")
        await pool.execute("UPDATE user_tokens SET status = 'deactivated' WHERE user_id = 'shop-2'")

        first = await api.get("/api/v1/tokens/?status=active&limit=3")
        second = await api.get(first.url.join(first.links["next"]["url"]))

        users = [token["user_id"] for answer in (first, second) for token in answer.json()["items"]]
        assert users == ["shop-0", "shop-1", "shop-3", "shop-4"]
        assert second.json()["next"] is None


class TestSchedules:
    async def test_a_schedule_pauses_and_goes_on_with_another_interval(self, api: httpx.AsyncClient) -> None:
        await a_connected_seller(api)

        paused = (await api.post("/api/v1/sync/deactivate", json={"user_id": "shop-1"})).json()
        nobody = (await api.get("/api/v1/sync/active")).json()["items"]
        active = (await api.post("/api/v1/sync/activate", json={"user_id": "shop-1", "interval_seconds": 60})).json()
        again = (await api.get("/api/v1/sync/active")).json()["items"]

        assert (paused["status"], nobody) == ("paused", [])
        assert (active["status"], active["interval_seconds"]) == ("active", 60)
        assert again == [active]
        assert datetime.fromisoformat(active["next_run"]) <= datetime.now(UTC)

    async def test_lag_is_as_old_as_what_we_have_not_looked_at(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await a_connected_seller(api)
        before = (await api.get("/api/v1/sync/status/shop-1")).json()
        await pool.execute("UPDATE active_sync_schedules SET last_success = now() - interval '10 seconds'")
        looked = (await api.get("/api/v1/sync/status/shop-1")).json()
        await pool.execute(
            "INSERT INTO pending_fetches (user_token_id, allegro_order_id, wanted_after, next_attempt_at)"
            " SELECT id, 'a', now() - interval '1 hour', now() FROM user_tokens"
        )
        owed = (await api.get("/api/v1/sync/status/shop-1")).json()

        assert before["lag_seconds"] is None
        assert 10 <= looked["lag_seconds"] < 600
        assert 3600 <= owed["lag_seconds"] < 4200
        assert owed["pending_orders"] == 1
