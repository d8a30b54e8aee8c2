"""Paging: a cursor is what it was, and whoever follows it meets every row once, whatever is inserted meanwhile."""

from datetime import UTC, datetime
from urllib.parse import urljoin
from uuid import UUID

import asyncpg
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.cursor import Position
from services.api.order_query import OrderFilter
from services.api.problems import InvalidCursorError
from tests.builders import a_token, after
from tests.canary import a_secret

MOMENTS = st.none() | st.datetimes(timezones=st.just(UTC))
POSITIONS = st.builds(
    Position,
    order=st.text(max_size=20),
    moment=MOMENTS,
    tie=st.integers(min_value=0, max_value=2**63 - 1).map(str) | st.uuids().map(str),
)
SORTS = ("bought_at", "-bought_at", "updated_at", "-updated_at")


@given(POSITIONS)
def test_a_cursor_comes_back_as_it_was(position: Position) -> None:
    assert Position.decode(position.encode(), order=position.order) == position


@given(POSITIONS)
def test_a_cursor_needs_no_escaping_in_an_address(position: Position) -> None:
    assert all(character.isascii() and (character.isalnum() or character in "-_") for character in position.encode())


@given(st.text(max_size=100) | POSITIONS.map(Position.encode))
def test_what_is_not_of_this_list_is_refused_and_nothing_else_happens(text: str) -> None:
    with pytest.raises(InvalidCursorError):
        Position.decode(text, order="another list entirely")


@pytest.mark.parametrize("tie", ["-1", "9223372036854775808", "١", "", "x", "1" * 30])
def test_a_tie_that_is_no_row_number_is_refused(tie: str) -> None:
    with pytest.raises(InvalidCursorError):
        _ = Position("list", None, tie).row_id


def test_ties_are_read_as_what_they_are() -> None:
    identifier = UUID("00000000-0000-4000-8000-000000000001")

    assert Position("list", None, "7").row_id == 7
    assert Position("list", None, str(identifier)).row_uuid == identifier


async def insert(pool: asyncpg.Pool, token_id: int, order_id: str, bought_at: datetime | None) -> None:
    await pool.execute(
        "INSERT INTO orders (user_token_id, allegro_order_id, status, order_data, observed_at, observed_by, bought_at)"
        " VALUES ($1, $2, 'BOUGHT', '{}', now(), 'detail', $3)",
        token_id,
        order_id,
        bought_at,
    )


