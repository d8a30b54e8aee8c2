"""The API put together; its parameters are all that a test has to give."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES

from services.api import problems
from services.api.access import declared_scopes
from services.api.audit import Audit
from services.api.changes import ChangeRoutes
from services.api.compression import Compression
from services.api.context import SERVICE, Connections
from services.api.documentation import TAGS, document
from services.api.endpoints import (
    audit,
    authorizations,
    dead_letters,
    exports,
    health,
    orders,
    pages,
    progress,
    reconciliations,
    runs,
    schedules,
    statistics,
    tasks,
    tokens,
    topics,
)
from services.api.export.forms import PARQUET
from services.api.gate import Gate
from services.api.heads import Heads
from services.api.idempotency import HEADER, REPLAYED, Idempotency
from services.api.keys import KeyStore
from services.api.middleware import RequestFrame
from services.api.problems import InvalidInputError, documented
from services.api.settings import ApiSettings
from services.api.short_way import ShortWay
from services.api.streams import Streams
from services.api.task_looks import TaskLooks
from shared.health import Health

__all__ = ["SERVICE", "build_app"]

# Measured on orders: an eighth of their size; the highest level needs four times as long for a tenth.
_COMPRESSION_LEVEL = 3
# What a page of another site may send, and what it may read, beyond what any may.
_ASKED_HEADERS = ("Authorization", "Content-Type", HEADER, "If-None-Match", "Last-Event-ID", "X-Request-ID")
_SHOWN_HEADERS = (
    *("Content-Disposition", "ETag", REPLAYED, "Link", "RateLimit", "RateLimit-Policy", "Retry-After"),
    *("WWW-Authenticate", "X-Request-ID"),
)
SUBJECTS = (
    orders,
    exports,
    runs,
    reconciliations,
    tasks,
    progress,
    schedules,
    tokens,
    authorizations,
    dead_letters,
    statistics,
    audit,
)
"""Everything under /api/v1."""


def build_app(
    settings: ApiSettings,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
    give_up: Callable[[], None] | None = None,
) -> FastAPI:
    """The application. It starts without PostgreSQL and opens its connections as soon as it can.

    `transport` takes Allegro's place; `give_up` ends the service if it finds out late that it cannot start (SIGTERM to
    this process unless given).
    """
    state = Health()
    connections = Connections(settings, state, transport)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with connections.opened(give_up=give_up):
            yield

    app = FastAPI(
        title="Allegro Orders Backup",
        summary="A complete, always current copy of the orders of many Allegro sellers.",
        description="Every error is a problem document (RFC 9457); lists are paged by `next` and the `Link` header.",
        version="1",
        lifespan=lifespan,
        openapi_url="/openapi.json",
        # It would name the scheme and host that we know, not those of the proxy with TLS in front of us.
        redirect_slashes=False,
        # Our own traces and metrics tell the same (`shared/tracing.py`, `middleware.py`); theirs look for a provider in
        # the environment at every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        docs_url=None,  # ours loads nothing from elsewhere: `endpoints/pages.py`
        redoc_url=None,
        openapi_tags=TAGS,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.connections = connections
    app.state.topics = settings.topics
    app.state.health = state
    app.state.task_looks = TaskLooks()
    app.state.exports = Streams("exports", settings.api_exports_per_key, settings.api_exports)
    app.state.event_streams = Streams(
        "streams of events", settings.api_event_streams_per_key, settings.api_event_streams
    )
    # In place of the framework's own; all else is added by `documentation.py`.
    everywhere: Any = documented(InvalidInputError)
    # One by one, and what is asked for most first: the framework looks through routers in this order, and does all of
    # it twice for routers within routers.
    for subject in SUBJECTS:
        app.include_router(subject.router, responses=everywhere)
    app.include_router(health.router)
    app.include_router(topics.router)
    app.include_router(pages.router)
    routers = (*(subject.router for subject in SUBJECTS), health.router, topics.router, pages.router)
    problems.install(app, [route for router in routers for route in router.routes if isinstance(route, APIRoute)])
    keys = KeyStore(lambda: connections.get().pool)
    changes = ChangeRoutes(route for subject in SUBJECTS for route in subject.router.routes)
    # From the inside to the outside.
    app.add_middleware(ShortWay, routes=orders.router.routes)
    app.add_middleware(Idempotency, changes=changes, storage=connections.get)
    app.add_middleware(
        Compression,
        minimum_size=1024,
        level=_COMPRESSION_LEVEL,
        # Parquet is compressed inside.
        excluded=(*DEFAULT_EXCLUDED_CONTENT_TYPES, PARQUET.media_type),
    )
    app.add_middleware(Audit, changes=changes, pool=lambda: connections.get().pool)
    app.add_middleware(
        Gate,
        keys=keys,
        open_without_keys=settings.is_on_loopback,
        requests_per_minute=settings.api_requests_per_minute,
    )
    app.add_middleware(Heads)
    app.add_middleware(RequestFrame, own_names_only=settings.is_on_loopback, welcome=settings.api_cors_origins)
    if settings.api_cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.api_cors_origins,
            allow_methods=("GET", "HEAD", "POST", "PUT", "DELETE"),
            allow_headers=_ASKED_HEADERS,
            expose_headers=_SHOWN_HEADERS,
        )
    _document(app)
    return app


def _document(app: FastAPI) -> None:
    """Let the application describe itself with our problems instead of the framework's."""
    generate = app.openapi
    routes = (route for subject in SUBJECTS for route in subject.router.routes)
    scopes = list(declared_scopes(route for route in routes if getattr(route, "include_in_schema", True)))

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(generate(), scopes)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way
