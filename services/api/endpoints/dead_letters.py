"""Records that nobody could process (requirement D2): looked at, sent again as they were, or dropped."""

import base64
from datetime import datetime
from typing import Annotated, Literal

import asyncpg
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from services.api.access import CONTROL, READ, Caller, KnownCaller, visible_token
from services.api.context import Context, Resources
from services.api.cursor import Position
from services.api.pagination import Cursor, Limit, Page, cut, links
from services.api.parameters import RowId
from services.api.problems import (
    DeadLetterResolvedError,
    DeadLetterUnsendableError,
    KafkaUnavailableError,
    UnknownDeadLetterError,
    documented,
)
from shared.delivery import stored_headers
from shared.kafka import UnsendableRecordError
from shared.kafka_batches import OutgoingRecord
from shared.messages import OrderEvent, OrderFetch, UnreadableRecordError, decode

router = APIRouter(prefix="/api/v1/dead-letters", tags=["dead letters"])

_ORDER = "dead-letters"

# language=sql
_COLUMNS = """
SELECT id, user_token_id AS token_id, service, topic, partition, "offset", error_type, error, attempts, status,
       created_at, resolved_at, coalesce(length(value), 0) AS size
  FROM dead_letters
"""

_RECORD = "SELECT key, value, headers FROM dead_letters WHERE id = $1"

# The row stays locked until Kafka has the record: of two replays at the same moment one finds it dealt with.
_LOCK = "SELECT topic, key, value, headers, status FROM dead_letters WHERE id = $1 FOR UPDATE"

_RESOLVE = "UPDATE dead_letters SET status = $2, resolved_at = now() WHERE id = $1"

# The enricher leaves to the database what finds no room, so it has to be owed there. The record comes first.
_OWE = """
INSERT INTO pending_fetches AS p (user_token_id, allegro_order_id, wanted_after, bought_at, next_attempt_at)
SELECT id, $2, $3, $4, now() + interval '2 minutes' FROM user_tokens WHERE id = $1
ON CONFLICT (user_token_id, allegro_order_id) DO UPDATE
   SET attempts = 0, wanted_after = greatest(p.wanted_after, excluded.wanted_after),
       next_attempt_at = least(p.next_attempt_at, excluded.next_attempt_at)
"""

DeadLetterStatus = Literal["open", "replayed", "dropped"]


class DeadLetter(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": 7,
                "token_id": 42,
                "service": "writer",
                "topic": "orders",
                "partition": 3,
                "offset": 1822,
                "error_type": "UnreadableRecordError",
                "error": "not a JSON object: unexpected end of data",
                "attempts": 1,
                "status": "open",
                "created_at": "2026-10-10T22:15:31Z",
                "resolved_at": None,
                "size": 4180,
            }
        }
    )

    id: int
    token_id: int | None = Field(description="where the record's key named a token")
    service: str = Field(description="that set it aside")
    topic: str
    partition: int
    offset: int
    error_type: str
    error: str
    attempts: int
    status: DeadLetterStatus
    created_at: datetime
    resolved_at: datetime | None
    size: int = Field(description="of the value, in bytes")


class DeadLetters(Page[DeadLetter]):
    """Dead letters, the oldest first."""


class RecordHeader(BaseModel):
    name: str
    value: str | None = Field(description="base64")


class DeadLetterRecord(DeadLetter):
    """With the record as it came."""

    key: str | None = Field(description="base64")
    value: str | None = Field(description="base64; null: a tombstone")
    text: str | None = Field(description="the value, where it is text in UTF-8")
    headers: list[RecordHeader]


