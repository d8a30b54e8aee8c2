"""Every run that ends is counted, once, by whoever ended it."""

from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from prometheus_client import REGISTRY

from services.poller.redelivery import Redelivery
from services.poller.standstill import Standstill
from services.poller.tasks import TaskPlanner
from services.writer.batch import collect
from services.writer.metrics import Metrics
from services.writer.store import Store
from shared.database import open_pool
from shared.messages import Record, WindowFinished
from tests.builders import A_RUN, a_run, a_token, after, an_event, an_observation, consumed
from tests.poller.conftest import SETTINGS

pytestmark = pytest.mark.integration

ENDED = "orders_backup_runs_ended_total"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_pool(database_url, service="test", max_size=4)
    await a_token(pool)
    yield pool
    await pool.close()


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    made = Metrics()
    yield made
    for collector in vars(made).values():
        REGISTRY.unregister(collector)


class Ends:
    """What the counter has counted since the test began."""

    def __init__(self) -> None:
        self._before = self._all()

    def counted(self) -> dict[tuple[str, str], float]:
        return {
            labels: value - self._before.get(labels, 0)
            for labels, value in self._all().items()
            if value != self._before.get(labels, 0)
        }

    @staticmethod
    def _all() -> dict[tuple[str, str], float]:
        return {
            (sample.labels["kind"], sample.labels["outcome"]): sample.value
            for metric in REGISTRY.collect()
            for sample in metric.samples
            if sample.name == ENDED
        }


async def store(pool: asyncpg.Pool, metrics: Metrics, *records: Record) -> None:
    batch = collect([consumed(record) for record in records], dead_letter_topic="dead-letters")
    metrics.observe(await Store(pool).apply(batch), len(records))


class NothingQueued:
    """Slots that nothing waits for."""

    are_full = False

    async def fill(self, *_: object) -> bool:
        return False


def a_planner(pool: asyncpg.Pool) -> TaskPlanner:
    nothing: Any = None
    slots: Any = NothingQueued()
    return TaskPlanner(pool, nothing, nothing, nothing, nothing, nothing, slots, slots, SETTINGS)


def an_end(outcome: str, **fields: Any) -> WindowFinished:
    given: dict[str, Any] = {"outcome": outcome, **fields}
    return WindowFinished(token_id=1, run_id=A_RUN, attempt=1, orders=0, requests=3, **given)


@pytest.mark.parametrize("outcome", ["completed", "stopped", "failed", "stalled"])
async def test_the_writer_counts_the_end_of_a_walk_once_however_often_it_comes(
    pool: asyncpg.Pool, metrics: Metrics, outcome: str
) -> None:
    await a_run(pool)
    ends = Ends()

    for _ in range(2):
        await store(pool, metrics, an_end(outcome))
        await Redelivery(pool, None, SETTINGS).end_settled_runs()  # type: ignore[arg-type]

    assert ends.counted() == {("full", outcome): 1}


async def test_the_writer_counts_a_journal_that_is_settled(pool: asyncpg.Pool, metrics: Metrics) -> None:
    ends = Ends()

    await store(pool, metrics, an_event(100))
    owed = ends.counted()
    for _ in range(2):
        await store(pool, metrics, an_observation(after(1)))

    assert (owed, ends.counted()) == ({}, {("journal", "completed"): 1})


async def test_the_poller_counts_what_the_writer_left(pool: asyncpg.Pool) -> None:
    for number, (kind, attempt) in enumerate([("orders", None), ("manual", 1)], start=1):
        await a_run(pool, run_id=UUID(int=number), kind=kind, attempt=attempt)
    await pool.execute("UPDATE sync_history SET started_at = now() - interval '2 minutes'")
    await pool.execute("UPDATE run_windows SET finished = true")
    ends = Ends()

    for _ in range(2):
        await Redelivery(pool, None, SETTINGS).end_settled_runs()  # type: ignore[arg-type]

    assert ends.counted() == {("orders", "completed"): 1, ("manual", "completed"): 1}


async def test_the_poller_counts_runs_of_deactivated_sellers(pool: asyncpg.Pool) -> None:
    await a_run(pool)
    await pool.execute("UPDATE user_tokens SET status = 'deactivated'")
    ends = Ends()

    for _ in range(2):
        await Standstill(pool, SETTINGS).turn()

    assert ends.counted() == {("full", "failed"): 1}
    assert await pool.fetchval("SELECT status FROM task_history") == "failed"


async def test_the_poller_counts_runs_that_it_stops(pool: asyncpg.Pool) -> None:
    for number, (kind, attempt) in enumerate([("orders", None), ("full", 0)], start=1):
        await a_run(pool, run_id=UUID(int=number), kind=kind, attempt=attempt)
    await pool.execute("UPDATE task_history SET status = 'stopping', stop_requested_at = now()")
    ends = Ends()

    for _ in range(2):
        await a_planner(pool).turn()

    assert ends.counted() == {("orders", "stopped"): 1, ("full", "stopped"): 1}
