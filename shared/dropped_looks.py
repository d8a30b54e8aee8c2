"""What becomes of the looks that a stopped run wanted."""

from uuid import UUID

import asyncpg

# Those that an event or another run wants as well stay owed, as do those of a stopped reading of the journal.
# language=sql
_DROP = """
WITH shared AS (
    UPDATE pending_fetches SET run_ids = array_remove(run_ids, $2::uuid)
     WHERE user_token_id = $1 AND $2 = ANY(run_ids) AND NOT run_ids <@ ARRAY[$2::uuid]
)
DELETE FROM pending_fetches WHERE user_token_id = $1 AND run_ids <> '{}' AND run_ids <@ ARRAY[$2::uuid]
"""


async def drop_looks(connection: asyncpg.Pool | asyncpg.Connection, token_id: int, run_id: UUID) -> None:
    """Owe nobody what this run of orders, or this listing, alone wanted: the next listing finds it again."""
    await connection.execute(_DROP, token_id, run_id)
