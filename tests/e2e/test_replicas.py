"""Replicas that come and go all the time: nothing lost, nothing twice, nothing backwards (promises P1, P2, P3, P11).

Enrichers and writers are started and ended every few seconds, by SIGTERM and by SIGKILL, while sellers are loaded and
go on selling. The truth is the simulated Allegro's ledger.
"""

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.stack import NO_LIMITS, BenchStack, Seller, bench_stack
from devstack.ports import free_port, release
from devstack.processes import Child, tail
from shared.database import open_pool
from shared.messages import OrderState, decode
from shared.sync_start import begin_sync
from shared.topics import Topics
from tests.e2e.waiting import PATIENCE_SECONDS, TEST_SECONDS, compared

pytestmark = [pytest.mark.integration, pytest.mark.e2e, pytest.mark.timeout(TEST_SECONDS)]

_SELLERS = 4
_ORDERS = 1500
_LIVE_ORDERS = 300
_LIVES_OF_A_PLACE = 4
_READY_SECONDS = 120.0
_PARTITIONS = 3

# Whatever goes back is noted: an older state after a newer one, a cursor, a count.
_WATCH = """
CREATE TABLE went_back (what text, before text, after text);
CREATE FUNCTION note_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO went_back VALUES ('order', OLD.observed_at::text, NEW.observed_at::text); RETURN NULL; END $$;
CREATE TRIGGER orders_back AFTER UPDATE ON orders FOR EACH ROW
  WHEN (NEW.observed_at < OLD.observed_at) EXECUTE FUNCTION note_order();
CREATE FUNCTION note_cursor() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO went_back VALUES ('cursor', OLD.stored_event_id::text, NEW.stored_event_id::text); RETURN NULL;
END $$;
CREATE TRIGGER cursors_back AFTER UPDATE ON journal_cursors FOR EACH ROW
  WHEN (NEW.stored_event_id < OLD.stored_event_id) EXECUTE FUNCTION note_cursor();
CREATE FUNCTION note_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO went_back VALUES ('run', OLD.status, NEW.status); RETURN NULL; END $$;
CREATE TRIGGER runs_back AFTER UPDATE ON sync_history FOR EACH ROW
  WHEN (NEW.orders_processed < OLD.orders_processed OR OLD.completed_at IS NOT NULL AND NEW.status <> OLD.status)
  EXECUTE FUNCTION note_run();
"""


@pytest.fixture
def stack(database_url: str, kafka_bootstrap: str) -> Iterator[BenchStack]:
    servers = {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap}
    options = ["--sellers", str(_SELLERS), "--orders", str(_ORDERS), "--history-days", "50", *NO_LIMITS]
    environment = {
        "KAFKA_SESSION_TIMEOUT_SECONDS": "6",
        "KAFKA_TOPIC_PARTITIONS": str(_PARTITIONS),
        "POLLER_REDELIVERY_SECONDS": "20",
        "POLLER_WINDOW_REDELIVERY_SECONDS": "10",
        "SYNC_LIST_LAG_SECONDS": "1",
    }
    with bench_stack(options, environment, choice=servers) as running:
        yield running


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=4)
    yield opened
    opened.terminate()


