"""Small builders of records: each takes the one thing a test is about, the rest is plausible."""

import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import asyncpg
from aiokafka import ConsumerRecord

from shared.clock import to_event_id
from shared.messages import OrderEvent, OrderObserved, RawJson, Record, WindowPlace

NOON = datetime(2026, 10, 10, 12, tzinfo=UTC)
A_RUN = UUID("00000000-0000-4000-8000-000000000001")
ANOTHER_RUN = UUID("00000000-0000-4000-8000-000000000002")
AN_ORDER = "7721b2f0-c4e8-11f1-904f-89bb34047197"


def after(seconds: float) -> datetime:
    """So many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


async def none_stopped(_token_id: int, _asked: Mapping[str, UUID]) -> Collection[str]:
    """Every look is wanted still (services.enricher.stopped)."""
    return ()


def an_order_body(order_id: str = AN_ORDER, *, bought_at: datetime = NOON, **fields: Any) -> RawJson:
    """An order as Allegro sends it, short; unknown fields may be added."""
    moment = bought_at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    body = {
        "id": order_id,
        "buyer": {"id": "111578773", "email": "k1@allegromail.pl", "login": "Client:111578773"},
        "status": "READY_FOR_PROCESSING",
        "fulfillment": {"status": "NEW"},
        "lineItems": [{"id": f"item-of-{order_id}", "boughtAt": moment}],
        "summary": {"totalToPay": {"amount": "85.97", "currency": "PLN"}},
        "updatedAt": moment,
        "revision": "b3a81206",
    }
    return RawJson(json.dumps(body | fields).encode())


def an_event(
    event_id: int | None = None,
    *,
    follows: int = 0,
    order_id: str | None = AN_ORDER,
    token_id: int = 1,
    run_id: UUID = A_RUN,
    last: int | None = None,
    wanted_after: datetime = NOON,
    fetch: bool = True,
    event: RawJson | None = None,
) -> OrderEvent:
    identifier = to_event_id(NOON) if event_id is None else event_id
    return OrderEvent(
        token_id=token_id,
        event_id=identifier,
        follows_event_id=follows,
        event_type="BOUGHT",
        occurred_at=NOON,
        order_id=order_id,
        bought_at=NOON,
        fetch=fetch,
        wanted_after=wanted_after,
        run_id=run_id,
        run_last_event_id=identifier if last is None else last,
        event=event or RawJson(json.dumps({"id": str(identifier), "type": "BOUGHT"}).encode()),
    )


def an_observation(
    observed_at: datetime = NOON,
    *,
    order_id: str = AN_ORDER,
    token_id: int = 1,
    by: Literal["detail", "list"] = "detail",
    place: WindowPlace | None = None,
    body: RawJson | None = None,
    **fields: Any,
) -> OrderObserved:
    return OrderObserved(
        token_id=token_id,
        order_id=order_id,
        observed_at=observed_at,
        observed_by=by,
        place=place,
        order=an_order_body(order_id, **fields) if body is None else body,
    )


def consumed(
    value: Record | bytes | None,
    *,
    topic: str = "orders",
    offset: int = 0,
    key: bytes | None = b"1",
    headers: tuple[tuple[str, bytes | None], ...] = (),
) -> ConsumerRecord:
    """A record as a consumer hands it over."""
    encoded = value if value is None or isinstance(value, bytes) else value.encode()
    return ConsumerRecord(topic, 0, offset, 0, 0, key, encoded, None, len(key or b""), len(encoded or b""), headers)


async def a_token(connection: asyncpg.Pool, *, user_id: str = "shop-1", cursor: int = 0) -> int:
    """A connected seller with a journal cursor; returns the token's id."""
    token_id: int = await connection.fetchval("INSERT INTO user_tokens (user_id) VALUES ($1) RETURNING id", user_id)
    await connection.execute(
        "INSERT INTO journal_cursors (user_token_id, stored_event_id) VALUES ($1, $2)", token_id, cursor
    )
    return token_id


async def a_run(
    connection: asyncpg.Pool,
    *,
    token_id: int = 1,
    run_id: UUID = A_RUN,
    kind: str = "full",
    attempt: int | None = 1,
) -> None:
    """A running run with its task and, for bulk loads (`attempt`), its window."""
    await connection.execute(
        "INSERT INTO task_history (task_id, user_token_id, user_id, kind, status)"
        " VALUES ($1, $2, 'shop-1', $3, 'running')",
        run_id,
        token_id,
        kind,
    )
    await connection.execute(
        "INSERT INTO sync_history (run_id, task_id, user_token_id, user_id, kind) VALUES ($1, $1, $2, 'shop-1', $3)",
        run_id,
        token_id,
        kind,
    )
    if attempt is not None:
        await connection.execute(
            "INSERT INTO run_windows (run_id, user_token_id, bought_from, bought_to, position, attempt)"
            " VALUES ($1, $2, $3, $4, $3, $5)",
            run_id,
            token_id,
            after(-3600),
            after(3600),
            attempt,
        )
