"""The same comparison over a real database."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from devstack.ledger import Difference, compare

pytestmark = pytest.mark.integration


class Truth:
    """A ledger in memory: one seller, number 7."""

    def __init__(self, orders: list[dict[str, Any]], events: list[dict[str, Any]]) -> None:
        self._documents = {"orders": orders, "events": events}

    async def ledger(self, kind: str, seller_id: str) -> AsyncIterator[str]:
        assert seller_id == "7"
        for document in self._documents[kind]:
            if kind == "orders":
                merged = {"state": "merged", "order": None, "successor": document.get("successor")}
                listed = {"state": "listed", "order": document, "successor": None}
                yield json.dumps({"order_id": document["id"], **(merged if "successor" in document else listed)})
            else:
                yield json.dumps({"event_id": document["id"], "event": document, "expired": False})


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


def an_order(number: int, status: str = "BOUGHT") -> dict[str, Any]:
    return {"id": f"order-{number:05}", "status": status, "total": {"amount": "1.00"}}


def an_event(number: int) -> dict[str, Any]:
    return {"id": str(number), "type": "BOUGHT", "order": {"checkoutForm": {"id": f"order-{number:05}"}}}


async def store(database: asyncpg.Connection, orders: list[dict[str, Any]], events: list[dict[str, Any]]) -> None:
    token = await database.fetchval("INSERT INTO user_tokens (user_id, seller_id) VALUES ('shop', '7') RETURNING id")
    await database.executemany(
        "INSERT INTO orders (user_token_id, allegro_order_id, status, order_data, observed_at, observed_by)"
        " VALUES ($1, $2, 'BOUGHT', $3, now(), 'detail')",
        [(token, order["id"], json.dumps(order)) for order in orders],
    )
    await database.executemany(
        "INSERT INTO order_events (user_token_id, event_id, event_type, event_data) VALUES ($1, $2, 'BOUGHT', $3)",
        [(token, int(event["id"]), json.dumps(event)) for event in events],
    )


async def test_equal_tables_have_no_differences(database: asyncpg.Connection) -> None:
    orders, events = [an_order(number) for number in range(450)], [an_event(number) for number in range(1, 451)]
    await store(database, orders, events)

    result = await compare(Truth(orders, events), ["7"], database)

    assert result.equal
    assert (result.orders, result.events) == (450, 450)


async def test_missing_extra_and_different_rows_are_found(database: asyncpg.Connection) -> None:
    await store(database, [an_order(1), an_order(2, "CANCELLED"), an_order(4)], [an_event(1), an_event(3)])

    truth = Truth([an_order(1), an_order(2), an_order(3)], [an_event(1), an_event(2)])
    result = await compare(truth, ["7"], database)

    assert result.shown == [
        Difference("different", "order", "7", "order-00002", "$.status is 'CANCELLED' instead of 'BOUGHT'"),
        Difference("missing", "order", "7", "order-00003", "Allegro served it and it is not stored"),
        Difference("extra", "order", "7", "order-00004", "it is stored and Allegro never served it"),
        Difference("missing", "event", "7", "2", "Allegro served it and it is not stored"),
        Difference("extra", "event", "7", "3", "it is stored and Allegro never served it"),
    ]


async def test_an_order_that_jsonb_cannot_hold_is_compared_by_its_bytes(database: asyncpg.Connection) -> None:
    await store(database, [an_order(1)], [])
    order = {**an_order(1), "note": "a\u0000b"}
    await database.execute("UPDATE orders SET order_raw = $1", json.dumps(order).encode())

    assert (await compare(Truth([order], []), ["7"], database)).equal


async def test_gone_orders_and_their_successors_are_compared(database: asyncpg.Connection) -> None:
    merged = [{**an_order(number), "successor": "order-00009"} for number in (1, 2, 3)]
    await store(database, [*(an_order(number) for number in (1, 2, 3)), an_order(9)], [])
    await database.execute(
        "UPDATE orders SET gone_at = now(), successor_order_id = 'order-00009' WHERE allegro_order_id = 'order-00001'"
    )
    await database.execute("UPDATE orders SET gone_at = now() WHERE allegro_order_id IN ('order-00002', 'order-00009')")

    result = await compare(Truth([*merged, an_order(9)], []), ["7"], database)

    assert [(found.id, found.reason) for found in result.shown] == [
        ("order-00002", "its successor is None instead of order-00009"),
        ("order-00003", "it was merged into order-00009 and is not marked as gone"),
        ("order-00009", "it is marked as gone and Allegro serves it"),
    ]


async def test_a_seller_that_nobody_connected_is_a_difference(database: asyncpg.Connection) -> None:
    result = await compare(Truth([], []), ["7"], database)

    assert [str(difference) for difference in result.shown] == [
        "missing order * of seller 7: nobody connected this seller"
    ]
