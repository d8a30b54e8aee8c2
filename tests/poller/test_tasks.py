"""Tasks become runs: written down before they are sent out, one listing of a token at a time, stopped in any state."""

import asyncio
import itertools
import time
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from services.poller.journal import JournalPoller
from services.poller.leases import Leases
from services.poller.positions import journal_pace
from services.poller.publish import Publisher
from services.poller.reading import PageReader
from services.poller.redelivery import Redelivery
from services.poller.slots import Slots
from services.poller.tasks import TaskPlanner
from services.writer.batch import collect
from services.writer.store import Store
from shared.allegro.errors import AccessDeniedError, AllegroUnavailableError
from shared.clock import DatabaseClock, from_event_id, to_event_id
from shared.kafka import PublishFailedError
from shared.messages import OrderFetch, OrderWindow, WindowPlace
from shared.topics import Topics
from tests.builders import a_token, an_event, an_observation, consumed
from tests.poller.conftest import SETTINGS, Kafka, Shop, a_schedule, a_task
from tests.poller.test_journal import a_line

pytestmark = pytest.mark.integration


class Replica:
    """One process's task planner; `turn` waits for what it began."""

    def __init__(self, pool: asyncpg.Pool, shop: Shop, kafka: Kafka, clock: DatabaseClock, owner: str = "one") -> None:
        self.leases = Leases(pool, seconds=60)
        self.leases.owner = owner
        self.clock = clock
        self.slots = Slots("tasks", 8)
        self.readings = Slots("readings", 2)
        self._pool = pool
        self._shop = shop
        self._kafka = kafka
        self.planner = self.a_planner()

    def a_planner(self, **changes: Any) -> TaskPlanner:
        publisher = Publisher(self._kafka, Topics())  # type: ignore[arg-type]
        return TaskPlanner(
            self._pool,
            self._shop,  # type: ignore[arg-type]
            PageReader(self._pool, self._shop, publisher, tracked_event_types=()),  # type: ignore[arg-type]
            publisher,
            self.clock,
            self.leases,
            self.slots,
            self.readings,
            SETTINGS.model_copy(update=changes),
        )

    async def turn(self) -> None:
        await self.planner.turn()
        await self.slots.idle()
        await self.readings.idle()


@pytest.fixture
def replica(pool: asyncpg.Pool, shop: Shop, kafka: Kafka, clock: DatabaseClock) -> Replica:
    return Replica(pool, shop, kafka, clock)


async def task(pool: asyncpg.Pool, task_id: Any) -> asyncpg.Record:
    return await pool.fetchrow("SELECT * FROM task_history WHERE task_id = $1", task_id)


async def test_a_listing_is_written_down_and_sent_out(
    pool: asyncpg.Pool, replica: Replica, kafka: Kafka, clock: DatabaseClock
) -> None:
    token_id = await a_token(pool)
    task_id = await a_task(pool, token_id, "full")

    await replica.turn()

    run = await pool.fetchrow("SELECT * FROM sync_history")
    window = await pool.fetchrow("SELECT * FROM run_windows")
    assert (await task(pool, task_id))["status"] == "running"
    assert (run["task_id"], run["kind"], run["status"]) == (task_id, "full", "running")
    assert window["position"] == window["bought_from"] == run["window_from"]
    assert clock.now() - window["bought_from"] > timedelta(days=365)
    assert window["bought_to"] > clock.now()
    assert kafka.on("order-windows") == [
        OrderWindow(token_id=token_id, run_id=run["run_id"], bought_from=run["window_from"], bought_to=run["window_to"])
    ]


async def test_what_a_manual_task_asks_for_is_its_window(pool: asyncpg.Pool, replica: Replica, kafka: Kafka) -> None:
    asked = {"from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00Z"}
    await a_task(pool, await a_token(pool), "manual", **asked)

    await replica.turn()

    record = kafka.on("order-windows")[0]
    assert [record.bought_from.isoformat()[:10], record.bought_to.isoformat()[:10]] == ["2026-01-01", "2026-02-01"]


