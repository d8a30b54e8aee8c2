"""Walks against real rows: fenced, resumable, stoppable, truthful (B3, B7, P11)."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
from aiokafka import ConsumerRecord
from msgspec.structs import replace

from services.enricher.bulk import BulkHandler
from services.writer.batch import collect
from services.writer.store import Store
from shared.allegro.bodies import ListedOrder, OrderPage, UnreadableBodyError, UnreadablePart, listed_order
from shared.allegro.errors import AllegroOutageError, AllegroUnavailableError, ReauthorizationRequiredError
from shared.allegro.tally import note_request
from shared.database import open_pool
from shared.messages import OrderObserved, OrderWindow, Record, WindowFinished
from tests.builders import A_RUN, NOON, a_run, a_token, after, an_order_body, consumed
from tests.enricher.test_live import LAG

pytestmark = pytest.mark.integration

WINDOW = OrderWindow(token_id=1, run_id=A_RUN, bought_from=after(-3600), bought_to=after(3600))


class Allegro:
    """A seller with `orders` orders, a second apart; `before_page` is called before each page is given."""

    def __init__(self, orders: int) -> None:
        self.bought = [after(number) for number in range(orders)]
        self.pages = 0
        self.before_page: dict[int, Exception] = {}
        self.empty_from: int | None = None
        self.failing: set[int] = set()
        """Tokens whose calls all fail."""
        self.unreadable: tuple[UnreadablePart, ...] = ()
        self.silent_from: int | None = None
        self.silent = asyncio.Event()

    async def list_orders(
        self, token_id: int, *, bought_from: datetime, bought_to: datetime, offset: int, limit: int, traffic: str
    ) -> OrderPage:
        assert traffic == "bulk"
        self.pages += 1
        if not isinstance(self.before_page.get(self.pages), AllegroOutageError):
            note_request()
        if token_id in self.failing:
            raise AllegroUnavailableError("not refreshed")
        if self.pages in self.before_page:
            raise self.before_page[self.pages]
        if self.silent_from is not None and self.pages >= self.silent_from:
            self.silent.set()
            await asyncio.Event().wait()
        found = [self._listed(moment) for moment in self.bought if bought_from <= moment <= bought_to]
        if self.empty_from is not None and self.pages >= self.empty_from:
            return OrderPage((), len(found), NOON)
        page, unreadable = tuple(found[offset : offset + limit]), self.unreadable if self.pages == 1 else ()
        return OrderPage(page, len(found) + len(unreadable), NOON, unreadable)

    def _listed(self, moment: datetime) -> ListedOrder:
        return listed_order(an_order_body(f"o-{(moment - NOON).seconds}", bought_at=moment))


class Topic:
    """Publishes into the writer's tables at once, except for what `lost` swallows."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._store = Store(pool)
        self.records: list[Record] = []
        self.lost: set[int] = set()
        self.set_aside: list[tuple[int, UnreadablePart]] = []
        self.after_page: dict[int, str] = {}
        self._pool = pool
        self.publications = 0

    async def results(self, records: Iterable[Record], *, run_id: UUID | None = None) -> None:
        published = list(records)
        self.publications += 1
        self.records += published
        if self.publications not in self.lost:
            await self._store.apply(collect([consumed(record) for record in published], dead_letter_topic="dead"))
        if self.publications in self.after_page:
            await self._pool.execute(self.after_page[self.publications])

    async def dead_letter(self, record: ConsumerRecord, error: Exception, *, attempts: int = 1) -> None:
        raise AssertionError(f"nothing was to be set aside: {error}")

    async def unreadable(self, record: ConsumerRecord, part: UnreadablePart) -> None:
        self.set_aside.append((record.offset, part))


