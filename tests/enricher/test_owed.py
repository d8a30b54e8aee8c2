"""What is owed to a token, read back from a real PostgreSQL (promises P1, P4, P6)."""

from collections.abc import AsyncIterator
from datetime import datetime

import asyncpg
import pytest
from aiokafka import ConsumerRecord, TopicPartition

from services.enricher.owed import OwedLooks
from shared.database import open_pool
from shared.messages import OrderFetch, decode
from tests.builders import A_RUN, ANOTHER_RUN, NOON, a_token, after

pytestmark = pytest.mark.integration

LANE = (TopicPartition("order-events", 2), b"1")


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_pool(database_url, service="test", max_size=2)
    await a_token(pool)
    await a_token(pool, user_id="shop-2")
    yield pool
    await pool.close()


async def owe(
    pool: asyncpg.Pool, order_id: str, bought_at: datetime | None, *, token_id: int = 1, attempts: int = 0
) -> None:
    await pool.execute(
        "INSERT INTO pending_fetches (user_token_id, allegro_order_id, wanted_after, bought_at, attempts,"
        " next_attempt_at) VALUES ($1, $2, $3, $4, $5, now())",
        token_id,
        order_id,
        NOON,
        bought_at,
        attempts,
    )


async def test_all_that_is_owed_and_not_tried_yet_is_read_part_by_part_in_the_order_of_purchase(
    pool: asyncpg.Pool,
) -> None:
    for number in range(7):
        await owe(pool, f"o-{7 - number}", after(number // 2))
    await owe(pool, "undated", None)
    await owe(pool, "failed", NOON, attempts=1)
    await owe(pool, "another seller's", NOON, token_id=2)
    owed = OwedLooks(pool, at_a_time=3)
    read: list[ConsumerRecord] = []
    sizes: list[int] = []
    place = None

    while True:
        records, place = await owed.read(LANE, place, lanes=1)
        if not records:
            break
        read += records
        sizes.append(len(records))

    looks = [decode(record.value) for record in read]
    assert sizes == [3, 3, 2]
    assert all(isinstance(look, OrderFetch) and look.asked_at == look.wanted_after == NOON for look in looks)
    assert [look.order_id for look in looks if isinstance(look, OrderFetch)] == [
        "undated",
        *("o-6", "o-7", "o-4", "o-5", "o-2", "o-3", "o-1"),
    ]
    assert {(record.topic, record.partition, record.key) for record in read} == {("order-events", 2, b"1")}


async def test_a_look_that_one_run_wants_names_it(pool: asyncpg.Pool) -> None:
    for order_id, run_ids in (("a", [A_RUN]), ("b", [A_RUN, ANOTHER_RUN]), ("c", [])):
        await owe(pool, order_id, NOON)
        await pool.execute(
            "UPDATE pending_fetches SET run_ids = $2 WHERE allegro_order_id = $1", order_id, list(run_ids)
        )

    records, _ = await OwedLooks(pool, at_a_time=3).read(LANE, None, lanes=1)

    looks = [decode(record.value) for record in records]
    assert [look.run_id for look in looks if isinstance(look, OrderFetch)] == [A_RUN, None, None]


@pytest.mark.parametrize(("lanes", "expected"), [(1, 130), (70, 114), (10_000, 100)])
async def test_the_more_lanes_read_the_less_each_holds_but_for_a_page(
    pool: asyncpg.Pool, lanes: int, expected: int
) -> None:
    for number in range(130):
        await owe(pool, f"o-{number}", NOON)

    records, _ = await OwedLooks(pool, at_a_time=500).read(LANE, None, lanes)

    assert len(records) == expected


@pytest.mark.parametrize("key", [b"", b"x", b"9" * 30])
async def test_a_key_that_names_no_token_is_owed_nothing(pool: asyncpg.Pool, key: bytes) -> None:
    assert await OwedLooks(pool, at_a_time=3).read((LANE[0], key), None, lanes=1) == ([], None)