async def test_an_initial_load_notes_first_which_events_it_covers(
    pool: asyncpg.Pool, replica: Replica, shop: Shop, clock: DatabaseClock
) -> None:
    await a_task(pool, await a_token(pool), "initial")
    shop.latest = to_event_id(clock.now() - timedelta(hours=1))

    await replica.turn()

    assert await pool.fetchval("SELECT covered_event_id FROM journal_cursors") == shop.latest - 60_000_000
    assert await pool.fetchval("SELECT requests FROM sync_history") == 1
    assert await pool.fetchval("SELECT stored_event_id FROM journal_cursors") == 0


async def test_an_unknown_end_of_the_journal_is_dated_by_allegros_clock_which_may_differ_from_ours(
    pool: asyncpg.Pool, replica: Replica, shop: Shop, clock: DatabaseClock
) -> None:
    """Else events that Allegro numbers from now on would count as covered by a load that began before them."""
    shop.clock_ahead = -timedelta(minutes=10)
    await a_task(pool, await a_token(pool), "initial")

    await replica.turn()

    covered = from_event_id(await pool.fetchval("SELECT covered_event_id FROM journal_cursors"))
    assert timedelta(minutes=10, seconds=59) < clock.now() - covered < timedelta(minutes=12)


async def test_one_listing_of_a_token_runs_at_a_time_whoever_claims(
    pool: asyncpg.Pool, shop: Shop, kafka: Kafka, clock: DatabaseClock
) -> None:
    token_id = await a_token(pool)
    for kind in ("full", "manual", "reconcile"):
        await a_task(pool, token_id, kind, **{"from": "2026-01-01T00:00:00Z"})
    replicas = [Replica(pool, shop, kafka, clock, f"replica-{number}") for number in range(4)]

    await asyncio.gather(*(replica.turn() for replica in replicas))
    await asyncio.gather(*(replica.turn() for replica in replicas))
    running = await pool.fetch("SELECT kind FROM sync_history WHERE status = 'running'")
    await pool.execute("UPDATE sync_history SET status = 'completed', completed_at = now()")
    await pool.execute("UPDATE task_history SET status = 'completed' WHERE status = 'running'")
    await asyncio.gather(*(replica.turn() for replica in replicas))

    assert [run["kind"] for run in running] == ["full"]
    assert await pool.fetchval("SELECT kind FROM sync_history WHERE status = 'running'") == "manual"
    assert len(kafka.on("order-windows")) == 2


async def test_a_window_that_kafka_did_not_take_is_sent_out_again(
    pool: asyncpg.Pool, replica: Replica, kafka: Kafka
) -> None:
    await a_task(pool, await a_token(pool), "full")
    kafka.error = PublishFailedError("away")
    await replica.turn()
    kafka.error = None
    redelivery = Redelivery(pool, Publisher(kafka, Topics()), SETTINGS)  # type: ignore[arg-type]
    await redelivery.turn()
    too_early = len(kafka.records)
    await pool.execute(
        "UPDATE run_windows SET published_at = now() - interval '31 s', progress_at = now() - interval '31 s'"
    )

    await redelivery.turn()
    await redelivery.turn()

    assert (too_early, len(kafka.on("order-windows"))) == (0, 1)
    assert await pool.fetchval("SELECT status FROM task_history") == "running"


async def test_what_cannot_be_done_fails_with_its_reason_and_holds_up_no_other_task(
    pool: asyncpg.Pool, replica: Replica, kafka: Kafka
) -> None:
    token_id = await a_token(pool)
    unusable = await a_task(pool, token_id, "manual", **{"from": "yesterday"})
    empty = await a_task(pool, token_id, "orders")
    backwards = await a_task(
        pool,
        await a_token(pool, user_id="shop-2"),
        "manual",
        **{"from": "2026-02-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"},
    )
    good = await a_task(pool, await a_token(pool, user_id="shop-3"), "full")

    await replica.turn()

    for task_id, word in ((unusable, "from"), (empty, "order_ids"), (backwards, "to")):
        ended = await task(pool, task_id)
        assert (ended["status"], ended["finished_at"] is not None) == ("failed", True)
        assert word in ended["error"]
    assert (await task(pool, good))["status"] == "running"


