"""The only code that decrypts a seller's tokens, and the only code that refreshes them (promises P7, P8).

Allegro's refresh tokens work once, and for 60 s more (allegro-api.md 2). So that no pair is ever lost:

1. The intention is written down first (`refresh_after` = now): if this process dies, any poller finds the token due
   and tries again while the grace lasts.
2. The token's row stays locked from reading the refresh token until the new pair is committed. Whoever wants to
   refresh meanwhile, in any process, waits for the lock, finds a newer `generation` and uses that. A fenced lease
   instead would hold no transaction open, but a process that dies would keep the others from the grace until its lease
   ran out, and one that is slow would let a second refresh in: which pair survives then is not documented (#9045).
   A dead process's row lock is gone at once, that of a host which vanished before the grace is over. What the lock
   costs is bounded: one idle transaction for at most 45 s, few of them in a process, and `FOR NO KEY UPDATE`, so that
   orders of the seller can be stored meanwhile.
3. An answer that got lost is asked for again with the same refresh token. A pair that was received and could not be
   committed, since PostgreSQL went away, is kept and stored as soon as it is back.
4. A refusal is believed when it has lasted longer than the grace (#3622, #9592).
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

import asyncpg

from shared.allegro import metrics
from shared.allegro.errors import (
    AllegroError,
    AllegroTimeoutError,
    AllegroUnavailableError,
    InvalidClientError,
    InvalidGrantError,
    RateLimitedError,
    ReauthorizationRequiredError,
    RequestRejectedError,
)
from shared.allegro.oauth import AllegroOAuth, TokenPair, scopes_of, seller_of
from shared.database import TRANSIENT_DATABASE_ERRORS
from shared.encryption import DecryptionError, Keyring, Secret
from shared.errors import PermanentError, TransientError
from shared.request_limits import RequestLimits
from shared.token_lookups import READ_TOKENS, TokenLookups

logger = logging.getLogger(__name__)

# Refreshed after this part of its life: 12 h tokens between 6 and 9 h.
_REFRESH_AT_SHARE = (0.5, 0.75)
# For so long a refusal is not believed: the grace of 60 s, and some more.
_GRACE = timedelta(seconds=75)

# Under the lock: all attempts together, and how many. The lock ends well before the grace does.
_LOCKED_SECONDS = 45.0
# PostgreSQL takes the lock away from a host that vanished without a word: not while an attempt may still go on, and
# early enough for whoever waits for the lock to ask again within the 60 s.
_LOCK_LOST_SECONDS = _LOCKED_SECONDS + 5
_ATTEMPTS = 3
_FIRST_PAUSE_SECONDS = 0.5
# A failed refresh is repeated after this, doubling: four times within the grace.
_FIRST_BACKOFF = timedelta(seconds=5)
_LONGEST_BACKOFF = timedelta(minutes=15)
# How long a pair is kept that PostgreSQL could not take.
_RESCUE_SECONDS = 300.0
_RESCUE_PAUSE_SECONDS = 0.5
_REFRESHES_AT_A_TIME = 4

_USABLE = ("active", "refresh_failed")
# A schedule that we paused bears this mark, and is resumed by the next pair; one that a person paused is not.
_PAUSED_BECAUSE = "reauthorization required: "

# language=sql
_ANNOUNCE = """
UPDATE user_tokens SET refresh_after = clock_timestamp()
 WHERE id = $1 AND generation = $2 AND status IN ('active', 'refresh_failed') AND refresh_after > clock_timestamp()
   AND (refresh_failures = 0 OR $3)
"""

_LIMIT_LOCK = f"""
SET LOCAL lock_timeout = '{_LOCKED_SECONDS + 10:.0f}s';
SET LOCAL idle_in_transaction_session_timeout = '{_LOCK_LOST_SECONDS:.0f}s'
"""

_LOCK = """
SELECT refresh_token, generation, status, status_reason, refresh_failures,
       clock_timestamp() - grant_rejected_at AS rejected_for,
       coalesce(refresh_after - clock_timestamp(), interval '0') AS refresh_in
  FROM user_tokens WHERE id = $1 FOR NO KEY UPDATE
