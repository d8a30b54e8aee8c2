"""Connecting a seller: the device flow (requirements A1-A3). Polling for consent is the poller's work."""

import hashlib
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter
from pydantic import BaseModel, Field

from services.api.context import Context
from services.api.problems import NotFoundError
from shared.logs import current_correlation_id

router = APIRouter(prefix="/tokens/auth", tags=["authorization"])

UserId = Annotated[str, Field(min_length=1, max_length=255, description="your own name for the seller")]

_INSERT = """
INSERT INTO device_authorizations (task_id, user_id, device_code, device_code_digest, key_id, user_code,
                                   verification_uri, verification_uri_complete, interval_seconds, expires_at,
                                   next_poll_at, correlation_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + $10::int * interval '1 second',
        now() + $9::int * interval '1 second', $11)
"""

_READ = """
SELECT task_id, user_id, status, reason, message, user_token_id, expires_at, user_code
  FROM device_authorizations
"""


class InitializeAuthorization(BaseModel):
    user_id: UserId


class Authorization(BaseModel):
    """What to show the seller. Times in seconds."""

    task_id: UUID
    device_code: str = Field(description="shown once, here: it is stored encrypted")
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: int
    interval: int


class AuthorizationStatus(BaseModel):
    task_id: UUID
    user_id: str
    status: Literal["PENDING", "SUCCESS", "FAILURE"]
    reason: str | None
    message: str | None
    token_id: int | None
    expires_at: datetime
    user_code: str


def device_code_binding(task_id: UUID) -> str:
    """What the envelope of a device code is bound to."""
    return f"device_authorizations:{task_id}:device_code"


@router.post("/initialize", status_code=201)
async def initialize(body: InitializeAuthorization, context: Context) -> Authorization:
    """Ask Allegro for a code; show the seller the link, then ask for the status by `task_id`."""
    code = await context.allegro.oauth.start_device_flow()
    task_id = uuid4()
    sealed = context.keyring.seal(code.device_code, belongs_to=device_code_binding(task_id))
    async with context.pool.acquire() as connection, connection.transaction():
        await connection.execute(
            _INSERT,
            task_id,
            body.user_id,
            sealed.envelope,
            hashlib.sha256(code.device_code.reveal().encode()).digest(),
            sealed.key_id,
            code.user_code,
            code.verification_uri,
            code.verification_uri_complete,
            code.interval,
            code.expires_in,
            current_correlation_id(),
        )
        await connection.execute("SELECT pg_notify('orders_backup_devices', '')")
    return Authorization(
        task_id=task_id,
        device_code=code.device_code.reveal(),
        user_code=code.user_code,
        verification_uri=code.verification_uri,
        verification_uri_complete=code.verification_uri_complete,
        expires_in=code.expires_in,
        interval=code.interval,
    )


@router.get("/task/{task_id}")
async def status_by_task(task_id: UUID, context: Context) -> AuthorizationStatus:
    """Where an authorisation stands, by its task."""
    row = await context.pool.fetchrow(f"{_READ} WHERE task_id = $1", task_id)
    return _status(row)


@router.get("/status/{device_code}")
async def status_by_device_code(device_code: str, context: Context) -> AuthorizationStatus:
    """Where an authorisation stands, by its device code."""
    digest = hashlib.sha256(device_code.encode()).digest()
    row = await context.pool.fetchrow(f"{_READ} WHERE device_code_digest = $1", digest)
    return _status(row)


def _status(row: object) -> AuthorizationStatus:
    if row is None:
        raise NotFoundError("There is no such authorisation.")
    fields = dict(row)  # type: ignore[call-overload]
    return AuthorizationStatus(token_id=fields.pop("user_token_id"), **fields)
