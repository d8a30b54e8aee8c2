"""Two users with everything that can be asked for, and keys that open one of them only."""

import hashlib
from typing import Any
from uuid import UUID

import asyncpg

from services.writer.batch import collect
from services.writer.store import Store
from shared.api_keys import AccessScope, create_key
from tests.builders import a_run, a_token, an_event, an_observation, an_order_body, consumed

MINE, OTHERS = "shop-ant", "shop-wasp"
_RUNS = {MINE: UUID("00000000-0000-4000-8000-00000000a000"), OTHERS: UUID("00000000-0000-4000-8000-00000000bee0")}

# Hexadecimal digests must not name them by chance: no word of such digits, and a number only as a whole.
_MARKS = ("wasp", str(_RUNS[OTHERS]))


def names_the_other(text: str) -> bool:
    """Whether an answer shows something of the other user: one of these stands in all that belongs to them."""
    return any(mark in text for mark in _MARKS)


async def a_key(pool: asyncpg.Pool, scope: AccessScope, *users: str, name: str = "", **options: Any) -> dict[str, str]:
    """A new key as the header that sends it."""
    key = await create_key(pool, name or f"{scope}-{'-'.join(users)}", scope, user_ids=users or None, **options)
    return {"Authorization": f"Bearer {key.reveal()}"}


async def a_busy_seller(pool: asyncpg.Pool, user_id: str) -> dict[str, str]:
    """Token, schedule, order with its event, task, run, device flow, dead letter; returns what leads to them."""
    kind, run_id = user_id.removeprefix("shop-"), _RUNS[user_id]
    token_id = await a_token(pool, user_id=user_id)
    await pool.execute(
        "INSERT INTO active_sync_schedules (user_token_id, user_id, interval_seconds, next_full_run)"
        " VALUES ($1, $2, 180, now())",
        token_id,
        user_id,
    )
    await a_run(pool, token_id=token_id, run_id=run_id)
    await pool.execute("UPDATE task_history SET user_id = $2 WHERE task_id = $1", run_id, user_id)
    await pool.execute("UPDATE sync_history SET user_id = $2, error = $2 WHERE run_id = $1", run_id, user_id)
    order_id = f"order-of-{kind}"
    # Of an order, statistics name the status alone.
    body = an_order_body(order_id, note=user_id, status=f"STATUS_{kind}")
    records = [
        consumed(an_event(token_id=token_id, order_id=order_id)),
        consumed(an_observation(token_id=token_id, order_id=order_id, body=body)),
    ]
    await Store(pool).apply(collect(records, dead_letter_topic="dead-letters"))
    dead_letter_id = await pool.fetchval(
        'INSERT INTO dead_letters (user_token_id, service, topic, partition, "offset", key, value, digest,'
        " error_type, error) VALUES ($1, 'writer', 'orders', 0, $1, $2, $3, $3, 'Unreadable', $4) RETURNING id",
        token_id,
        str(token_id).encode(),
        user_id.encode(),
        user_id,
    )
    await pool.execute(
        "INSERT INTO device_authorizations (task_id, user_id, device_code_digest, user_code, verification_uri,"
        " verification_uri_complete, interval_seconds, expires_at, next_poll_at)"
        " VALUES ($1, $2, $3, $2, 'https://example.com', 'https://example.com', 5, now(), now())",
        run_id,
        user_id,
        hashlib.sha256(f"code-of-{kind}".encode()).digest(),
    )
    return {
        "user_id": user_id,
        "token_id": str(token_id),
        "task_id": str(run_id),
        "run_id": str(run_id),
        "order_id": order_id,
        "dead_letter_id": str(dead_letter_id),
        "device_code": f"code-of-{kind}",
    }