@pytest.mark.parametrize(
    ("error", "status"), [(AllegroUnavailableError("503"), "queued"), (AccessDeniedError("403: scope"), "failed")]
)
async def test_a_task_waits_for_allegro_but_not_for_a_missing_scope(
    pool: asyncpg.Pool, replica: Replica, shop: Shop, error: Exception, status: str
) -> None:
    task_id = await a_task(pool, await a_token(pool), "initial")
    shop.error = error

    await replica.turn()

    waiting = await task(pool, task_id)
    assert (waiting["status"], waiting["error"]) == (status, str(error))


async def test_orders_asked_for_are_owed_until_they_were_looked_at(
    pool: asyncpg.Pool, replica: Replica, kafka: Kafka, clock: DatabaseClock
) -> None:
    token_id = await a_token(pool)
    task_id = await a_task(pool, token_id, "orders", order_ids=["a", "b", "a"])
    await replica.turn()
    await Redelivery(pool, Publisher(kafka, Topics()), SETTINGS).turn()  # type: ignore[arg-type]
    asked = kafka.on("order-events")

    for order_id in ("a", "b"):
        seen = an_observation(clock.now(), order_id=order_id, token_id=token_id)
        await Store(pool).apply(collect([consumed(seen)], dead_letter_topic="dead"))

    run = await pool.fetchrow("SELECT * FROM sync_history")
    assert sorted(record.order_id for record in asked) == ["a", "b"]
    assert (run["status"], run["orders_expected"], run["orders_processed"], run["orders_added"]) == (
        "completed",
        2,
        2,
        2,
    )
    assert (await task(pool, task_id))["status"] == "completed"


async def test_reading_a_journal_again_stores_what_was_missing_and_never_moves_the_cursor_back(
    pool: asyncpg.Pool, replica: Replica, shop: Shop, kafka: Kafka, clock: DatabaseClock
) -> None:
    token_id = await a_token(pool)
    base = to_event_id(clock.now() - timedelta(hours=1))
    shop.lines = [a_line(base + number, order_id=f"o-{number}") for number in range(1, 2501)]
    store = Store(pool)
    await pool.execute("UPDATE journal_cursors SET stored_event_id = $1", base + 2500)
    await pool.execute(
        "INSERT INTO order_events (user_token_id, event_id, event_type, event_data)"
        " SELECT $1, $2::bigint + n, 'BOUGHT', '{}' FROM generate_series(1, 2500) AS n WHERE n NOT IN (7, 1500)",
        token_id,
        base,
    )
    moment = (clock.now() - timedelta(hours=2)).isoformat()
    task_id = await a_task(pool, token_id, "journal", **{"from": moment})

    await replica.turn()
    published = kafka.on("order-events")
    running = (await task(pool, task_id))["status"]
    for number in (7, 1500):
        seen = an_observation(clock.now(), order_id=f"o-{number}", token_id=token_id)
        await store.apply(collect([consumed(seen)], dead_letter_topic="dead"))

    run = await pool.fetchrow("SELECT * FROM sync_history")
    assert [record.event_id - base for record in published] == [7, 1500]
    assert await pool.fetchval("SELECT count(*) FROM order_events") == 2500
    assert await pool.fetchval("SELECT stored_event_id FROM journal_cursors") == base + 2500
    assert running == "running"
    assert (run["status"], run["events_stored"], run["orders_processed"]) == ("completed", 2, 2)
    assert run["requests"] == 3  # pages of the journal
    assert (await task(pool, task_id))["status"] == "completed"


