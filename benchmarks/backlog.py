"""Work for enrichers: looks that are owed and bursts of events, of orders that the simulated Allegro has."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from uuid import uuid4

import asyncpg

from benchmarks.stack import BenchStack, Seller
from shared.database import database_now
from shared.kafka import RecordProducer
from shared.messages import OrderEvent, OrderFetch, RawJson, headers

EVENTS_PER_ORDER = 5
_PAGE = 100


@dataclass(frozen=True)
class Order:
    """An order that Allegro has."""

    order_id: str
    bought_at: datetime


class Shelf:
    """Orders of the sellers, listed once and used by every run."""

    def __init__(self, sellers: Sequence[Seller]) -> None:
        self.sellers = sellers
        self._orders: dict[int, list[Order]] = {}

    async def fill(self, stack: BenchStack, pool: asyncpg.Pool, wanted: Mapping[int, int]) -> None:
        """List as many of each token's orders as are wanted; bought within the last 360 days."""
        now = await database_now(pool)
        async with stack.allegro(pool) as allegro:

            async def one(token_id: int, count: int) -> None:
                orders: dict[str, Order] = {}
                position = now - timedelta(days=360)
                while len(orders) < count:
                    page = await allegro.client.list_orders(
                        token_id, bought_from=position, bought_to=now, traffic="live"
                    )
                    for listed in page.orders:
                        if listed.bought_at is not None:
                            orders[listed.order_id] = Order(listed.order_id, listed.bought_at)
                            position = listed.bought_at
                    if len(page.orders) < _PAGE:
                        break
                self._orders[token_id] = list(orders.values())

            await asyncio.gather(*(one(token_id, count) for token_id, count in wanted.items()))

    def orders(self, seller: Seller, count: int) -> list[Order]:
        orders = self._orders[seller.token_id]
        if len(orders) < count:
            raise RuntimeError(f"the simulated seller has {len(orders)} orders, {count} are needed")
        return orders[:count]


def fetches(token_id: int, orders: Iterable[Order], now: datetime) -> list[OrderFetch]:
    """Looks that are owed and that no list page can serve."""
    return [OrderFetch(token_id=token_id, order_id=order.order_id, wanted_after=now) for order in orders]


def bursts_of(token_id: int, orders: Iterable[Order], now: datetime) -> Iterator[OrderEvent]:
    """Several new events of each order, as the journal has them: one after the other."""
    run_id = uuid4()
    position = int(now.timestamp() * 1_000_000)
    for order in orders:
        for _ in range(EVENTS_PER_ORDER):
            position += 1
            yield OrderEvent(
                token_id=token_id,
                event_id=position,
                follows_event_id=position - 1,
                event_type="READY_FOR_PROCESSING",
                order_id=order.order_id,
                wanted_after=now,
                run_id=run_id,
                run_last_event_id=position,
                event=RawJson(b"{}"),
            )


async def publish_interleaved(
    stack: BenchStack, environment: Mapping[str, str], records: Sequence[Iterable[OrderFetch | OrderEvent]]
) -> None:
    """Every seller's records, a piece of one after a piece of the other."""
    settings = stack.settings(environment)
    carried = headers(correlation_id="bench")
    async with RecordProducer(settings, service="benchmark") as producer:
        iterators = [iter(each) for each in records]
        while pieces := [piece for piece in (list(islice(one, 200)) for one in iterators) if piece]:
            for piece in pieces:
                await producer.publish_all(
                    settings.topics.order_events, [(record.key, record.encode(), carried) for record in piece]
                )
