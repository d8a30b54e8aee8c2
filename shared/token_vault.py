"""The only code that decrypts a seller's tokens, and the only code that refreshes them (promises P7, P8).

Allegro's refresh tokens work once. So a refresh holds the row of `user_tokens` locked from reading the refresh token
until the new pair is committed: whoever wants to refresh at the same time, in any process, waits for the lock, sees a
newer `generation` and uses it. A process that dies in between loses its lock and nothing else: the old refresh token
works for 60 s more (allegro-api.md 2), and the next one who comes uses it.
"""

import asyncio
import logging
import random
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from shared.allegro import metrics
from shared.allegro.errors import ReauthorizationRequiredError
from shared.allegro.oauth import AllegroOAuth, InvalidGrantError, TokenPair
from shared.encryption import Keyring, Secret
from shared.errors import ConfigurationError, OrdersBackupError, TransientError

logger = logging.getLogger(__name__)

# Refreshed after this part of its life, give or take: 12 h tokens between 6 and 9 h.
_REFRESH_AT_SHARE = (0.5, 0.75)
# An access token this close to its end is refreshed before it is used.
_EXPIRY_MARGIN = timedelta(seconds=30)
# Within the grace a lost answer can be had again; a refusal is believed once it has lasted longer than that.
_GRACE = timedelta(seconds=90)
_RETRY_AFTER_REFUSAL = timedelta(seconds=20)

_REFRESHES_AT_A_TIME = 3
_USABLE = ("active", "refresh_failed")

# language=sql
_READ = """
SELECT access_token, generation, status, status_reason, expires_at <= now() + $2::interval AS expired
  FROM user_tokens WHERE id = $1
"""

_LOCK = """
SELECT access_token, refresh_token, generation, status, status_reason, grant_rejected_at, now() AS now
  FROM user_tokens WHERE id = $1 FOR UPDATE
"""

_STORE = """
UPDATE user_tokens
   SET access_token = $2, refresh_token = $3, key_id = $4, expires_at = now() + $5::interval,
       refresh_after = now() + $6::interval, scopes = $7, seller_id = coalesce($8, seller_id),
       generation = generation + 1, refreshed_at = now(), refresh_failures = 0, grant_rejected_at = NULL,
       status = 'active', status_reason = NULL, updated_at = now()
 WHERE id = $1
"""

_NOTE_FAILURE = """
UPDATE user_tokens
   SET refresh_failures = refresh_failures + 1, refresh_after = now() + $2::interval,
       grant_rejected_at = CASE WHEN $3 THEN coalesce(grant_rejected_at, now()) ELSE grant_rejected_at END,
       status = 'refresh_failed', status_reason = $4, updated_at = now()
 WHERE id = $1 AND status IN ('active', 'refresh_failed')
"""

_REQUIRE_CONSENT = """
WITH token AS (
    UPDATE user_tokens
       SET status = 'reauthorization_required', status_reason = $2, refresh_after = NULL, updated_at = now()
     WHERE id = $1 AND status IN ('active', 'refresh_failed')
    RETURNING id
)
UPDATE active_sync_schedules s
   SET status = 'paused', last_error = $2, lease_owner = NULL, lease_until = NULL
  FROM token WHERE s.user_token_id = token.id
"""


@dataclass(frozen=True)
class Bearer:
    """An access token for one call, and the generation it is of."""

    secret: Secret
    generation: int


def access_binding(token_id: int) -> str:
    """What the envelope of an access token is bound to."""
    return f"user_tokens:{token_id}:access_token"


def refresh_binding(token_id: int) -> str:
    """What the envelope of a refresh token is bound to."""
    return f"user_tokens:{token_id}:refresh_token"