class SlowTopic(Topic):
    """The writer gets round to a publication only while the walk pauses."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        super().__init__(pool)
        self.waiting: list[list[Record]] = []
        self.most_waiting = 0

    async def results(self, records: Iterable[Record], *, run_id: UUID | None = None) -> None:
        self.waiting.append(list(records))
        orders = sum(isinstance(record, OrderObserved) for each in self.waiting for record in each)
        self.most_waiting = max(self.most_waiting, orders)

    async def store_one(self, _seconds: float = 0.0) -> None:
        if self.waiting:
            await super().results(self.waiting.pop(0))

    async def store_all(self) -> None:
        while self.waiting:
            await self.store_one()


async def no_pause(_seconds: float) -> None:
    return


class World:
    def __init__(self, pool: asyncpg.Pool, *, orders: int) -> None:
        self.pool = pool
        self.allegro = Allegro(orders)
        self.topic = Topic(pool)
        self.pause: Callable[[float], Awaitable[None]] = no_pause

    def slow_writer(self) -> SlowTopic:
        """From now on nothing is stored unless somebody says so."""
        self.topic = slow = SlowTopic(self.pool)
        return slow

    def handler(self) -> BulkHandler:
        return BulkHandler(
            self.allegro,  # type: ignore[arg-type]
            self.topic,  # type: ignore[arg-type]
            self.pool,
            list_lag=LAG,
            walks=2,
            pause=self.pause,
        )

    async def walk(self) -> None:
        """What one delivery of the window does."""
        await self.handler().handle([consumed(WINDOW)])

    async def run(self) -> asyncpg.Record:
        return await self.pool.fetchrow("SELECT * FROM sync_history")


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    pool = await open_pool(database_url, service="test", max_size=4)
    await a_token(pool)
    await a_run(pool, attempt=0)
    yield World(pool, orders=250)
    await pool.close()


async def test_a_walk_brings_every_order_and_completes_its_run(world: World) -> None:
    await world.walk()

    run = await world.run()
    assert (run["status"], run["orders_processed"], run["orders_added"]) == ("completed", 250, 250)
    assert (run["orders_expected"], run["requests"]) == (250, 3)
    assert {record.observed_at for record in world.topic.records if isinstance(record, OrderObserved)} == {NOON - LAG}


async def test_a_repeated_window_of_a_finished_run_costs_nothing(world: World) -> None:
    await world.walk()
    pages = world.allegro.pages

    await world.walk()

    assert world.allegro.pages == pages


async def test_what_kafka_lost_is_walked_again_from_where_it_is_stored(world: World) -> None:
    world.topic.lost = {2}
    await world.walk()
    incomplete = await world.run()

    await world.walk()

    run = await world.run()
    assert (incomplete["status"], incomplete["orders_processed"]) == ("running", 100)
    assert (run["status"], run["orders_processed"], run["orders_added"]) == ("completed", 250, 250)
    assert world.allegro.pages == 5


async def test_taking_up_a_walk_is_no_progress_of_it(world: World) -> None:
    """Else it would be sent out, and walked, again and again while its orders wait for a busy writer."""
    long_ago = datetime(2026, 10, 1, tzinfo=UTC)
    await world.pool.execute("UPDATE run_windows SET published_at = $1, progress_at = $1", long_ago)
    world.topic.lost = set(range(1, 100))

    await world.walk()

    window = await world.pool.fetchrow("SELECT * FROM run_windows")
    assert (window["attempt"], window["progress_at"]) == (1, long_ago)
    assert window["published_at"] > long_ago


async def test_a_walk_does_not_run_away_from_the_writer(world: World) -> None:
    world.allegro = Allegro(3500)
    slow = world.slow_writer()
    world.pause = slow.store_one

    await world.walk()
    await slow.store_all()

    run = await world.run()
    assert (run["status"], run["orders_processed"]) == ("completed", 3500)
    assert slow.most_waiting <= 1100


async def test_a_walk_whose_orders_are_lost_is_given_up_and_walked_again(world: World) -> None:
    world.allegro = Allegro(3500)
    world.topic.lost = {3}
    await world.walk()
    given_up = (await world.run())["status"], world.allegro.pages

    await world.walk()

    assert (given_up[0], given_up[1] < 30) == ("running", True)
    assert ((await world.run())["status"], (await world.run())["orders_processed"]) == ("completed", 3500)


class Pauses:
    """Counts the seconds that walks have waited; `then` happens at the end of the pause with that number."""

    def __init__(self, then: Callable[[], Awaitable[object]], *, at: int = 3) -> None:
        self._then = then
        self._at = at
        self.number = 0
        self.seconds_since = 0.0

    async def __call__(self, seconds: float) -> None:
        self.number += 1
        if self.number > self._at:
            self.seconds_since += seconds
        elif self.number == self._at:
            await self._then()


async def test_a_walk_that_waits_for_the_writer_hears_a_stop(world: World) -> None:
    """Although nothing at all is stored."""
    world.allegro = Allegro(3500)
    slow = world.slow_writer()
    world.pause = pauses = Pauses(
        lambda: world.pool.execute("UPDATE task_history SET stop_requested_at = now(), status = 'stopping'")
    )

    await world.walk()
    pages = world.allegro.pages
    await slow.store_all()

    run = await world.run()
    assert pauses.seconds_since <= 1
    assert (run["status"], run["orders_processed"], pages) == ("stopped", 1000, 10)


async def test_a_walk_that_waits_ends_when_another_replica_has_its_window(world: World) -> None:
    world.allegro = Allegro(3500)
    slow = world.slow_writer()
    world.pause = pauses = Pauses(lambda: world.pool.execute("UPDATE run_windows SET attempt = attempt + 1"))

    await world.walk()

    assert (pauses.number, pauses.seconds_since) == (3, 0)
    assert not any(isinstance(record, WindowFinished) for records in slow.waiting for record in records)


async def test_what_is_lost_while_a_walk_waits_is_walked_again(world: World) -> None:
    """The broker lost its data, and counts its records from the beginning."""
    world.allegro = Allegro(3500)
    slow = world.slow_writer()

    async def lose_everything() -> None:
        slow.waiting.clear()

    world.pause = Pauses(lose_everything)
    await world.walk()
    given_up = world.allegro.pages, slow.waiting

    world.pause = slow.store_one
    await world.walk()
    await slow.store_all()

    run = await world.run()
    assert given_up == (10, [])
    assert (run["status"], run["orders_processed"], run["orders_added"]) == ("completed", 3500, 3500)


async def test_a_walk_whose_process_ends_while_it_waits_goes_on_in_the_next(world: World) -> None:
    """What it had under way comes late, from an attempt that nobody counts any more."""
    world.allegro = Allegro(3500)
    slow = world.slow_writer()
    is_waiting = asyncio.Event()

    async def for_ever(_seconds: float) -> None:
        is_waiting.set()
        await asyncio.Event().wait()

    world.pause = for_ever
    walking = asyncio.create_task(world.walk())
    async with asyncio.timeout(60):
        await is_waiting.wait()
    walking.cancel()
    await asyncio.gather(walking, return_exceptions=True)

    world.pause = slow.store_one
    await world.walk()
    await slow.store_all()

    run = await world.run()
    assert (run["status"], run["orders_processed"], run["orders_added"]) == ("completed", 3500, 3500)


class FlickeringPool:
    """PostgreSQL does not answer one question."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self.is_away = False

    async def fetchrow(self, statement: str, *arguments: object) -> asyncpg.Record | None:
        if self.is_away:
            self.is_away = False
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        return await self._pool.fetchrow(statement, *arguments)