async def test_a_page_counts_as_read_when_its_events_are_stored(
    pool: asyncpg.Pool, replica: Replica, shop: Shop, kafka: Kafka, clock: DatabaseClock
) -> None:
    """The cursor is past them, so nobody else would notice that Kafka lost them."""
    token_id = await a_token(pool)
    base = to_event_id(clock.now() - timedelta(hours=1))
    shop.lines = [a_line(base + number, order_id=f"o-{number}") for number in range(1, 1501)]
    await pool.execute("UPDATE journal_cursors SET stored_event_id = $1", base + 1500)
    task_id = await a_task(pool, token_id, "journal", **{"from": (clock.now() - timedelta(hours=2)).isoformat()})
    kafka.losing = 3
    replica.planner = replica.a_planner(poller_redelivery_seconds=0.01)

    await replica.turn()

    assert await pool.fetchval("SELECT count(*) FROM order_events") == 1500
    assert [len(kafka.on("order-events")), kafka.losing] == [4500, 0]
    assert (await task(pool, task_id))["lease_until"] is None


async def test_a_reading_that_is_stopped_does_not_wait_for_the_writer(
    pool: asyncpg.Pool, replica: Replica, shop: Shop, kafka: Kafka, clock: DatabaseClock
) -> None:
    task_id = await a_task(
        pool, await a_token(pool), "journal", **{"from": (clock.now() - timedelta(hours=1)).isoformat()}
    )
    shop.lines = [a_line(to_event_id(clock.now()))]
    kafka.losing = 1_000
    await replica.planner.turn()
    async with asyncio.timeout(30):
        while not kafka.records:  # noqa: ASYNC110 - another task's work
            await asyncio.sleep(0)

    await pool.execute("UPDATE task_history SET status = 'stopping', stop_requested_at = now()")
    await replica.turn()

    assert (await task(pool, task_id))["status"] == "stopped"
    assert await pool.fetchval("SELECT status FROM sync_history") == "stopped"


async def test_a_reading_that_is_stopped_while_it_waits_for_a_page_publishes_nothing_of_it(
    pool: asyncpg.Pool, replica: Replica, shop: Shop, kafka: Kafka, clock: DatabaseClock
) -> None:
    await a_task(pool, await a_token(pool), "journal", **{"from": (clock.now() - timedelta(hours=1)).isoformat()})
    shop.lines = [a_line(to_event_id(clock.now()))]

    async def stop(_token_id: int) -> None:
        await pool.execute("UPDATE task_history SET status = 'stopping', stop_requested_at = now()")

    shop.on_read = stop
    for _ in range(2):
        await replica.turn()

    assert kafka.records == []
    assert await pool.fetchval("SELECT status FROM sync_history") == "stopped"


async def test_a_reading_whose_reader_died_is_begun_again_in_the_same_run(
    pool: asyncpg.Pool, replica: Replica, shop: Shop, kafka: Kafka, clock: DatabaseClock
) -> None:
    token_id = await a_token(pool)
    task_id = await a_task(pool, token_id, "journal", **{"from": (clock.now() - timedelta(hours=1)).isoformat()})
    shop.error = AllegroUnavailableError("503")
    await replica.turn()
    shop.error = None
    shop.lines = [a_line(to_event_id(clock.now()))]
    await pool.execute("UPDATE task_history SET lease_until = now() - interval '1 second'")

    await Replica(pool, shop, kafka, clock, "another").turn()

    assert await pool.fetchval("SELECT count(*) FROM sync_history") == 1
    assert len(kafka.on("order-events")) == 1
    assert (await task(pool, task_id))["lease_until"] is None


