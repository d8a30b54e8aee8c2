"""What FastStream and aiokafka would do to us, on a real broker: no door for strangers, no consumer dead in silence."""

import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer
from prometheus_client import REGISTRY

import services.enricher.app
import services.poller.app
import services.writer.app
from services.enricher.settings import EnricherSettings
from services.poller.settings import PollerSettings
from services.writer.settings import WriterSettings
from shared.database import open_pool
from shared.delivery import open_consumer
from shared.kafka import RecordProducer
from shared.settings import KafkaSettings
from shared.topics import Topics
from tests.builders import a_token, an_observation
from tests.canary import a_secret
from tests.e2e.waiting import TEST_SECONDS, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(TEST_SECONDS)]


@pytest.fixture(autouse=True)
def _metrics_of_this_test_only() -> Any:
    """A process has one service; a test process has several in turn, and metrics are registered once a process."""
    before = set(REGISTRY._collector_to_names)
    yield
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


@pytest.fixture
def environment(database_url: str, kafka_bootstrap: str, fresh_topics: str) -> dict[str, Any]:
    return {
        "database_url": database_url,
        "kafka_bootstrap_servers": kafka_bootstrap,
        "kafka_topic_prefix": fresh_topics,
        "kafka_session_timeout_seconds": 6,
        "allegro_client_id": "client",
        "allegro_client_secret": a_secret("client"),
        "allegro_user_agent": "Tests/1.0 (+https://example.com/tests)",
        "encryption_keys": "k1:" + base64.b64encode(bytes(32)).decode(),
    }


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda env: services.poller.app.build_app(PollerSettings(**env)), id="poller"),
        pytest.param(lambda env: services.enricher.app.build_app(EnricherSettings(**env)), id="enricher"),
        pytest.param(lambda env: services.writer.app.build_app(WriterSettings(**env)), id="writer"),
    ],
)
async def test_no_service_lets_strangers_publish(
    build: Callable[[dict[str, Any]], Any], environment: dict[str, Any]
) -> None:
    """FastStream's documentation page comes with `POST <page>/try`, which publishes to the real broker."""
    transport = httpx.ASGITransport(build(environment))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        answers = [
            await client.request(method, path)
            for method in ("GET", "POST")
            for path in ("/docs", "/docs/try", "/asyncapi", "/asyncapi/try", "/try")
        ]

    assert {answer.status_code for answer in answers} == {404}


class TestConsumerThatDies:
    @pytest.fixture
    async def consumers(self, monkeypatch: pytest.MonkeyPatch) -> list[AIOKafkaConsumer]:
        """Every consumer that the writer opens, as it opens it."""
        opened: list[AIOKafkaConsumer] = []

        def remember(*arguments: Any, **options: Any) -> AIOKafkaConsumer:
            consumer = open_consumer(*arguments, **options)
            opened.append(consumer)
            return consumer

        monkeypatch.setattr("services.writer.app.open_consumer", remember)
        return opened

    @pytest.fixture
    async def pool(self, database_url: str) -> AsyncIterator[asyncpg.Pool]:
        pool = await open_pool(database_url, service="test", max_size=2)
        yield pool
        await pool.close()

    async def test_it_is_replaced_and_goes_on_where_it_was(
        self, consumers: list[AIOKafkaConsumer], pool: asyncpg.Pool, environment: dict[str, Any], fresh_topics: str
    ) -> None:
        await a_token(pool)
        app = services.writer.app.build_app(WriterSettings(**environment))
        transport = httpx.ASGITransport(app)
        async with (
            app.start_lifespan_context(),
            httpx.AsyncClient(transport=transport, base_url="http://writer") as client,
            RecordProducer(KafkaSettings(**environment), service="test") as producer,
        ):
            await self._publish(producer, fresh_topics, "before")
            await until(pool, "SELECT count(*) = 1 FROM orders")
            await consumers[0].stop()
            await self._publish(producer, fresh_topics, "after")
            await until(pool, "SELECT count(*) = 2 FROM orders")
            ready = await client.get("/readyz")

        assert len(consumers) == 2
        assert ready.status_code == 200

    async def _publish(self, producer: RecordProducer, prefix: str, order_id: str) -> None:
        record = an_observation(order_id=order_id)
        await producer.publish_all(Topics(prefix).orders, [(record.key, record.encode(), [])])
