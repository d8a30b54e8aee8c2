"""Connected sellers (requirements A4, A5, A7). Answers never hold a secret."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, SecretStr

from services.api.context import Context, KnownUser
from services.api.endpoints.authorizations import UserId
from services.api.problems import NotFoundError
from shared.allegro.oauth import TokenPair
from shared.encryption import Secret
from shared.sync_start import begin_sync

router = APIRouter(prefix="/tokens", tags=["tokens"])

_COLUMNS = """
SELECT id AS token_id, user_id, seller_id, seller_login, status, status_reason, scopes, expires_at, refreshed_at,
       validated_at, created_at, updated_at
  FROM user_tokens
"""


class Token(BaseModel):
    """A connected seller, without the secrets."""

    token_id: int
    user_id: str
    seller_id: str | None = Field(description="the seller's id at Allegro")
    seller_login: str | None
    status: str = Field(description="active, refresh_failed, reauthorization_required or deactivated")
    status_reason: str | None
    scopes: list[str]
    expires_at: datetime | None = Field(description="end of the access token; refreshed long before")
    refreshed_at: datetime | None
    validated_at: datetime | None
    created_at: datetime
    updated_at: datetime


class Tokens(BaseModel):
    tokens: list[Token]


class RegisterToken(BaseModel):
    """A token pair obtained elsewhere, with this client id."""

    user_id: UserId
    access_token: SecretStr
    refresh_token: SecretStr
    expires_in: int = Field(gt=0, description="seconds")
    scopes: list[str] = []


@router.get("/")
async def list_tokens(
    context: Context,
    after: Annotated[int, Query(ge=0, description="token id after which to go on")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Tokens:
    """All connected sellers, by rising id."""
    rows = await context.pool.fetch(f"{_COLUMNS} WHERE id > $1 ORDER BY id LIMIT $2", after, limit)
    return Tokens(tokens=[Token(**row) for row in rows])


@router.post("/", status_code=201)
async def register_token(body: RegisterToken, context: Context) -> Token:
    """Store a pair obtained elsewhere; the seller is loaded and kept current from now on."""
    pair = TokenPair(
        access_token=Secret(body.access_token.get_secret_value()),
        refresh_token=Secret(body.refresh_token.get_secret_value()),
        expires_in=body.expires_in,
        scopes=tuple(body.scopes),
        seller_id=None,
    )
    async with context.pool.acquire() as connection, connection.transaction():
        token_id = await context.allegro.vault.store_new(connection, body.user_id, pair)
        await begin_sync(
            connection,
            token_id,
            interval=timedelta(seconds=context.settings.sync_interval_seconds),
            full_interval=timedelta(seconds=context.settings.sync_full_interval_seconds),
        )
    return await _token(context, token_id)


@router.get("/user/{user_id}")
async def token_of_user(user: KnownUser, context: Context) -> Token:
    """The seller connected for a user."""
    return await _token(context, user.token_id)


@router.get("/{token_id}")
async def get_token(token_id: int, context: Context) -> Token:
    """One connected seller."""
    return await _token(context, token_id)


@router.delete("/{token_id}")
async def deactivate_token(token_id: int, context: Context) -> Token:
    """Stop using the tokens and forget them; the orders stay."""
    async with context.pool.acquire() as connection, connection.transaction():
        await connection.execute(
            "UPDATE user_tokens SET status = 'deactivated', status_reason = 'deactivated by request',"
            " access_token = NULL, refresh_token = NULL, key_id = NULL, refresh_after = NULL, updated_at = now()"
            " WHERE id = $1",
            token_id,
        )
        await connection.execute(
            "UPDATE active_sync_schedules SET status = 'paused' WHERE user_token_id = $1", token_id
        )
    return await _token(context, token_id)


@router.post("/{token_id}/refresh")
async def refresh_token(token_id: int, context: Context) -> Token:
    """Exchange the pair for a new one now."""
    await _token(context, token_id)
    await context.allegro.vault.refresh(token_id)
    return await _token(context, token_id)


@router.post("/{token_id}/validate")
async def validate_token(token_id: int, context: Context) -> Token:
    """Ask Allegro whether the token works, refreshing it if needed; the answer says how it stands."""
    await _token(context, token_id)
    await context.allegro.client.latest_event_id(token_id)
    await context.pool.execute("UPDATE user_tokens SET validated_at = now() WHERE id = $1", token_id)
    return await _token(context, token_id)


async def _token(context: Context, token_id: int) -> Token:
    row = await context.pool.fetchrow(f"{_COLUMNS} WHERE id = $1", token_id)
    if row is None:
        raise NotFoundError(f"There is no token {token_id}.")
    return Token(**row)
