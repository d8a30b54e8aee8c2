"""Connected sellers (requirements A4, A5, A7). Answers never hold a secret."""

from datetime import datetime, timedelta
from typing import Annotated, Literal

import asyncpg
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from services.api.access import ADMIN, CONTROL, READ, KnownCaller, visible
from services.api.context import Context, KnownToken, KnownUser, Resources
from services.api.cursor import Position
from services.api.pagination import Cursor, Limit, Page, cut, links
from services.api.parameters import RequestBody, UserId
from services.api.problems import (
    AllegroLimitError,
    AllegroRefusesError,
    AllegroUnavailableError,
    ConsentRequiredError,
    OtherSellerError,
    UnknownTokenError,
    UnknownUserError,
    UserNotAllowedError,
    documented,
)
from shared.allegro.errors import AccessDeniedError, ReauthorizationRequiredError
from shared.allegro.oauth import TokenPair
from shared.encryption import Secret
from shared.sync_start import begin_sync

router = APIRouter(prefix="/api/v1/tokens", tags=["tokens"])

_ORDER = "tokens"

# language=sql
_COLUMNS = """
SELECT id AS token_id, user_id, seller_id, seller_login, status, status_reason, scopes, expires_at, refreshed_at,
       refresh_after, refresh_failures, validated_at, created_at, updated_at
  FROM user_tokens
"""

_DEACTIVATE = """
WITH token AS (
    UPDATE user_tokens
       SET status = 'deactivated', status_reason = 'deactivated by request', access_token = NULL, refresh_token = NULL,
           key_id = NULL, refresh_after = NULL, grant_rejected_at = NULL, updated_at = now()
     WHERE id = $1 AND status <> 'deactivated'
    RETURNING id
), schedule AS (
    UPDATE active_sync_schedules s SET status = 'paused' FROM token WHERE s.user_token_id = token.id
)
UPDATE task_history h
   SET stop_requested_at = coalesce(h.stop_requested_at, now()),
       status = CASE h.status WHEN 'queued' THEN 'stopped' ELSE 'stopping' END,
       finished_at = CASE h.status WHEN 'queued' THEN now() END
  FROM token
 WHERE h.user_token_id = token.id AND h.status IN ('queued', 'running', 'stopping')
"""

TokenStatus = Literal["active", "refresh_failed", "reauthorization_required", "deactivated"]


