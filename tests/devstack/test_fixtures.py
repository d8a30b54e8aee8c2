"""The fixtures that every other test stands on."""

import os

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

pytestmark = pytest.mark.integration


async def test_a_test_gets_an_empty_database_of_its_own(empty_database_url: str) -> None:
    connection = await asyncpg.connect(empty_database_url)
    try:
        tables = await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    finally:
        await connection.close()

    assert tables == 0


@pytest.mark.parametrize("attempt", [1, 2])
async def test_what_one_test_stores_the_next_does_not_see(database_url: str, attempt: int) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        before = await connection.fetchval("SELECT count(*) FROM user_tokens")
        await connection.execute("INSERT INTO user_tokens (user_id) VALUES ('a-shop')")
    finally:
        await connection.close()

    assert before == 0


async def test_the_products_topics_are_there(kafka_bootstrap: str, fresh_topics: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
        partitions = await producer.partitions_for(f"{fresh_topics}orders")

    assert partitions == {0, 1, 2}


def test_no_variable_of_ours_reaches_a_test() -> None:
    assert not [name for name in os.environ if name.startswith(("KAFKA", "DATABASE_", "ALLEGRO_"))]
