"""Learning sellers' logins: a courtesy to readers of the token API, asked for until it is known, urgent for nobody.

Tokens carry the seller's number only; the login comes from `GET /me` and needs a scope of its own (#9955).
"""

import logging
from collections.abc import Sequence
from datetime import timedelta

import asyncpg

from services.poller.slots import Slots
from shared.allegro.client import AllegroClient
from shared.allegro.errors import AccessDeniedError, AllegroError
from shared.errors import TransientError
from shared.logs import correlated

logger = logging.getLogger(__name__)

_ASKED_AGAIN = timedelta(hours=1)
# New scopes come with a new consent only (#8708), and that asks anew; yet a 403 may be Allegro's mistake (#12852).
_ASKED_AGAIN_WITHOUT_ACCESS = timedelta(days=1)

# The claim itself says when to ask again, should this process die or the answer not come. Without any known scope it
# is worth a try.
# language=sql
_CLAIM = """
WITH due AS (
    SELECT id FROM user_tokens
     WHERE login_after <= now() AND status IN ('active', 'refresh_failed')
       AND (scopes = '{}' OR 'allegro:api:profile:read' = ANY (scopes))
     ORDER BY login_after LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE user_tokens t SET login_after = now() + $2::interval FROM due WHERE t.id = due.id RETURNING t.id
"""

_LEARN = """
UPDATE user_tokens SET seller_login = $2, seller_id = coalesce(seller_id, $3), login_after = NULL WHERE id = $1
"""

_POSTPONE = "UPDATE user_tokens SET login_after = now() + $2::interval WHERE id = $1"


class LoginLearner:
    """Asks for the logins that are due: after each consent, and until there was an answer."""

    def __init__(self, pool: asyncpg.Pool, client: AllegroClient, slots: Slots) -> None:
        self._pool = pool
        self._client = client
        self._slots = slots

    async def turn(self) -> bool:
        """Begin to ask for what is due; says whether there may be more."""
        return await self._slots.fill(self.claim, self.learn)

    async def claim(self, limit: int) -> Sequence[int]:
        """Up to `limit` tokens that no other replica asks for."""
        return [row["id"] for row in await self._pool.fetch(_CLAIM, limit, _ASKED_AGAIN)]

    async def learn(self, token_id: int) -> None:
        """Ask once."""
        try:
            with correlated(None, token=token_id):
                seller = await self._client.me(token_id)
        except AccessDeniedError as error:
            logger.warning("login not learnt", extra={"token_id": token_id, "error": str(error)})
            await self._pool.execute(_POSTPONE, token_id, _ASKED_AGAIN_WITHOUT_ACCESS)
        except (AllegroError, TransientError) as error:
            logger.info("login not learnt yet", extra={"token_id": token_id, "error": str(error)})
        else:
            await self._pool.execute(_LEARN, token_id, seller.login, seller.id)
