"""The enricher put together: one consumer of two topics, so that bulk loads never stand before live events."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial

import httpx
from faststream.asgi import AsgiFastStream

from services.enricher.bulk import BulkHandler
from services.enricher.lanes import Lanes, Work
from services.enricher.live import LiveHandler
from services.enricher.owed import OwedLooks
from services.enricher.publish import SERVICE, Publisher
from services.enricher.recent import RecentLooks
from services.enricher.settings import EnricherSettings
from services.enricher.stopped import StoppedLooks
from shared.allegro.connection import connect
from shared.database import close_pool, wait_for_pool
from shared.delivery import open_consumer
from shared.health import Health
from shared.kafka import RecordProducer, check_kafka, ensure_topics, faststream_broker
from shared.service import BackgroundLoops

_TOPICS_SECONDS = 5.0
_MAX_POLL_INTERVAL_MS = 600_000
# How long a rebalance waits for live work in hand. A walk is not waited for: it goes on where it is stored.
_DRAIN_LIVE_SECONDS = 10.0
_DRAIN_BULK_SECONDS = 0.5


def build_app(settings: EnricherSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> AsgiFastStream:
    """The application: connections are opened when it starts and closed in reverse when it ends."""
    keyring = settings.keyring()
    health = Health()
    broker = faststream_broker(settings, service=SERVICE)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            pool = await wait_for_pool(
                settings.database_url.get_secret_value(), service=SERVICE, max_size=settings.database_pool_size
            )
            stack.push_async_callback(close_pool, pool)
            producer = await stack.enter_async_context(RecordProducer(settings, service=SERVICE))
            loops = await stack.enter_async_context(BackgroundLoops(health))
            allegro = await connect(stack, settings, keyring, pool, loops, transport=transport)
            publisher = Publisher(producer, settings.topics)
            list_lag = timedelta(seconds=settings.sync_list_lag_seconds)
            live = LiveHandler(
                allegro.client,
                publisher,
                allegro.clock,
                RecentLooks(),
                StoppedLooks(pool).among,
                list_lag=list_lag,
                detail_concurrency=settings.enricher_detail_concurrency,
            )
            bulk = BulkHandler(allegro.client, publisher, pool, list_lag=list_lag, walks=settings.enricher_walks)
            owed = OwedLooks(pool, at_a_time=settings.enricher_lane_records)
            lanes = Lanes(
                partial(
                    open_consumer,
                    settings,
                    group=SERVICE,
                    service=SERVICE,
                    max_poll_interval_ms=_MAX_POLL_INTERVAL_MS,
                ),
                {
                    settings.topics.order_events: Work(
                        live.handle, settings.enricher_lane_records, _DRAIN_LIVE_SECONDS, owed.read
                    ),
                    settings.topics.order_windows: Work(bulk.handle, 1, _DRAIN_BULK_SECONDS),
                },
                progressed=partial(health.progressed, "consume"),
            )
            loops.run_every("topics", _TOPICS_SECONDS, partial(ensure_topics, settings))
            loops.keep_running("consume", lanes.run)
            health.add_check("database", partial(pool.fetchval, "SELECT 1"))
            health.add_check("kafka", partial(check_kafka, broker))
            health.started()
            yield

    return AsgiFastStream(broker, lifespan=lifespan, asgi_routes=health.asgi_routes())