class Token(BaseModel):
    """A connected seller, without the secrets."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "token_id": 42,
                "user_id": "my-shop",
                "seller_id": "111578773",
                "seller_login": "my_shop_pl",
                "status": "active",
                "status_reason": None,
                "scopes": ["allegro:api:orders:read", "allegro:api:profile:read"],
                "expires_at": "2026-10-11T10:15:30Z",
                "refreshed_at": "2026-10-10T22:15:31Z",
                "refresh_after": "2026-10-11T05:40:12Z",
                "refresh_failures": 0,
                "validated_at": None,
                "created_at": "2026-10-10T22:15:31Z",
                "updated_at": "2026-10-10T22:15:31Z",
            }
        }
    )

    token_id: int
    user_id: str
    seller_id: str | None = Field(description="the seller's id at Allegro")
    seller_login: str | None
    status: TokenStatus = Field(
        description="refresh_failed is tried again by itself; reauthorization_required needs a new consent"
    )
    status_reason: str | None
    scopes: list[str]
    expires_at: datetime | None = Field(description="end of the access token; refreshed long before")
    refreshed_at: datetime | None
    refresh_after: datetime | None = Field(description="when it is next refreshed without being asked")
    refresh_failures: int = Field(description="in a row")
    validated_at: datetime | None = Field(description="when Allegro last accepted it at our request")
    created_at: datetime
    updated_at: datetime


class Tokens(Page[Token]):
    """Connected sellers, by rising id."""


class TokenPairBody(RequestBody):
    """A pair obtained elsewhere, with this client id."""

    access_token: SecretStr = Field(min_length=1, max_length=20_000)
    refresh_token: SecretStr = Field(min_length=1, max_length=20_000)
    expires_in: int = Field(
        strict=True, gt=0, le=10**8, description="of the access token, in seconds", examples=[43199]
    )
    scopes: list[Annotated[str, Field(max_length=200, pattern=r"^[\x21-\x7e]+$")]] = Field(default=[], max_length=100)

    def pair(self) -> TokenPair:
        return TokenPair(
            access_token=Secret(self.access_token.get_secret_value()),
            refresh_token=Secret(self.refresh_token.get_secret_value()),
            expires_in=self.expires_in,
            scopes=tuple(self.scopes),
            seller_id=None,  # the vault reads it from the access token
        )


class RegisterToken(TokenPairBody):
    user_id: UserId


class TokenValidation(BaseModel):
    """What Allegro says of a token."""

    valid: bool
    reason: str | None = Field(description="why it is of no use; null: Allegro accepts it")
    token: Token


@router.get("", dependencies=[READ], include_in_schema=False)
@router.get("/", dependencies=[READ])
async def list_tokens(
    request: Request,
    response: Response,
    context: Context,
    caller: KnownCaller,
    status: Annotated[TokenStatus | None, Query()] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Tokens:
    """All sellers that are or were connected."""
    after = 0 if cursor is None else Position.decode(cursor, order=_ORDER).row_id
    rows = await context.pool.fetch(
        f"{_COLUMNS} WHERE id > $1 AND ($2::text IS NULL OR status = $2) AND {visible('user_id', 3)}"
        " ORDER BY id LIMIT $4",
        after,
        status,
        caller.users,
        limit + 1,
    )
    page, following = cut(rows, limit, lambda row: Position(_ORDER, None, str(row["token_id"])))
    response.headers.update(links(request, following))
    return Tokens(items=[Token(**row) for row in page], next=following)


@router.post("", status_code=201, dependencies=[ADMIN], include_in_schema=False)
@router.post("/", status_code=201, dependencies=[ADMIN], responses=documented(UserNotAllowedError, OtherSellerError))
async def register_token(body: RegisterToken, context: Context, caller: KnownCaller) -> Token:
    """Store a pair obtained elsewhere, or replace the pair of this user; the seller is loaded and kept current."""
    caller.require(body.user_id)
    async with context.pool.acquire() as connection, connection.transaction():
        token_id = await _connect(connection, context, body.user_id, body)
    return await _token(context, token_id)


@router.get("/user/{user_id}", dependencies=[READ], responses=documented(UnknownUserError))
async def token_of_user(user: KnownUser, context: Context) -> Token:
    """The seller connected for a user."""
    return await _token(context, user.token_id)


@router.get("/{token_id}", dependencies=[READ], responses=documented(UnknownTokenError))
async def get_token(token: KnownToken, context: Context) -> Token:
    """One connected seller."""
    return await _token(context, token.token_id)


@router.put("/{token_id}", dependencies=[ADMIN], responses=documented(UnknownTokenError, OtherSellerError))
async def replace_token(token: KnownToken, body: TokenPairBody, context: Context) -> Token:
    """Replace the pair by one obtained elsewhere; a lost or deactivated token works again, its schedule goes on."""
    async with context.pool.acquire() as connection, connection.transaction():
        await _connect(connection, context, token.user_id, body)
    return await _token(context, token.token_id)


@router.delete("/{token_id}", dependencies=[ADMIN], responses=documented(UnknownTokenError))
async def deactivate_token(token: KnownToken, context: Context) -> Token:
    """Stop using the pair and forget it; the schedule pauses, tasks stop, everything stored stays."""
    await context.pool.execute(_DEACTIVATE, token.token_id)
    return await _token(context, token.token_id)


@router.post(
    "/{token_id}/refresh",
    dependencies=[CONTROL],
    responses=documented(
        UnknownTokenError,
        ConsentRequiredError,
        AllegroUnavailableError,
        AllegroRefusesError,
        AllegroLimitError,
    ),
)
async def refresh_token(token: KnownToken, context: Context) -> Token:
    """Exchange the pair for a new one now, also one that was given up."""
    await context.allegro.vault.refresh(token.token_id, force=True)
    return await _token(context, token.token_id)


@router.post(
    "/{token_id}/validate",
    dependencies=[CONTROL],
    responses=documented(UnknownTokenError, AllegroUnavailableError, AllegroRefusesError, AllegroLimitError),
)
async def validate_token(token: KnownToken, context: Context) -> TokenValidation:
    """Ask Allegro whether the token works, refreshing it if needed; says what Allegro says."""
    reason: str | None = None
    try:
        await context.allegro.client.journal_end(token.token_id)
    except (ReauthorizationRequiredError, AccessDeniedError) as refusal:
        reason = str(refusal)
    else:
        await context.pool.execute("UPDATE user_tokens SET validated_at = now() WHERE id = $1", token.token_id)
    return TokenValidation(valid=reason is None, reason=reason, token=await _token(context, token.token_id))


async def _connect(connection: asyncpg.Connection, context: Resources, user_id: str, body: TokenPairBody) -> int:
    """Store a pair as if the seller had just consented; in the caller's transaction."""
    token_id = await context.allegro.vault.store_new(connection, user_id, body.pair())
    await begin_sync(
        connection,
        token_id,
        interval=timedelta(seconds=context.settings.sync_interval_seconds),
        full_interval=timedelta(seconds=context.settings.sync_full_interval_seconds),
    )
    return token_id


async def _token(context: Resources, token_id: int) -> Token:
    row = await context.pool.fetchrow(f"{_COLUMNS} WHERE id = $1", token_id)
    if row is None:
        raise UnknownTokenError(token_id)
    return Token(**row)