async def test_one_reading_of_a_journal_goes_on_at_a_time_whoever_claims(
    pool: asyncpg.Pool, shop: Shop, kafka: Kafka, clock: DatabaseClock
) -> None:
    token_id, other_id = await a_token(pool), await a_token(pool, user_id="shop-2")
    for day in (3, 2, 1):
        await a_task(pool, token_id, "journal", **{"from": (clock.now() - timedelta(days=day)).isoformat()})
    await a_task(pool, other_id, "journal", **{"from": (clock.now() - timedelta(days=1)).isoformat()})
    replicas = [Replica(pool, shop, kafka, clock, f"replica-{number}") for number in range(4)]
    going_on: list[int] = []
    together: set[tuple[int, ...]] = set()

    async def look(asked_id: int) -> None:
        going_on.append(asked_id)
        together.add(tuple(sorted(going_on)))
        await asyncio.gather(*(replica.planner.turn() for replica in replicas))
        going_on.remove(asked_id)

    shop.on_read = look
    for _ in range(3):
        await asyncio.gather(*(replica.turn() for replica in replicas))

    assert together <= {(token_id,), (other_id,), (token_id, other_id)}
    tasks = await pool.fetch("SELECT status, lease_until FROM task_history")
    assert [tuple(row) for row in tasks] == [("running", None)] * 4  # all read; the writer ends them


async def test_a_reading_that_was_claimed_beside_an_earlier_one_waits(
    pool: asyncpg.Pool, replica: Replica, shop: Shop, kafka: Kafka, clock: DatabaseClock
) -> None:
    """A request that began earlier may be committed later: the claim alone does not see the other one."""
    moment = {"from": (clock.now() - timedelta(days=1)).isoformat()}
    token_id = await a_token(pool)
    first_id = await a_task(pool, token_id, "journal", **moment)
    first = await replica.planner.claim(1)
    late_id = await a_task(pool, token_id, "journal", **moment)
    await pool.execute("UPDATE task_history SET created_at = now() - interval '1 hour' WHERE task_id = $1", late_id)
    late = await replica.planner.claim(1)

    async def plan_the_late_one(_token_id: int) -> None:
        shop.on_read = None
        await replica.planner.plan(late[0])

    shop.on_read = plan_the_late_one
    await replica.planner.plan(first[0])

    assert (await task(pool, first_id))["status"] == "running"
    waiting = await task(pool, late_id)
    assert (waiting["status"], waiting["error"]) == ("queued", "another reading of this journal is running")


async def owed_to_runs(pool: asyncpg.Pool) -> list[tuple[str, int]]:
    """The orders that are owed a look, and how many runs want it."""
    rows = await pool.fetch(
        "SELECT allegro_order_id, cardinality(run_ids) FROM pending_fetches ORDER BY allegro_order_id"
    )
    return [tuple(row) for row in rows]


async def look_at(pool: asyncpg.Pool, replica: Replica, token_id: int, *order_ids: str) -> None:
    """The writer stores looks at these orders."""
    seen = [an_observation(replica.clock.now(), order_id=order_id, token_id=token_id) for order_id in order_ids]
    await Store(pool).apply(collect([consumed(look) for look in seen], dead_letter_topic="dead"))


async def test_an_order_that_an_event_and_a_run_want_is_owed_once(
    pool: asyncpg.Pool, replica: Replica, kafka: Kafka
) -> None:
    token_id = await a_token(pool)
    await kafka.publish_all("order-events", [(b"1", an_event(100, order_id="a").encode(), [])])
    await a_task(pool, token_id, "orders", order_ids=["a", "b"])

    await replica.turn()
    owed = await owed_to_runs(pool)
    await look_at(pool, replica, token_id, "a", "b")

    runs = await pool.fetch("SELECT kind, status, orders_processed FROM sync_history ORDER BY kind")
    assert owed == [("a", 2), ("b", 1)]
    assert [tuple(run) for run in runs] == [("journal", "completed", 1), ("orders", "completed", 2)]


