"""What ten thousand sellers cost the poller while nothing happens: leasing their schedules and noting empty looks.

The poller's own code against real rows; Allegro answers every look at once with an empty page, so that neither HTTP nor
limits are part of it. CPU is that of this process and of PostgreSQL's.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import psutil

from services.poller.journal import JournalPoller
from services.poller.leases import Leases
from services.poller.reading import PageReader
from services.poller.settings import PollerSettings
from services.poller.slots import Slots
from shared.allegro.client import JournalPage
from shared.clock import DatabaseClock
from shared.database import database_now

INTERVAL_SECONDS = 180

_CONNECT = """
WITH tokens AS (
    INSERT INTO user_tokens (user_id) SELECT 'shop-' || n FROM generate_series(1, $1::int) AS n RETURNING id, user_id
), cursors AS (
    INSERT INTO journal_cursors (user_token_id, stored_event_id, covered_event_id)
    SELECT id, micros, micros FROM tokens, (SELECT (extract(epoch FROM now()) * 1000000)::bigint AS micros) AS clock
)
INSERT INTO active_sync_schedules (user_token_id, user_id, interval_seconds, next_run, next_full_run)
SELECT id, user_id, $2, now() - random() * interval '1 minute', now() + interval '1 day' FROM tokens
"""
_ROWS = "SELECT coalesce(sum(n_tup_ins), 0)::bigint FROM pg_stat_user_tables"
_DUE = "SELECT count(*) FROM active_sync_schedules WHERE next_run <= now() OR lease_owner IS NOT NULL"


class EmptyJournals:
    """Nothing new for anybody."""

    def __init__(self, clock: DatabaseClock) -> None:
        self._clock = clock

    async def events(self, _token_id: int, *, after: int, limit: int, traffic: str) -> JournalPage:
        del after, limit, traffic
        return JournalPage((), self._clock.now(), timedelta())


@dataclass
class Cpu:
    """CPU seconds of a block."""

    ours: float = 0.0
    postgres: float = 0.0


@dataclass(frozen=True)
class Round:
    """What one look into every journal took."""

    tokens: int
    cpu: Cpu
    rows: int
    """Inserted into any table."""

    @property
    def cores(self) -> float:
        """At the usual interval."""
        return (self.cpu.ours + self.cpu.postgres) / INTERVAL_SECONDS


@contextmanager
def _cpu(postgres_pid: int) -> Iterator[Cpu]:
    cpu = Cpu(-time.process_time(), -_postgres_seconds(postgres_pid))
    yield cpu
    cpu.ours += time.process_time()
    cpu.postgres += _postgres_seconds(postgres_pid)


def _postgres_seconds(pid: int) -> float:
    """Of the server with its backends, those that have ended included."""
    server = psutil.Process(pid)
    ended = server.cpu_times()
    total = ended.user + ended.system + ended.children_user + ended.children_system
    for child in server.children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return float(total)


async def one_round(pool: asyncpg.Pool, postgres_pid: int, tokens: int) -> Round:
    """Connect so many sellers, then look into each journal once."""
    await pool.execute(_CONNECT, tokens, INTERVAL_SECONDS)
    for table in ("user_tokens", "journal_cursors", "active_sync_schedules"):
        await pool.execute(f"VACUUM ANALYZE {table}")
    clock = DatabaseClock()
    await clock.synchronise(lambda: database_now(pool))
    settings = PollerSettings.model_construct(poller_max_pages=2, poller_overlap_seconds=0.0)
    allegro: Any = EmptyJournals(clock)
    publisher: Any = None  # there is nothing to publish
    reader = PageReader(pool, allegro, publisher, tracked_event_types=frozenset())
    leases = Leases(pool, seconds=settings.poller_lease_seconds)
    before = await _rows(pool)
    async with Slots("journal", settings.poller_concurrency) as slots:
        poller = JournalPoller(pool, reader, publisher, clock, leases, slots, settings)
        with _cpu(postgres_pid) as cpu:
            while await poller.turn():
                pass
            await slots.idle()
    left = await pool.fetchval(_DUE)
    if left:
        raise RuntimeError(f"{left} schedules were left out")
    return Round(tokens, cpu, await _rows(pool) - before)


async def _rows(pool: asyncpg.Pool) -> int:
    """Statistics of a backend are shared when it has been idle for a moment: so it is asked for them at once."""
    for _ in range(pool.get_size()):
        await pool.execute("SELECT pg_stat_force_next_flush()")
    await asyncio.sleep(1.5)
    count: int = await pool.fetchval(_ROWS)
    return count
