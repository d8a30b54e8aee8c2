"""Free a consumer group that the embedded broker can never bring to life again.

A group's leader distributes its partitions. Where it leaves between its election and that (two replicas that are
stopped together while they rebalance), Tansu 0.6 goes on waiting for it, whoever joins: nobody consumes any more.
Apache Kafka elects another one, and names none of a group's states as Tansu does this one.
"""

import asyncio
import logging

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import DeleteGroupsRequest, DescribeGroupsRequest

from shared.kafka_connection import connection_options
from shared.settings import KafkaSettings

logger = logging.getLogger(__name__)

_DEADLINE_SECONDS = 15.0
_NO_STATE_OF_KAFKA = "Unknown"


async def free_if_leaderless(settings: KafkaSettings, group: str) -> None:
    """Delete the group, with its offsets, if it is one: whoever joins next begins at the first record.

    To be asked of a group that has given its members nothing for longer than any rebalance lasts. Consumers are
    idempotent: what comes again changes nothing. A failure is logged: whoever waits for the group tries again.
    """
    client = AIOKafkaClient(**connection_options(settings))
    try:
        async with asyncio.timeout(_DEADLINE_SECONDS):
            await client.bootstrap()
            try:
                await _free(client, group)
            finally:
                await client.close()
    except (KafkaError, OSError, TimeoutError) as error:
        logger.warning("no saying whether the group has a leader", extra={"group": group, "error": repr(error)})


async def _free(client: AIOKafkaClient, group: str) -> None:
    coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
    await client.ready(coordinator)
    described = await client.send(coordinator, DescribeGroupsRequest(groups=[group]))
    _code, _name, state, _type, _protocol, members = described.groups[0][:6]
    if state != _NO_STATE_OF_KAFKA or not members:
        return
    answer = await client.send(coordinator, DeleteGroupsRequest(group_names=[group]))
    code = answer.results[0][1]
    if code:
        raise for_code(code)(f"{group} was not deleted")
    logger.error("the group had lost its leader: deleted, everything is consumed again", extra={"group": group})
