"""Work for the services: looks that are owed, bursts of events of orders that Allegro has, and orders looked at."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import cycle, islice
from uuid import UUID, uuid4

import asyncpg

from benchmarks.orders import event_bodies, order_bodies
from benchmarks.stack import BenchStack, Seller
from shared.allegro.bodies import order_facts
from shared.database import database_now
from shared.kafka import RecordProducer
from shared.messages import OrderEvent, OrderFetch, OrderObserved, RawJson, Record, headers

EVENTS_PER_ORDER = 5
_PAGE = 100
_PIECE = 200
_SAMPLE = 200


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


async def owe(pool: asyncpg.Pool, records: Iterable[OrderFetch]) -> None:
    """Have exactly these looks owed: what finds no room in an enricher is read from there. Nobody sends them again."""
    later = await database_now(pool) + timedelta(days=1)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("DELETE FROM pending_fetches")
        await connection.copy_records_to_table(
            "pending_fetches",
            columns=("user_token_id", "allegro_order_id", "wanted_after", "next_attempt_at"),
            records=[(record.token_id, record.order_id, record.wanted_after, later) for record in records],
        )


def bursts_of(token_id: int, orders: Iterable[Order], now: datetime, *, dated: bool = False) -> Iterator[OrderEvent]:
    """Several new events of each order, as the journal has them: one after the other.

    Bodies are real ones, though of other orders. Without a date, which Allegro's events have, nothing of a backlog can
    be looked for on list pages: every order needs a fetch of its own.
    """
    run_id = uuid4()
    position = int(now.timestamp() * 1_000_000)
    bodies = cycle(event_bodies(_SAMPLE))
    for order in orders:
        for _ in range(EVENTS_PER_ORDER):
            position += 1
            yield OrderEvent(
                token_id=token_id,
                event_id=position,
                follows_event_id=position - 1,
                event_type="READY_FOR_PROCESSING",
                occurred_at=now,
                order_id=order.order_id,
                bought_at=order.bought_at if dated else None,
                wanted_after=now,
                run_id=run_id,
                run_last_event_id=position,
                event=next(bodies),
            )


def observed(token_ids: Sequence[int], count: int, now: datetime) -> Iterator[OrderObserved]:
    """So many different orders as the enricher publishes them; few bodies, each under many ids."""
    bodies = [(order_facts(body).order_id.encode(), body) for body in order_bodies(_SAMPLE)]
    for number, token_id, (known_id, body) in zip(range(count), cycle(token_ids), cycle(bodies), strict=False):
        order_id = str(UUID(int=number))
        yield OrderObserved(
            token_id=token_id,
            order_id=order_id,
            observed_at=now,
            observed_by="list",
            order=RawJson(body.replace(known_id, order_id.encode())),
        )


async def publish_interleaved(
    stack: BenchStack,
    environment: Mapping[str, str],
    records: Sequence[Iterable[OrderFetch | OrderEvent]],
    *,
    orders: Iterable[OrderObserved] = (),
) -> None:
    """Every seller's records, a piece of one after a piece of the other; then the orders."""
    settings = stack.settings(environment)
    topics = settings.topics
    carried = headers(correlation_id="bench")
    iterators = [iter(each) for each in records]
    async with RecordProducer(settings, service="benchmark") as producer:

        async def publish(topic: str, piece: Iterable[Record]) -> None:
            await producer.publish_all(topic, [(record.key, record.encode(), carried) for record in piece])

        while pieces := [piece for piece in (list(islice(one, _PIECE)) for one in iterators) if piece]:
            for piece in pieces:
                await publish(topics.order_events, piece)
        looked_at = iter(orders)
        while found := list(islice(looked_at, _PIECE)):
            await publish(topics.orders, found)
