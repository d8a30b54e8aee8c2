"""A run that stands still says so and why, comes on again by itself, and is never called completed meanwhile."""

import asyncpg
import pytest

from services.poller.publish import Publisher
from services.poller.redelivery import Redelivery
from services.poller.standstill import Standstill
from services.writer.batch import collect
from services.writer.store import Store
from shared.messages import OrderFetchFailed, Record
from shared.topics import Topics
from tests.builders import A_RUN, AN_ORDER, a_run, a_token, after, an_event, an_observation, consumed
from tests.poller.conftest import SETTINGS, Kafka

pytestmark = pytest.mark.integration


async def store(pool: asyncpg.Pool, *records: Record) -> None:
    await Store(pool).apply(collect([consumed(record) for record in records], dead_letter_topic="dead-letters"))


async def time_passes(pool: asyncpg.Pool) -> None:
    await pool.execute("UPDATE sync_history SET progress_at = progress_at - interval '16 minutes'")


async def the_run(pool: asyncpg.Pool) -> tuple[object, ...]:
    return tuple(await pool.fetchrow("SELECT status, error, completed_at IS NULL FROM sync_history"))


async def test_a_run_whose_orders_cannot_be_fetched_is_stalled_until_they_can(pool: asyncpg.Pool) -> None:
    watch = Standstill(pool, SETTINGS)
    await a_token(pool)
    await store(pool, an_event(wanted_after=after(0)))
    failure = OrderFetchFailed(
        token_id=1, order_id=AN_ORDER, wanted_after=after(0), attempts=3, retry_after_seconds=30, error="503"
    )
    await store(pool, failure)
    await watch.turn()
    fresh = await the_run(pool)
    await time_passes(pool)
    await watch.turn()
    stalled = await the_run(pool)
    await Redelivery(pool, None, SETTINGS).end_settled_runs()  # type: ignore[arg-type]
    not_ended = await the_run(pool)

    await store(pool, an_observation(after(10)))

    assert fresh == ("running", None, True)
    assert stalled == not_ended == ("stalled", "1 orders are not fetched yet; the last error: 503", True)
    assert await the_run(pool) == ("completed", None, False)


async def test_a_stalled_load_runs_again_when_it_comes_on(pool: asyncpg.Pool) -> None:
    watch = Standstill(pool, SETTINGS)
    await a_token(pool)
    await a_run(pool)
    await time_passes(pool)
    await watch.turn()
    stalled = await the_run(pool)

    await pool.execute("UPDATE sync_history SET progress_at = now()")
    await watch.turn()

    assert stalled == ("stalled", "no page of the list of orders came", True)
    assert await the_run(pool) == ("running", None, True)


async def test_a_stalled_load_is_still_sent_out_again(pool: asyncpg.Pool, kafka: Kafka) -> None:
    await a_token(pool)
    await a_run(pool)
    await time_passes(pool)
    await Standstill(pool, SETTINGS).turn()
    await pool.execute("UPDATE run_windows SET published_at = '2001-01-01', progress_at = '2001-01-01'")

    await Redelivery(pool, Publisher(kafka, Topics()), SETTINGS).turn()  # type: ignore[arg-type]

    assert [record.run_id for record in kafka.on("order-windows")] == [A_RUN]


async def test_a_run_that_waits_for_a_consent_says_so(pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await a_run(pool)
    await pool.execute("UPDATE user_tokens SET status = 'reauthorization_required', status_reason = 'unlinked'")
    await time_passes(pool)

    await Standstill(pool, SETTINGS).turn()

    assert await the_run(pool) == ("stalled", "the token is reauthorization_required: unlinked", True)


async def test_the_run_of_a_deactivated_seller_fails(pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await a_run(pool)
    await pool.execute("UPDATE user_tokens SET status = 'deactivated'")

    await Standstill(pool, SETTINGS).turn()

    assert await the_run(pool) == ("failed", "the token was deactivated", False)
    task = await pool.fetchrow("SELECT status, error, finished_at IS NOT NULL FROM task_history")
    assert tuple(task) == ("failed", "the token was deactivated", True)
    assert await pool.fetchval("SELECT finished FROM run_windows WHERE run_id = $1", A_RUN)


async def test_a_run_that_was_asked_to_stop_is_left_to_that(pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await a_run(pool)
    await pool.execute("UPDATE user_tokens SET status = 'deactivated'")
    await pool.execute("UPDATE task_history SET status = 'stopping', stop_requested_at = now()")

    await Standstill(pool, SETTINGS).turn()

    assert await the_run(pool) == ("running", None, True)
