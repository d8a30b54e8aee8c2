"""Redelivery, full listings, refreshes, housekeeping: shared by replicas, never stacked, never too early."""

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from services.poller.full_runs import FullRuns
from services.poller.housekeeping import Housekeeper
from services.poller.publish import Publisher
from services.poller.redelivery import Redelivery
from services.poller.refresh import TokenRefresher
from services.poller.slots import Slots
from services.poller.wakeups import listen
from shared.allegro.errors import AllegroUnavailableError
from shared.kafka import PublishFailedError
from shared.topics import Topics
from tests.builders import a_run, a_token
from tests.poller.conftest import SETTINGS, Kafka, a_schedule, a_task

pytestmark = pytest.mark.integration


@pytest.fixture
def redelivery(pool: asyncpg.Pool, kafka: Kafka) -> Redelivery:
    return Redelivery(pool, Publisher(kafka, Topics()), SETTINGS)  # type: ignore[arg-type]


async def owe(
    pool: asyncpg.Pool, token_id: int, orders: int = 1, *, waited: timedelta = timedelta(0), attempts: int = 3
) -> None:
    await pool.execute(
        "INSERT INTO pending_fetches (user_token_id, allegro_order_id, wanted_after, attempts, next_attempt_at,"
        "  created_at)"
        " SELECT $1, 'o-' || n, now(), $4, now(), now() - $3::interval FROM generate_series(1, $2::int) AS n",
        token_id,
        orders,
        waited,
        attempts,
    )


async def test_what_is_owed_is_sent_out_once_by_all_replicas_together(
    pool: asyncpg.Pool, redelivery: Redelivery, kafka: Kafka
) -> None:
    await owe(pool, await a_token(pool), 2500, attempts=0)

    while any(await asyncio.gather(*(redelivery.turn() for _ in range(3)))):
        pass

    sent = [record.order_id for record in kafka.on("order-events")]
    assert len(sent) == len(set(sent)) == 2500
    assert {record.attempts for record in kafka.on("order-events")} == {0}
    assert await pool.fetchval("SELECT min(attempts) = 0 AND max(attempts) = 0 FROM pending_fetches")


async def test_looks_that_failed_before_are_sent_out_as_fast_as_allegro_answers_one_seller(
    pool: asyncpg.Pool, redelivery: Redelivery, kafka: Kafka
) -> None:
    first, second = await a_token(pool), await a_token(pool, user_id="shop-2")
    await owe(pool, first, 170)
    await owe(pool, second, 10)
    before = await pool.fetchval("SELECT now()")

    await redelivery.turn()

    after = await pool.fetchval("SELECT now()")
    sent = [(record.token_id, record.attempts) for record in kafka.on("order-events")]
    assert sorted(sent) == [(first, 3)] * 50 + [(second, 3)] * 10
    waiting = await pool.fetch(
        "SELECT next_attempt_at, count(*) FROM pending_fetches"
        " WHERE next_attempt_at < $1::timestamptz + interval '20 seconds' GROUP BY 1 ORDER BY 1",
        before,
    )
    at_once = waiting[0]["next_attempt_at"] - timedelta(seconds=3)
    assert before <= at_once <= after
    assert [((at - at_once).total_seconds(), count) for at, count in waiting] == [(3, 50), (6, 50), (9, 20)]


@pytest.mark.parametrize(
    ("waited", "least", "most"),
    [
        (timedelta(0), timedelta(minutes=1), timedelta(minutes=3)),
        (timedelta(hours=1), timedelta(minutes=50), timedelta(minutes=70)),
        (timedelta(days=9), timedelta(hours=5), timedelta(hours=7)),
    ],
)
async def test_the_longer_an_order_is_owed_the_less_often_it_is_sent_out(
    pool: asyncpg.Pool, redelivery: Redelivery, waited: timedelta, least: timedelta, most: timedelta
) -> None:
    await owe(pool, await a_token(pool), waited=waited)

    await redelivery.turn()

    assert least < await pool.fetchval("SELECT next_attempt_at - now() FROM pending_fetches") < most


async def test_what_kafka_did_not_take_stays_due(pool: asyncpg.Pool, redelivery: Redelivery, kafka: Kafka) -> None:
    await owe(pool, await a_token(pool), 3, waited=timedelta(hours=1))
    kafka.error = PublishFailedError("away")
    with pytest.raises(PublishFailedError):
        await redelivery.turn()
    kafka.error = None

    await redelivery.turn()

    assert len(kafka.on("order-events")) == 3


