"""An outage at the edge: it opens by real answers, costs no call while it lasts, and is told to whoever asks."""

from collections.abc import AsyncIterator

import asyncpg
import httpx
import pytest

from shared.allegro.client import AllegroClient, Seller
from shared.allegro.errors import (
    AllegroError,
    AllegroOutageError,
    AllegroUnavailableError,
    CallRefusedError,
    RequestRejectedError,
)
from shared.allegro.http import open_http
from shared.allegro.outage import Outage, outage_since
from shared.database import open_pool
from tests.shared.allegro.builders import settings
from tests.shared.allegro.test_client import Clock, Limits, Vault

pytestmark = pytest.mark.integration


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_pool(database_url, service="test", max_size=2)
    yield pool
    await pool.close()


class World:
    """A client whose Allegro answers `status`, on a clock that is set by hand."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.now = 1000.0
        self.status = 503
        self.requests = 0
        self.outage = Outage(pool, "our-app", monotonic=lambda: self.now)
        chosen = settings("https://api.example")
        http = open_http(chosen, transport=httpx.MockTransport(self._answer))
        self.limits = Limits()
        self.client = AllegroClient(
            http,
            chosen,
            Vault(),  # type: ignore[arg-type]
            self.limits,  # type: ignore[arg-type]
            self.outage,
            Clock(),
            sleep=self._no_pause,
        )

    def _answer(self, _request: httpx.Request) -> httpx.Response:
        self.requests += 1
        body = {"id": "1", "login": "me"} if self.status == 200 else {"errors": [{"code": "X", "message": "x"}]}
        return httpx.Response(self.status, json=body)

    async def _no_pause(self, _seconds: float) -> None:
        return

    async def fails(self, order_id: str | None = None, *, token_id: int = 7) -> type[Exception]:
        with pytest.raises(AllegroError) as caught:
            await (
                self.client.me(token_id) if order_id is None else self.client.order(token_id, order_id, traffic="live")
            )
        return caught.type


@pytest.fixture
def world(pool: asyncpg.Pool) -> World:
    return World(pool)


async def test_most_calls_failing_stops_the_calls_until_a_probe_succeeds(world: World) -> None:
    kinds = [await world.fails() for _ in range(20)]
    spent, permits = world.requests, len(world.limits.acquired)

    world.now += 5
    probing = await world.fails()
    probes = world.requests - spent
    world.status = 200
    world.now += 10
    seller = await world.client.me(7)

    assert kinds == [AllegroUnavailableError] * 2 + [AllegroOutageError] * 18
    assert (spent, permits) == (8, 8)  # three attempts, three attempts, two
    assert (probing, probes) == (AllegroOutageError, 1)
    assert seller == Seller("1", "me")
    assert await world.client.me(8) == Seller("1", "me")


@pytest.mark.parametrize("seconds_between", [0.25, 20.0, 180.0])
async def test_a_seller_whose_every_call_fails_does_not_stop_the_others(world: World, seconds_between: float) -> None:
    kinds = set()
    for _ in range(50):
        world.status = 200
        await world.client.me(8)
        world.status = 503
        kinds |= {await world.fails(token_id=7) for _ in range(4)}
        world.now += seconds_between

    assert kinds == {AllegroUnavailableError}
    assert world.requests == 50 + 50 * 4 * 3


async def test_a_seller_who_has_not_failed_is_let_through_where_another_was_alone(world: World) -> None:
    for _ in range(4):
        await world.fails(token_id=7)
    world.status = 200

    seller = await world.client.me(8)

    assert seller == Seller("1", "me")
    assert await world.client.me(7) == Seller("1", "me")


async def test_most_sellers_failing_is_an_outage_for_the_one_that_did_not_call(world: World) -> None:
    kinds = [await world.fails(token_id=token_id) for token_id in (7, 8, 9)]

    assert kinds == [AllegroUnavailableError, AllegroUnavailableError, AllegroOutageError]
    assert (await world.fails(token_id=10), world.requests) == (AllegroOutageError, 8)


@pytest.mark.parametrize("order_ids", [["c93df771-c4e8-11f1-904f-89bb34047197"] * 50, [str(n) for n in range(50)]])
async def test_an_order_that_is_rejected_again_and_again_or_never_was_one_is_no_outage(
    world: World, order_ids: list[str]
) -> None:
    world.status = 422

    kinds = {await world.fails(order_id) for order_id in order_ids}

    assert (kinds, world.requests) == ({RequestRejectedError}, 50)


async def test_many_orders_being_rejected_are_an_outage_that_takes_few_of_them(world: World) -> None:
    """Each rejection is a dead letter: it must not be every order's."""
    world.status = 400

    kinds = [await world.fails(f"{number:08x}-c4e8-11f1-904f-89bb34047197") for number in range(1000)]

    assert kinds == [RequestRejectedError] * 8 + [AllegroOutageError] * 992


async def test_calls_that_are_refused_whatever_they_ask_for_are_an_outage(world: World) -> None:
    world.status = 406

    kinds = [await world.fails() for _ in range(50)]

    assert kinds == [CallRefusedError] * 8 + [AllegroOutageError] * 42


async def test_it_is_told_while_it_lasts_and_forgotten_after_it(world: World, pool: asyncpg.Pool) -> None:
    before = await outage_since(pool, "our-app")
    for _ in range(4):
        await world.fails()
    await world.outage.report()
    since = await outage_since(pool, "our-app")
    world.now += 3600
    await world.outage.report()
    prolonged = await outage_since(pool, "our-app")
    others = await outage_since(pool, "another-app")
    world.status = 200
    await world.client.me(7)
    await world.outage.report()

    assert (before, others, await outage_since(pool, "our-app")) == (None, None, None)
    assert since is not None
    assert prolonged is not None
    assert prolonged <= since


async def test_what_a_service_said_that_is_no_more_is_not_believed(world: World, pool: asyncpg.Pool) -> None:
    for _ in range(4):
        await world.fails()
    await world.outage.report()
    await pool.execute("UPDATE allegro_outages SET seen_at = now() - interval '1 minute'")

    assert await outage_since(pool, "our-app") is None
