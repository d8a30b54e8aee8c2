"""Events become looks: what is published for each outcome, and how many requests it takes (P6, E2)."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from aiokafka import ConsumerRecord
from msgspec.structs import replace

from services.enricher.live import LiveHandler
from services.enricher.pages import PagePlaces
from services.enricher.recent import RecentLooks
from shared.allegro.bodies import FetchedOrder, ListedOrder, OrderPage, listed_order
from shared.allegro.errors import (
    AccessDeniedError,
    AllegroOutageError,
    AllegroUnavailableError,
    CallRefusedError,
    OrderNotFoundError,
    ReauthorizationRequiredError,
    RequestRejectedError,
)
from shared.allegro.tally import note_request
from shared.kafka import PublishFailedError
from shared.messages import OrderFetch, OrderFetchFailed, OrderMissing, OrderObserved, Record, WantedBy
from tests.builders import A_RUN, NOON, after, an_event, an_order_body, consumed

LAG = timedelta(seconds=30)


class Clock:
    """Noon, unless it is moved."""

    moment = NOON

    def now(self) -> datetime:
        return self.moment


class Allegro:
    """A seller with a hundred orders, bought a second apart; `failing` answers with an error."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.failing: dict[str, Exception] = {}
        self.stuck: dict[str, asyncio.Event] = {}
        self.details: list[str] = []
        self.pages = 0

    def listed(self, number: int) -> ListedOrder:
        return listed_order(an_order_body(f"o-{number}", bought_at=after(number)))

    async def order(self, _token_id: int, order_id: str, *, traffic: str) -> FetchedOrder:
        assert traffic == "live"
        note_request()
        self.details.append(order_id)
        if order_id in self.failing:
            raise self.failing[order_id]
        if order_id in self.stuck:
            await self.stuck[order_id].wait()
        return FetchedOrder(self.listed(int(order_id.removeprefix("o-"))), self._clock.now())

    async def list_orders(
        self, _token_id: int, *, bought_from: datetime, bought_to: datetime, traffic: str
    ) -> OrderPage:
        note_request()
        self.pages += 1
        if "list" in self.failing:
            raise self.failing["list"]
        orders = [self.listed(number) for number in range(100) if bought_from <= after(number) <= bought_to]
        return OrderPage(tuple(orders), len(orders), self._clock.now())


