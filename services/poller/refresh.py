"""Refreshing tokens well before their end (requirement A6); which ones is a column, how is the vault's business."""

import asyncio
import logging

import asyncpg

from shared.allegro.errors import AllegroError
from shared.errors import TransientError
from shared.logs import correlated
from shared.token_vault import TokenVault

logger = logging.getLogger(__name__)

_BATCH = 20

# Moved on at once, so that other replicas take others; the vault sets the true next time, or the time of a retry.
# language=sql
_CLAIM = """
WITH due AS (
    SELECT id FROM user_tokens
     WHERE status IN ('active', 'refresh_failed') AND refresh_after <= now()
     ORDER BY refresh_after LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE user_tokens t SET refresh_after = now() + interval '5 minutes' FROM due WHERE t.id = due.id
RETURNING t.id, t.user_id, t.generation
"""


class TokenRefresher:
    """Refreshes the tokens that are due."""

    def __init__(self, pool: asyncpg.Pool, vault: TokenVault) -> None:
        self._pool = pool
        self._vault = vault

    async def turn(self) -> bool:
        """Refresh what is due; says whether there may be more."""
        rows = await self._pool.fetch(_CLAIM, _BATCH)
        await asyncio.gather(*(self._refresh(row) for row in rows))
        return len(rows) == _BATCH

    async def _refresh(self, row: asyncpg.Record) -> None:
        with correlated(None, user=row["user_id"]):
            try:
                await self._vault.refresh(row["id"], seen_generation=row["generation"])
            except (AllegroError, TransientError) as error:
                logger.warning("token not refreshed", extra={"token_id": row["id"], "error": str(error)})