async def test_orders_that_another_run_is_to_look_at_wait_until_it_has(
    pool: asyncpg.Pool, shop: Shop, kafka: Kafka, clock: DatabaseClock
) -> None:
    token_id, other_id = await a_token(pool), await a_token(pool, user_id="shop-2")
    first = await a_task(pool, token_id, "orders", order_ids=["a", "b"])
    behind = await a_task(pool, token_id, "orders", order_ids=["b", "c"])
    last = await a_task(pool, token_id, "orders", order_ids=["c", "d"])
    beside = await a_task(pool, token_id, "orders", order_ids=["e"])
    elsewhere = await a_task(pool, other_id, "orders", order_ids=["a", "b"])
    replicas = [Replica(pool, shop, kafka, clock, f"replica-{number}") for number in range(4)]

    async def running() -> set[Any]:
        for _ in range(2):
            await asyncio.gather(*(replica.turn() for replica in replicas))
        return {row["task_id"] for row in await pool.fetch("SELECT task_id FROM sync_history")}

    at_once = await running()
    await look_at(pool, replicas[0], token_id, "a")
    while_b_is_owed = await running()
    await look_at(pool, replicas[0], token_id, "b")
    when_b_was_looked_at = await running()
    await look_at(pool, replicas[0], token_id, "b", "c")
    in_the_end = await running()

    assert at_once == while_b_is_owed == {first, beside, elsewhere}
    assert when_b_was_looked_at == at_once | {behind}
    assert in_the_end == when_b_was_looked_at | {last}


async def test_orders_that_were_claimed_beside_an_earlier_run_of_them_wait(
    pool: asyncpg.Pool, replica: Replica
) -> None:
    """A request that began earlier may be committed later: the claim alone does not see the other one."""
    token_id = await a_token(pool)
    await a_task(pool, token_id, "orders", order_ids=["a", "b"])
    claimed = list(await replica.planner.claim(1))
    late_id = await a_task(pool, token_id, "orders", order_ids=["b", "c"])
    await pool.execute("UPDATE task_history SET created_at = now() - interval '1 hour' WHERE task_id = $1", late_id)
    claimed += await replica.planner.claim(1)

    for one in claimed:
        await replica.planner.plan(one)

    waiting = await task(pool, late_id)
    assert len(claimed) == 2
    assert (waiting["status"], waiting["error"]) == ("queued", "another run of some of these orders is going on")


async def test_a_reading_that_found_nothing_new_ends(
    pool: asyncpg.Pool, replica: Replica, kafka: Kafka, clock: DatabaseClock
) -> None:
    task_id = await a_task(
        pool, await a_token(pool), "journal", **{"from": (clock.now() - timedelta(hours=1)).isoformat()}
    )
    await replica.turn()
    await pool.execute("UPDATE sync_history SET started_at = now() - interval '2 minutes'")

    await Redelivery(pool, Publisher(kafka, Topics()), SETTINGS).end_settled_runs()  # type: ignore[arg-type]

    assert (await task(pool, task_id))["status"] == "completed"


@pytest.mark.parametrize(
    ("kind", "attempt"),
    [("journal", 0), ("orders", 0), ("full", 0), ("full", 1)],  # no walk yet; one that goes on, or died
)
async def test_a_task_that_is_stopped_ends_as_stopped_at_once(
    pool: asyncpg.Pool, replica: Replica, clock: DatabaseClock, kind: str, attempt: int
) -> None:
    moment = (clock.now() - timedelta(hours=1)).isoformat()
    task_id = await a_task(pool, await a_token(pool), kind, **{"from": moment, "order_ids": ["a"]})
    await replica.turn()
    await pool.execute("UPDATE run_windows SET attempt = $1", attempt)
    await pool.execute("UPDATE task_history SET status = 'stopping', stop_requested_at = now()")

    await replica.turn()

    ended = await task(pool, task_id)
    assert (ended["status"], ended["finished_at"] is not None) == ("stopped", True)
    assert await pool.fetchval("SELECT status FROM sync_history") == "stopped"


