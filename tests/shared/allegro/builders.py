"""What tests of the way to Allegro are made of."""

import base64
from datetime import datetime
from typing import Any

import asyncpg

from shared.allegro.client import AllegroClient
from shared.allegro.http import AllegroHttp
from shared.allegro.oauth import AllegroOAuth, TokenPair
from shared.allegro.outage import Outage
from shared.clock import DatabaseClock
from shared.database import database_now
from shared.encryption import Keyring, Secret
from shared.request_limits import RequestLimits
from shared.settings import AllegroSettings
from shared.token_vault import TokenVault
from tests.canary import a_secret

KEYS = f"k1:{base64.b64encode(b'1' * 32).decode()}"
TWO_KEYS = f"k2:{base64.b64encode(b'2' * 32).decode()},{KEYS}"


def settings(url: str = "http://127.0.0.1:1", **others: Any) -> AllegroSettings:
    """Settings whose Allegro is at `url`."""
    return AllegroSettings(
        **{
            "allegro_api_url": url,
            "allegro_auth_url": url,
            "allegro_client_id": "our-app",
            "allegro_client_secret": a_secret("client"),
            "allegro_user_agent": "OurApp/1.0 (+https://example.org/app)",
            **others,
        }
    )


class Way:
    """Everything from the pool to the client, for one process."""

    def __init__(self, pool: asyncpg.Pool, http: AllegroHttp, allegro: AllegroSettings, *, keys: str = KEYS) -> None:
        self.pool = pool
        self.settings = allegro
        self.keyring = Keyring.parse(keys)
        self.clock = DatabaseClock()
        self.limits = RequestLimits(pool, allegro)
        self.oauth = AllegroOAuth(http, allegro, self.limits)
        self.vault = TokenVault(pool, self.keyring, self.oauth, self.limits)
        self.client = AllegroClient(
            http, allegro, self.vault, self.limits, Outage(pool, allegro.allegro_client_id), self.clock
        )

    async def synchronise(self) -> "Way":
        async def read_time() -> Any:
            return await database_now(self.pool)

        await self.clock.synchronise(read_time)
        return self

    async def connected(self, pair: TokenPair, *, user_id: str = "shop-1") -> int:
        """A seller with this pair and an active schedule; returns the token's id."""
        async with self.pool.acquire() as connection, connection.transaction():
            token_id = await self.vault.store_new(connection, user_id, pair)
            await connection.execute(
                "INSERT INTO active_sync_schedules (user_token_id, user_id, interval_seconds, next_full_run)"
                " VALUES ($1, $2, 180, now()) ON CONFLICT DO NOTHING",
                token_id,
                user_id,
            )
        return token_id

    async def row(self, token_id: int) -> asyncpg.Record:
        """The token as it stands."""
        return await self.pool.fetchrow(
            "SELECT t.*, refresh_after - clock_timestamp() AS refresh_in, expires_at - clock_timestamp() AS expires_in,"
            " s.status AS schedule, s.last_error"
            " FROM user_tokens t LEFT JOIN active_sync_schedules s ON s.user_token_id = t.id WHERE t.id = $1",
            token_id,
        )

    async def now(self) -> datetime:
        """PostgreSQL's time: pauses are counted from it, however slow the test is."""
        moment: datetime = await self.pool.fetchval("SELECT clock_timestamp()")
        return moment

    async def change(self, token_id: int, assignments: str) -> None:
        """Set columns of the token, in SQL."""
        await self.pool.execute(f"UPDATE user_tokens SET {assignments} WHERE id = $1", token_id)

    async def expire(self, token_id: int) -> None:
        """The access token is at its end."""
        await self.change(token_id, "expires_at = clock_timestamp()")


def a_pair(access: str = "access-1", refresh: str = "refresh-1", *, seller_id: str | None = None) -> TokenPair:
    return TokenPair(Secret(a_secret(access)), Secret(a_secret(refresh)), 43199, (), seller_id)
