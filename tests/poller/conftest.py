"""What the poller's tests share: a database, its clock, and an Allegro and a topic that do as they are told."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from services.poller.journal import JournalPoller
from services.poller.leases import Leases
from services.poller.settings import PollerSettings
from services.poller.slots import Slots
from services.writer.batch import collect
from services.writer.store import Store
from shared.allegro.bodies import JournalEvent
from shared.allegro.client import JournalEnd, JournalPage
from shared.allegro.tally import note_request
from shared.clock import DatabaseClock
from shared.database import database_now, open_pool
from shared.kafka_batches import OutgoingRecord
from shared.messages import Record, decode
from shared.topics import Topics
from tests.builders import consumed

SETTINGS = PollerSettings.model_construct(
    poller_concurrency=50,
    poller_lease_seconds=60.0,
    poller_max_pages=2,
    poller_overlap_seconds=0.0,
    poller_redelivery_seconds=30.0,
    poller_window_redelivery_seconds=30.0,
    poller_stalled_seconds=900.0,
    poller_audit_retention_days=365,
    sync_interval_seconds=180,
    sync_full_interval_seconds=3600,
    sync_list_lag_seconds=60.0,
    sync_history_retention_days=90,
    sync_events_retention_days=730,
    sync_tracked_event_types=frozenset(),
    kafka_topic_prefix="",
    allegro_events_limit_per_minute=60,
    allegro_limit_minute_seconds=1.0,
)


@dataclass
class Kafka:
    """Keeps what was published, and hands over events to the writer's tables; or loses them, or fails."""

    store: Store
    records: list[tuple[str, Record]] = field(default_factory=list)
    error: Exception | None = None
    losing: int = 0
    """So many publications more."""

    async def publish_all(self, topic: str, records: Sequence[OutgoingRecord]) -> None:
        if self.error is not None:
            raise self.error
        published = [decode(value) for _key, value, _headers in records]
        self.records += [(topic, record) for record in published]
        if self.losing:
            self.losing -= 1
        elif topic == "order-events":
            await self.store.apply(collect([consumed(record) for record in published], dead_letter_topic="dead"))

    def on(self, topic: str) -> list[Any]:
        return [record for name, record in self.records if name == topic]


@dataclass
class Shop:
    """A journal."""

    clock: DatabaseClock
    lines: list[JournalEvent] = field(default_factory=list)
    latest: int | None = None
    clock_ahead: timedelta = timedelta(0)
    """Of Allegro's clock before ours."""
    error: Exception | None = None
    on_read: Callable[[int], Awaitable[None]] | None = None
    """Done while a page is on its way."""

    async def events(self, token_id: int, *, after: int, limit: int = 1000, traffic: str) -> JournalPage:
        assert traffic in ("live", "bulk")
        note_request()
        if self.on_read is not None:
            await self.on_read(token_id)
        if self.error is not None:
            raise self.error
        found = [line for line in self.lines if line.event_id > after][:limit]
        return JournalPage(tuple(found), self.clock.now(), timedelta(0))

    async def journal_end(self, _token_id: int, *, traffic: str) -> JournalEnd:
        assert traffic == "live"
        note_request()
        if self.error is not None:
            raise self.error
        return JournalEnd(self.latest, self.clock.now() + self.clock_ahead)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=8)
    yield opened
    await opened.close()


@pytest.fixture
async def clock(pool: asyncpg.Pool) -> DatabaseClock:
    synchronised = DatabaseClock()
    await synchronised.synchronise(lambda: database_now(pool))
    return synchronised


@pytest.fixture
def kafka(pool: asyncpg.Pool) -> Kafka:
    return Kafka(Store(pool))


@pytest.fixture
def shop(clock: DatabaseClock) -> Shop:
    return Shop(clock)


@pytest.fixture
def topics() -> Topics:
    return Topics()


async def a_task(pool: asyncpg.Pool, token_id: int, kind: str, **parameters: Any) -> UUID:
    """A queued task."""
    identifier = uuid4()
    await pool.execute(
        "INSERT INTO task_history (task_id, user_token_id, user_id, kind, parameters)"
        " SELECT $1, id, user_id, $3, $4 FROM user_tokens WHERE id = $2",
        identifier,
        token_id,
        kind,
        json.dumps(parameters).encode(),
    )
    return identifier


async def a_schedule(pool: asyncpg.Pool, token_id: int) -> None:
    """A schedule that is due."""
    await pool.execute(
        "INSERT INTO active_sync_schedules (user_token_id, user_id, interval_seconds, next_full_run)"
        " SELECT id, user_id, 180, now() + interval '1 day' FROM user_tokens WHERE id = $1",
        token_id,
    )


def a_journal_poller(pool: asyncpg.Pool, leases: Leases) -> JournalPoller:
    """One that only claims."""
    nothing: Any = None
    return JournalPoller(pool, nothing, nothing, nothing, leases, Slots("journal", 50), SETTINGS)