"""

_STORE = """
WITH token AS (
    UPDATE user_tokens
       SET access_token = $2, refresh_token = $3, key_id = $4, expires_at = clock_timestamp() + $5::interval,
           refresh_after = clock_timestamp() + $6::interval, scopes = $7, seller_id = coalesce($8, seller_id),
           generation = generation + 1, refreshed_at = clock_timestamp(), refresh_failures = 0,
           grant_rejected_at = NULL, status = 'active', status_reason = NULL, updated_at = now(),
           login_after = CASE WHEN $9::bigint IS NULL THEN clock_timestamp() ELSE login_after END
     WHERE id = $1 AND ($9::bigint IS NULL OR generation = $9 AND status <> 'deactivated')
    RETURNING id, generation
), resumed AS (
    UPDATE active_sync_schedules s SET status = 'active', last_error = NULL, next_run = now(),
           fence = s.fence + 1
      FROM token WHERE s.user_token_id = token.id AND s.status = 'paused' AND starts_with(s.last_error, $10)
)
SELECT generation FROM token
"""

_NOTE_FAILURE = """
UPDATE user_tokens
   SET refresh_failures = refresh_failures + 1, refresh_after = clock_timestamp() + $2::interval,
       grant_rejected_at = CASE WHEN $3 THEN coalesce(grant_rejected_at, clock_timestamp())
                                ELSE grant_rejected_at END,
       status = 'refresh_failed', status_reason = $4, updated_at = now()
 WHERE id = $1 AND status IN ('active', 'refresh_failed')
"""

_REQUIRE_CONSENT = """
WITH token AS (
    UPDATE user_tokens
       SET status = 'reauthorization_required', status_reason = $2, refresh_after = NULL, updated_at = now()
     WHERE id = $1 AND generation = $3 AND status IN ('active', 'refresh_failed')
    RETURNING id
), paused AS (
    UPDATE active_sync_schedules s
       SET status = 'paused', last_error = $4 || $2, lease_owner = NULL, lease_until = NULL
      FROM token WHERE s.user_token_id = token.id AND s.status = 'active'
)
SELECT id FROM token
"""

_FIND_OR_CREATE = """
INSERT INTO user_tokens (user_id) VALUES ($1)
ON CONFLICT (user_id) DO UPDATE SET updated_at = now()
RETURNING id, seller_id
"""

_DUE = """
SELECT id FROM user_tokens
 WHERE status IN ('active', 'refresh_failed') AND refresh_after <= clock_timestamp()
 ORDER BY refresh_after LIMIT $1
   FOR NO KEY UPDATE SKIP LOCKED
