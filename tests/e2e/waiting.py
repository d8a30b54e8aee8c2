"""Waiting for states, with patience for machines that are slow or busy; never for times."""

import asyncio
from collections.abc import Sequence

import asyncpg

from benchmarks.stack import BenchStack, Seller
from devstack.allegro import Control
from devstack.ledger import Comparison, compare

PATIENCE_SECONDS = 300.0
TEST_SECONDS = 900
"""Of a test that waits a few times: more than it ever needs, less than for ever."""

_LOOK_SECONDS = 0.1

# What may be on its way: an order that is owed, a task or run without an end, a journal read further than stored.
_UNFINISHED = """
SELECT (SELECT count(*) FROM pending_fetches) AS owed_orders,
       (SELECT count(*) FROM task_history WHERE finished_at IS NULL) AS tasks,
       (SELECT count(*) FROM sync_history WHERE completed_at IS NULL) AS runs,
       (SELECT count(*) FROM journal_cursors WHERE published_event_id > stored_event_id) AS journals
"""

_STORED = """
SELECT (SELECT count(*) FROM orders WHERE gone_at IS NULL) AS orders, (SELECT count(*) FROM order_events) AS events
"""


async def until(pool: asyncpg.Pool, question: str, *arguments: object) -> None:
    """Wait until the answer is true; raises AssertionError with the question when the patience is over."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await pool.fetchval(question, *arguments):  # noqa: ASYNC110 - other processes' work
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise AssertionError(f"not within {PATIENCE_SECONDS:g} s: {question}") from None


async def settled(control: Control, pool: asyncpg.Pool) -> None:
    """Wait until all that Allegro has is stored and nothing is on its way any more; all its sellers are connected.

    Raises AssertionError, with what is missing, when nothing has come on for as long as the patience lasts.
    """
    clock = asyncio.get_running_loop().time
    before: list[int] = []
    since = clock()
    while True:
        missing = await _missing(control, pool)
        if not any(missing.values()):
            return
        now = [*missing.values(), await pool.fetchval("SELECT coalesce(sum(next_sequence), 0) FROM run_windows")]
        if now != before:
            before, since = now, clock()
        assert clock() < since + PATIENCE_SECONDS, f"nothing comes on, and there are missing: {missing}"
        await asyncio.sleep(_LOOK_SECONDS)


async def _missing(control: Control, pool: asyncpg.Pool) -> dict[str, int]:
    """In this order: what is new after a look at the truth is no reason to wait, what was there is stored."""
    live = await control.live()
    truth = await control.summary()
    stored = await pool.fetchrow(_STORED)
    unfinished = await pool.fetchrow(_UNFINISHED)
    return {
        "live": int(live["active"]),
        "orders": max(truth["orders"] - stored["orders"], 0),
        "events": max(truth["events"] - stored["events"], 0),
        **unfinished,
    }


async def compared(stack: BenchStack, pool: asyncpg.Pool, sellers: Sequence[Seller]) -> Comparison:
    """Wait until everything has settled, then compare every row with the ledger.

    Once: reading the whole ledger takes minutes on a busy machine, and one that began too early says nothing.
    """
    async with stack.control() as control:
        await settled(control, pool)
        async with pool.acquire() as connection:
            return await compare(control, [seller.seller_id for seller in sellers], connection)
