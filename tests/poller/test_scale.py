"""Many tokens: claiming stays cheap and fair, whoever claims (B1, G5)."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from services.poller.leases import Leases
from tests.poller.conftest import a_journal_poller

pytestmark = pytest.mark.integration

TOKENS = 10_000


@pytest.fixture
async def crowd(pool: asyncpg.Pool) -> None:
    """Ten thousand connected sellers whose journals are all due."""
    await pool.execute(
        "INSERT INTO user_tokens (user_id) SELECT 'shop-' || n FROM generate_series(1, $1::int) AS n", TOKENS
    )
    await pool.execute("INSERT INTO journal_cursors (user_token_id, stored_event_id) SELECT id, 0 FROM user_tokens")
    await pool.execute(
        "INSERT INTO active_sync_schedules (user_token_id, user_id, interval_seconds, next_run, next_full_run)"
        " SELECT id, user_id, 180, now() - random() * interval '10 minutes', now() + interval '1 day' FROM user_tokens"
    )
    for table in ("user_tokens", "journal_cursors", "active_sync_schedules"):
        await pool.execute(f"VACUUM ANALYZE {table}")


@pytest.mark.usefixtures("crowd")
async def test_ten_thousand_schedules_are_claimed_once_each_by_several_replicas(pool: asyncpg.Pool) -> None:
    claimed: list[int] = []

    async def claim_all(owner: str) -> None:
        leases = Leases(pool, seconds=600)
        leases.owner = owner
        poller = a_journal_poller(pool, leases)
        while looks := await poller.claim(32):
            claimed.extend(look.token_id for look in looks)

    await asyncio.gather(*(claim_all(f"replica-{number}") for number in range(4)))

    assert len(claimed) == len(set(claimed)) == TOKENS


@pytest.mark.usefixtures("crowd")
async def test_the_longest_due_come_first_and_a_claim_reads_no_more_than_it_takes(pool: asyncpg.Pool) -> None:
    poller = a_journal_poller(pool, Leases(pool, seconds=600))
    await poller.claim(32)

    taken = await pool.fetchval("SELECT count(*) FROM active_sync_schedules WHERE lease_owner IS NOT NULL")
    latest_claimed, earliest_left = await pool.fetchrow(
        "SELECT max(next_run) FILTER (WHERE lease_owner IS NOT NULL), min(next_run) FILTER (WHERE lease_owner IS NULL)"
        " FROM active_sync_schedules"
    )

    assert taken == 32
    assert latest_claimed <= earliest_left
    assert earliest_left - latest_claimed < timedelta(minutes=1)
