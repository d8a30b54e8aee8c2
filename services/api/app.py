"""The API put together; its parameters are all that a test has to give."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import httpx
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from prometheus_client import make_asgi_app

from services.api import problems
from services.api.context import Resources
from services.api.endpoints import authorizations, health, orders, sync, tokens
from services.api.middleware import RequestFrame
from services.api.settings import ApiSettings
from shared.allegro.connection import connect
from shared.database import close_pool, wait_for_pool
from shared.health import Health
from shared.kafka import RecordProducer, check_kafka, faststream_broker
from shared.service import BackgroundLoops

SERVICE = "api"
PREFIX = "/api/v1"


def build_app(settings: ApiSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> FastAPI:
    """The application: connections are opened when it starts and closed in reverse when it ends."""
    keyring = settings.keyring()
    state = Health()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            pool = await wait_for_pool(
                settings.database_url.get_secret_value(), service=SERVICE, max_size=settings.database_pool_size
            )
            stack.push_async_callback(close_pool, pool)
            producer = await stack.enter_async_context(RecordProducer(settings, service=SERVICE))
            loops = await stack.enter_async_context(BackgroundLoops(state))
            allegro = await connect(stack, settings, keyring, pool, loops, transport=transport)
            broker = faststream_broker(settings, service=SERVICE)
            await broker.connect()
            stack.push_async_callback(broker.stop)
            app.state.resources = Resources(settings, pool, allegro, keyring, producer, state)
            state.add_check("database", partial(pool.fetchval, "SELECT 1"))
            state.add_check("kafka", partial(check_kafka, broker))
            state.started()
            yield

    app = FastAPI(
        title="Allegro Orders Backup",
        summary="A complete, always current copy of the orders of many Allegro sellers.",
        version="1",
        lifespan=lifespan,
        openapi_url="/openapi.json",
        redirect_slashes=True,
    )
    app.include_router(health.router)
    for router in (authorizations.router, tokens.router, sync.router, orders.router):
        app.include_router(router, prefix=PREFIX)
    _add_health_routes(app, state)
    problems.install(app)
    app.add_middleware(RequestFrame)
    return app


def _add_health_routes(app: FastAPI, state: Health) -> None:
    @app.get("/livez", include_in_schema=False)
    async def livez() -> JSONResponse:
        report = state.liveness()
        return JSONResponse({"wrong": report.wrong}, 200 if report.good else 503)

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> JSONResponse:
        report = await state.readiness()
        return JSONResponse({"wrong": report.wrong}, 200 if report.good else 503)

    app.mount("/metrics", make_asgi_app())