async def test_nothing_is_sent_out_for_a_token_that_cannot_call(
    pool: asyncpg.Pool, redelivery: Redelivery, kafka: Kafka
) -> None:
    token_id = await a_token(pool)
    await owe(pool, token_id)
    await a_run(pool, token_id=token_id)
    await pool.execute("UPDATE run_windows SET published_at = '2020-01-01', progress_at = '2020-01-01'")
    await pool.execute("UPDATE user_tokens SET status = 'reauthorization_required'")

    await redelivery.turn()

    assert kafka.records == []


async def test_a_walk_that_moves_is_left_alone(pool: asyncpg.Pool, redelivery: Redelivery, kafka: Kafka) -> None:
    await a_run(pool, token_id=await a_token(pool))
    await pool.execute("UPDATE run_windows SET published_at = now() - interval '1 hour', progress_at = now()")

    await redelivery.turn()

    assert kafka.records == []


@pytest.mark.parametrize(
    ("without_progress", "since_sent_out", "is_sent"),
    [
        (25, 25, False),
        (31, 31, True),
        (90, 31, False),
        (90, 40, False),
        (90, 46, True),
        (1000, 470, False),
        (1000, 481, True),
        (9000, 470, False),
        (9000, 481, True),
    ],
)
async def test_a_walk_whose_orders_wait_for_a_busy_writer_is_sent_out_less_and_less_often(
    pool: asyncpg.Pool,
    redelivery: Redelivery,
    kafka: Kafka,
    without_progress: int,
    since_sent_out: int,
    is_sent: bool,
) -> None:
    await a_run(pool, token_id=await a_token(pool))
    await pool.execute(
        "UPDATE run_windows SET progress_at = now() - make_interval(secs => $1),"
        "  published_at = now() - make_interval(secs => $2)",
        without_progress,
        since_sent_out,
    )

    await redelivery.turn()
    await redelivery.turn()

    assert len(kafka.on("order-windows")) == int(is_sent)


async def test_complete_listings_are_queued_once_however_many_times_were_missed(pool: asyncpg.Pool) -> None:
    for number in range(3):
        await a_schedule(pool, await a_token(pool, user_id=f"shop-{number}"))
    await pool.execute("UPDATE active_sync_schedules SET next_full_run = now() - interval '3 days'")
    replicas = [FullRuns(pool, SETTINGS) for _ in range(4)]

    await asyncio.gather(*(replica.turn() for replica in replicas))
    await pool.execute("UPDATE active_sync_schedules SET next_full_run = now() - interval '3 days'")
    await asyncio.gather(*(replica.turn() for replica in replicas))

    tasks = await pool.fetch("SELECT user_token_id, kind, status FROM task_history ORDER BY user_token_id")
    assert [(task["kind"], task["status"]) for task in tasks] == [("reconcile", "queued")] * 3
    assert len({task["user_token_id"] for task in tasks}) == 3
    least, most = await pool.fetchrow(
        "SELECT min(next_full_run - now()), max(next_full_run - now()) FROM active_sync_schedules"
    )
    assert timedelta(minutes=59) < least <= most < timedelta(minutes=67)


async def test_no_complete_listing_is_queued_while_the_schedule_is_paused_and_one_afterwards(
    pool: asyncpg.Pool,
) -> None:
    await a_schedule(pool, await a_token(pool))
    await pool.execute("UPDATE active_sync_schedules SET status = 'paused', next_full_run = now() - interval '3 days'")
    full_runs = FullRuns(pool, SETTINGS)

    await full_runs.turn()
    while_paused = await pool.fetchval("SELECT count(*) FROM task_history")
    await pool.execute("UPDATE active_sync_schedules SET status = 'active'")
    await full_runs.turn()

    assert (while_paused, await pool.fetchval("SELECT count(*) FROM task_history")) == (0, 1)


