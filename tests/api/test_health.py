"""Health is told while a component is away: that is when it is asked for."""

import asyncio

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from services.api.app import build_app
from services.api.settings import ApiSettings
from tests.api.conftest import Allegro

pytestmark = pytest.mark.integration

_NOBODY_LISTENS = "postgresql://127.0.0.1:1/none"


async def _health(settings: ApiSettings, allegro: Allegro) -> tuple[int, dict[str, str]]:
    """The status code, and how each component is, once Kafka answered: on a busy machine it may take its time."""
    app = build_app(settings, transport=httpx.MockTransport(allegro))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client,
        asyncio.timeout(60),
    ):
        while True:
            answer = await client.get("/health")
            found = {name: component["status"] for name, component in answer.json()["components"].items()}
            if found["kafka"] == "ok":
                return answer.status_code, found
            await asyncio.sleep(0.1)


async def test_it_is_told_before_postgresql_has_ever_answered(settings: ApiSettings, allegro: Allegro) -> None:
    settings = settings.model_copy(update={"database_url": SecretStr(_NOBODY_LISTENS)})

    found = await _health(settings, allegro)

    assert found == (503, {"database": "unavailable", "kafka": "ok", "allegro": "ok"})


async def test_it_is_told_while_the_services_pause_their_calls(
    settings: ApiSettings, allegro: Allegro, pool: asyncpg.Pool
) -> None:
    """Allegro answers this one question, but most calls of a service fail."""
    await pool.execute(
        "INSERT INTO allegro_outages VALUES ($1, now() - interval '1 hour', now())", settings.allegro_client_id
    )

    found = await _health(settings, allegro)

    assert found == (503, {"database": "ok", "kafka": "ok", "allegro": "unavailable"})


@pytest.mark.parametrize("status", [500, 503])
async def test_a_5xx_is_no_sign_of_health(settings: ApiSettings, allegro: Allegro, status: int) -> None:
    allegro.respond = lambda _request: httpx.Response(status)

    found = await _health(settings, allegro)

    assert found == (503, {"database": "ok", "kafka": "ok", "allegro": "unavailable"})


async def test_it_is_told_while_allegro_does_not_answer(settings: ApiSettings, allegro: Allegro) -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    allegro.respond = away

    found = await _health(settings, allegro)

    assert found == (503, {"database": "ok", "kafka": "ok", "allegro": "unavailable"})
