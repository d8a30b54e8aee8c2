"""What browsers are told: what they may load, and which pages of other sites may call the API."""

import re

import asyncpg
import httpx
import pytest
from pydantic import ValidationError

from services.api.settings import ApiSettings
from shared.api_keys import AccessScope
from tests.api.test_frame import changed, serving
from tests.api.test_isolation import ROUTES
from tests.api.two_sellers import a_key

pytestmark = pytest.mark.integration

SHOP = "https://shop.example.com"
LIST = "/api/v1/tokens/"


class TestPages:
    async def test_the_page_loads_only_what_we_serve(self, api: httpx.AsyncClient) -> None:
        page = await api.get("/docs")
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        answers = [await api.get(f"/{address}") for address in loaded]

        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert len(answers) == 3
        assert {answer.status_code for answer in answers} == {200}
        assert not re.search(r"<script(?! src)|<style| on\w+=", page.text), "the policy would forbid it"
        assert not [address for address in loaded if "//" in address]
        types = {answer.headers["content-type"].partition(";")[0] for answer in answers}
        assert types == {"text/css", "text/javascript"}
        policy = page.headers.get_list("content-security-policy")
        assert len(policy) == 1
        assert "script-src 'self';" in policy[0]
        assert "default-src 'none'" in policy[0]

    async def test_the_page_starts_with_our_own_description(self, api: httpx.AsyncClient) -> None:
        start = (await api.get("/docs/start.js")).text

        (address,) = re.findall(r'url: "([^"]+)"', start)
        assert (await api.get(f"/{address}")).json()["openapi"].startswith("3.1")

    @pytest.mark.parametrize("path", [LIST, "/health", "/asyncapi", "/openapi.json", "/nothing", "/api/v1/tokens/-1"])
    async def test_every_answer_forbids_what_no_answer_needs(self, api: httpx.AsyncClient, path: str) -> None:
        headers = (await api.get(path)).headers

        assert headers["content-security-policy"].startswith("default-src 'none';")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers


class TestOrigins:
    async def test_no_page_of_another_site_is_welcome_unless_it_is_named(self, api: httpx.AsyncClient) -> None:
        preflight = await api.options(LIST, headers={"Origin": SHOP, "Access-Control-Request-Method": "GET"})
        read = await api.get(LIST, headers={"Origin": SHOP})

        assert [name for name in (*preflight.headers, *read.headers) if name.startswith("access-control")] == []

    async def test_a_named_site_may_call_and_read_also_problems(
        self, settings: ApiSettings, pool: asyncpg.Pool
    ) -> None:
        async with serving(changed(settings, api_cors_origins=(SHOP,))) as client:
            asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
            preflight = await client.options(LIST, headers={"Origin": SHOP, **asked})
            foreign = await client.options(LIST, headers={"Origin": "https://evil.example", **asked})
            key = await a_key(pool, AccessScope.CONTROL)
            page = {"Origin": SHOP, "Sec-Fetch-Site": "cross-site"}
            posted = await client.post("/api/v1/sync/deactivate", json={"user_id": "x"}, headers=page | key)
            unknown = await client.get(LIST, headers=page)
            evil = await client.post(
                "/api/v1/sync/deactivate", json={}, headers=page | key | {"Origin": "https://evil.example"}
            )

        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, SHOP)
        assert "access-control-allow-origin" not in foreign.headers
        assert (posted.status_code, posted.headers["access-control-allow-origin"]) == (404, SHOP)
        assert "RateLimit" in posted.headers["access-control-expose-headers"]
        assert (unknown.status_code, unknown.headers["access-control-allow-origin"]) == (401, SHOP)
        assert (evil.status_code, evil.json()["type"].rpartition(":")[2]) == (403, "foreign-origin")
        assert "access-control-allow-credentials" not in posted.headers

    @pytest.mark.parametrize("origin", ["*", "shop.example.com", "https://shop.example.com/", "https://*.example.com"])
    def test_what_is_no_origin_stops_the_start(self, settings: ApiSettings, origin: str) -> None:
        with pytest.raises(ValidationError, match="not an origin"):
            ApiSettings.model_validate(settings.model_dump() | {"api_cors_origins": origin})


async def test_a_parameter_that_a_query_does_not_know_is_named(api: httpx.AsyncClient) -> None:
    paths = api_lists()
    assert len(paths) >= 6
    for path in paths:
        answer = await api.get(path, params={"limit": 1, "statsu": "open"})

        assert answer.status_code == 422, path
        (error,) = (each for each in answer.json()["errors"] if each["field"] == "statsu")
        assert error["location"] == "query"


def api_lists() -> list[str]:
    return [
        route.path
        for route in ROUTES
        if route.method == "get" and not route.parameters("path") and "limit" in route.parameters("query")
    ]