class Published:
    """What was published, in order."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.failing: Exception | None = None
        self.more = asyncio.Event()
        self.letters: list[tuple[bytes | None, str, int]] = []

    async def results(self, records: Iterable[Record]) -> None:
        if self.failing is not None:
            raise self.failing
        self.records += records
        self.more.set()

    async def until(self, count: int) -> None:
        """Wait until so many records are published."""
        async with asyncio.timeout(10):
            while len(self.records) < count:
                self.more.clear()
                await self.more.wait()

    async def dead_letter(self, record: ConsumerRecord, error: Exception, *, attempts: int = 1) -> None:
        self.letters.append((record.value, type(error).__name__, attempts))


class Stops:
    """Knows which looks nobody wants any more, and how often it was asked."""

    def __init__(self) -> None:
        self.stopped: set[str] = set()
        self.asked: list[Collection[str]] = []
        self.failing: Exception | None = None

    async def among(self, _token_id: int, asked: Mapping[str, UUID]) -> Collection[str]:
        self.asked.append(set(asked))
        if self.failing is not None:
            raise self.failing
        return self.stopped & set(asked)


class World:
    """A handler between a seller and a topic."""

    def __init__(self, pages: PagePlaces | None = None) -> None:
        self.stops = Stops()
        self.clock = Clock()
        self.allegro = Allegro(self.clock)
        self.published = Published()
        self.handler = LiveHandler(
            self.allegro,  # type: ignore[arg-type]
            self.published,  # type: ignore[arg-type]
            self.clock,
            RecentLooks(),
            self.stops.among,
            list_lag=LAG,
            detail_concurrency=4,
            pages=pages,
        )

    async def handle(self, *records: Record | bytes) -> Sequence[Record]:
        before = len(self.published.records)
        await self.handler.handle([consumed(record, offset=number) for number, record in enumerate(records)])
        return self.published.records[before:]


@pytest.fixture
def world() -> World:
    return World()


async def test_a_burst_of_events_of_one_order_is_one_look(world: World) -> None:
    looked = await world.handle(*[an_event(number, order_id="o-1") for number in range(5)])

    assert [type(record) for record in looked] == [OrderObserved]
    assert world.allegro.details == ["o-1"]


@pytest.mark.parametrize("now", [0, 600])
async def test_looks_single_ones_and_those_on_pages_name_the_runs_that_wanted_them(world: World, now: float) -> None:
    world.clock.moment = after(now)
    events = [
        replace(an_event(number, order_id=f"o-{number}", last=9), bought_at=after(number)) for number in range(10)
    ]

    looked = await world.handle(*events)

    assert (world.allegro.pages > 0) is (now > 0)
    wanted_by = {look.wanted_by for look in looked if isinstance(look, OrderObserved)}
    assert wanted_by == {(WantedBy(run_id=events[0].run_id, last_event_id=9),)}


async def test_an_event_that_the_last_look_covers_costs_nothing(world: World) -> None:
    await world.handle(an_event(1, order_id="o-1", wanted_after=NOON))
    again = await world.handle(an_event(2, order_id="o-1", wanted_after=NOON))
    later = await world.handle(an_event(3, order_id="o-1", wanted_after=after(1)))

    assert (len(again), len(later)) == (0, 1)


async def test_an_old_backlog_is_read_by_pages_whose_looks_are_dated_back(world: World) -> None:
    world.clock.moment = after(600)
    events = [replace(an_event(number, order_id=f"o-{number}"), bought_at=after(number)) for number in range(100)]

    looked = await world.handle(*events)

    assert (world.allegro.pages, len(world.allegro.details)) == (1, 0)
    assert {record.observed_at for record in looked if isinstance(record, OrderObserved)} == {after(600) - LAG}
    assert len(looked) == 100


async def test_what_no_page_shows_is_fetched_singly_and_so_is_all_when_the_list_fails(world: World) -> None:
    world.clock.moment = after(600)
    world.allegro.failing["list"] = AllegroUnavailableError("503")
    events = [replace(an_event(number, order_id=f"o-{number}"), bought_at=after(number)) for number in range(10)]

    looked = await world.handle(*events)

    assert sorted(world.allegro.details) == sorted(f"o-{number}" for number in range(10))
    assert len(looked) == 10


@pytest.mark.parametrize("list_fails", [False, True])
async def test_looks_tell_what_they_cost_pages_in_vain_included(world: World, list_fails: bool) -> None:
    world.clock.moment = after(600)
    world.allegro.failing["o-3"] = AllegroUnavailableError("503")
    if list_fails:
        world.allegro.failing["list"] = AllegroUnavailableError("503")
    old = [replace(an_event(number, order_id=f"o-{number}"), bought_at=after(number)) for number in range(10)]
    elsewhere = [
        replace(an_event(number, order_id=f"o-{number}"), bought_at=after(number % 7))
        for number in range(200, 210)  # no page shows these
    ]
    new = an_event(1000, order_id="o-50", wanted_after=after(599))

    looked = await world.handle(*old, *elsewhere, new)

    costs = [record.requests for record in looked if isinstance(record, OrderObserved | OrderFetchFailed)]
    assert len(costs) == len(looked) == 21
    assert sum(costs) == world.allegro.pages + len(world.allegro.details)
    assert world.allegro.pages == 1
    assert max(costs) <= 2


async def test_a_slow_look_holds_up_no_other_order_of_the_seller(world: World) -> None:
    world.allegro.stuck["o-0"] = asyncio.Event()
    events = [an_event(number, order_id=f"o-{number}") for number in range(40)]
    handling = asyncio.create_task(world.handle(*events))

    await world.published.until(39)
    early = {record.order_id for record in world.published.records if isinstance(record, OrderObserved)}
    world.allegro.stuck["o-0"].set()
    looked = await handling

    assert early == {f"o-{number}" for number in range(1, 40)}
    assert len(looked) == 40


async def test_looks_that_cannot_be_published_are_made_again_by_whoever_asked(world: World) -> None:
    world.allegro.stuck["o-0"] = asyncio.Event()
    world.published.failing = PublishFailedError("Kafka is away")
    events = [an_event(number, order_id=f"o-{number}") for number in range(10)]

    with pytest.raises(PublishFailedError):
        await world.handle(*events)
    world.published.failing = None
    world.allegro.stuck.clear()
    looked = await world.handle(*events)

    assert len(looked) == 10


async def test_a_missing_order_is_recorded_and_not_retried(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.allegro.failing["o-1"] = OrderNotFoundError("404: not found")

    (record,) = await world.handle(an_event(1, order_id="o-1"))

    assert isinstance(record, OrderMissing)
    assert (record.observed_at, record.reason) == (NOON, "404: not found")
    told = [line.__dict__ for line in caplog.records if line.message == "Allegro has no such order"]
    assert [(line["token_id"], line["order_id"]) for line in told] == [(1, "o-1")]


async def test_a_missing_order_is_dated_when_it_was_asked_for(world: World) -> None:
    world.allegro.failing["o-1"] = error = OrderNotFoundError("404: not found")
    error.requested_at = after(50)

    (record,) = await world.handle(an_event(1, order_id="o-1"))

    assert isinstance(record, OrderMissing)
    assert record.observed_at == after(50)


async def test_a_refused_call_is_tried_again_and_sets_nothing_aside(world: World) -> None:
    world.allegro.failing["o-1"] = CallRefusedError("406: 20 bytes that are no JSON object")

    (record,) = await world.handle(an_event(1, order_id="o-1"))

    assert isinstance(record, OrderFetchFailed)
    assert record.retry_after_seconds is not None
    assert world.published.letters == []


async def test_an_outage_parks_the_order_with_growing_delays(world: World) -> None:
    world.allegro.failing["o-1"] = AllegroUnavailableError("503")

    (first,) = await world.handle(an_event(1, order_id="o-1"))
    (fifth,) = await world.handle(OrderFetch(token_id=1, order_id="o-1", wanted_after=NOON, attempts=4))

    assert isinstance(first, OrderFetchFailed)
    assert isinstance(fifth, OrderFetchFailed)
    assert (first.attempts, fifth.attempts) == (1, 5)
    assert 15 <= (first.retry_after_seconds or 0) <= 30
    assert 240 <= (fifth.retry_after_seconds or 0) <= 480
    assert world.published.letters == []


async def test_what_was_looked_for_without_consent_does_not_wait_for_long_once_there_is_one(world: World) -> None:
    """Until then the poller sends nothing of the seller out (tests/poller/test_upkeep.py)."""
    world.allegro.failing["o-1"] = ReauthorizationRequiredError("consent again")

    (record,) = await world.handle(an_event(1, order_id="o-1"))

    assert isinstance(record, OrderFetchFailed)
    assert 15 <= (record.retry_after_seconds or 0) <= 30


async def test_what_the_application_may_not_see_waits_for_a_person(world: World) -> None:
    world.allegro.failing["o-1"] = AccessDeniedError("403: a scope is missing")

    (record,) = await world.handle(an_event(1, order_id="o-1"))

    assert isinstance(record, OrderFetchFailed)
    assert record.retry_after_seconds == 3600


async def test_a_request_that_never_can_succeed_sets_its_records_aside(world: World) -> None:
    world.allegro.failing["o-1"] = RequestRejectedError("422: Not valid time UUID")
    event = an_event(1, order_id="o-1")

    (record,) = await world.handle(event)

    assert isinstance(record, OrderFetchFailed)
    assert record.retry_after_seconds is None
    assert world.published.letters == [(event.encode(), "RequestRejectedError", 1)]


async def test_an_unreadable_record_is_set_aside_and_the_others_are_worked_off(world: World) -> None:
    foreign = an_event(2, token_id=2)

    looked = await world.handle(b"no json", an_event(1, order_id="o-1"), foreign)

    assert len(looked) == 1
    assert [letter[1:] for letter in world.published.letters] == [("UnreadableRecordError", 1)] * 2


async def test_in_an_outage_nothing_is_an_attempt(world: World) -> None:
    """The lane keeps the records and hands them over again: no failure is published, no attempt counted."""
    world.allegro.failing["o-2"] = AllegroOutageError("most calls fail")
    events = [an_event(number, order_id=f"o-{number}") for number in (1, 2, 3)]

    with pytest.raises(AllegroOutageError):
        await world.handle(*events)
    del world.allegro.failing["o-2"]
    await world.handle(*events)

    seen = [record.order_id for record in world.published.records if isinstance(record, OrderObserved)]
    assert sorted(seen) == ["o-1", "o-2", "o-3"]
    assert len(world.published.records) == 3
    assert world.published.letters == []


def a_fetch(number: int) -> OrderFetch:
    """A look that one run wants."""
    return OrderFetch(token_id=1, order_id=f"o-{number}", wanted_after=NOON, run_id=A_RUN)


async def test_looks_of_a_stopped_run_are_not_made_but_those_that_an_event_wants_are(world: World) -> None:
    world.stops.stopped = {"o-1", "o-2", "o-3"}
    unknown = replace(a_fetch(3), run_id=None)

    looked = await world.handle(a_fetch(1), a_fetch(2), an_event(1, order_id="o-2"), unknown, a_fetch(4))

    assert sorted(world.allegro.details) == ["o-2", "o-3", "o-4"]
    assert len(looked) == 3
    assert world.stops.asked == [{"o-1", "o-4"}]


async def test_a_stop_is_heard_in_the_middle_of_many_looks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.enricher.stopped._LOOK_SECONDS", 0)
    world.allegro.stuck = {f"o-{number}": asyncio.Event() for number in range(4, 90)}
    work = asyncio.create_task(world.handle(*[a_fetch(number) for number in range(90)]))
    await world.published.until(4)

    world.stops.stopped = {f"o-{number}" for number in range(90)}
    for stuck in world.allegro.stuck.values():
        stuck.set()
    looked = await work

    assert len(looked) == len(world.allegro.details) == 8  # those that were under way, and no other


async def test_while_nobody_can_say_what_was_stopped_the_records_wait(world: World) -> None:
    world.stops.failing = ConnectionError("away")

    with pytest.raises(ConnectionError):
        await world.handle(a_fetch(1))
    world.stops.failing = None
    await world.handle(a_fetch(1))

    assert world.allegro.details == ["o-1"]


async def test_events_cost_no_question_about_stops(world: World) -> None:
    await world.handle(*[an_event(number, order_id=f"o-{number}") for number in range(5)])

    assert world.stops.asked == []
