"""The number of pages in hand does not grow with the number of sellers (P10), and hanging ones delay nobody (P4)."""

import asyncio
import weakref
from collections import Counter
from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from services.enricher.pages import PagePlaces
from shared.allegro.bodies import OrderPage
from shared.messages import OrderEvent, OrderObserved, Record
from tests.builders import after, an_event
from tests.enricher.test_live import World

_ORDERS = 30
_ON_A_PAGE = 10
_SOON = 0.05


class Sellers(World):
    """Sellers with a backlog each, whose pages take time to come and to be published."""

    def __init__(self, pages: PagePlaces, *, page_seconds: float = 0, publish_seconds: float = 0) -> None:
        super().__init__(pages)
        self.clock.moment = after(3600)
        self.most: Counter[str] = Counter()
        """Of what went on at the same time."""
        self._going_on: Counter[str] = Counter()
        self.alive: list[weakref.ref[OrderPage]] = []
        self.most_alive = 0
        self._page_seconds = page_seconds
        self._publish_seconds = publish_seconds
        self._list_orders, self._results = self.allegro.list_orders, self.published.results
        self.allegro.list_orders = self._ask  # type: ignore[method-assign]
        self.published.results = self._publish  # type: ignore[method-assign]

    async def work_off(self, sellers: int) -> None:
        async with asyncio.timeout(30):
            await asyncio.gather(*(self.handle(*_backlog()) for _ in range(sellers)))

    async def _ask(self, *arguments: object, **options: object) -> OrderPage:
        await self._take("asking", self._page_seconds)
        whole = await self._list_orders(*arguments, **options)  # type: ignore[arg-type]
        page = OrderPage(whole.orders[:_ON_A_PAGE], whole.total_count, whole.requested_at)
        self.alive = [reference for reference in self.alive if reference() is not None] + [weakref.ref(page)]
        self.most_alive = max(self.most_alive, len(self.alive))
        return page

    async def _publish(self, records: Iterable[Record]) -> None:
        published = list(records)
        await self._take("publishing", self._publish_seconds)
        await self._results(published)

    async def _take(self, what: str, seconds: float) -> None:
        self._going_on[what] += 1
        self.most[what] = max(self.most[what], self._going_on[what])
        await asyncio.sleep(seconds)
        self._going_on[what] -= 1


def _backlog() -> list[OrderEvent]:
    return [
        replace(an_event(number, order_id=f"o-{number}", last=_ORDERS), bought_at=after(number))
        for number in range(_ORDERS)
    ]


async def _is_free(places: PagePlaces) -> bool:
    try:
        async with asyncio.timeout(_SOON), places.place():
            return True
    except TimeoutError:
        return False


async def test_there_are_only_so_many_places() -> None:
    places = PagePlaces(2, patience_seconds=3600)
    async with places.place():
        assert await _is_free(places)
        async with places.place():
            assert not await _is_free(places)

    assert await _is_free(places)


async def test_a_call_that_hangs_keeps_its_place_for_a_moment_only() -> None:
    places = PagePlaces(1, patience_seconds=0.01)
    async with asyncio.timeout(10), places.place():
        for _ in range(3):
            async with places.place() as other:
                await other.page_came()
                assert not await _is_free(places), "whoever lost the place must not give back another's"

    assert await _is_free(places)


async def test_a_page_that_came_keeps_its_place_until_it_is_published() -> None:
    places = PagePlaces(1, patience_seconds=0.01)
    async with places.place() as place:
        await place.page_came()
        assert not await _is_free(places)

    assert await _is_free(places)


async def test_a_page_that_comes_late_waits_for_a_place_again() -> None:
    places = PagePlaces(1, patience_seconds=0.01)
    async with places.place() as late:
        async with places.place() as other:
            await other.page_came()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(_SOON):
                    await late.page_came()
        await late.page_came()
        assert not await _is_free(places)

    assert await _is_free(places)


async def _cancel(task: asyncio.Task[None]) -> None:
    """Where it waits next."""
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()


@pytest.mark.parametrize("page_came", [False, True])
async def test_a_place_is_free_again_when_its_work_is_cancelled(page_came: bool) -> None:
    places = PagePlaces(1, patience_seconds=3600)
    reached = asyncio.Event()

    async def work() -> None:
        async with places.place() as place:
            if page_came:
                await place.page_came()
            reached.set()
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await asyncio.wait_for(reached.wait(), 10)
    await _cancel(working)

    assert await _is_free(places)


async def test_who_is_cancelled_while_waiting_for_a_place_gives_back_nobodys() -> None:
    places = PagePlaces(1, patience_seconds=3600)

    async def work() -> None:
        async with places.place():
            pass

    async with places.place():
        waiting = asyncio.create_task(work())
        await _cancel(waiting)
        assert not await _is_free(places)

    assert await _is_free(places)


async def test_who_is_cancelled_while_waiting_for_a_place_again_gives_back_nobodys() -> None:
    places = PagePlaces(1, patience_seconds=0.01)
    other_came = asyncio.Event()

    async def work() -> None:
        async with places.place() as place:
            await other_came.wait()
            await place.page_came()

    late = asyncio.create_task(work())
    await asyncio.sleep(0)  # it has the place, and loses it
    async with asyncio.timeout(10), places.place() as other:
        await other.page_came()
        other_came.set()
        await _cancel(late)
        assert not await _is_free(places)

    assert await _is_free(places)


async def test_a_place_is_free_again_after_an_error() -> None:
    places = PagePlaces(1, patience_seconds=3600)
    with pytest.raises(RuntimeError):
        async with places.place():
            raise RuntimeError

    assert await _is_free(places)


async def test_pages_in_hand_are_bounded_however_many_sellers_have_a_backlog() -> None:
    sellers = Sellers(PagePlaces(patience_seconds=3600))

    await sellers.work_off(60)

    assert sum(isinstance(record, OrderObserved) for record in sellers.published.records) == 60 * _ORDERS
    assert sellers.allegro.details == [], "all of them came by pages"
    assert 1 < sellers.most["asking"] <= 16
    assert 1 < sellers.most_alive <= 16


async def test_whoever_waits_for_a_place_holds_no_page() -> None:
    sellers = Sellers(PagePlaces(1, patience_seconds=3600))

    await sellers.work_off(5)

    assert sellers.most_alive == 1


async def test_however_late_pages_come_they_are_published_one_after_the_other() -> None:
    sellers = Sellers(PagePlaces(1, patience_seconds=0.001), page_seconds=0.02, publish_seconds=0.01)

    await sellers.work_off(5)

    assert sellers.most["asking"] > 1
    assert sellers.most["publishing"] == 1
    assert len(sellers.published.records) == 5 * _ORDERS
