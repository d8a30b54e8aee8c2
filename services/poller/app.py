"""The poller put together: loops over leased rows, each replica running all of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import httpx
from faststream.asgi import AsgiFastStream

from services.poller.backlog import Backlog
from services.poller.devices import DevicePoller
from services.poller.full_runs import FullRuns
from services.poller.housekeeping import Housekeeper
from services.poller.journal import JournalPoller
from services.poller.leases import Leases
from services.poller.logins import LoginLearner
from services.poller.publish import Publisher
from services.poller.reading import PageReader
from services.poller.redelivery import Redelivery
from services.poller.refresh import TokenRefresher
from services.poller.settings import PollerSettings
from services.poller.slots import Slots
from services.poller.standstill import Standstill
from services.poller.tasks import TaskPlanner
from services.poller.wakeups import listen
from shared.allegro.connection import connect
from shared.database import close_pool, wait_for_pool
from shared.health import Health
from shared.kafka import RecordProducer, check_kafka, ensure_topics, faststream_broker
from shared.service import BackgroundLoops

SERVICE = "poller"

_TASKS_AT_A_TIME = 16
_READINGS_AT_A_TIME = 16
_DEVICES_AT_A_TIME = 32
_REFRESHES_AT_A_TIME = 16
_LOGINS_AT_A_TIME = 4
# Schedules fall due all the time. Looked for once a second, all of that second would be read at once, and everybody
# behind it would have a queue.
_LONGEST_JOURNAL_TICK_SECONDS = 0.2
_SETTLED_RUNS_SECONDS = 30.0
_FULL_RUNS_SECONDS = 15.0
_STANDSTILL_SECONDS = 15.0
_BACKLOG_SECONDS = 15.0
_HOUSEKEEPING_SECONDS = 3600.0
_TOPICS_SECONDS = 5.0


def build_app(settings: PollerSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> AsgiFastStream:
    """The application: connections are opened when it starts and closed in reverse when it ends."""
    keyring = settings.keyring()
    health = Health()
    broker = faststream_broker(settings, service=SERVICE)
    url = settings.database_url.get_secret_value()
    tick = settings.poller_tick_seconds

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            pool = await wait_for_pool(url, service=SERVICE, max_size=settings.database_pool_size)
            stack.push_async_callback(close_pool, pool)
            producer = await stack.enter_async_context(RecordProducer(settings, service=SERVICE))
            publisher = Publisher(producer, settings.topics)
            loops = BackgroundLoops(health)
            allegro = await connect(stack, settings, keyring, pool, loops, transport=transport)
            leases = Leases(pool, seconds=settings.poller_lease_seconds)
            stack.push_async_callback(leases.release)

            async def slots(name: str, limit: int) -> Slots:
                return await stack.enter_async_context(Slots(name, limit))

            reader = PageReader(pool, allegro.client, publisher, tracked_event_types=settings.sync_tracked_event_types)
            journal = JournalPoller(
                pool,
                reader,
                publisher,
                allegro.clock,
                leases,
                await slots("journal", settings.poller_concurrency),
                settings,
            )
            tasks = TaskPlanner(
                pool,
                allegro.client,
                reader,
                publisher,
                allegro.clock,
                leases,
                await slots("tasks", _TASKS_AT_A_TIME),
                await slots("readings", _READINGS_AT_A_TIME),
                settings,
            )
            devices = DevicePoller(
                pool,
                allegro.oauth,
                allegro.vault,
                keyring,
                leases,
                await slots("devices", _DEVICES_AT_A_TIME),
                settings,
            )
            logins = LoginLearner(pool, allegro.client, await slots("logins", _LOGINS_AT_A_TIME))
            refresher = TokenRefresher(allegro.vault, await slots("refresh", _REFRESHES_AT_A_TIME))
            redelivery = Redelivery(pool, publisher, settings)
            # From here on back to front: the loops stop first, then the work in the slots, then its leases go.
            await stack.enter_async_context(loops)
            channels = ("orders_backup_schedules", "orders_backup_tasks", "orders_backup_devices")
            wakes = {channel: asyncio.Event() for channel in channels}
            loops.run_every("topics", _TOPICS_SECONDS, partial(ensure_topics, settings))
            journal_tick = min(tick, _LONGEST_JOURNAL_TICK_SECONDS)
            loops.run_every("journal", journal_tick, journal.turn, wake=wakes["orders_backup_schedules"])
            loops.run_every("tasks", tick, tasks.turn, wake=wakes["orders_backup_tasks"])
            loops.run_every("devices", tick, devices.turn, wake=wakes["orders_backup_devices"])
            loops.run_every("refresh", tick, refresher.turn)
            loops.run_every("logins", tick, logins.turn)
            loops.run_every("redelivery", tick, redelivery.turn)
            loops.run_every("settled-runs", _SETTLED_RUNS_SECONDS, redelivery.end_settled_runs)
            loops.run_every("standstill", _STANDSTILL_SECONDS, Standstill(pool, settings).turn)
            loops.run_every("backlog", _BACKLOG_SECONDS, Backlog(pool).turn)
            loops.run_every("full-runs", _FULL_RUNS_SECONDS, FullRuns(pool, settings).turn)
            loops.run_every("housekeeping", _HOUSEKEEPING_SECONDS, Housekeeper(pool, settings).turn)
            loops.keep_running("wakeups", partial(listen, url, wakes, partial(health.progressed, "wakeups")))
            health.add_check("database", partial(pool.fetchval, "SELECT 1"))
            health.add_check("kafka", partial(check_kafka, broker))
            health.started()
            yield

    return AsgiFastStream(broker, lifespan=lifespan, asgi_routes=health.asgi_routes())
