"""Long answers: how many there may be, that they end with their key, and that it shows where one broke off."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import httpx
import pytest

from services.api.app import build_app
from services.api.endpoints import progress
from services.api.problems import TooManyStreamsError
from services.api.settings import ApiSettings
from services.api.streams import Streams
from shared.api_keys import AccessScope, create_key, revoke_key
from tests.api.over_tcp import served
from tests.api.test_frame import changed
from tests.api.two_sellers import MINE, a_busy_seller, a_key

pytestmark = pytest.mark.integration

EXPORT = "/api/v1/exports/orders"
# Beyond what the buffers of a connection hold, so that an export waits for its reader.
_LARGE = """
INSERT INTO orders (user_token_id, allegro_order_id, status, order_data, observed_at, observed_by)
SELECT 1, 'large-' || n, 'BOUGHT', jsonb_build_object('pad', (SELECT string_agg(md5(random()::text), '')
                                                              FROM generate_series(1, 2000 + 0 * n))), now(), 'list'
  FROM generate_series(1, 1000) n
"""


@pytest.fixture
async def seller(pool: asyncpg.Pool) -> dict[str, str]:
    return await a_busy_seller(pool, MINE)


@pytest.fixture
async def url(settings: ApiSettings) -> AsyncIterator[str]:
    few = changed(settings, api_exports=2, api_exports_per_key=1, api_event_streams=2, api_event_streams_per_key=1)
    async with served(build_app(few)) as address:
        yield address


def events_of(seller: dict[str, str]) -> str:
    return f"/api/v1/sync/tasks/{seller['task_id']}/events"


def test_places_are_taken_and_given_back() -> None:
    streams = Streams("exports", per_key=2, in_all=3)

    with streams.one_more("a"), streams.one_more("a"):
        with pytest.raises(TooManyStreamsError, match="'a' has 2 exports"), streams.one_more("a"):
            pass
        with streams.one_more("b"), pytest.raises(TooManyStreamsError, match="3 exports"), streams.one_more("c"):
            pass
        with streams.one_more("c"):
            pass
    with streams.one_more("a"):
        pass


@pytest.mark.parametrize("kind", ["export", "events"])
async def test_more_than_may_be_at_a_time_are_refused_until_one_ends(
    url: str, pool: asyncpg.Pool, seller: dict[str, str], kind: str
) -> None:
    await pool.execute(_LARGE)
    path = EXPORT if kind == "export" else events_of(seller)
    keys = [await a_key(pool, AccessScope.READ, name=name) for name in ("one", "two", "three")]
    async with httpx.AsyncClient(base_url=url) as client:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(client.stream("GET", path, headers=keys[0]))
            same_key = await client.get(path, headers=keys[0])
            second = await stack.enter_async_context(client.stream("GET", path, headers=keys[1]))
            beyond_all = await client.get(path, headers=keys[2])
            head = await client.head(path, headers=keys[2])
        async with asyncio.timeout(30):
            while True:
                async with client.stream("GET", path, headers=keys[0]) as again:
                    if again.status_code == 200:
                        break

    assert [first.status_code, second.status_code] == [200, 200]
    for refused in (same_key, beyond_all):
        assert (refused.status_code, refused.json()["type"].rpartition(":")[2]) == (429, "too-many-streams")
        assert refused.headers["retry-after"] == "5"
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("kind", ["export", "events"])
async def test_a_stream_ends_with_its_key_and_that_it_broke_off_is_told(
    url: str,
    pool: asyncpg.Pool,
    seller: dict[str, str],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "_HEARTBEAT_SECONDS", 0.0)
    await pool.execute(_LARGE)
    path = EXPORT if kind == "export" else events_of(seller)
    key = {"Authorization": f"Bearer {(await create_key(pool, 'leaked', AccessScope.READ)).reveal()}"}
    caplog.set_level(logging.INFO, logger="services.api.middleware")

    async def read_on() -> None:
        async with httpx.AsyncClient(base_url=url) as client, client.stream("GET", path, headers=key) as answer:
            pieces = answer.aiter_raw()
            await anext(pieces)
            await revoke_key(pool, "leaked")
            await asyncio.sleep(1.2)  # that long a key is remembered
            async for _ in pieces:
                pass

    with pytest.raises(httpx.RemoteProtocolError):
        async with asyncio.timeout(30):
            await read_on()

    async with httpx.AsyncClient(base_url=url) as client:
        metrics = (await client.get("/metrics")).text
        assert (await client.get(path, headers=key)).status_code == 401
    route = EXPORT if kind == "export" else "/api/v1/sync/tasks/{task_id}/events"
    assert f'orders_backup_api_broken_answers_total{{method="GET",route="{route}"}} 1.0' in metrics
    (line,) = (record for record in caplog.records if getattr(record, "broke_off", False))
    assert (line.message, vars(line)["route"], vars(line)["status"]) == ("request", route, 200)


async def test_a_stream_of_nobody_ends_when_there_is_a_key(
    url: str, pool: asyncpg.Pool, seller: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_HEARTBEAT_SECONDS", 0.0)

    async def read_on() -> None:
        async with (
            httpx.AsyncClient(base_url=url) as client,
            client.stream("GET", events_of(seller)) as answer,
        ):
            pieces = answer.aiter_lines()
            await anext(pieces)
            await a_key(pool, AccessScope.READ)
            async for _ in pieces:
                pass

    with pytest.raises(httpx.RemoteProtocolError):
        async with asyncio.timeout(30):
            await read_on()


async def test_parquet_is_not_compressed_twice(api: httpx.AsyncClient, seller: dict[str, str]) -> None:
    gzip = {"Accept-Encoding": "gzip"}

    forms = {form: await api.get(EXPORT, params={"format": form}, headers=gzip) for form in ("parquet", "ndjson")}

    assert "content-encoding" not in forms["parquet"].headers
    assert forms["ndjson"].headers["content-encoding"] == "gzip"


async def test_head_is_get_without_the_body(url: str, seller: dict[str, str]) -> None:
    """Over a connection: the events of a running task have no end."""
    paths = ["/livez", "/readyz", "/openapi.json", "/docs", "/api/v1/tokens/", "/api/v1/tokens/77", EXPORT]
    paths += [f"/api/v1/orders/{MINE}/{seller['order_id']}", events_of(seller)]
    varying = {"x-request-id", "ratelimit", "content-length", "date", "transfer-encoding"}
    async with httpx.AsyncClient(base_url=url) as client:
        for path in paths:
            async with client.stream("GET", path) as got:
                pass
            head = await client.head(path)

            assert (head.status_code, head.content) == (got.status_code, b""), path
            assert {name: head.headers[name] for name in head.headers if name not in varying} == {
                name: got.headers[name] for name in got.headers if name not in varying
            }, path
        changing = await client.head("/api/v1/sync/activate")
        metrics = (await client.get("/metrics")).text

    assert (changing.status_code, changing.headers["allow"]) == (405, "POST")
    assert 'requests_total{method="HEAD",route="/livez",status="200"}' in metrics
