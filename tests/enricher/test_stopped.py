"""Which looks nobody wants any more, as a real PostgreSQL knows it."""

import asyncpg
import pytest

from services.enricher.stopped import StoppedLooks
from shared.database import open_pool
from tests.builders import A_RUN, a_run, a_token

pytestmark = pytest.mark.integration


async def owe(pool: asyncpg.Pool, order_id: str) -> None:
    await pool.execute(
        "INSERT INTO pending_fetches (user_token_id, allegro_order_id, wanted_after, next_attempt_at)"
        " VALUES (1, $1, now(), now())",
        order_id,
    )


@pytest.mark.parametrize(
    ("kind", "status", "stopped"),
    [
        ("orders", "stopped", {"a"}),
        ("full", "stopped", {"a"}),
        ("orders", "running", set()),
        ("orders", "completed", set()),
        ("journal", "stopped", set()),  # its looks stay owed, and a replayed one is owed nothing
    ],
)
async def test_what_a_stopped_run_wanted_and_nobody_is_owed(
    database_url: str, kind: str, status: str, stopped: set[str]
) -> None:
    async with await open_pool(database_url, service="test", max_size=1) as pool:
        await a_token(pool)
        await a_run(pool)
        await pool.execute("UPDATE sync_history SET kind = $1, status = $2", kind, status)
        await owe(pool, "b")

        found = await StoppedLooks(pool).among(1, {"a": A_RUN, "b": A_RUN})

    assert found == stopped