async def test_what_a_stopped_walk_had_read_is_stored_and_counted(
    pool: asyncpg.Pool, replica: Replica, kafka: Kafka, clock: DatabaseClock
) -> None:
    token_id = await a_token(pool)
    await a_task(pool, token_id, "full")
    await replica.turn()
    run_id = await pool.fetchval("UPDATE run_windows SET attempt = 1 RETURNING run_id")
    await pool.execute("UPDATE task_history SET status = 'stopping', stop_requested_at = now()")
    await replica.turn()
    numbers = "SELECT status, orders_processed, orders_added FROM sync_history"
    at_the_stop = await pool.fetchrow(numbers)

    for _ in range(2):  # the second time: a repeated record
        for sequence in range(3):
            place = WindowPlace(run_id=run_id, attempt=1, sequence=sequence)
            seen = an_observation(clock.now(), order_id=f"o-{sequence}", token_id=token_id, by="list", place=place)
            await kafka.store.apply(collect([consumed(seen)], dead_letter_topic="dead"))
    later = await pool.fetchrow(numbers)
    await pool.execute("UPDATE sync_history SET completed_at = now() - interval '11 minutes'")
    await Redelivery(pool, Publisher(kafka, Topics()), SETTINGS).end_settled_runs()  # type: ignore[arg-type]

    assert tuple(at_the_stop) == ("stopped", 0, 0)
    assert tuple(later) == ("stopped", 3, 3)
    assert await pool.fetchval("SELECT finished FROM run_windows")


async def test_readings_however_many_hold_up_no_other_task(
    pool: asyncpg.Pool, replica: Replica, shop: Shop, clock: DatabaseClock
) -> None:
    release = asyncio.Event()

    async def wait(_token_id: int) -> None:
        await release.wait()

    shop.on_read = wait
    moment = (clock.now() - timedelta(hours=1)).isoformat()
    for number in range(20):
        await a_task(pool, await a_token(pool, user_id=f"shop-{number}"), "journal", **{"from": moment})
    listing = await a_task(pool, await a_token(pool, user_id="another"), "full")

    await replica.planner.turn()
    await replica.planner.turn()
    await replica.slots.idle()
    begun = (await task(pool, listing))["status"]
    release.set()
    await replica.readings.idle()

    assert begun == "running"


async def test_a_journal_is_read_by_one_replica_at_a_time_and_by_the_next_one_after_a_pause(
    pool: asyncpg.Pool, replica: Replica, shop: Shop, kafka: Kafka, clock: DatabaseClock
) -> None:
    """Each process counts only its own calls: together they would make twice as many as Allegro allows."""
    settings = SETTINGS.model_copy(update={"allegro_limit_minute_seconds": 6.0})
    pace = journal_pace(settings)
    replica.planner = replica.a_planner(allegro_limit_minute_seconds=6.0)
    token_id = await a_token(pool)
    await a_schedule(pool, token_id)
    began = to_event_id(clock.now() - timedelta(hours=2))
    shop.lines = [a_line(began + number) for number in range(5000)]
    leases = Leases(pool, seconds=60)
    leases.owner = "another"
    looks = Slots("journal", 1)
    publisher = Publisher(kafka, Topics())  # type: ignore[arg-type]
    reader = PageReader(pool, shop, publisher, tracked_event_types=())  # type: ignore[arg-type]
    live = JournalPoller(pool, reader, publisher, clock, leases, looks, settings)
    calls: list[tuple[str | None, float]] = []
    at_once: list[int] = [0]

    async def note(_token_id: int) -> None:
        at_once[0] += 1
        owner = await pool.fetchval("SELECT lease_owner FROM active_sync_schedules")
        calls.append((owner, time.monotonic()))
        at_once.append(at_once[0])
        await asyncio.sleep(0.05)
        at_once[0] -= 1

    shop.on_read = note
    await a_task(pool, token_id, "journal", **{"from": (clock.now() - timedelta(hours=3)).isoformat()})
    reading = asyncio.create_task(replica.turn())
    while not reading.done():
        await pool.execute(
            "UPDATE active_sync_schedules SET next_run = now() + $1::interval"
            " WHERE next_run > now() + interval '1 minute'",
            5 * pace,
        )
        await live.turn()
        await asyncio.sleep(0.01)
    await reading
    await looks.idle()

    owners = [owner for owner, _ in calls]
    changes = [later - earlier for (one, earlier), (other, later) in itertools.pairwise(calls) if one != other]
    assert max(at_once) == 1
    assert set(owners) == {"one", "another"}
    assert len(changes) > 2
    assert min(changes) >= pace.total_seconds()


