"""Turns against real rows: leased, fenced, and leaving nothing behind when there is nothing new (B1, G5, P1)."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from services.poller.journal import JournalPoller
from services.poller.leases import Leases
from services.poller.positions import journal_pace
from services.poller.publish import Publisher
from services.poller.reading import PageReader
from services.poller.settings import PollerSettings
from services.poller.slots import Slots
from services.writer.batch import collect
from services.writer.store import Store
from shared.allegro.bodies import JournalEvent, UnreadableBodyError, UnreadablePart, journal_event
from shared.allegro.client import JournalPage
from shared.allegro.errors import AllegroOutageError, AllegroUnavailableError, ReauthorizationRequiredError
from shared.allegro.tally import note_request
from shared.clock import DatabaseClock, to_event_id
from shared.database import database_now, open_pool
from shared.kafka import PublishFailedError
from shared.kafka_batches import OutgoingRecord
from shared.sync_start import begin_sync
from shared.topics import Topics
from tests.builders import a_token, consumed

pytestmark = pytest.mark.integration

SETTINGS = PollerSettings.model_construct(
    poller_concurrency=50,
    poller_lease_seconds=60.0,
    poller_max_pages=2,
    poller_overlap_seconds=0.0,
    poller_redelivery_seconds=30.0,
    sync_tracked_event_types=frozenset(),
    kafka_topic_prefix="",
    allegro_events_limit_per_minute=60,
    allegro_limit_minute_seconds=1.0,
)


def a_line(event_id: int, *, kind: str = "BOUGHT", order_id: str = "o-1") -> JournalEvent:
    raw = (
        b'{"id":"%d","type":"%b","occurredAt":"2026-10-10T12:00:00.000Z","order":{"checkoutForm":{"id":"%b","revision":"1"}}}'
        % (event_id, kind.encode(), order_id.encode())
    )
    return journal_event(raw)


class Allegro:
    """A journal; `on_read` may do something while a page is on its way."""

    def __init__(self, clock: DatabaseClock) -> None:
        self._clock = clock
        self.lines: list[JournalEvent] = []
        self.unreadable: list[UnreadablePart] = []
        """Shown with every page."""
        self.reads: list[tuple[int, int]] = []
        self.on_read: Callable[[], Any] = lambda: None
        self.error: Exception | None = None

    async def events(self, token_id: int, *, after: int, limit: int = 1000, traffic: str) -> JournalPage:
        note_request()
        self.reads.append((token_id, after))
        outcome = self.on_read()
        if asyncio.iscoroutine(outcome):
            await outcome
        if self.error is not None:
            raise self.error
        found = [line for line in self.lines if line.event_id > after][:limit]
        received_at: datetime = self._clock.now()
        return JournalPage(tuple(found), received_at, timedelta(0), tuple(self.unreadable))


class Topic:
    """Hands over to the writer's tables at once, or loses everything."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._store = Store(pool)
        self.published = 0
        self.losing = False
        self.error: Exception | None = None

    async def publish_all(self, topic: str, records: Sequence[OutgoingRecord]) -> None:
        if self.error is not None:
            raise self.error
        self.published += len(records)
        if not self.losing:
            raw = [consumed(value, topic=topic, headers=tuple(headers)) for _key, value, headers in records]
            batch = collect(raw, dead_letter_topic=Topics().dead_letters)
            await self._store.apply(batch)


class World:
    def __init__(self, pool: asyncpg.Pool, clock: DatabaseClock) -> None:
        self.pool = pool
        self.clock = clock
        self.allegro = Allegro(clock)
        self.topic = Topic(pool)
        # The journal of these tests is young: an old cursor would start a listing.
        self.base = to_event_id(clock.now())

    def replica(self, owner: str = "one", **changes: Any) -> "Replica":
        return Replica(self, owner, SETTINGS.model_copy(update=changes))

    async def due(self) -> None:
        await self.pool.execute("UPDATE active_sync_schedules SET next_run = now() - interval '1 second'")

    async def turn(self, owner: str = "one") -> None:
        await self.due()
        await self.replica(owner).turn()

    async def cursor(self) -> int:
        stored: int = await self.pool.fetchval("SELECT stored_event_id FROM journal_cursors")
        return stored


