"""Does the compacted topic of states say of every order what our table says?"""

from collections.abc import Iterable, Mapping
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer

from devstack.ledger import first_difference, parse

_BATCH_MS = 1000
_QUIET_ROUNDS = 3

# language=sql
_ORDERS = """
SELECT allegro_order_id, order_data::text AS data, order_raw AS raw, gone_at IS NOT NULL AS gone,
       successor_order_id AS successor
  FROM orders
"""


async def latest_states(bootstrap_servers: str, topic: str) -> dict[str, dict[str, Any]]:
    """The last record of every key."""
    states: dict[str, dict[str, Any]] = {}
    # Of no group: it has all partitions. Apache Kafka tells of no others than of the topics that are asked for.
    async with AIOKafkaConsumer(topic, bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest") as consumer:
        unread = await consumer.end_offsets(list(consumer.assignment()))
        # The embedded broker reports end offsets that are too low: read to them at least, and on until it is quiet.
        quiet = 0
        while unread or quiet < _QUIET_ROUNDS:
            batches = await consumer.getmany(timeout_ms=_BATCH_MS)
            quiet = 0 if batches else quiet + 1
            unread = {one: end for one, end in unread.items() if await consumer.position(one) < end}
            for records in batches.values():
                for record in records:
                    states[(record.key or b"").decode()] = parse(record.value or b"null")
    return states


async def differing_states(connection: asyncpg.Connection, bootstrap_servers: str, topic: str) -> list[str]:
    """In words, where the topic and the table part."""
    return differences(await connection.fetch(_ORDERS), await latest_states(bootstrap_servers, topic))


def differences(orders: Iterable[Mapping[str, Any]], states: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same of rows and states by order id."""
    found: list[str] = []
    unknown = dict(states)
    for row in orders:
        order_id = row["allegro_order_id"]
        state = unknown.pop(order_id, None)
        if state is None:
            found.append(f"order {order_id} has no state on the topic")
            continue
        if (state["gone_at"] is not None) != row["gone"]:
            found.append(f"the state of order {order_id} does not know whether it is gone")
        if state["successor_order_id"] != row["successor"]:
            found.append(f"the state of order {order_id} names the successor {state['successor_order_id']}")
        stored = parse(row["raw"] if row["raw"] is not None else row["data"])
        difference = first_difference(stored, state["order"])
        if difference is not None:
            found.append(f"the state of order {order_id}: {difference}")
    return [*found, *(f"a state of order {order_id}, which is not stored" for order_id in unknown)]