class Place:
    """A place for one process of a service: somebody is there most of the time, never the same for long.

    A life is counted from its being ready: on a slow machine a process would else never get to its work.
    """

    def __init__(self, stack: BenchStack, service: str, number: int, chance: random.Random) -> None:
        self._stack = stack
        self._name = f"{service} {number}"
        self._service = service
        self._chance = chance
        self._child: Child | None = None
        self._port = 0

    def begin(self) -> None:
        self._port = free_port()
        self._child = Child(
            self._name,
            [sys.executable, "-m", f"services.{self._service}"],
            log=Path(self._stack.folder) / f"{self._name.replace(' ', '-')}.out",
            env={
                **self._stack.environment(),
                f"{self._service.upper()}_HTTP_PORT": str(self._port),
            },
            folder=self._stack.folder,
            grace_seconds=30,
        )
        self._child.start()

    def end(self, how: signal.Signals) -> None:
        assert self._child is not None
        if how is signal.SIGKILL:
            self._child.kill()
        else:
            self._child.stop()
        release(self._port)

    async def come_and_go(self) -> None:
        ends = [signal.SIGTERM, signal.SIGKILL] * (_LIVES_OF_A_PLACE // 2)
        self._chance.shuffle(ends)
        for end in ends:
            self.begin()
            await asyncio.to_thread(self._wait_until_ready)
            await asyncio.sleep(self._chance.uniform(2, 6))
            await asyncio.to_thread(self.end, end)

    def last_words(self) -> str:
        """What the last process here was, and said."""
        assert self._child is not None
        return f"{self._name}, exit code {self._child.exit_code}:\n{tail(self._child.log)}"

    def _wait_until_ready(self) -> None:
        assert self._child is not None
        self._child.wait_until_http(f"http://127.0.0.1:{self._port}/readyz", _READY_SECONDS)


async def connect(stack: BenchStack, pool: asyncpg.Pool) -> list[Seller]:
    sellers = await stack.connect_sellers(pool, _SELLERS)
    for seller in sellers:
        async with pool.acquire() as connection, connection.transaction():
            await begin_sync(
                connection, seller.token_id, interval=timedelta(seconds=2), full_interval=timedelta(days=10)
            )
    return sellers


async def last_states(environment: Mapping[str, str], stored: Mapping[str, object]) -> Mapping[str, object]:
    """The last record of each order on the topic of states, once it is what is stored."""
    topic = Topics(environment["KAFKA_TOPIC_PREFIX"]).order_state
    last: dict[str, object] = {}
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        AIOKafkaConsumer(
            bootstrap_servers=environment["KAFKA_BOOTSTRAP_SERVERS"], auto_offset_reset="earliest"
        ) as reader,
    ):
        reader.assign([TopicPartition(topic, number) for number in range(_PARTITIONS)])
        while last != stored:
            for records in (await reader.getmany(timeout_ms=200)).values():
                for record in records:
                    state = decode(record.value)
                    assert isinstance(state, OrderState)
                    last[state.order_id] = state.updated_at
    return last


async def test_replicas_come_and_go_and_nothing_is_lost_or_done_twice(stack: BenchStack, pool: asyncpg.Pool) -> None:
    await pool.execute(_WATCH)
    sellers = await connect(stack, pool)
    chance = random.Random(4)
    places = [Place(stack, service, number, chance) for service in ("enricher", "writer") for number in (1, 2)]

    with stack.services(stack.environment(), poller=1):
        async with stack.control() as control:
            await control.start_live(_LIVE_ORDERS, 8, step_seconds=1)
        await asyncio.gather(*(place.come_and_go() for place in places))
        for place in places[::2]:
            place.begin()
        try:
            comparison = await compared(stack, pool, sellers)
            stored = dict(await pool.fetch("SELECT allegro_order_id, updated_at FROM orders"))
            published = await last_states(stack.environment(), stored)
        except (AssertionError, TimeoutError) as error:
            error.add_note("\n".join(place.last_words() for place in places))
            raise
        finally:
            for place in places[::2]:
                await asyncio.to_thread(place.end, signal.SIGTERM)

    assert comparison.differences == 0, comparison.shown
    assert (comparison.orders, len(stored)) == (len(stored), comparison.orders)
    assert await pool.fetch("SELECT DISTINCT what, before, after FROM went_back") == []
    runs = await pool.fetch("SELECT kind, status, orders_processed, orders_added FROM sync_history")
    assert {run["status"] for run in runs} == {"completed"}
    initial = [run for run in runs if run["kind"] == "initial"]
    assert len(initial) == _SELLERS
    assert all(run["orders_processed"] >= _ORDERS for run in initial)
    assert sum(run["orders_added"] for run in runs) == len(stored)
    assert await pool.fetchval("SELECT count(*) FROM dead_letters") == 0
    assert await pool.fetchval("SELECT count(*) FROM pending_fetches") == 0
    assert published == stored