@router.get("", dependencies=[READ])
async def list_dead_letters(
    request: Request,
    response: Response,
    context: Context,
    caller: KnownCaller,
    status: Annotated[DeadLetterStatus | None, Query()] = None,
    service: Annotated[str | None, Query(max_length=100)] = None,
    token_id: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> DeadLetters:
    """What has been set aside, without its content."""
    after = 0 if cursor is None else Position.decode(cursor, order=_ORDER).row_id
    rows = await context.pool.fetch(
        f"{_COLUMNS} WHERE id > $1 AND ($2::text IS NULL OR status = $2) AND ($3::text IS NULL OR service = $3)"
        f" AND ($4::bigint IS NULL OR user_token_id = $4) AND {visible_token('user_token_id', 5)}"
        " ORDER BY id LIMIT $6",
        after,
        status,
        service,
        token_id,
        caller.users,
        limit + 1,
    )
    page, following = cut(rows, limit, lambda row: Position(_ORDER, None, str(row["id"])))
    response.headers.update(links(request, following))
    return DeadLetters(items=[DeadLetter(**row) for row in page], next=following)


@router.get("/{dead_letter_id}", dependencies=[READ], responses=documented(UnknownDeadLetterError))
async def get_dead_letter(dead_letter_id: RowId, context: Context, caller: KnownCaller) -> DeadLetterRecord:
    """One dead letter with the record as it came."""
    summary = await _summary(context, caller, dead_letter_id)
    row = await context.pool.fetchrow(_RECORD, dead_letter_id)
    return DeadLetterRecord(
        **summary.model_dump(),
        key=_base64(row["key"]),
        value=_base64(row["value"]),
        text=_text(row["value"]),
        headers=[RecordHeader(name=name, value=value) for name, value in stored_headers(row["headers"])],
    )


@router.post(
    "/{dead_letter_id}/replay",
    dependencies=[CONTROL],
    responses=documented(
        UnknownDeadLetterError, DeadLetterResolvedError, DeadLetterUnsendableError, KafkaUnavailableError
    ),
)
async def replay_dead_letter(dead_letter_id: RowId, context: Context, caller: KnownCaller) -> DeadLetter:
    """Publish the record again, as it came, on the topic it came from; if it fails again, it is a new dead letter."""
    await _summary(context, caller, dead_letter_id)
    async with context.pool.acquire() as connection, connection.transaction():
        row = await _open_row(connection, dead_letter_id)
        await _owe(connection, row["value"])
        try:
            await context.producer.publish_all(row["topic"], [_outgoing(row)])
        except UnsendableRecordError as error:
            raise DeadLetterUnsendableError(str(error)) from error
        await connection.execute(_RESOLVE, dead_letter_id, "replayed")
    return await _summary(context, caller, dead_letter_id)


@router.post(
    "/{dead_letter_id}/drop",
    dependencies=[CONTROL],
    responses=documented(UnknownDeadLetterError, DeadLetterResolvedError),
)
async def drop_dead_letter(dead_letter_id: RowId, context: Context, caller: KnownCaller) -> DeadLetter:
    """Note that nothing more is to be done; the row stays."""
    await _summary(context, caller, dead_letter_id)
    async with context.pool.acquire() as connection, connection.transaction():
        await _open_row(connection, dead_letter_id)
        await connection.execute(_RESOLVE, dead_letter_id, "dropped")
    return await _summary(context, caller, dead_letter_id)


async def _summary(context: Resources, caller: Caller, dead_letter_id: int) -> DeadLetter:
    row = await context.pool.fetchrow(
        f"{_COLUMNS} WHERE id = $1 AND {visible_token('user_token_id', 2)}", dead_letter_id, caller.users
    )
    if row is None:
        raise UnknownDeadLetterError(f"There is no dead letter {dead_letter_id}.")
    return DeadLetter(**row)


async def _open_row(connection: asyncpg.Connection, dead_letter_id: int) -> asyncpg.Record:
    """The row, locked in the caller's transaction; raises if it is not there or has been dealt with."""
    row = await connection.fetchrow(_LOCK, dead_letter_id)
    if row is None:
        raise UnknownDeadLetterError(f"There is no dead letter {dead_letter_id}.")
    if row["status"] != "open":
        raise DeadLetterResolvedError(f"Dead letter {dead_letter_id} has been {row['status']} already.")
    return row


async def _owe(connection: asyncpg.Connection, value: bytes | None) -> None:
    """Note the look that the record asks for, if it is one that asks for a look."""
    try:
        record = decode(value)
    except UnreadableRecordError:
        return
    match record:
        case OrderFetch(order_id=str(order_id)) | OrderEvent(order_id=str(order_id), fetch=True):
            await connection.execute(_OWE, record.token_id, order_id, record.wanted_after, record.bought_at)
        case _:
            return


def _outgoing(row: asyncpg.Record) -> OutgoingRecord:
    """Key, value and headers byte for byte; any of them may be null, as it was when it came."""
    headers = [
        (name, None if value is None else base64.b64decode(value)) for name, value in stored_headers(row["headers"])
    ]
    return row["key"], row["value"], headers


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _text(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