async def test_a_walk_that_cannot_see_how_far_it_is_stored_is_begun_again(world: World) -> None:
    world.allegro = Allegro(3500)
    slow = world.slow_writer()
    flickering = FlickeringPool(world.pool)
    pool, world.pool = world.pool, flickering

    async def go_away(seconds: float) -> None:
        flickering.is_away = slow.publications == 0
        await slow.store_one(seconds)

    world.pause = go_away
    handler = world.handler()
    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await handler.handle([consumed(WINDOW)])
    await handler.handle([consumed(WINDOW)])
    await slow.store_all()

    world.pool = pool
    run = await world.run()
    assert (run["status"], run["orders_processed"], run["orders_added"]) == ("completed", 3500, 3500)
    assert await pool.fetchval("SELECT attempt FROM run_windows") == 2


async def test_a_walk_waits_for_the_unbroken_part_however_often_writers_repeat_themselves(world: World) -> None:
    """Partitions move from writer to writer: each begins again where the last one committed."""
    world.allegro = Allegro(3500)
    slow = world.slow_writer()
    stored: list[list[Record]] = []

    async def store_one_and_some_again(_seconds: float = 0.0) -> None:
        again = stored[-3:]
        stored.extend(slow.waiting[:1])
        await slow.store_one()
        for records in again:
            await Topic.results(slow, records)

    world.pause = store_one_and_some_again

    await world.walk()
    await slow.store_all()

    run = await world.run()
    assert (run["status"], run["orders_processed"], run["orders_added"]) == ("completed", 3500, 3500)
    assert slow.most_waiting <= 1100


async def test_a_walk_waits_out_an_outage(world: World) -> None:
    world.allegro.before_page = {2: AllegroUnavailableError("503"), 3: AllegroUnavailableError("503")}

    await world.walk()

    assert ((await world.run())["status"], (await world.run())["requests"]) == ("completed", 5)