class Replica:
    """One process's journal poller; `turn` waits for the looks it began."""

    def __init__(self, world: World, owner: str, settings: PollerSettings) -> None:
        self.leases = Leases(world.pool, seconds=settings.poller_lease_seconds)
        self.leases.owner = owner
        self.slots = Slots("journal", settings.poller_concurrency)
        publisher = Publisher(world.topic, Topics())  # type: ignore[arg-type]
        self.poller = JournalPoller(
            world.pool,
            PageReader(world.pool, world.allegro, publisher, tracked_event_types=()),  # type: ignore[arg-type]
            publisher,
            world.clock,
            self.leases,
            self.slots,
            settings,
        )

    async def turn(self) -> None:
        await self.poller.turn()
        await self.slots.idle()


async def a_schedule(pool: asyncpg.Pool, token_id: int) -> None:
    await pool.execute(
        "INSERT INTO active_sync_schedules (user_token_id, user_id, interval_seconds, next_full_run)"
        " SELECT id, user_id, 180, now() + interval '1 day' FROM user_tokens WHERE id = $1",
        token_id,
    )


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    pool = await open_pool(database_url, service="test", max_size=8)
    clock = DatabaseClock()
    await clock.synchronise(lambda: database_now(pool))
    await a_schedule(pool, await a_token(pool))
    yield World(pool, clock)
    await pool.close()


async def test_new_events_are_published_stored_and_passed_by_the_cursor(world: World) -> None:
    world.allegro.lines = [a_line(world.base + number) for number in range(1, 4)]

    await world.turn()
    await world.turn()

    assert await world.cursor() == world.base + 3
    assert await world.pool.fetchval("SELECT count(*) FROM order_events") == 3
    assert world.topic.published == 3


def an_odd_line(raw: bytes, *, after: int | None = None) -> UnreadablePart:
    return UnreadablePart(raw, UnreadableBodyError("event.id: not a journal position"), after)


async def test_a_line_that_nobody_can_read_is_set_aside_and_the_cursor_goes_on(world: World) -> None:
    world.allegro.lines = [a_line(world.base + number) for number in range(1, 4)]
    world.allegro.unreadable = [an_odd_line(b'{"id":"odd"}', after=world.base + 2)]

    await world.turn()
    await world.turn()

    letter = await world.pool.fetchrow("SELECT * FROM dead_letters")
    assert await world.cursor() == world.base + 3
    assert await world.pool.fetchval("SELECT count(*) FROM dead_letters") == 1
    assert (letter["value"], letter["user_token_id"], letter["offset"]) == (b'{"id":"odd"}', 1, world.base + 2)
    assert letter["service"] == "poller"


async def test_a_page_of_nothing_but_unreadable_lines_is_tried_again_later(world: World) -> None:
    world.allegro.unreadable = [an_odd_line(b"%d" % number) for number in range(1000)]

    await world.turn()

    schedule = await world.pool.fetchrow("SELECT last_error, consecutive_failures FROM active_sync_schedules")
    assert schedule["consecutive_failures"] == 1
    assert len(world.allegro.reads) == 1


async def test_an_empty_turn_leaves_no_row_but_the_schedule(world: World) -> None:
    await world.turn()

    schedule = await world.pool.fetchrow("SELECT * FROM active_sync_schedules")
    assert await world.pool.fetchval("SELECT count(*) FROM sync_history") == 0
    assert schedule["last_run"] == schedule["last_success"] is not None
    assert schedule["next_run"] > world.clock.now()
    assert schedule["lease_owner"] is None


async def test_what_kafka_lost_is_published_again_without_an_operator(world: World) -> None:
    world.allegro.lines = [a_line(world.base + 1), a_line(world.base + 2)]
    world.topic.losing = True
    await world.turn()
    await world.turn()
    while_in_flight = world.topic.published
    world.topic.losing = False
    await world.pool.execute(
        "UPDATE journal_cursors SET published_at = now() - interval '31 seconds', stored_at = now() - interval '1 hour'"
    )

    await world.turn()

    assert while_in_flight == 2
    assert await world.cursor() == world.base + 2
    assert await world.pool.fetchval("SELECT rewinds FROM journal_cursors") == 0


async def test_a_busy_journal_does_not_hide_that_its_cursor_stands_still(world: World) -> None:
    """Kafka lost a record; new ones are published all the time, so the last publication is always fresh."""
    await world.pool.execute("UPDATE journal_cursors SET stored_at = now() - interval '1 hour'")
    world.allegro.lines = [a_line(world.base + 1)]
    world.topic.losing = True
    await world.turn()
    world.topic.losing = False
    for number in range(2, 6):
        await world.pool.execute("UPDATE journal_cursors SET published_at = published_at - interval '10 seconds'")
        world.allegro.lines.append(a_line(world.base + number))
        await world.turn()

    await world.turn()

    assert await world.cursor() == world.base + 5
    assert await world.pool.fetchval("SELECT count(*) FROM order_events") == 5


