"""Orders go out as they are stored: byte for byte, with what belongs to them."""

import asyncpg
import httpx
import pytest

from services.api.endpoints.orders import matches
from services.writer.batch import collect
from services.writer.store import Store
from services.writer.unstorable import Storable
from shared.messages import RawJson, Record
from tests.builders import AN_ORDER, a_token, an_event, an_observation, consumed

pytestmark = pytest.mark.integration

# jsonb keeps a number's digits; a decoder would not.
EXACT = b'{"id": "x", "status": "BOUGHT", "price": 1.10, "large": 12345678901234567890.123456789, "name": "\xc5\x82"}'
# What jsonb refuses: the bytes stand in order_raw.
NUL = b'{"id":"x","status":"BOUGHT","note":"a\\u0000b","n":1.10,"twice":1,"twice":2}'


async def store(pool: asyncpg.Pool, *records: Record) -> None:
    await Store(pool).apply(collect([consumed(record) for record in records], dead_letter_topic="dead"))


def order_data(body: bytes) -> bytes:
    """The part of an answer that is Allegro's."""
    return body[body.index(b'"order_data":') + len(b'"order_data":') :]


async def test_the_bytes_of_jsonb_are_the_bytes_of_the_answer(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await store(pool, an_observation(body=RawJson(EXACT)))

    answer = await api.get(f"/api/v1/orders/shop-1/{AN_ORDER}")
    listed = await api.get("/api/v1/orders/shop-1?fields=order_data")

    stored: bytes = await pool.fetchval("SELECT order_data FROM orders")
    assert order_data(answer.content).startswith(stored + b',"events"')
    assert listed.content == b'{"items":[{"order_data":' + stored + b'}],"next":null}'
    assert b"12345678901234567890.123456789" in stored


async def test_what_jsonb_cannot_hold_goes_out_as_it_came(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_token(pool)
    records = [consumed(an_observation(body=RawJson(NUL))), consumed(an_event(100, event=RawJson(NUL)))]
    stand_in = {NUL: Storable(b'{"id": "x"}', NUL)}
    await Store(pool).apply(collect(records, dead_letter_topic="dead"), storable=stand_in)

    answer = await api.get(f"/api/v1/orders/shop-1/{AN_ORDER}")

    assert order_data(answer.content).startswith(NUL + b',"events"')
    assert b'"event_data":' + NUL + b"}]" in answer.content


async def test_a_list_shows_order_data_only_where_it_is_asked_for(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await store(pool, an_observation())

    plain = (await api.get("/api/v1/orders/shop-1")).json()["items"][0]
    chosen = (await api.get("/api/v1/orders/shop-1?fields=status,order_id")).json()["items"][0]

    assert "order_data" not in plain
    assert chosen == {"order_id": AN_ORDER, "status": "READY_FOR_PROCESSING"}
    assert plain["total_amount"] == "85.97"


async def test_merged_orders_point_at_each_other(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await store(pool, an_observation(order_id="old"), an_observation(order_id="new"))
    await pool.execute(
        "UPDATE orders SET successor_order_id = 'new', gone_at = now(), gone_reason = 'merged'"
        " WHERE allegro_order_id = 'old'"
    )

    old = (await api.get("/api/v1/orders/shop-1/old")).json()
    new = (await api.get("/api/v1/orders/shop-1/new")).json()
    gone = (await api.get("/api/v1/orders/shop-1?gone=true")).json()["items"]
    there = (await api.get("/api/v1/orders/shop-1?gone=false")).json()["items"]

    assert (old["successor_order_id"], old["gone_reason"]) == ("new", "merged")
    assert new["predecessor_order_ids"] == ["old"]
    assert ([order["order_id"] for order in gone], [order["order_id"] for order in there]) == (["old"], ["new"])


async def test_an_unchanged_order_is_not_sent_again(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await store(pool, an_observation())
    path = f"/api/v1/orders/shop-1/{AN_ORDER}"
    tag = (await api.get(path)).headers["etag"]

    same = await api.get(path, headers={"If-None-Match": f'"other", {tag}'})
    await store(pool, an_event(100))
    changed = await api.get(path, headers={"If-None-Match": tag})

    assert tag.startswith('W/"'), "compressed, the bytes are others"
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    assert same.headers["vary"] == "Accept-Encoding"
    assert (changed.status_code, changed.headers["etag"] != tag) == (200, True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ('"b"', False), ("", False), ("a", False)],
)
def test_tags_are_compared_weakly(given: str, expected: bool) -> None:
    assert matches(given, '"a"') is expected


async def test_orders_of_another_user_are_not_found(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await a_token(pool, user_id="shop-2")
    await store(pool, an_observation())

    answer = await api.get(f"/api/v1/orders/shop-2/{AN_ORDER}")

    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (404, "unknown-order")


async def test_answers_are_compressed_for_who_asks_and_say_the_same(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await store(pool, *(an_observation(order_id=f"o-{number}") for number in range(20)))
    path = "/api/v1/orders/shop-1?fields=order_data"

    plain = await api.get(path, headers={"Accept-Encoding": "identity"})
    packed = await api.get(path, headers={"Accept-Encoding": "gzip"})

    assert ("content-encoding" in plain.headers, packed.headers["content-encoding"]) == (False, "gzip")
    assert int(packed.headers["content-length"]) < len(plain.content) / 4
    assert packed.content == plain.content
    assert "accept-encoding" in plain.headers["vary"].lower()
