"""The API as its clients meet it: over HTTP, on a real PostgreSQL and a real broker; only Allegro is a transport."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable

import asyncpg
import httpx
import pytest

from services.api.app import build_app
from services.api.settings import ApiSettings
from shared.database import open_pool
from tests.canary import Watch, a_secret

Respond = Callable[[httpx.Request], httpx.Response]


class Allegro:
    """What Allegro answers; a test may put something else in `respond`."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.respond: Respond = lambda _request: httpx.Response(
            200,
            json={
                "device_code": a_secret("device-code"),
                "user_code": "abcd1234",
                "verification_uri": "https://allegro.pl/skojarz-aplikacje",
                "verification_uri_complete": "https://allegro.pl/skojarz-aplikacje?code=abcd1234",
                "expires_in": 3600,
                "interval": 5,
            },
        )

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.respond(request)


@pytest.fixture
def allegro() -> Allegro:
    return Allegro()


@pytest.fixture
def settings(database_url: str, kafka_bootstrap: str, fresh_topics: str) -> ApiSettings:
    return ApiSettings(
        database_url=database_url,
        kafka_bootstrap_servers=kafka_bootstrap,
        kafka_topic_prefix=fresh_topics,
        allegro_client_id="client",
        allegro_client_secret=a_secret("client"),
        allegro_user_agent="Tests/1.0 (+https://example.com/tests)",
        encryption_keys="k1:" + base64.b64encode(bytes(32)).decode(),
    )


@pytest.fixture
async def api(settings: ApiSettings, allegro: Allegro, watch: Watch) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(settings, transport=httpx.MockTransport(allegro))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport,
            base_url="http://127.0.0.1",
            follow_redirects=True,
            event_hooks={"response": [watch.look_at_answer]},
        ) as client,
    ):
        await until_ready(client)
        yield client


async def until_ready(client: httpx.AsyncClient) -> None:
    """A service starts without PostgreSQL, and answers 503 until it has it: on a busy machine that takes a while."""
    async with asyncio.timeout(60):
        while not (await client.get("/readyz")).is_success:  # noqa: ASYNC110 - the API is asked as a client would
            await asyncio.sleep(0.01)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_pool(database_url, service="test", max_size=2)
    yield pool
    await pool.close()
