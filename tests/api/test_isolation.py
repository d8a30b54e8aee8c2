"""What a key does not open does not exist for it: every route there is, on a real PostgreSQL, with data of two users.

The routes come from the API's own description, so a new one is tried by itself; where the test does not know how to ask
it for another user's data (a new path parameter, a new body), it fails until it is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import APIRouter

from services.api.access import READ, declared_scopes
from services.api.app import SUBJECTS, build_app
from services.api.openapi import export_settings
from shared.api_keys import AccessScope
from tests.api.two_sellers import MINE, OTHERS, a_busy_seller, a_key, names_the_other

pytestmark = pytest.mark.integration

_PAIR = {"access_token": "a", "refresh_token": "r", "expires_in": 3600}
BODIES: dict[tuple[str, str], Any] = {
    ("post", "/api/v1/tokens/auth/initialize"): {"user_id": OTHERS},
    ("post", "/api/v1/tokens/"): {"user_id": OTHERS, **_PAIR},
    ("put", "/api/v1/tokens/{token_id}"): _PAIR,
    ("post", "/api/v1/sync/manual/{user_id}"): {"kind": "full"},
    ("post", "/api/v1/sync/activate"): {"user_id": OTHERS},
    ("post", "/api/v1/sync/deactivate"): {"user_id": OTHERS},
}
"""For each route with a body: what asks for the other user's data."""

_KEPT_ASIDE = ("api_keys", "audit_log", "idempotent_requests", "alembic_version")


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    operation: dict[str, Any]

    def parameters(self, place: str) -> list[str]:
        return [given["name"] for given in self.operation.get("parameters", ()) if given["in"] == place]

    @property
    def streams(self) -> bool:
        return any("text/event-stream" in answer.get("content", {}) for answer in self.operation["responses"].values())

    def address(self, values: dict[str, str]) -> str:
        return self.path.format(**{name: values[name] for name in self.parameters("path")})


def routes() -> Iterator[Route]:
    for path, operations in build_app(export_settings()).openapi()["paths"].items():
        if path.startswith("/api/"):
            for method, operation in operations.items():
                yield Route(method, path, operation)


ROUTES = list(routes())
SCOPES = {
    (method.lower(), path): scope
    for method, path, scope in declared_scopes(route for subject in SUBJECTS for route in subject.router.routes)
}


async def everything(pool: asyncpg.Pool) -> dict[str, list[str]]:
    """Every row of every table that the API's own bookkeeping does not change."""
    names = await pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    return {
        name: [row["row"] for row in await pool.fetch(f"SELECT t::text AS row FROM {name} t ORDER BY 1")]
        for (name,) in names
        if name not in _KEPT_ASIDE
    }


class TestUsers:
    async def test_no_route_shows_or_touches_what_belongs_to_another_user(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await a_busy_seller(pool, MINE)
        theirs = await a_busy_seller(pool, OTHERS)
        mine = await a_key(pool, AccessScope.ADMIN, MINE)
        before = await everything(pool)

        for route in ROUTES:
            body = BODIES[route.method, route.path] if "requestBody" in route.operation else None
            narrowed = {name: theirs[name] for name in route.parameters("query") if name in theirs}
            for query in ({}, narrowed) if narrowed else ({},):
                answer = await api.request(
                    route.method, route.address(theirs), json=body, params=query, headers=mine, timeout=20
                )

                where = f"{route.method} {route.path} {query}: {answer.status_code} {answer.text[:500]}"
                if route.parameters("path") or body is not None:
                    assert answer.status_code in (403, 404), where
                else:
                    assert answer.status_code in (200, 404), where
                if answer.is_success:
                    assert not names_the_other(answer.text), where
        assert await everything(pool) == before

    async def test_the_same_routes_show_it_to_the_key_of_that_user(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await a_busy_seller(pool, MINE)
        theirs = await a_busy_seller(pool, OTHERS)
        keys = await a_key(pool, AccessScope.READ, OTHERS), await a_key(pool, AccessScope.READ)
        silent = []

        for route in ROUTES:
            if route.method != "get" or route.streams or SCOPES[route.method, route.path] is not AccessScope.READ:
                continue
            for key in keys:
                answer = await api.get(route.address(theirs), headers=key)
                assert answer.status_code == 200, f"{route.path}: {answer.text[:500]}"
                if not names_the_other(answer.text):
                    silent.append(route.path)

        assert silent == [], "these say nothing of the data, so the test above proves nothing of them"

    async def test_a_record_of_nobody_is_for_keys_of_all_users(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await pool.execute(
            'INSERT INTO dead_letters (service, topic, partition, "offset", digest, error_type, error)'
            " VALUES ('writer', 'orders', 0, 1, '', 'Unreadable', 'x')"
        )
        of_one, of_all = await a_key(pool, AccessScope.READ, MINE), await a_key(pool, AccessScope.READ)

        hidden = await api.get("/api/v1/dead-letters/1", headers=of_one)
        shown = await api.get("/api/v1/dead-letters/1", headers=of_all)

        assert (hidden.status_code, shown.status_code) == (404, 200)


class TestScopes:
    @pytest.mark.parametrize("scope", list(AccessScope))
    async def test_a_key_does_what_its_scope_allows_and_nothing_else(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, scope: AccessScope
    ) -> None:
        await a_busy_seller(pool, MINE)
        # Addresses of nothing: what is allowed is not found, and changes nothing.
        nowhere = await a_busy_seller(pool, OTHERS) | {"user_id": "nobody", "token_id": "999", "dead_letter_id": "999"}
        nowhere |= dict.fromkeys(("task_id", "run_id"), "00000000-0000-4000-8000-000000000404")
        key = await a_key(pool, scope, MINE)

        for route in ROUTES:
            if route.streams:
                continue
            body = BODIES[route.method, route.path] if "requestBody" in route.operation else None
            answer = await api.request(route.method, route.address(nowhere), json=body, headers=key)
            refused = answer.status_code == 403 and answer.json()["type"].endswith(":not-allowed")
            assert refused == (not scope.includes(SCOPES[route.method, route.path])), f"{route}: {answer.text}"

    async def test_without_a_key_nothing_answers_as_soon_as_there_is_one(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        theirs = await a_busy_seller(pool, OTHERS)
        await a_key(pool, AccessScope.READ)

        answers = [await api.request(route.method, route.address(theirs)) for route in ROUTES]

        assert {answer.status_code for answer in answers} == {401}
        assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}

    def test_every_route_declares_its_scope(self) -> None:
        # One address is there without its last slash, too, which the description leaves out.
        described = {(route.method, route.path.rstrip("/")) for route in ROUTES}
        assert described == {(method, path.rstrip("/")) for method, path in SCOPES}

    def test_a_route_without_a_scope_stops_the_start(self) -> None:
        router = APIRouter()
        router.get("/declared", dependencies=[READ])(lambda: None)
        assert [scope for _, _, scope in declared_scopes(router.routes)] == [AccessScope.READ]
        router.get("/forgotten")(lambda: None)

        with pytest.raises(TypeError, match="/forgotten"):
            list(declared_scopes(router.routes))