"""


class DifferentSellerError(PermanentError):
    """A consent came from another seller than the one this user is connected to; their orders must not mix."""


class TokenUnreadableError(TransientError):
    """A stored token does not open with the keys of this process; it will once the missing key is configured."""


@dataclass(frozen=True)
class Bearer:
    """An access token for one call, and the generation it is of."""

    secret: Secret
    generation: int


@dataclass
class _Exchange:
    """One refresh: the pair that is to be replaced, and the new one once it is there."""

    token_id: int
    seen_generation: int
    force: bool
    pair: TokenPair | None = None


def access_binding(token_id: int) -> str:
    """What the envelope of an access token is bound to."""
    return f"user_tokens:{token_id}:access_token"


def refresh_binding(token_id: int) -> str:
    """What the envelope of a refresh token is bound to."""
    return f"user_tokens:{token_id}:refresh_token"


def device_code_binding(task_id: UUID) -> str:
    """What the envelope of a device code is bound to."""
    return f"device_authorizations:{task_id}:device_code"


class TokenVault:
    """Access tokens for single calls; nobody keeps one longer than a call needs."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        keyring: Keyring,
        oauth: AllegroOAuth,
        limits: RequestLimits,
        *,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._pool = pool
        self._lookups = TokenLookups(pool)
        self._keyring = keyring
        self._oauth = oauth
        self._limits = limits
        self._jitter = jitter
        # A refresh holds a connection: most of them stay free for everything else.
        self._places = asyncio.Semaphore(max(1, min(_REFRESHES_AT_A_TIME, pool.get_max_size() // 2)))
        self._underway: dict[int, asyncio.Task[int]] = {}

    async def access_token(self, token_id: int) -> Bearer:
        """The present access token, refreshed first if it is at its end; read anew at every call.

        Raises ReauthorizationRequiredError if the seller has to consent again, TransientError if a needed refresh
        did not succeed this time.
        """
        found = await self._lookups.find(token_id)
        row = _usable(token_id, found.row)
        if row["expired"]:
            await self.refresh(token_id, seen_generation=row["generation"])
            found = await self._lookups.find(token_id)
            row = _usable(token_id, found.row)
        if found.access_token is None:
            found.access_token = self._open(row["access_token"], access_binding(token_id))
        return Bearer(found.access_token, row["generation"])

    async def refresh(self, token_id: int, *, seen_generation: int | None = None, force: bool = False) -> int:
        """Replace the pair if it is of `seen_generation` still; returns the generation there is now.

        Without `seen_generation` it is replaced if it is due. `force` refreshes now, whether or not it is due, pauses
        after a failure, or was given up; a token that somebody deactivated stays so. Raises as `access_token` does.

        All callers in this process share one refresh, and a caller that is cancelled does not stop it: its answer
        holds the only pair that works.
        """
        if seen_generation is None:
            row = _usable(token_id, (await self._lookups.find(token_id)).row, force=force)
            if not (force or row["due"] or row["expired"]):
                generation: int = row["generation"]
                return generation
            seen_generation = row["generation"]
        while True:
            task = self._underway.get(token_id)
            if task is None:
                exchange = _Exchange(token_id, seen_generation, force)
                task = asyncio.create_task(self._refresh(exchange), name=f"refresh token {token_id}")
                self._underway[token_id] = task
                task.add_done_callback(lambda done: self._ended(token_id, done))
            generation = await asyncio.shield(task)
            if generation > seen_generation:
                return generation

    def _ended(self, token_id: int, task: asyncio.Task[int]) -> None:
        self._underway.pop(token_id, None)
        if not task.cancelled():
            task.exception()  # whoever still waits is told; if nobody does, it has been logged and noted

    async def close(self) -> None:
        """Wait for the refreshes that are under way: an answer that nobody takes would cost the seller's consent."""
        if self._underway:
            await asyncio.wait(self._underway.values(), timeout=_LOCKED_SECONDS)

    async def due_tokens(self, limit: int) -> list[int]:
        """Tokens to be refreshed now, the longest due first; those that are being refreshed are left out."""
        return [row["id"] for row in await self._pool.fetch(_DUE, limit)]

    async def _refresh(self, exchange: _Exchange) -> int:
        # Both waits may be long, so they come before the lock.
        await self._limits.wait_until_unblocked()
        async with self._places:
            await self._pool.execute(_ANNOUNCE, exchange.token_id, exchange.seen_generation, exchange.force)
            try:
                async with self._pool.acquire() as connection, connection.transaction():
                    outcome = await self._refresh_locked(connection, exchange)
            except asyncpg.LockNotAvailableError:
                raise AllegroTimeoutError("another process is refreshing this token and does not end") from None
            except TRANSIENT_DATABASE_ERRORS as error:
                if exchange.pair is None:
                    raise
                logger.error("PostgreSQL went away during a refresh", extra={"error": repr(error)})
                outcome = await self._rescue(exchange, exchange.pair)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _refresh_locked(self, connection: asyncpg.Connection, exchange: _Exchange) -> int | Exception:
        """Refresh under the row's lock; a failure is returned, since what is noted of it has to be committed."""
        await connection.execute(_LIMIT_LOCK)
        row = _usable(exchange.token_id, await connection.fetchrow(_LOCK, exchange.token_id), force=exchange.force)
        generation: int = row["generation"]
        if generation > exchange.seen_generation:
            metrics.refreshes.labels("joined").inc()
            return generation
        if row["refresh_failures"] and row["refresh_in"] > timedelta(0) and not exchange.force:
            return AllegroUnavailableError(
                f"the last refresh failed: {row['status_reason']}", retry_after=row["refresh_in"]
            )
        try:
            refresh_token = self._open(row["refresh_token"], refresh_binding(exchange.token_id))
            exchange.pair = await self._exchange(refresh_token)
        except InvalidGrantError as refusal:
            return await self._refused(connection, exchange, row, refusal)
        except (TransientError, RequestRejectedError) as failure:
            return await self._failed(connection, exchange.token_id, row, failure)
        stored = await self._store(connection, exchange.token_id, exchange.pair, replaces=generation)
        metrics.refreshes.labels("success").inc()
        logger.info("token refreshed", extra={"token_id": exchange.token_id, "generation": stored})
        return generation if stored is None else stored

    async def _exchange(self, refresh_token: Secret) -> TokenPair:
        """Exchange the token; a lost answer is asked for again, with the same token, while the lock may be held."""
        try:
            async with asyncio.timeout(_LOCKED_SECONDS):
                attempt = 1
                while True:
                    try:
                        return await self._oauth.refresh(refresh_token)
                    except AllegroUnavailableError as error:
                        if attempt == _ATTEMPTS:
                            raise
                        logger.warning("no new pair yet", extra={"error": str(error), "attempt": attempt})
                        if not isinstance(error, AllegroTimeoutError):
                            await asyncio.sleep(_FIRST_PAUSE_SECONDS * attempt)
                        attempt += 1
        except TimeoutError:
            raise AllegroTimeoutError(f"no new pair within {_LOCKED_SECONDS:g} s").at("token") from None

    async def _refused(
        self, connection: asyncpg.Connection, exchange: _Exchange, row: asyncpg.Record, refusal: InvalidGrantError
    ) -> Exception:
        """A refusal is final only when it has lasted longer than the grace."""
        if row["status"] not in _USABLE:
            metrics.refreshes.labels("refused").inc()
            return ReauthorizationRequiredError(row["status_reason"] or str(refusal))
        if row["rejected_for"] is not None and row["rejected_for"] >= _GRACE:
            reason = f"Allegro does not accept the refresh token any more ({refusal})"
            await self._give_up(connection, exchange.token_id, row["generation"], reason)
            return ReauthorizationRequiredError(reason)
        return await self._failed(connection, exchange.token_id, row, refusal)

    async def _failed(
        self, connection: asyncpg.Connection, token_id: int, row: asyncpg.Record, failure: AllegroError | TransientError
    ) -> Exception:
        """Note the failure; it will be repeated, however often it takes, unless it is a lasting refusal."""
        asked = failure.retry_after if isinstance(failure, TransientError) else None
        pause = max(refresh_backoff(row["refresh_failures"]) * self._jitter(0.5, 1.0), asked or timedelta(0))
        metrics.refreshes.labels(_outcome(failure)).inc()
        log = logger.error if isinstance(failure, InvalidClientError) else logger.warning
        log(
            "token not refreshed",
            extra={"token_id": token_id, "error": str(failure), "retry_in_seconds": round(pause.total_seconds(), 1)},
        )
        await connection.execute(_NOTE_FAILURE, token_id, pause, isinstance(failure, InvalidGrantError), str(failure))
        if isinstance(failure, RateLimitedError | InvalidClientError | TokenUnreadableError):
            return failure
        return AllegroUnavailableError(f"not refreshed: {failure}", retry_after=pause)

    async def _rescue(self, exchange: _Exchange, pair: TokenPair) -> int | Exception:
        """Store a pair that was received when PostgreSQL went away: it is the only one that works."""
        deadline = asyncio.get_running_loop().time() + _RESCUE_SECONDS
        while True:
            try:
                async with self._pool.acquire() as connection:
                    stored = await self._store(connection, exchange.token_id, pair, replaces=exchange.seen_generation)
                    if stored is not None:
                        metrics.refreshes.labels("success").inc()
                        return stored
                    # Committed after all, or somebody else was quicker within the grace.
                    row = await connection.fetchrow(READ_TOKENS, [exchange.token_id])
            except TRANSIENT_DATABASE_ERRORS as error:
                if asyncio.get_running_loop().time() > deadline:
                    logger.critical("a new pair could not be stored", extra={"token_id": exchange.token_id})
                    return AllegroUnavailableError(f"a new pair could not be stored: {error!r}")
                await asyncio.sleep(_RESCUE_PAUSE_SECONDS)
                continue
            generation: int = _usable(exchange.token_id, row)["generation"]
            return generation

    async def require_consent(self, token_id: int, reason: str, *, generation: int) -> bool:
        """Give the pair of this generation up: a call failed with it although it was fresh (#13133).

        The schedule pauses until the next consent. Returns whether it was done: not where the pair has been replaced.
        """
        return await self._give_up(self._pool, token_id, generation, reason)

    async def _give_up(
        self, connection: asyncpg.Connection | asyncpg.Pool, token_id: int, generation: int, reason: str
    ) -> bool:
        done = await connection.fetchval(_REQUIRE_CONSENT, token_id, reason, generation, _PAUSED_BECAUSE)
        if done is None:
            return False
        metrics.refreshes.labels("reauthorization_required").inc()
        logger.error("the seller has to consent again", extra={"token_id": token_id, "reason": reason})
        return True

    async def store_new(self, connection: asyncpg.Connection, user_id: str, pair: TokenPair) -> int:
        """Store a pair from a new consent, in the caller's transaction; returns the token's id.

        A user has one token: the latest consent wins, makes the token active again and resumes the schedule that its
        loss had paused. Raises DifferentSellerError if it is another seller's.
        """
        row = await connection.fetchrow(_FIND_OR_CREATE, user_id)
        token_id: int = row["id"]
        seller_id = pair.seller_id or seller_of(pair.access_token)
        scopes = pair.scopes or scopes_of(pair.access_token)
        if row["seller_id"] is not None and seller_id is not None and row["seller_id"] != seller_id:
            raise DifferentSellerError(
                f"user {user_id!r} is connected to seller {row['seller_id']}, the consent is of seller {seller_id}"
            )
        await self._store(connection, token_id, replace(pair, seller_id=seller_id, scopes=scopes))
        return token_id

    async def _store(
        self,
        connection: asyncpg.Connection | asyncpg.Pool,
        token_id: int,
        pair: TokenPair,
        *,
        replaces: int | None = None,
    ) -> int | None:
        """Store a pair; returns its generation, or None if the row is no longer of the generation it `replaces`."""
        access = self._keyring.seal(pair.access_token, belongs_to=access_binding(token_id))
        refresh = self._keyring.seal(pair.refresh_token, belongs_to=refresh_binding(token_id))
        life = timedelta(seconds=pair.expires_in)
        generation: int | None = await connection.fetchval(
            _STORE,
            token_id,
            access.envelope,
            refresh.envelope,
            access.key_id,
            life,
            life * self._jitter(*_REFRESH_AT_SHARE),
            list(pair.scopes),
            pair.seller_id,
            replaces,
            _PAUSED_BECAUSE,
        )
        return generation

    def _open(self, envelope: bytes, binding: str) -> Secret:
        try:
            return self._keyring.open(envelope, belongs_to=binding)
        except DecryptionError as error:
            raise TokenUnreadableError(str(error)) from None


def refresh_backoff(failures: int) -> timedelta:
    """How long a refresh rests after so many failures before this one."""
    return min(_FIRST_BACKOFF * 2.0 ** min(failures, 20), _LONGEST_BACKOFF)


def _outcome(failure: Exception) -> str:
    match failure:
        case RateLimitedError():
            return "limited"
        case InvalidClientError():
            return "invalid_client"
        case InvalidGrantError():
            return "refused"
        case _:
            return "unavailable"


def _usable(token_id: int, row: asyncpg.Record | None, *, force: bool = False) -> asyncpg.Record:
    """The row of a token that may be used; raises ReauthorizationRequiredError."""
    if row is None:
        raise ReauthorizationRequiredError(f"token {token_id} does not exist")
    if row["status"] == "deactivated" or (row["status"] not in _USABLE and not force):
        raise ReauthorizationRequiredError(row["status_reason"] or f"token {token_id} is {row['status']}")
    return row
