"""The number of pages in hand does not grow with the number of sellers (P10), and hanging ones delay nobody (P4)."""

import asyncio
from collections.abc import Iterable

import pytest

from services.enricher.pages import PagePlaces
from shared.allegro.bodies import OrderPage
from shared.messages import Record
from tests.builders import after, an_event
from tests.enricher.test_live import World

_SELLERS = 60


async def test_there_are_only_so_many_places() -> None:
    places = PagePlaces(2, patience_seconds=3600)
    may_end = asyncio.Event()
    began: list[int] = []

    async def hold(number: int) -> None:
        async with places.place():
            began.append(number)
            await may_end.wait()

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(hold(number))
        for _ in range(10):
            await asyncio.sleep(0)
        before = list(began)
        may_end.set()

    assert before == [0, 1]
    assert sorted(began) == [0, 1, 2, 3, 4]


async def test_a_call_that_hangs_keeps_its_place_for_a_moment_only() -> None:
    places = PagePlaces(1, patience_seconds=0.01)
    async with asyncio.timeout(10), places.place():
        for _ in range(3):
            async with places.place():
                assert places.are_taken

    assert not places.are_taken
    async with places.place():
        assert places.are_taken, "nobody gave back what was not theirs"


async def test_a_page_that_came_keeps_its_place_until_it_is_published() -> None:
    places = PagePlaces(1, patience_seconds=0.01)
    async with places.place() as place:
        place.page_came()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), places.place():
                pass

    assert not places.are_taken


async def test_a_place_is_free_again_whatever_happens_in_it() -> None:
    places = PagePlaces(1, patience_seconds=3600)
    for _ in range(3):
        try:
            async with asyncio.timeout(10), places.place():
                raise RuntimeError
        except RuntimeError:
            pass

    assert not places.are_taken


async def test_pages_in_hand_are_bounded_however_many_sellers_have_a_backlog() -> None:
    world = World()
    world.clock.moment = after(3600)
    in_hand = most = 0
    list_orders, results = world.allegro.list_orders, world.published.results

    async def asked(*arguments: object, **options: object) -> OrderPage:
        nonlocal in_hand, most
        in_hand += 1
        most = max(most, in_hand)
        await asyncio.sleep(0)
        return await list_orders(*arguments, **options)  # type: ignore[arg-type]

    async def published(records: Iterable[Record]) -> None:
        nonlocal in_hand
        await asyncio.sleep(0)
        await results(records)
        in_hand -= 1

    world.allegro.list_orders = asked  # type: ignore[method-assign]
    world.published.results = published  # type: ignore[method-assign]
    backlog = [
        an_event(number, order_id=f"o-{number}", last=9).model_copy(update={"bought_at": after(number)})
        for number in range(10)
    ]

    looked = await asyncio.gather(*(world.handle(*backlog) for _ in range(_SELLERS)))

    assert len(looked) == _SELLERS
    assert in_hand == 0
    assert 1 < most <= 16