async def until_another_is_read(world: World, replica: Replica) -> None:
    """Look for journals that are due, until one of them is asked for."""
    reached = asyncio.Event()
    world.allegro.on_read = reached.set
    await replica.poller.turn()
    async with asyncio.timeout(10):
        await reached.wait()


async def test_a_slow_seller_delays_nobody(world: World) -> None:
    """Its look hangs; the other token is looked at by the same process meanwhile (E3)."""
    other = await a_token(world.pool, user_id="shop-2")
    hanging = asyncio.Event()
    world.allegro.on_read = hanging.wait
    replica = world.replica()
    async with replica.slots:
        await replica.poller.turn()
        await a_schedule(world.pool, other)

        await until_another_is_read(world, replica)

    assert [token_id for token_id, _ in world.allegro.reads][1] == other


async def test_many_sellers_whose_calls_hang_leave_half_of_the_slots_to_others(world: World) -> None:
    """Each of them failed before: whether it would succeed now is not known before it is called (E3)."""
    others = [await a_token(world.pool, user_id=f"broken-{number}") for number in range(6)]
    for token_id in others:
        await a_schedule(world.pool, token_id)
    await world.pool.execute("UPDATE active_sync_schedules SET consecutive_failures = 1, next_run = '2020-01-01'")
    hanging = asyncio.Event()
    world.allegro.on_read = hanging.wait
    replica = world.replica(poller_concurrency=4)
    async with replica.slots:
        while await replica.poller.turn():
            pass
        while len(world.allegro.reads) < 2:  # noqa: ASYNC110 - each begins with a question to PostgreSQL
            await asyncio.sleep(0.01)
        well = await a_token(world.pool, user_id="well")
        await a_schedule(world.pool, well)

        await until_another_is_read(world, replica)
        held = [token_id for token_id, _ in world.allegro.reads[:2]]
        hanging.set()
        await replica.slots.idle()
        while await world.pool.fetchval("SELECT count(*) FROM active_sync_schedules WHERE next_run < now()"):
            await replica.turn()

    assert well not in held
    assert [token_id for token_id, _ in world.allegro.reads][2] == well
    assert {token_id for token_id, _ in world.allegro.reads} >= {*others, well}


async def test_a_backlog_is_read_in_bounded_pieces_with_no_pause_but_that_of_the_limit(world: World) -> None:
    """Another replica may read on, which does not know of the last call."""
    world.allegro.lines = [a_line(world.base + number) for number in range(1, 3501)]

    await world.turn()
    pause = await world.pool.fetchval("SELECT next_run - last_run FROM active_sync_schedules")
    await world.pool.execute("UPDATE active_sync_schedules SET next_run = now()")
    await world.replica().turn()

    assert pause == journal_pace(SETTINGS)
    assert await world.cursor() == world.base + 3500
    assert [after for _, after in world.allegro.reads] == [world.base * (n > 0) + 1000 * n for n in range(4)]
    runs = await world.pool.fetch("SELECT events_stored, requests FROM sync_history ORDER BY started_at")
    assert [tuple(run) for run in runs] == [(2000, 2), (1500, 2)]


async def test_of_many_sellers_with_much_to_read_only_a_few_hold_it_at_a_time(world: World) -> None:
    """Promise P10: everybody's first page is read, but only so many go on to the next; the others take a little of it,
    and hold no slot meanwhile."""
    for number in range(2, 9):
        await a_schedule(world.pool, await a_token(world.pool, user_id=f"shop-{number}"))
    world.allegro.lines = [a_line(world.base + number) for number in range(1, 1011)]
    going_on, most, four_go_on = 0, 0, asyncio.Event()

    async def go_on() -> None:
        nonlocal going_on, most
        going_on += 1
        most = max(most, going_on)
        if going_on == 4:
            four_go_on.set()
        async with asyncio.timeout(10):
            await four_go_on.wait()
        going_on -= 1

    world.allegro.on_read = lambda: go_on() if world.allegro.reads[-1][1] > world.base else None
    await world.turn()
    stored = "SELECT count(*) FROM order_events"
    after_one_turn = await world.pool.fetchval(stored)
    reads = len(world.allegro.reads)
    world.allegro.on_read = lambda: None
    for _ in range(5):
        await world.due()
        await world.turn()

    assert most == 4
    assert reads == 8 + 4
    assert after_one_turn == 4 * 1010 + 4 * 200
    assert await world.pool.fetchval(stored) == 8 * 1010


