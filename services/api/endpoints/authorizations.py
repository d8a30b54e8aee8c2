"""Connecting a seller: the device flow (requirements A1-A3). Polling for consent is the poller's work."""

import hashlib
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID, uuid4

import asyncpg
from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from services.api.access import CONTROL, READ, Caller, KnownCaller
from services.api.context import Context
from services.api.parameters import RequestBody, TaskId, UserId
from services.api.problems import (
    AllegroLimitError,
    AllegroRefusesError,
    AllegroUnavailableError,
    UnknownAuthorizationError,
    UserNotAllowedError,
    documented,
)
from shared.logs import current_correlation_id
from shared.token_vault import device_code_binding
from shared.tracing import traceparent

router = APIRouter(prefix="/api/v1/tokens/auth", tags=["connect a seller"])

# language=sql
_INSERT = """
WITH started AS (
    INSERT INTO device_authorizations (task_id, user_id, device_code, device_code_digest, key_id, user_code,
                                       verification_uri, verification_uri_complete, interval_seconds, expires_at,
                                       next_poll_at, correlation_id, traceparent)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + $10::int * interval '1 second',
            now() + $9::int * interval '1 second', $11, $12)
    RETURNING task_id
)
SELECT pg_notify('orders_backup_devices', task_id::text) FROM started
"""

_READ = """
SELECT task_id, user_id, status, reason, message, user_token_id AS token_id, expires_at, user_code,
       verification_uri_complete, created_at, finished_at
  FROM device_authorizations
"""


class InitializeAuthorization(RequestBody):
    user_id: UserId


class Authorization(BaseModel):
    """What to show the seller. Times in seconds."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "task_id": "0b9d64a8-3c5e-4c2e-9f53-6f4f9e0d2a11",
                "device_code": "qeRK87eUwzFVT1AdEygGRxsFEO5ZDVXn",
                "user_code": "bhmg4lm1i",
                "verification_uri": "https://allegro.pl/skojarz-aplikacje",
                "verification_uri_complete": "https://allegro.pl/skojarz-aplikacje?code=bhmg4lm1i",
                "expires_in": 3600,
                "interval": 5,
            }
        }
    )

    task_id: UUID = Field(description="ask for the outcome by it")
    device_code: str = Field(description="shown once, here; it is stored encrypted")
    user_code: str = Field(description="what the seller types, unless the link holds it")
    verification_uri: str
    verification_uri_complete: str = Field(description="the link for the seller, with the code in it")
    expires_in: int
    interval: int = Field(description="how often we ask Allegro")


class AuthorizationStatus(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "task_id": "0b9d64a8-3c5e-4c2e-9f53-6f4f9e0d2a11",
                "user_id": "my-shop",
                "status": "SUCCESS",
                "reason": None,
                "message": None,
                "token_id": 42,
                "expires_at": "2026-10-10T23:14:54Z",
                "user_code": "bhmg4lm1i",
                "verification_uri_complete": "https://allegro.pl/skojarz-aplikacje?code=bhmg4lm1i",
                "created_at": "2026-10-10T22:14:54Z",
                "finished_at": "2026-10-10T22:15:31Z",
            }
        }
    )

    task_id: UUID
    user_id: str
    status: Literal["PENDING", "SUCCESS", "FAILURE"]
    reason: str | None = Field(description="of a failure, for programs: denied, expired, code_used, superseded, ...")
    message: str | None = Field(description="the same for a person")
    token_id: int | None = Field(description="of the connected seller, on success")
    expires_at: datetime = Field(description="until when the seller can decide")
    user_code: str
    verification_uri_complete: str
    created_at: datetime
    finished_at: datetime | None


@router.post(
    "/initialize",
    status_code=201,
    dependencies=[CONTROL],
    responses=documented(UserNotAllowedError, AllegroUnavailableError, AllegroRefusesError, AllegroLimitError),
)
async def initialize(body: InitializeAuthorization, context: Context, caller: KnownCaller) -> Authorization:
    """Ask Allegro for a code. Show the seller the link, then ask for the status by `task_id` every few seconds.

    Several flows of one user may be open at once: the latest consent wins.
    """
    caller.require(body.user_id)
    code = await context.allegro.oauth.start_device_flow()
    task_id = uuid4()
    sealed = context.keyring.seal(code.device_code, belongs_to=device_code_binding(task_id))
    await context.pool.execute(
        _INSERT,
        task_id,
        body.user_id,
        sealed.envelope,
        _digest(code.device_code.reveal()),
        sealed.key_id,
        code.user_code,
        code.verification_uri,
        code.verification_uri_complete,
        code.interval,
        code.expires_in,
        current_correlation_id(),
        traceparent(),
    )
    return Authorization(
        task_id=task_id,
        device_code=code.device_code.reveal(),
        user_code=code.user_code,
        verification_uri=code.verification_uri,
        verification_uri_complete=code.verification_uri_complete,
        expires_in=code.expires_in,
        interval=code.interval,
    )


@router.get("/task/{task_id}", dependencies=[READ], responses=documented(UnknownAuthorizationError))
async def authorization_by_task(task_id: TaskId, context: Context, caller: KnownCaller) -> AuthorizationStatus:
    """Where an authorisation stands, by its task."""
    return _status(await context.pool.fetchrow(f"{_READ} WHERE task_id = $1", task_id), caller)


@router.get("/status/{device_code}", dependencies=[READ], responses=documented(UnknownAuthorizationError))
async def authorization_by_device_code(
    device_code: Annotated[str, Path(max_length=1000)], context: Context, caller: KnownCaller
) -> AuthorizationStatus:
    """Where an authorisation stands, by its device code."""
    row = await context.pool.fetchrow(f"{_READ} WHERE device_code_digest = $1", _digest(device_code))
    return _status(row, caller)


def _digest(device_code: str) -> bytes:
    return hashlib.sha256(device_code.encode()).digest()


def _status(row: asyncpg.Record | None, caller: Caller) -> AuthorizationStatus:
    if row is None or not caller.sees(row["user_id"]):
        raise UnknownAuthorizationError("There is no such authorisation; start a new one.")
    return AuthorizationStatus(**row)
