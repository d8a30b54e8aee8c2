"""The topics, and the one place that creates them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code


@dataclass(frozen=True)
class Topics:
    """Names of the topics; `prefix` keeps several installations apart on one cluster."""

    prefix: str = ""

    @property
    def order_events(self) -> str:
        """What happened, and which orders to look at. Key: token id."""
        return f"{self.prefix}order-events"

    @property
    def order_windows(self) -> str:
        """Bulk loads to walk through. Key: token id."""
        return f"{self.prefix}order-windows"

    @property
    def orders(self) -> str:
        """Complete orders, and what became of attempts to get them. Key: token id."""
        return f"{self.prefix}orders"

    @property
    def order_state(self) -> str:
        """The latest state of each order, compacted. Key: Allegro's order id."""
        return f"{self.prefix}order-state"

    @property
    def dead_letters(self) -> str:
        """Records nobody could read, as they came. Key: as it came."""
        return f"{self.prefix}dead-letters"

    def all(self) -> tuple[str, ...]:
        return self.order_events, self.order_windows, self.orders, self.order_state, self.dead_letters

    def configuration(self, name: str) -> Mapping[str, str]:
        """What a topic needs to be created with, where the broker's defaults do not do."""
        return {"cleanup.policy": "compact"} if name == self.order_state else {}


async def create_topics(
    bootstrap_servers: Sequence[str],
    topics: Topics,
    *,
    partitions: int,
    replication_factor: int,
    connection: Mapping[str, Any] | None = None,
) -> list[str]:
    """Create the topics that are missing, never altering one that exists; returns the names created.

    All have the same number of partitions: the writer relies on a token's partition being the same number in
    `order-events` and `orders`, so that one replica owns both (range assignment).
    `connection` is how to connect where that takes more than the addresses (`shared.kafka_connection`).
    """
    admin = AIOKafkaAdminClient(**{"bootstrap_servers": list(bootstrap_servers)} | dict(connection or {}))
    await admin.start()
    try:
        existing = set(await admin.list_topics())
        missing = [name for name in topics.all() if name not in existing]
        created = []
        for name in missing:
            response = await admin.create_topics(
                [
                    NewTopic(
                        name=name,
                        num_partitions=partitions,
                        replication_factor=replication_factor,
                        topic_configs=dict(topics.configuration(name)),
                    )
                ]
            )
            for _topic, code, *_rest in response.topic_errors:
                error = for_code(code)
                if code != 0 and error is not TopicAlreadyExistsError:
                    raise error(f"creating topic {name}")
            created.append(name)
        return created
    finally:
        await admin.close()