async def after_two_turns(world: World) -> asyncpg.Record:
    """The schedule, after one replica has found it due twice."""
    replica = world.replica()
    for _ in range(2):
        await world.due()
        await replica.turn()
    return await world.pool.fetchrow("SELECT * FROM active_sync_schedules")


async def test_while_kafka_is_away_no_seller_is_blamed_and_allegro_is_left_alone(world: World) -> None:
    world.allegro.lines = [a_line(world.base + 1)]
    world.topic.error = PublishFailedError("away")
    schedule = await after_two_turns(world)

    assert (schedule["consecutive_failures"], schedule["last_error"]) == (0, "away")
    assert schedule["lease_owner"] is None
    assert len(world.allegro.reads) == 1


@pytest.mark.parametrize(("is_for_all", "reads"), [(True, 1), (False, 2)])
async def test_in_an_outage_no_seller_is_blamed_and_others_are_looked_for_unless_it_is_for_all(
    world: World, is_for_all: bool, reads: int
) -> None:
    error = AllegroOutageError("most sellers' calls fail", retry_after=timedelta(seconds=40))
    error.is_for_all = is_for_all
    world.allegro.error = error
    schedule = await after_two_turns(world)

    assert (schedule["consecutive_failures"], schedule["last_error"]) == (0, "most sellers' calls fail")
    assert len(world.allegro.reads) == reads


async def test_looks_that_were_missed_are_not_made_up_for(world: World) -> None:
    await world.pool.execute("UPDATE active_sync_schedules SET next_run = now() - interval '3 days'")

    for _ in range(3):
        await asyncio.gather(*(world.replica(f"replica-{number}").turn() for number in range(4)))

    until_the_next = await world.pool.fetchval("SELECT next_run - last_run FROM active_sync_schedules")
    assert len(world.allegro.reads) == 1
    assert timedelta(seconds=171) <= until_the_next <= timedelta(seconds=189)


async def test_a_journal_that_is_paused_is_left_alone_and_read_on_without_a_gap(world: World) -> None:
    world.allegro.lines = [a_line(world.base + 1)]
    await world.turn()
    await world.pool.execute("UPDATE active_sync_schedules SET status = 'paused'")
    world.allegro.lines += [a_line(world.base + 2), a_line(world.base + 3)]
    await world.turn()
    reads_before = len(world.allegro.reads)

    await world.pool.execute("UPDATE active_sync_schedules SET status = 'active'")
    await world.turn()

    assert (reads_before, len(world.allegro.reads)) == (1, 2)
    assert await world.pool.fetchval("SELECT count(*) FROM order_events") == 3
    assert await world.cursor() == world.base + 3


async def test_a_dormant_shop_starts_no_listing(world: World) -> None:
    """Its cursor is as old as its last sale, but somebody has looked all the time."""
    old = to_event_id(world.clock.now() - timedelta(days=200))
    await world.pool.execute("UPDATE journal_cursors SET stored_event_id = $1", old)
    await world.pool.execute("UPDATE active_sync_schedules SET last_success = now() - interval '3 minutes'")

    await world.turn()

    assert await world.pool.fetchval("SELECT count(*) FROM task_history") == 0


async def test_the_journal_of_a_new_token_waits_until_its_load_has_begun(world: World) -> None:
    await world.pool.execute(
        "INSERT INTO task_history (task_id, user_token_id, user_id, kind)"
        " SELECT gen_random_uuid(), id, user_id, 'initial' FROM user_tokens"
    )
    await world.turn()
    reads_before = len(world.allegro.reads)
    await world.pool.execute("UPDATE journal_cursors SET covered_event_id = 1")

    await world.turn()

    assert (reads_before, len(world.allegro.reads)) == (0, 1)


async def test_two_replicas_never_read_one_journal_at_the_same_time(world: World) -> None:
    inside = 0
    most = 0

    async def count() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        await world.pool.fetchval("SELECT pg_sleep(0.01)")
        inside -= 1

    world.allegro.on_read = count
    await world.due()
    await asyncio.gather(*(world.replica(f"replica-{number}").turn() for number in range(6)))

    assert most == 1
    assert len(world.allegro.reads) == 1