class TokenVault:
    """Access tokens for single calls; nobody keeps one longer than a call needs."""

    def __init__(self, pool: asyncpg.Pool, keyring: Keyring, oauth: AllegroOAuth) -> None:
        self._pool = pool
        self._keyring = keyring
        self._oauth = oauth
        self._refreshing = asyncio.Semaphore(_REFRESHES_AT_A_TIME)

    async def access_token(self, token_id: int) -> Bearer:
        """The present access token, refreshed first if it is at its end.

        Raises ReauthorizationRequiredError if the seller has to consent again, TransientError if a needed refresh
        did not succeed this time, DecryptionError.
        """
        row = await self._pool.fetchrow(_READ, token_id, _EXPIRY_MARGIN)
        _check_usable(token_id, row)
        if row["expired"]:
            return await self.refresh(token_id, seen_generation=row["generation"])
        return self._bearer(token_id, row["access_token"], row["generation"])

    async def refresh(self, token_id: int, *, seen_generation: int | None = None) -> Bearer:
        """Refresh the pair, unless it is newer than `seen_generation` already; raises as `access_token` does."""
        # The wait for the allowance comes before the lock. And few refreshes at a time hold a connection, so that one
        # is always left for what they wait for.
        await self._oauth.wait_for_allowance()
        async with self._refreshing, self._pool.acquire() as connection:
            async with connection.transaction():
                outcome = await self._refresh_locked(connection, token_id, seen_generation)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    async def _refresh_locked(
        self, connection: asyncpg.Connection, token_id: int, seen_generation: int | None
    ) -> Bearer | Exception:
        """Refresh under the row's lock; a failure is returned, since what is noted of it has to be committed."""
        # The row stays locked while we call: a fenced lease would let a second process in once it expired, and two
        # refreshes of one token within the grace leave open which pair survives (#9045). The cost is an idle
        # transaction for the length of one call, bounded by ALLEGRO_TIMEOUT_SECONDS and not by PostgreSQL.
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        row = await connection.fetchrow(_LOCK, token_id)
        _check_usable(token_id, row)
        if seen_generation is not None and row["generation"] > seen_generation:
            return self._bearer(token_id, row["access_token"], row["generation"])
        try:
            pair = await self._oauth.refresh(
                self._keyring.open(row["refresh_token"], belongs_to=refresh_binding(token_id))
            )
        except InvalidGrantError as refusal:
            return await self._refused(connection, token_id, row, refusal)
        except TransientError as failure:
            metrics.refreshes.labels("unavailable").inc()
            await connection.execute(_NOTE_FAILURE, token_id, _RETRY_AFTER_REFUSAL, False, str(failure))
            return failure
        await self._store(connection, token_id, pair)
        metrics.refreshes.labels("success").inc()
        # Handed on only after the commit.
        return Bearer(pair.access_token, row["generation"] + 1)

    async def _refused(
        self, connection: asyncpg.Connection, token_id: int, row: asyncpg.Record, error: InvalidGrantError
    ) -> Exception:
        """A refusal is final only when it has lasted longer than the grace (#3622, #9592)."""
        first_refused_at: datetime | None = row["grant_rejected_at"]
        if first_refused_at is not None and row["now"] - first_refused_at >= _GRACE:
            reason = "Allegro does not accept the refresh token any more; the seller has to consent again"
            metrics.refreshes.labels("reauthorization_required").inc()
            logger.error("consent has to be given again", extra={"token_id": token_id, "reason": reason})
            await connection.execute(_REQUIRE_CONSENT, token_id, reason)
            return ReauthorizationRequiredError(reason)
        metrics.refreshes.labels("refused").inc()
        logger.warning("refresh refused, trying again", extra={"token_id": token_id, "error": str(error)})
        await connection.execute(_NOTE_FAILURE, token_id, _RETRY_AFTER_REFUSAL, True, str(error))
        return TransientError(str(error), retry_after=_RETRY_AFTER_REFUSAL)

    async def require_consent(self, token_id: int, reason: str) -> None:
        """Mark the token as useless: a call failed with a pair that was fresh (#13133). Its schedule pauses."""
        logger.error("consent has to be given again", extra={"token_id": token_id, "reason": reason})
        metrics.refreshes.labels("reauthorization_required").inc()
        await self._pool.execute(_REQUIRE_CONSENT, token_id, reason)

    async def store_new(self, connection: asyncpg.Connection, user_id: str, pair: TokenPair) -> int:
        """Store a pair from a new consent, in the caller's transaction; returns the token's id.

        A user has one token: a later consent replaces the pair and makes the token active again.
        """
        token_id: int = await connection.fetchval(
            "INSERT INTO user_tokens (user_id) VALUES ($1)"
            " ON CONFLICT (user_id) DO UPDATE SET updated_at = now() RETURNING id",
            user_id,
        )
        await self._store(connection, token_id, pair)
        return token_id

    async def _store(self, connection: asyncpg.Connection, token_id: int, pair: TokenPair) -> None:
        access = self._keyring.seal(pair.access_token, belongs_to=access_binding(token_id))
        refresh = self._keyring.seal(pair.refresh_token, belongs_to=refresh_binding(token_id))
        life = timedelta(seconds=pair.expires_in)
        await connection.execute(
            _STORE,
            token_id,
            access.envelope,
            refresh.envelope,
            access.key_id,
            life,
            life * random.uniform(*_REFRESH_AT_SHARE),  # noqa: S311 - spreads load, hides nothing
            list(pair.scopes),
            pair.seller_id,
        )

    def _bearer(self, token_id: int, envelope: bytes, generation: int) -> Bearer:
        return Bearer(self._keyring.open(envelope, belongs_to=access_binding(token_id)), generation)


def _check_usable(token_id: int, row: asyncpg.Record | None) -> None:
    if row is None:
        raise ReauthorizationRequiredError(f"token {token_id} does not exist")
    if row["status"] not in _USABLE:
        raise ReauthorizationRequiredError(row["status_reason"] or f"token {token_id} is {row['status']}")


async def check_keys(pool: asyncpg.Pool, keyring: Keyring) -> None:
    """Raise ConfigurationError if a stored secret needs a key that is not there, or does not open with it."""
    rows = await pool.fetch(
        "SELECT DISTINCT ON (key_id) key_id, id, refresh_token FROM user_tokens"
        " WHERE key_id IS NOT NULL ORDER BY key_id"
    )
    for row in rows:
        if row["key_id"] not in keyring.key_ids:
            raise ConfigurationError(f"ENCRYPTION_KEYS: key {row['key_id']!r} is missing, stored tokens need it")
        try:
            keyring.open(row["refresh_token"], belongs_to=refresh_binding(row["id"]))
        except OrdersBackupError as error:
            raise ConfigurationError(f"ENCRYPTION_KEYS: {error}") from None
