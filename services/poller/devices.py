"""Waiting for sellers' consent (requirements A2, A3): leased rows, never polled faster than Allegro allows.

The one successful answer can be had once only. So it is committed, with everything that follows from it, before
anything else is done with it; if the process dies before that, the next poll says that the code is used, and the
authorisation ends honestly.
"""

import asyncio
import logging
from datetime import timedelta
from uuid import UUID

import asyncpg

from services.poller.settings import PollerSettings
from shared.allegro.client import AllegroClient
from shared.allegro.errors import (
    AccessDeniedError,
    AllegroError,
    AuthorizationEndedError,
    AuthorizationPendingError,
    SlowDownError,
)
from shared.allegro.oauth import AllegroOAuth, TokenPair
from shared.encryption import Keyring
from shared.errors import TransientError
from shared.logs import correlated
from shared.sync_start import begin_sync
from shared.token_vault import TokenVault

logger = logging.getLogger(__name__)

_BATCH = 50
_SLOW_DOWN_SECONDS = 5  # RFC 8628, 3.5
_PROFILE_SCOPE = "allegro:api:profile:read"

# language=sql
_CLAIM = """
WITH due AS (
    SELECT task_id FROM device_authorizations
     WHERE status = 'PENDING' AND next_poll_at <= now() AND (lease_until IS NULL OR lease_until < now())
     ORDER BY next_poll_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE device_authorizations d
   SET lease_owner = $1, lease_until = now() + $3::interval, fence = d.fence + 1, polls = d.polls + 1
  FROM due WHERE d.task_id = due.task_id
RETURNING d.task_id, d.user_id, d.device_code, d.interval_seconds, d.fence, d.correlation_id,
          d.expires_at <= now() AS expired
"""

_WAIT = """
UPDATE device_authorizations
   SET interval_seconds = interval_seconds + $3, lease_owner = NULL, lease_until = NULL,
       next_poll_at = now() + (interval_seconds + $3) * interval '1 second'
 WHERE task_id = $1 AND fence = $2
"""

_END = """
UPDATE device_authorizations
   SET status = 'FAILURE', reason = $3, message = $4, device_code = NULL, key_id = NULL, finished_at = now(),
       lease_owner = NULL, lease_until = NULL
 WHERE task_id = $1 AND fence = $2 AND status = 'PENDING'
"""

_SUCCEED = """
UPDATE device_authorizations
   SET status = 'SUCCESS', user_token_id = $2, device_code = NULL, key_id = NULL, finished_at = now(),
       lease_owner = NULL, lease_until = NULL
 WHERE task_id = $1
"""

_SUPERSEDE = """
UPDATE device_authorizations
   SET status = 'FAILURE', reason = 'superseded', message = 'The seller consented with a newer code.',
       device_code = NULL, key_id = NULL, finished_at = now(), lease_owner = NULL, lease_until = NULL
 WHERE user_id = $1 AND status = 'PENDING' AND task_id <> $2
"""


def device_code_binding(task_id: UUID) -> str:
    """What the envelope of a device code is bound to."""
    return f"device_authorizations:{task_id}:device_code"


class DevicePoller:
    """Polls the authorisations that are due."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        oauth: AllegroOAuth,
        client: AllegroClient,
        vault: TokenVault,
        keyring: Keyring,
        settings: PollerSettings,
        *,
        owner: str,
    ) -> None:
        self._pool = pool
        self._oauth = oauth
        self._client = client
        self._vault = vault
        self._keyring = keyring
        self._owner = owner
        self._lease = timedelta(seconds=settings.poller_lease_seconds)
        self._interval = timedelta(seconds=settings.sync_interval_seconds)
        self._full_interval = timedelta(seconds=settings.sync_full_interval_seconds)

    async def turn(self) -> bool:
        """Claim and poll what is due; says whether there may be more."""
        rows = await self._pool.fetch(_CLAIM, self._owner, _BATCH, self._lease)
        await asyncio.gather(*(self._poll(row) for row in rows))
        return len(rows) == _BATCH

    async def _poll(self, row: asyncpg.Record) -> None:
        with correlated(row["correlation_id"], user=row["user_id"]):
            task_id, fence = row["task_id"], row["fence"]
            if row["expired"]:
                message = "The code expired before the seller decided. Start again."
                await self._pool.execute(_END, task_id, fence, "expired", message)
                return
            code = self._keyring.open(row["device_code"], belongs_to=device_code_binding(task_id))
            try:
                pair = await self._oauth.poll_device_code(code)
            except AuthorizationPendingError:
                await self._pool.execute(_WAIT, task_id, fence, 0)
            except SlowDownError:
                await self._pool.execute(_WAIT, task_id, fence, _SLOW_DOWN_SECONDS)
            except AuthorizationEndedError as error:
                logger.info("authorisation ended", extra={"task_id": str(task_id), "reason": error.reason})
                await self._pool.execute(_END, task_id, fence, error.reason, str(error))
            except (AllegroError, TransientError) as error:
                # Bot protection, an outage, a block: no refusal.
                logger.warning("authorisation not polled", extra={"task_id": str(task_id), "error": str(error)})
                await self._pool.execute(_WAIT, task_id, fence, 0)
            else:
                token_id = await self._keep(task_id, row["user_id"], pair)
                await self._learn_login(token_id, pair)

    async def _keep(self, task_id: UUID, user_id: str, pair: TokenPair) -> int:
        """Commit the tokens and what begins with them, whoever holds the lease by now: this answer is the only one."""
        async with self._pool.acquire() as connection, connection.transaction():
            token_id = await self._vault.store_new(connection, user_id, pair)
            await begin_sync(connection, token_id, interval=self._interval, full_interval=self._full_interval)
            await connection.execute(_SUCCEED, task_id, token_id)
            await connection.execute(_SUPERSEDE, user_id, task_id)
        logger.info("seller connected", extra={"token_id": token_id})
        return token_id

    async def _learn_login(self, token_id: int, pair: TokenPair) -> None:
        """The login is a courtesy to readers: without the scope, or an answer, it stays unknown."""
        if _PROFILE_SCOPE not in pair.scopes:
            return
        try:
            seller = await self._client.me(token_id, traffic="live")
        except (AllegroError, AccessDeniedError, TransientError) as error:
            logger.warning("login not learnt", extra={"token_id": token_id, "error": str(error)})
            return
        await self._pool.execute(
            "UPDATE user_tokens SET seller_login = $2, seller_id = coalesce(seller_id, $3) WHERE id = $1",
            token_id,
            seller.login,
            seller.id,
        )