async def test_a_replica_that_lost_its_lease_changes_nothing_when_it_comes_back(world: World) -> None:
    async def while_paused() -> None:
        world.allegro.on_read = lambda: None
        await world.pool.execute("UPDATE active_sync_schedules SET lease_until = now() - interval '1 second'")
        await world.replica("another").turn()
        await world.pool.execute("UPDATE active_sync_schedules SET next_run = 'infinity'")

    world.allegro.lines = [a_line(world.base + 1)]
    world.allegro.on_read = while_paused

    await world.turn("paused")

    assert await world.pool.fetchval("SELECT next_run = 'infinity' FROM active_sync_schedules")
    assert await world.pool.fetchval("SELECT count(*) FROM order_events") == 1


async def test_a_replica_that_ends_gives_back_what_it_claimed(world: World) -> None:
    started = asyncio.Event()

    async def hang() -> None:
        started.set()
        await asyncio.Event().wait()

    world.allegro.on_read = hang
    await world.due()
    ending = world.replica("ending")
    async with ending.slots:
        await ending.poller.turn()
        await started.wait()
    await ending.leases.release()
    world.allegro.on_read = lambda: None

    await world.replica("another").turn()

    assert len(world.allegro.reads) == 2


async def test_a_failing_journal_is_tried_again_later_and_says_why(world: World) -> None:
    world.allegro.error = AllegroUnavailableError("503: maintenance")

    await world.turn()

    schedule = await world.pool.fetchrow("SELECT * FROM active_sync_schedules")
    assert "maintenance" in schedule["last_error"]
    assert (schedule["consecutive_failures"], schedule["last_success"]) == (1, None)
    assert schedule["next_run"] > world.clock.now() + timedelta(seconds=4)


async def test_a_look_that_lost_consent_does_not_pause_what_a_new_consent_has_resumed(world: World) -> None:
    async def consent_anew() -> None:
        async with world.pool.acquire() as connection, connection.transaction():
            day = timedelta(days=1)
            token_id = await connection.fetchval("SELECT id FROM user_tokens")
            await begin_sync(connection, token_id, interval=timedelta(minutes=3), full_interval=day)
        raise ReauthorizationRequiredError("refused with the pair before")

    world.allegro.on_read = consent_anew

    await world.turn()

    schedule = await world.pool.fetchrow("SELECT *, next_run <= now() AS is_due FROM active_sync_schedules")
    assert (schedule["status"], schedule["last_error"], schedule["is_due"]) == ("active", None, True)


async def test_a_look_without_consent_pauses_the_schedule(world: World) -> None:
    world.allegro.error = ReauthorizationRequiredError("the seller has withdrawn consent")

    await world.turn()

    schedule = await world.pool.fetchrow("SELECT status, last_error FROM active_sync_schedules")
    assert (schedule["status"], "withdrawn consent" in schedule["last_error"]) == ("paused", True)


async def test_events_of_the_initial_load_are_stored_without_a_look(world: World) -> None:
    await world.pool.execute("UPDATE journal_cursors SET covered_event_id = $1", world.base + 1)
    world.allegro.lines = [a_line(world.base + 1, order_id="old"), a_line(world.base + 2, order_id="new")]

    await world.turn()

    owed = await world.pool.fetch("SELECT allegro_order_id FROM pending_fetches")
    assert [row["allegro_order_id"] for row in owed] == ["new"]


async def test_no_listing_follows_the_other_while_the_journal_cannot_be_read(world: World) -> None:
    old = to_event_id(world.clock.now() - timedelta(days=61))
    await world.pool.execute("UPDATE journal_cursors SET stored_event_id = $1", old)
    world.allegro.error = AllegroUnavailableError("503")

    for _ in range(3):
        await world.pool.execute("UPDATE active_sync_schedules SET next_run = now()")
        await world.turn()
        await world.pool.execute("UPDATE task_history SET status = 'completed'")
    while_it_fails = await world.pool.fetchval("SELECT count(*) FROM task_history")
    world.allegro.error = None
    await world.pool.execute("UPDATE active_sync_schedules SET next_run = now()")
    await world.turn()

    assert while_it_fails == 0
    assert await world.pool.fetchval("SELECT count(*) FROM task_history") == 1


async def test_a_cursor_older_than_the_journal_starts_a_full_listing_once(world: World) -> None:
    old = to_event_id(world.clock.now() - timedelta(days=61))
    await world.pool.execute("UPDATE journal_cursors SET stored_event_id = $1", old)

    await world.turn()
    await world.turn()

    tasks = await world.pool.fetch("SELECT kind, status, requested_by FROM task_history")
    assert [tuple(task) for task in tasks] == [("full", "queued", "the journal cursor is older than the journal")]
