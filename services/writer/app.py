"""The writer put together; its parameters are all that a test has to give."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from faststream.asgi import AsgiFastStream

from services.writer.consume import Writer
from services.writer.metrics import Metrics
from services.writer.order_state import OrderStates, publish_states
from services.writer.settings import WriterSettings
from services.writer.store import Store
from shared.database import close_pool, wait_for_pool
from shared.delivery import open_consumer
from shared.health import Health
from shared.kafka import RecordProducer, check_kafka, ensure_topics, faststream_broker
from shared.service import BackgroundLoops

SERVICE = "writer"

# Both halves of the batch in hand, the states, the check of their topic, health.
_CONNECTIONS = 6
_TOPICS_SECONDS = 5.0
# What another replica could not publish; one's own changes are published at once,
_STATES_SECONDS = 5.0
# or together with what else changes within a moment: a turn costs as much for fifty orders as for one.
_STATES_REST_SECONDS = 0.2
# A batch waits for PostgreSQL as long as it takes; leaving the group meanwhile would help nobody.
_MAX_POLL_INTERVAL_MS = 3_600_000


def build_app(settings: WriterSettings) -> AsgiFastStream:
    """The application: connections are opened when it starts and closed in reverse when it ends."""
    health = Health()
    broker = faststream_broker(settings, service=SERVICE)
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            pool = await wait_for_pool(settings.database_url.get_secret_value(), service=SERVICE, max_size=_CONNECTIONS)
            stack.push_async_callback(close_pool, pool)
            producer = await stack.enter_async_context(RecordProducer(settings, service=SERVICE))
            loops = await stack.enter_async_context(BackgroundLoops(health))
            changed = asyncio.Event()
            writer = Writer(
                partial(
                    open_consumer,
                    settings,
                    group=SERVICE,
                    service=SERVICE,
                    max_poll_interval_ms=_MAX_POLL_INTERVAL_MS,
                ),
                Store(pool),
                producer,
                settings.topics,
                metrics,
                max_records=settings.writer_batch_records,
                progressed=partial(health.progressed, "consume"),
                stored=changed.set,
            )
            states = OrderStates(pool, producer, settings, metrics)
            loops.run_every("topics", _TOPICS_SECONDS, partial(ensure_topics, settings))
            loops.keep_running("consume", writer.run)
            loops.run_every(
                "order-state",
                _STATES_SECONDS,
                partial(publish_states, states, writer),
                wake=changed,
                rest_seconds=_STATES_REST_SECONDS,
            )
            loops.run_every("order-state-topic", _TOPICS_SECONDS, states.check_topic)
            health.add_check("database", partial(pool.fetchval, "SELECT 1"))
            health.add_check("kafka", partial(check_kafka, broker))
            health.started()
            yield

    return AsgiFastStream(broker, lifespan=lifespan, asgi_routes=health.asgi_routes())