@pytest.mark.integration
@pytest.mark.parametrize("sort", SORTS)
async def test_no_order_is_lost_or_repeated_while_others_come(
    api: httpx.AsyncClient, pool: asyncpg.Pool, sort: str
) -> None:
    token_id = await a_token(pool)
    # Many share a time, some have none.
    for number in range(30):
        await insert(pool, token_id, f"old-{number:02}", None if number % 7 == 3 else after(number // 4))

    seen: list[str] = []
    cursor: str | None = None
    inserted = 0
    while True:
        params: dict[str, str | int] = {"sort": sort, "limit": 4}
        if cursor is not None:
            params["cursor"] = cursor
        page = (await api.get("/api/v1/orders/shop-1", params=params)).json()
        seen += [order["order_id"] for order in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
        if inserted < 12:
            # Before, at and after the place where the reader stands.
            for moment in (after(-1), after(inserted // 2), after(1000), None):
                await insert(pool, token_id, f"new-{inserted:02}", moment)
                inserted += 1

    assert len(seen) == len(set(seen))
    assert {order for order in seen if order.startswith("old")} == {f"old-{number:02}" for number in range(30)}


@pytest.mark.integration
@pytest.mark.parametrize("sort", SORTS)
async def test_a_page_far_behind_is_read_from_the_index(pool: asyncpg.Pool, sort: str) -> None:
    token_id = await a_token(pool)
    await pool.execute(
        "INSERT INTO orders (user_token_id, allegro_order_id, status, order_data, observed_at, observed_by, bought_at,"
        " updated_at) SELECT $1, n, 'BOUGHT', '{}', now(), 'detail', now() - n * interval '1 second',"
        " now() - n * interval '1 second' FROM generate_series(1, 5000) n",
        token_id,
    )
    await pool.execute("ANALYZE orders")
    cursor = Position(f"orders:{sort}", datetime.now(UTC), "1").encode()
    query = next(OrderFilter(sort=sort, cursor=cursor).queries(token_id))

    plan = "\n".join(row[0] for row in await pool.fetch(f"EXPLAIN (COSTS OFF) {query.statement}", *query.arguments, 51))

    assert "Index Scan" in plan
    # What the parts bring, a page of each at most, is put together in order; neither is sorted to find its page.
    assert "Sort" not in plan[max(plan.find("Append"), 0) :]
    assert f"ROW({sort.lstrip('-')}, id)" in plan[plan.index("Index Cond") :].splitlines()[0]


@pytest.mark.integration
@pytest.mark.parametrize("sort", SORTS)
async def test_behind_a_cursor_one_statement_brings_the_page_whatever_its_orders_lack(
    pool: asyncpg.Pool, sort: str
) -> None:
    token_id = await a_token(pool)
    for number in range(12):
        await insert(pool, token_id, f"o-{number:02}", None if number >= 8 else after(number))
    first = await next(OrderFilter(sort=sort).queries(token_id)).fetch(pool, 3)
    cursor = Position(f"orders:{sort}", first[-1]["sort_key"], str(first[-1]["row_id"])).encode()

    queries = list(OrderFilter(sort=sort, cursor=cursor).queries(token_id))

    pages = {limit: [row["row_id"] for row in await queries[0].fetch(pool, limit)] for limit in (2, 5, 7, 100)}
    assert len(queries) == 1
    assert all(pages[100][:limit] == pages[limit] for limit in pages)
    assert sorted([*(row["row_id"] for row in first), *pages[100]]) == list(range(1, 13))
    lacking = [row_id > 8 for row_id in pages[100]]
    assert lacking == sorted(lacking) or sort.endswith("updated_at")


@pytest.mark.integration
async def test_a_cursor_of_another_order_is_refused(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    token_id = await a_token(pool)
    for number in range(3):
        await insert(pool, token_id, f"o-{number}", after(number))
    cursor = (await api.get("/api/v1/orders/shop-1?limit=1&sort=bought_at")).json()["next"]

    answer = await api.get(f"/api/v1/orders/shop-1?limit=1&sort=-bought_at&cursor={cursor}")

    assert (answer.status_code, answer.json()["type"]) == (400, "urn:problem-type:orders-backup:invalid-cursor")


@pytest.mark.integration
async def test_the_link_leads_on_behind_any_proxy(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    token_id = await a_token(pool, user_id="my shop&co")
    for number in range(3):
        await insert(pool, token_id, f"o-{number}", after(number))
    path = "/api/v1/orders/my%20shop%26co"
    asked = f"{path}?limit=2&status=BOUGHT&sort=bought_at"

    first = await api.get(asked, headers={"Host": "127.0.0.1:1"})

    # As a client behind a proxy with TLS and a prefix of its own would resolve it.
    link = first.links["next"]["url"]
    outside = urljoin(f"https://api.example.com/backup{asked}", link)
    assert outside.startswith(f"https://api.example.com/backup{path}?limit=2&status=BOUGHT&sort=bought_at&cursor=")
    second = await api.get(outside.removeprefix("https://api.example.com/backup"))
    assert [order["order_id"] for order in second.json()["items"]] == ["o-2"]


@pytest.mark.integration
async def test_nobody_is_sent_to_an_address_that_we_only_guess(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_token(pool)
    pair = {"user_id": "shop-1", "access_token": a_secret("a"), "refresh_token": a_secret("r"), "expires_in": 60}

    listed = [(await api.get(f"/api/v1/tokens{end}", follow_redirects=False)).status_code for end in ("", "/")]
    registered = [
        (await api.post(f"/api/v1/tokens{end}", json=pair, follow_redirects=False)).status_code for end in ("", "/")
    ]
    other = await api.get("/api/v1/statistics/", follow_redirects=False)

    assert (listed, registered) == ([200, 200], [201, 201])
    assert other.status_code == 404