async def test_a_stopped_run_of_orders_drops_the_looks_that_only_it_wanted_and_counts_no_more(
    pool: asyncpg.Pool, replica: Replica, kafka: Kafka
) -> None:
    token_id = await a_token(pool)
    await kafka.publish_all("order-events", [(b"1", an_event(100, order_id="b").encode(), [])])
    task_id = await a_task(pool, token_id, "orders", order_ids=["a", "b", "c"])
    await replica.turn()
    await pool.execute(
        "UPDATE task_history SET status = 'stopping', stop_requested_at = now() WHERE task_id = $1", task_id
    )

    await replica.turn()
    left = [row["allegro_order_id"] for row in await pool.fetch("SELECT allegro_order_id FROM pending_fetches")]
    # Looks that were under way.
    for order_id in ("a", "b"):
        seen = an_observation(replica.clock.now(), order_id=order_id, token_id=token_id)
        await kafka.store.apply(collect([consumed(seen)], dead_letter_topic="dead"))

    assert left == ["b"]
    assert (await task(pool, task_id))["status"] == "stopped"
    runs = await pool.fetch("SELECT kind, status, events_stored, orders_added FROM sync_history ORDER BY 1, 3")
    of_the_late_look, of_the_event = ("journal", "completed", 0, 1), ("journal", "completed", 1, 1)
    assert [tuple(run) for run in runs] == [of_the_late_look, of_the_event, ("orders", "stopped", 0, 0)]


async def test_a_look_is_sent_out_with_the_run_that_alone_wants_it(
    pool: asyncpg.Pool, replica: Replica, kafka: Kafka
) -> None:
    """So that the enricher can hear of a stop."""
    token_id = await a_token(pool)
    await kafka.publish_all("order-events", [(b"1", an_event(100, order_id="b").encode(), [])])
    await a_task(pool, token_id, "orders", order_ids=["a", "b"])
    await replica.turn()

    await Redelivery(pool, Publisher(kafka, Topics()), SETTINGS).turn()  # type: ignore[arg-type]

    run_id = await pool.fetchval("SELECT run_id FROM sync_history WHERE kind = 'orders'")
    sent = {record.order_id: record.run_id for record in kafka.on("order-events") if isinstance(record, OrderFetch)}
    assert sent == {"a": run_id, "b": None}


async def test_tasks_of_a_token_without_consent_wait_and_those_of_a_deactivated_one_fail(
    pool: asyncpg.Pool, replica: Replica
) -> None:
    waiting = await a_task(pool, await a_token(pool), "full")
    failing = await a_task(pool, await a_token(pool, user_id="shop-2"), "full")
    await pool.execute("UPDATE user_tokens SET status = 'reauthorization_required' WHERE user_id = 'shop-1'")
    await pool.execute("UPDATE user_tokens SET status = 'deactivated' WHERE user_id = 'shop-2'")

    await replica.turn()

    assert (await task(pool, waiting))["status"] == "queued"
    assert (await task(pool, failing))["status"] == "failed"


async def test_a_task_stopped_while_it_is_being_planned_leaves_nothing(
    pool: asyncpg.Pool, replica: Replica, kafka: Kafka
) -> None:
    await a_task(pool, await a_token(pool), "full")
    claimed = await replica.planner.claim(1)
    await pool.execute("UPDATE task_history SET status = 'stopped', stop_requested_at = now(), finished_at = now()")

    await replica.planner.plan(claimed[0])

    assert await pool.fetchval("SELECT count(*) FROM sync_history") == 0
    assert await pool.fetchval("SELECT status FROM task_history") == "stopped"
    assert kafka.records == []
