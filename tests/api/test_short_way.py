"""The short way to an endpoint leads where the framework's does, and answers the same."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Annotated

import asyncpg
import httpx
import pytest
from fastapi import APIRouter, Depends, Query, Request, Response
from prometheus_client import REGISTRY

from services.api.access import READ, KnownCaller
from services.api.app import build_app
from services.api.settings import ApiSettings
from services.api.short_way import ShortWay
from services.writer.batch import collect
from services.writer.store import Store
from shared.api_keys import AccessScope
from tests.api.conftest import Allegro, until_ready
from tests.api.two_sellers import a_key
from tests.builders import AN_ORDER, NOON, a_token, an_observation, consumed

LIST = "/api/v1/orders/shop-1"
ONE = f"{LIST}/{AN_ORDER}"
ADDRESSES = (
    LIST,
    f"{LIST}?limit=2&sort=bought_at",
    f"{LIST}?limit=2&limit=1",
    f"{LIST}?fields=order_id,status&fields=order_data",
    f"{LIST}?status=",
    f"{LIST}?gone=perhaps&limit=x",
    f"{LIST}?limit",
    f"{LIST}?stauts=BOUGHT",
    f"{LIST}?fields=nothing",
    f"{LIST}?cursor=foreign",
    f"{LIST}?bought_from=2026-10-10T00:00:00%2B02:00&buyer_login=%C5%82",
    f"{LIST}/",
    "/api/v1/orders/nobody",
    f"/api/v1/orders/{'x' * 256}",
    ONE,
    f"{ONE}?limit=1",
    f"{LIST}/nothing",
    f"{LIST}/{'x' * 101}",
    f"{LIST}/a%2Fb",
)


@pytest.fixture
async def framework(settings: ApiSettings) -> AsyncIterator[httpx.AsyncClient]:
    """The same application without the short way."""
    app = build_app(settings, transport=httpx.MockTransport(Allegro()))
    app.user_middleware = [each for each in app.user_middleware if each.cls is not ShortWay]  # type: ignore[comparison-overlap]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        client = await stack.enter_async_context(
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app, raise_app_exceptions=False),
                base_url="http://127.0.0.1",
                follow_redirects=True,
            )
        )
        await until_ready(client)
        yield client


async def some_orders(pool: asyncpg.Pool) -> None:
    await a_token(pool)
    observed = [
        an_observation(order_id=order_id, bought_at=NOON - timedelta(hours=hours))
        for hours, order_id in enumerate((AN_ORDER, "second", "third"))
    ]
    await Store(pool).apply(collect([consumed(record) for record in observed], dead_letter_topic="dead"))


def seen(answer: httpx.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    return answer.status_code, answer.content, sorted(answer.headers.multi_items())


@pytest.mark.integration
class TestTheSameAnswers:
    @pytest.mark.parametrize("headers", [{}, {"If-None-Match": "*"}, {"If-None-Match": "x" * 1001}])
    async def test_to_whatever_is_asked(
        self, api: httpx.AsyncClient, framework: httpx.AsyncClient, pool: asyncpg.Pool, headers: dict[str, str]
    ) -> None:
        await some_orders(pool)
        headers |= {"X-Request-ID": "the-same"}

        short = [seen(await api.get(address, headers=headers)) for address in ADDRESSES]
        long = [seen(await framework.get(address, headers=headers)) for address in ADDRESSES]

        assert short == long
        assert {status for status, _, _ in short} >= {200, 400, 404, 422}

    @pytest.mark.parametrize("method", ["HEAD", "POST", "DELETE", "OPTIONS"])
    async def test_to_other_methods(
        self, api: httpx.AsyncClient, framework: httpx.AsyncClient, pool: asyncpg.Pool, method: str
    ) -> None:
        await some_orders(pool)
        headers = {"X-Request-ID": "the-same"}

        short = await api.request(method, ONE, headers=headers)

        assert seen(short) == seen(await framework.request(method, ONE, headers=headers))
        assert short.status_code == (200 if method == "HEAD" else 405)

    async def test_to_a_key_of_somebody_else(
        self, api: httpx.AsyncClient, framework: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await some_orders(pool)
        await a_token(pool, user_id="shop-2")
        headers = await a_key(pool, AccessScope.READ, "shop-2")

        answers = [await client.get(address, headers=headers) for client in (api, framework) for address in (LIST, ONE)]

        assert {answer.status_code for answer in answers} == {404}

    async def test_and_it_is_counted_by_its_route(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        await some_orders(pool)
        labels = {"method": "GET", "route": "/api/v1/orders/{user_id}/{order_id}", "status": "200"}
        before = REGISTRY.get_sample_value("orders_backup_api_requests_total", labels) or 0

        await api.get(ONE)

        assert REGISTRY.get_sample_value("orders_backup_api_requests_total", labels) == before + 1


class TestThereIsNone:
    def test_to_an_endpoint_with_a_dependency(self) -> None:
        router = APIRouter()

        @router.get("/a", dependencies=[READ])
        async def a(_request: Request, _caller: KnownCaller) -> Response:
            return Response()

        with pytest.raises(TypeError, match="/a: there is no short way"):
            ShortWay(router, routes=router.routes)

    def test_around_a_check_that_is_not_of_the_scope(self) -> None:
        router = APIRouter()

        async def checked() -> None: ...

        @router.get("/a", dependencies=[READ, Depends(checked)])
        async def a(_request: Request) -> Response:
            return Response()

        with pytest.raises(TypeError, match="/a: there is no short way"):
            ShortWay(router, routes=router.routes)

    def test_to_a_query_of_single_parameters(self) -> None:
        router = APIRouter()

        @router.get("/a", dependencies=[READ])
        async def a(_request: Request, _limit: Annotated[int, Query(alias="limit")] = 1) -> Response:
            return Response()

        with pytest.raises(TypeError, match="takes a query as one model"):
            ShortWay(router, routes=router.routes)
