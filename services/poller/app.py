"""The poller put together: loops over leased rows, each replica running all of them."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from uuid import uuid4

import httpx
from faststream.asgi import AsgiFastStream

from services.poller.devices import DevicePoller
from services.poller.full_runs import FullRuns
from services.poller.housekeeping import Housekeeper
from services.poller.journal import JournalReader
from services.poller.redelivery import Redelivery
from services.poller.refresh import TokenRefresher
from services.poller.settings import PollerSettings
from services.poller.tasks import TaskPlanner
from services.poller.wakeups import listen
from shared.allegro.connection import connect
from shared.database import close_pool, wait_for_pool
from shared.health import Health
from shared.kafka import RecordProducer, check_kafka, ensure_topics, faststream_broker
from shared.service import BackgroundLoops

SERVICE = "poller"

_JOURNAL_SECONDS = 0.5
_TASKS_SECONDS = 2.0
_DEVICES_SECONDS = 1.0
_REDELIVERY_SECONDS = 1.0
_REFRESH_SECONDS = 15.0
_FULL_RUNS_SECONDS = 15.0
_HOUSEKEEPING_SECONDS = 3600.0
_TOPICS_SECONDS = 5.0


def build_app(settings: PollerSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> AsgiFastStream:
    """The application: connections are opened when it starts and closed in reverse when it ends."""
    keyring = settings.keyring()
    health = Health()
    broker = faststream_broker(settings, service=SERVICE)
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
    url = settings.database_url.get_secret_value()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            pool = await wait_for_pool(url, service=SERVICE, max_size=settings.database_pool_size)
            stack.push_async_callback(close_pool, pool)
            producer = await stack.enter_async_context(RecordProducer(settings, service=SERVICE))
            loops = BackgroundLoops(health)
            allegro = await connect(stack, settings, keyring, pool, loops, transport=transport)
            client, oauth, vault, clock = allegro.client, allegro.oauth, allegro.vault, allegro.clock
            journal = JournalReader(pool, client, producer, clock, settings, owner=owner)
            stack.push_async_callback(journal.release)
            await stack.enter_async_context(loops)
            tasks = TaskPlanner(pool, client, producer, clock, settings, owner=owner)
            devices = DevicePoller(pool, oauth, client, vault, keyring, settings, owner=owner)
            wakes = {"orders_backup_tasks": asyncio.Event(), "orders_backup_devices": asyncio.Event()}
            loops.run_every("topics", _TOPICS_SECONDS, partial(ensure_topics, settings))
            loops.run_every("tasks", _TASKS_SECONDS, tasks.turn, wake=wakes["orders_backup_tasks"])
            loops.run_every("devices", _DEVICES_SECONDS, devices.turn, wake=wakes["orders_backup_devices"])
            loops.run_every("journal", _JOURNAL_SECONDS, journal.turn)
            loops.run_every("redelivery", _REDELIVERY_SECONDS, Redelivery(pool, producer, settings).turn)
            loops.run_every("refresh", _REFRESH_SECONDS, TokenRefresher(pool, vault).turn)
            loops.run_every("full-runs", _FULL_RUNS_SECONDS, FullRuns(pool, settings).turn)
            loops.run_every("housekeeping", _HOUSEKEEPING_SECONDS, Housekeeper(pool, settings).turn)
            loops.keep_running("wakeups", partial(listen, url, wakes, partial(health.progressed, "wakeups")))
            health.add_check("database", partial(pool.fetchval, "SELECT 1"))
            health.add_check("kafka", partial(check_kafka, broker))
            health.started()
            yield

    return AsgiFastStream(broker, lifespan=lifespan, asgi_routes=health.asgi_routes())
