"""Waiting for sellers' consent (requirements A2, A3): leased rows, never polled faster than Allegro allows.

The one successful answer can be had once only. So it is committed, with everything that follows from it, before
anything else is done with it; if the process dies before that, the next poll says that the code is used, and the
authorisation ends honestly.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import asyncpg

from services.poller import metrics
from services.poller.leases import Leases
from services.poller.settings import PollerSettings
from services.poller.slots import Slots
from shared.allegro.errors import (
    AllegroError,
    AuthorizationEndedError,
    AuthorizationPendingError,
    NotPermittedError,
    SlowDownError,
)
from shared.allegro.oauth import AllegroOAuth, TokenPair
from shared.encryption import DecryptionError, Keyring
from shared.errors import TransientError
from shared.logs import correlated, scrub
from shared.service import is_transient
from shared.sync_start import begin_sync
from shared.token_vault import DifferentSellerError, TokenVault, device_code_binding
from shared.tracing import span

logger = logging.getLogger(__name__)

_SLOW_DOWN_SECONDS = 5  # RFC 8628, 3.5
# For so long a poll waits for its permission. During a block it is put off instead: polls whose leases run out while
# they wait would all go out together at its end.
_PATIENCE = timedelta(seconds=5)
# For so long a pair is kept that PostgreSQL cannot take, and for so long an end of this process waits for a poll.
_KEEP_SECONDS = 300.0
_KEEP_PAUSE_SECONDS = 1.0
_GRACE_SECONDS = 10.0

# The claim itself sets the next poll, so that a poller that dies after asking, as late as its patience lets it, is not
# followed by one that asks faster than Allegro allows.
# language=sql
_CLAIM = """
WITH due AS (
    SELECT task_id FROM device_authorizations
     WHERE status = 'PENDING' AND next_poll_at <= now() AND (lease_until IS NULL OR lease_until < now())
     ORDER BY next_poll_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE device_authorizations d
   SET lease_owner = $1, lease_until = now() + $3::interval, fence = d.fence + 1, polls = d.polls + 1,
       next_poll_at = now() + d.interval_seconds * interval '1 second' + $4::interval
  FROM due WHERE d.task_id = due.task_id
RETURNING d.task_id, d.user_id, d.device_code, d.interval_seconds, d.fence, d.correlation_id, d.traceparent,
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

# Whoever holds the lease by now, this is the only answer there will ever be; one that a newer consent has
# superseded is not needed any more.
# language=sql
_SUCCEED = """
UPDATE device_authorizations
   SET status = 'SUCCESS', user_token_id = $2, reason = NULL, message = NULL, device_code = NULL, key_id = NULL,
       finished_at = now(), lease_owner = NULL, lease_until = NULL
 WHERE task_id = $1
"""

# All that wait for this user, always in the same order: two consents at once would otherwise wait for each other.
_LOCK = """
SELECT task_id, reason FROM device_authorizations
 WHERE task_id = $1 OR (user_id = $2 AND status = 'PENDING') ORDER BY task_id FOR UPDATE
"""

_SUPERSEDE = """
UPDATE device_authorizations
   SET status = 'FAILURE', reason = 'superseded', message = 'The seller consented with a newer code.',
       device_code = NULL, key_id = NULL, finished_at = now(), lease_owner = NULL, lease_until = NULL
 WHERE user_id = $1 AND status = 'PENDING' AND task_id <> $2
"""


@dataclass(frozen=True)
class Authorization:
    """A claimed authorisation that waits for the seller."""

    task_id: UUID
    user_id: str
    device_code: bytes
    fence: int
    correlation_id: str | None
    traceparent: str | None
    has_expired: bool


class DevicePoller:
    """Polls the authorisations that are due, each in a slot of its own."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        oauth: AllegroOAuth,
        vault: TokenVault,
        keyring: Keyring,
        leases: Leases,
        slots: Slots,
        settings: PollerSettings,
    ) -> None:
        self._pool = pool
        self._oauth = oauth
        self._vault = vault
        self._keyring = keyring
        self._leases = leases
        self._slots = slots
        self._interval = timedelta(seconds=settings.sync_interval_seconds)
        self._full_interval = timedelta(seconds=settings.sync_full_interval_seconds)

    async def turn(self) -> bool:
        """Begin the polls that are due; says whether there may be more."""
        return await self._slots.fill(self.claim, self.poll)

    async def claim(self, limit: int) -> Sequence[Authorization]:
        """Lease up to `limit` due authorisations; no other replica gets the same ones."""
        rows = await self._pool.fetch(_CLAIM, self._leases.owner, limit, self._leases.duration, _PATIENCE)
        return [
            Authorization(
                task_id=row["task_id"],
                user_id=row["user_id"],
                device_code=row["device_code"],
                fence=row["fence"],
                correlation_id=row["correlation_id"],
                traceparent=row["traceparent"],
                has_expired=row["expired"],
            )
            for row in rows
        ]

    async def poll(self, authorization: Authorization) -> None:
        """Ask whether the seller has decided. What has expired by our clock is asked for once more, and then ends.

        Whoever is asked to end lets a poll that is under way come to its end first: its answer may be the tokens.
        """
        polling = asyncio.create_task(self._poll(authorization))
        try:
            await asyncio.shield(polling)
        except asyncio.CancelledError:
            await asyncio.wait([polling], timeout=_GRACE_SECONDS)
            raise

    async def _poll(self, authorization: Authorization) -> None:
        with (
            correlated(authorization.correlation_id, user=authorization.user_id),
            span("poll authorisation", parent=authorization.traceparent),
        ):
            binding = device_code_binding(authorization.task_id)
            try:
                code = self._keyring.open(authorization.device_code, belongs_to=binding)
                pair = await self._oauth.poll_device_code(code, patience_seconds=_PATIENCE.total_seconds())
            except AuthorizationPendingError:
                await self._wait(authorization, "pending")
            except SlowDownError:
                await self._wait(authorization, "slow_down", slower_by=_SLOW_DOWN_SECONDS)
            except AuthorizationEndedError as error:
                await self._end(authorization, error.reason, str(error))
            except NotPermittedError:
                # Not asked: whatever has expired is asked for once more when it is permitted.
                await self._put_off(authorization, "not_permitted")
            except (AllegroError, TransientError, DecryptionError) as error:
                # Bot protection, an outage, a block, a wrong client secret or key: no refusal by the seller.
                logger.warning(
                    "authorisation not polled", extra={"task_id": str(authorization.task_id), "error": str(error)}
                )
                await self._wait(authorization, "unavailable")
            else:
                await self._succeed(authorization, pair)

    async def _wait(self, authorization: Authorization, outcome: str, *, slower_by: int = 0) -> None:
        if authorization.has_expired:
            await self._end(authorization, "expired", "The code expired before the seller decided. Start again.")
            return
        await self._put_off(authorization, outcome, slower_by=slower_by)

    async def _put_off(self, authorization: Authorization, outcome: str, *, slower_by: int = 0) -> None:
        metrics.device_polls.labels(outcome).inc()
        await self._pool.execute(_WAIT, authorization.task_id, authorization.fence, slower_by)

    async def _end(self, authorization: Authorization, reason: str, message: str) -> None:
        metrics.device_polls.labels("ended").inc()
        logger.info("authorisation ended", extra={"task_id": str(authorization.task_id), "reason": reason})
        await self._pool.execute(_END, authorization.task_id, authorization.fence, reason, scrub(message))

    async def _succeed(self, authorization: Authorization, pair: TokenPair) -> None:
        metrics.device_polls.labels("success").inc()
        try:
            await self._keep(authorization, pair)
        except DifferentSellerError as error:
            logger.error("consent of another seller", extra={"task_id": str(authorization.task_id)})
            message = f"{error}. Use another user_id for another seller. Start again."
            await self._end(authorization, "different_seller", message)

    async def _keep(self, authorization: Authorization, pair: TokenPair) -> None:
        """Commit the tokens and what begins with them, unless a newer consent superseded them.

        Repeated while PostgreSQL is away: there will not be another answer.
        """
        deadline = asyncio.get_running_loop().time() + _KEEP_SECONDS
        while True:
            try:
                await self._store(authorization, pair)
            except Exception as error:
                if not is_transient(error) or asyncio.get_running_loop().time() > deadline:
                    raise
                logger.error("a consent is not stored yet", extra={"error": repr(error)})
                await asyncio.sleep(_KEEP_PAUSE_SECONDS)
            else:
                return

    async def _store(self, authorization: Authorization, pair: TokenPair) -> None:
        task_id, user_id = authorization.task_id, authorization.user_id
        async with self._pool.acquire() as connection, connection.transaction():
            locked = {row["task_id"]: row["reason"] for row in await connection.fetch(_LOCK, task_id, user_id)}
            if locked.get(task_id, "superseded") == "superseded":
                return
            token_id = await self._vault.store_new(connection, user_id, pair)
            await begin_sync(connection, token_id, interval=self._interval, full_interval=self._full_interval)
            await connection.execute(_SUCCEED, task_id, token_id)
            await connection.execute(_SUPERSEDE, user_id, task_id)
        logger.info("seller connected", extra={"token_id": token_id})
