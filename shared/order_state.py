"""Asking for the topic `order-state` to be filled again: a row, that the writer reads."""

import asyncpg


async def republish_all(pool: asyncpg.Pool) -> None:
    """Have the state of every order published again; what was published again already begins anew."""
    await pool.execute("UPDATE order_state_topic SET republish_after = 0")