async def test_a_stop_does_not_wait_for_a_page_that_does_not_come(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call may wait for the limits, or for the end of a block."""
    monkeypatch.setattr("services.enricher.bulk._STOP_CHECK_SECONDS", 0.01)
    world.allegro.silent_from = 2
    walking = asyncio.create_task(world.walk())

    async with asyncio.timeout(30):
        await world.allegro.silent.wait()
        await world.pool.execute("UPDATE task_history SET stop_requested_at = now(), status = 'stopping'")
        await walking

    run = await world.run()
    assert (run["status"], run["orders_processed"]) == ("stopped", 100)


async def test_what_a_failed_call_held_is_free_without_a_search_for_cycles() -> None:
    held: list[weakref.ref[Exception]] = []

    async def failing() -> OrderPage:
        error = AllegroUnavailableError("503")
        held.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    handler = object.__new__(BulkHandler)
    gc.disable()
    try:
        with suppress(AllegroUnavailableError):
            await handler._unless_stopped(None, failing())  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert held[0]() is None
    finally:
        gc.enable()


async def test_calls_that_were_not_made_are_not_counted(world: World) -> None:
    world.allegro.before_page = {2: AllegroOutageError("most calls fail", retry_after=timedelta(seconds=5))}

    await world.walk()

    assert ((await world.run())["status"], (await world.run())["requests"]) == ("completed", 3)


async def test_a_stop_takes_effect_at_the_next_page_and_counts_truly(world: World) -> None:
    world.topic.after_page = {1: "UPDATE task_history SET stop_requested_at = now(), status = 'stopping'"}

    await world.walk()

    run = await world.run()
    assert (run["status"], run["orders_processed"]) == ("stopped", 100)
    assert await world.pool.fetchval("SELECT status FROM task_history") == "stopped"


async def test_a_listing_that_breaks_off_while_orders_remain_is_stalled_not_completed(world: World) -> None:
    world.allegro.empty_from = 2

    await world.walk()

    run = await world.run()
    assert (run["status"], run["orders_processed"], run["orders_expected"]) == ("stalled", 100, 250)
    assert run["error"] == "Allegro counts 150 more orders than it lists"
    assert run["completed_at"] is not None
    assert await world.pool.fetchval("SELECT status FROM task_history") == "stalled"


async def test_an_order_that_nobody_can_read_is_set_aside_and_the_walk_goes_on(world: World) -> None:
    world.allegro = Allegro(60)
    world.allegro.unreadable = (UnreadablePart(b'{"no":"id"}', UnreadableBodyError("order.id: missing")),)

    await world.walk()

    run = await world.run()
    assert world.topic.set_aside == [(0, world.allegro.unreadable[0])]
    assert (run["status"], run["orders_processed"], run["requests"]) == ("completed", 60, 1)


async def a_second_run(pool: asyncpg.Pool, number: int) -> OrderWindow:
    """Of a seller of its own."""
    token_id = await a_token(pool, user_id=f"shop-{number}")
    run_id = UUID(int=number)
    await a_run(pool, token_id=token_id, run_id=run_id, attempt=0)
    return replace(WINDOW, token_id=token_id, run_id=run_id)


async def test_sellers_whose_calls_fail_leave_the_slots_to_others(world: World) -> None:
    windows = [WINDOW, await a_second_run(world.pool, 2), await a_second_run(world.pool, 3)]
    world.allegro.failing = {1, 2}
    handler = world.handler()

    async with asyncio.timeout(60):
        await asyncio.gather(*(handler.handle([consumed(window)]) for window in windows))

    statuses = await world.pool.fetch("SELECT status FROM sync_history ORDER BY user_token_id")
    assert [row["status"] for row in statuses] == ["running", "running", "completed"]


async def test_a_walk_that_was_given_up_waits_for_the_poller(world: World) -> None:
    """What the poller sent while it went on waits behind it, and would make one endless attempt of all."""
    world.allegro.failing = {1}
    begun = await world.pool.fetchval("SELECT now()")

    await world.handler().handle([consumed(WINDOW), consumed(WINDOW), consumed(WINDOW)])

    window = await world.pool.fetchrow("SELECT attempt, published_at, finished FROM run_windows")
    assert (window["attempt"], window["published_at"] > begun, window["finished"]) == (1, True, False)
    assert world.allegro.pages == 3


async def test_what_a_walk_that_was_given_up_has_spent_is_counted_once(world: World) -> None:
    world.allegro.failing = {1}
    spent = []
    for _ in range(2):
        await world.handler().handle([consumed(WINDOW)])
        spent.append((await world.run())["requests"])
    world.allegro.failing = set()

    await world.handler().handle([consumed(WINDOW)])

    run = await world.run()
    assert spent == [3, 6]
    assert (run["status"], run["requests"]) == ("completed", world.allegro.pages)


async def test_a_walk_that_is_overtaken_ends_without_a_word(world: World) -> None:
    world.topic.after_page = {1: "UPDATE run_windows SET attempt = attempt + 1"}

    await world.walk()

    assert not any(isinstance(record, WindowFinished) for record in world.topic.records)
    assert world.allegro.pages == 1


async def test_a_lost_consent_fails_the_run_with_its_reason(world: World) -> None:
    world.allegro.before_page = {2: ReauthorizationRequiredError("consent again")}

    await world.walk()

    run = await world.run()
    assert (run["status"], run["orders_processed"]) == ("failed", 100)
    assert "consent again" in run["error"]
