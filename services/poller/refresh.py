"""Refreshing tokens well before their end (requirement A6); which ones is a column, how is the vault's business."""

import logging
from collections.abc import Sequence

from services.poller.slots import Slots
from shared.allegro.errors import AllegroError
from shared.errors import TransientError
from shared.logs import correlated
from shared.token_vault import TokenVault

logger = logging.getLogger(__name__)


class TokenRefresher:
    """Refreshes the tokens that are due. Replicas share the work: the vault lets one refresh a token at a time."""

    def __init__(self, vault: TokenVault, slots: Slots) -> None:
        self._vault = vault
        self._slots = slots
        self._in_hand: set[int] = set()

    async def turn(self) -> bool:
        """Begin the refreshes that are due; says whether there may be more."""
        return await self._slots.fill(self.due, self.refresh)

    async def due(self, limit: int) -> Sequence[int]:
        """Up to `limit` due tokens that are not in hand already."""
        found = await self._vault.due_tokens(limit + len(self._in_hand))
        taken = [token_id for token_id in found if token_id not in self._in_hand][:limit]
        self._in_hand.update(taken)
        return taken

    async def refresh(self, token_id: int) -> None:
        """Refresh one token, if it is due still; the vault notes a failure and when to try again."""
        try:
            with correlated(None, token=token_id):
                await self._vault.refresh(token_id)
        except (AllegroError, TransientError) as error:
            logger.info("token not refreshed", extra={"token_id": token_id, "error": str(error)})
        finally:
            self._in_hand.discard(token_id)
