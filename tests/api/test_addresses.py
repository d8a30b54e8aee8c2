"""A user's name may be nearly anything, and stands in addresses: paths take it, and `Link` leads back to it."""

from urllib.parse import quote

import asyncpg
import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.builders import a_token
from tests.canary import a_secret

pytestmark = pytest.mark.integration

_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..")
)


@given(name=_NAMES)
@example(name="sklep-żółty")
@example(name="a%2Fb")
@example(name='a>; rel="prev", <b')
@example(name="a\r\nSet-Cookie: b")
@example(name="a?b#c&d+e")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_next_page_of_any_users_list_is_found(api: httpx.AsyncClient, pool: asyncpg.Pool, name: str) -> None:
    await pool.execute("TRUNCATE user_tokens CASCADE")
    token_id = await a_token(pool, user_id=name)
    await pool.execute(
        "INSERT INTO orders (user_token_id, allegro_order_id, status, order_data, observed_at, observed_by)"
        " SELECT $1, i, 'BOUGHT', '{}', now(), 'list' FROM unnest(ARRAY['a', 'b', 'c']) i",
        token_id,
    )

    first = await api.get(f"/api/v1/orders/{quote(name, safe='')}", params={"limit": 2, "fields": "order_id,status"})
    second = await api.get(first.url.join(first.links["next"]["url"]))

    assert (first.status_code, second.status_code) == (200, 200), (first.text, second.text)
    rows = [*first.json()["items"], *second.json()["items"]]
    assert rows == [{"order_id": order_id, "status": "BOUGHT"} for order_id in "cba"]
    assert second.json()["next"] is None


@pytest.mark.parametrize("name", ["a/b", "/", ".", ".."])
@pytest.mark.parametrize("path", ["/api/v1/tokens/auth/initialize", "/api/v1/tokens/"])
async def test_a_name_that_no_address_can_hold_is_refused(api: httpx.AsyncClient, path: str, name: str) -> None:
    pair = {"access_token": a_secret("a"), "refresh_token": a_secret("b"), "expires_in": 60}

    answer = await api.post(path, json={"user_id": name, **(pair if path.endswith("tokens/") else {})})

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "user_id")