async def test_a_first_load_that_failed_is_made_again_soon_and_later_each_time(pool: asyncpg.Pool) -> None:
    """The journal asks for no look at the orders that it was to bring."""
    token_id = await a_token(pool)
    await a_schedule(pool, token_id)
    full_runs = FullRuns(pool, SETTINGS)
    waits = []
    for ended in ("failed", "stalled", "failed"):
        await a_task(pool, token_id, "initial")
        await pool.execute(
            "UPDATE task_history SET status = $1, finished_at = now() WHERE kind = 'initial' AND status = 'queued'",
            ended,
        )
        await pool.execute("UPDATE active_sync_schedules SET next_full_run = now() + interval '6 hours'")
        await full_runs.turn()
        waits.append(
            await pool.fetchval("SELECT round(extract(epoch FROM next_full_run - now())) FROM active_sync_schedules")
        )
    await pool.execute("UPDATE task_history SET finished_at = finished_at - interval '1 day'")

    await full_runs.turn()
    await full_runs.turn()

    assert [wait // 290 for wait in waits] == [1, 2, 4]
    assert await pool.fetchval("SELECT count(*) FROM task_history WHERE kind = 'initial' AND status = 'queued'") == 1
    assert await pool.fetchval("SELECT next_full_run > now() + interval '50 minutes' FROM active_sync_schedules")


async def test_a_first_load_that_went_through_is_not_made_again_for_a_look_that_failed(pool: asyncpg.Pool) -> None:
    """The order is owed its look, which is repeated without another listing of all."""
    token_id = await a_token(pool)
    await a_schedule(pool, token_id)
    await a_run(pool, token_id=token_id, kind="initial")
    await pool.execute("UPDATE task_history SET status = 'stalled', finished_at = now()")
    await pool.execute("UPDATE run_windows SET finished = true, position = bought_to")
    before = await pool.fetchval("SELECT next_full_run FROM active_sync_schedules")
    full_runs = FullRuns(pool, SETTINGS)

    await full_runs.turn()
    after_it = await pool.fetchval("SELECT next_full_run FROM active_sync_schedules")
    await pool.execute("UPDATE active_sync_schedules SET next_full_run = now()")
    await full_runs.turn()

    assert after_it == before
    assert await pool.fetchval("SELECT array_agg(kind) FROM task_history WHERE status = 'queued'") == ["reconcile"]


async def test_a_first_load_that_succeeded_later_is_not_made_again(pool: asyncpg.Pool) -> None:
    token_id = await a_token(pool)
    await a_schedule(pool, token_id)
    for ended in ("failed", "completed"):
        await a_task(pool, token_id, "initial")
        await pool.execute("UPDATE task_history SET status = $1, finished_at = now() WHERE status = 'queued'", ended)
    before = await pool.fetchval("SELECT next_full_run FROM active_sync_schedules")

    await FullRuns(pool, SETTINGS).turn()

    assert await pool.fetchval("SELECT next_full_run FROM active_sync_schedules") == before


class Vault:
    """Due tokens, each refreshed once; number 13 fails, number 99 is slow."""

    def __init__(self) -> None:
        self.due = [1, 13, 99]
        self.refreshed: list[int] = []
        self.slow = asyncio.Event()

    async def due_tokens(self, limit: int) -> list[int]:
        return self.due[:limit]

    async def refresh(self, token_id: int) -> int:
        self.refreshed.append(token_id)
        if token_id == 13:
            raise AllegroUnavailableError("503")
        if token_id == 99:
            await self.slow.wait()
        self.due.remove(token_id)
        return 2


async def test_due_tokens_are_refreshed_and_a_slow_one_delays_nobody() -> None:
    vault = Vault()
    slots = Slots("refresh", 2)
    refresher = TokenRefresher(vault, slots)  # type: ignore[arg-type]
    async with slots:
        for _ in range(4):
            await refresher.turn()
            await asyncio.sleep(0)
        in_hand_once = vault.refreshed.count(99)
        vault.slow.set()
        await slots.idle()

    assert 1 in vault.refreshed
    assert vault.refreshed.count(13) >= 2
    assert in_hand_once == 1


async def test_what_has_aged_is_removed_and_orders_never(pool: asyncpg.Pool) -> None:
    token_id = await a_token(pool)
    await a_run(pool, token_id=token_id)
    await a_task(pool, token_id, "full")
    await pool.execute(
        "UPDATE sync_history SET started_at = now() - interval '91 days', status = 'completed', completed_at = now()"
    )
    await pool.execute("UPDATE task_history SET created_at = now() - interval '91 days'")
    await pool.execute("UPDATE task_history SET status = 'completed' WHERE status = 'running'")
    await pool.execute(
        "INSERT INTO order_events (user_token_id, event_id, event_type, event_data, stored_at)"
        " VALUES ($1, 1, 'BOUGHT', '{}', now() - interval '731 days'), ($1, 2, 'BOUGHT', '{}', now())",
        token_id,
    )
    await pool.execute(
        "INSERT INTO orders (user_token_id, allegro_order_id, status, order_data, observed_at, observed_by, created_at)"
        " VALUES ($1, 'o', 'CANCELLED', '{}', '2001-01-01', 'detail', '2001-01-01')",
        token_id,
    )

    await Housekeeper(pool, SETTINGS).turn()

    assert await pool.fetchval("SELECT count(*) FROM sync_history") == 0
    assert await pool.fetchval("SELECT count(*) FROM run_windows") == 0
    assert await pool.fetchval("SELECT status FROM task_history") == "queued"
    assert await pool.fetchval("SELECT event_id FROM order_events") == 2
    assert await pool.fetchval("SELECT count(*) FROM orders") == 1


async def test_a_run_that_goes_on_is_kept_however_old_it_is(pool: asyncpg.Pool) -> None:
    await a_run(pool, token_id=await a_token(pool))
    await pool.execute("UPDATE sync_history SET started_at = now() - interval '91 days'")

    await Housekeeper(pool, SETTINGS).turn()

    assert await pool.fetchval("SELECT count(*) FROM sync_history") == 1


async def test_that_an_order_was_missing_is_remembered_as_long_as_runs_are(pool: asyncpg.Pool) -> None:
    token_id = await a_token(pool)
    for age in (89, 91):
        await pool.execute(
            "INSERT INTO missing_orders VALUES ($1, $2, now() - $3 * interval '1 day', '404')", token_id, str(age), age
        )

    await Housekeeper(pool, SETTINGS).turn()

    assert await pool.fetchval("SELECT string_agg(allegro_order_id, ',') FROM missing_orders") == "89"


async def test_the_audit_log_and_stored_answers_are_kept_for_their_time(pool: asyncpg.Pool) -> None:
    for age in (364, 366):
        await pool.execute(
            "INSERT INTO audit_log (called_at, caller, method, route, parameters)"
            " VALUES (now() - $1 * interval '1 day', $2, 'POST', '/', '{}')",
            age,
            str(age),
        )
    for hours in (47, 49):
        await pool.execute(
            "INSERT INTO idempotent_requests (caller, idempotency_key, request_digest, created_at)"
            " VALUES ('ops', $2, '', now() - $1 * interval '1 hour')",
            hours,
            str(hours),
        )

    await Housekeeper(pool, SETTINGS).turn()

    assert await pool.fetchval("SELECT string_agg(caller, ',') FROM audit_log") == "364"
    assert await pool.fetchval("SELECT string_agg(idempotency_key, ',') FROM idempotent_requests") == "47"


async def test_orders_that_nobody_has_counted_are_counted_once(pool: asyncpg.Pool) -> None:
    for number in range(3):
        token_id = await a_token(pool, user_id=f"shop-{number}")
        await pool.execute(
            "INSERT INTO orders (user_token_id, allegro_order_id, status, order_data, observed_at, observed_by)"
            " SELECT $1, 'o-' || n, 'BOUGHT', '{}', now(), 'list' FROM generate_series(1, $2::int) AS n",
            token_id,
            number,
        )
    await pool.execute("UPDATE journal_cursors SET orders_stored = CASE user_token_id WHEN 3 THEN 7 END")
    housekeeper = Housekeeper(pool, SETTINGS)

    while await housekeeper.turn():
        pass

    counts = await pool.fetch("SELECT orders_stored FROM journal_cursors ORDER BY user_token_id")
    assert [row["orders_stored"] for row in counts] == [0, 1, 7]


async def test_a_notification_wakes_the_loop_that_listens(pool: asyncpg.Pool, database_url: str) -> None:
    wakes = {"orders_backup_tasks": asyncio.Event()}
    listening = asyncio.Event()
    task: asyncio.Task[Any] = asyncio.create_task(listen(database_url, wakes, listening.set))
    await listening.wait()
    wakes["orders_backup_tasks"].clear()

    await pool.execute("SELECT pg_notify('orders_backup_tasks', '')")

    async with asyncio.timeout(10):
        await wakes["orders_backup_tasks"].wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_listener_fails_when_its_connection_is_cut_so_that_it_is_started_again(
    pool: asyncpg.Pool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.poller.wakeups._CHECK_SECONDS", 0.05)
    listening = asyncio.Event()
    task: asyncio.Task[Any] = asyncio.create_task(listen(database_url, {}, listening.set))
    await listening.wait()

    await pool.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name NOT LIKE 'orders-backup%' AND pid <> pg_backend_pid()"
    )

    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await asyncio.wait_for(task, 10)
