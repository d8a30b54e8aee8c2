"""Calls of the authorisation server count in the client id's allowance like any other (E1, P5; the bar of issue 3)."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
from aiohttp import web

from shared.allegro.errors import AllegroError
from shared.allegro.http import open_http
from shared.allegro.oauth import AllegroOAuth
from shared.encryption import Secret
from tests.canary import a_secret
from tests.shared.allegro.builders import Way, settings
from tests.shared.allegro.fake_allegro import FakeAllegro

pytestmark = pytest.mark.integration

LIMIT = 40
# In so short a minute a machine that is busy for a tenth of a second pushes calls together. If half of the calls were
# not counted, there would be twice as many.
COUNTED_AS_TOO_MANY = LIMIT * 5 // 4
MINUTE_SECONDS = 2.0
SELLERS = 6
ROUNDS = 10


class Gatekeeper:
    """Refuses what exceeds the limit within a sliding minute, whatever it asks for."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.refused = 0
        self._recent: deque[float] = deque()

    def __call__(self, request: web.Request) -> web.Response | None:
        now = time.monotonic()
        self.asked["token" if request.path.startswith("/auth/") else "api"] += 1
        self._recent.append(now)
        while self._recent[0] <= now - MINUTE_SECONDS:
            self._recent.popleft()
        if len(self._recent) <= COUNTED_AS_TOO_MANY:
            return None
        self.refused += 1
        return web.Response(status=429)


@pytest.fixture
async def ways(pool: asyncpg.Pool, allegro: FakeAllegro) -> AsyncIterator[list[Way]]:
    """Two processes' worth of everything, with one client id."""
    chosen = settings(allegro.url, allegro_client_limit_per_minute=LIMIT, allegro_limit_minute_seconds=MINUTE_SECONDS)
    async with open_http(chosen) as http:
        yield [await Way(pool, http, chosen).synchronise() for _ in range(2)]


async def test_refreshes_and_calls_together_stay_within_the_allowance(ways: list[Way], allegro: FakeAllegro) -> None:
    allegro.old_access_dies = False
    tokens = [await ways[0].connected(allegro.pair(), user_id=f"shop-{number}") for number in range(SELLERS)]
    gatekeeper = allegro.refuse = Gatekeeper()

    async def work(way: Way, token_id: int) -> None:
        for _ in range(ROUNDS):
            await way.vault.refresh(token_id, force=True)
            await way.client.me(token_id)

    await asyncio.gather(*(work(ways[number % 2], token_id) for number, token_id in enumerate(tokens)))

    assert gatekeeper.refused == 0
    assert gatekeeper.asked == {"token": SELLERS * ROUNDS, "api": SELLERS * ROUNDS}


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda oauth: oauth.start_device_flow(), id="start"),
        pytest.param(lambda oauth: oauth.poll_device_code(Secret(a_secret("code"))), id="poll"),
        pytest.param(lambda oauth: oauth.refresh(Secret(a_secret("refresh"))), id="refresh"),
    ],
)
async def test_whatever_the_authorisation_server_is_asked_is_taken_from_the_shared_account(
    ways: list[Way], allegro: FakeAllegro, pool: asyncpg.Pool, ask: Callable[[AllegroOAuth], Awaitable[object]]
) -> None:
    allegro.refuse = lambda _request: web.json_response({"error": "invalid_request"}, status=400)
    await pool.execute(
        "INSERT INTO client_budgets (client_id, theoretical_arrival_at) VALUES ($1, '2001-01-01')",
        ways[0].settings.allegro_client_id,
    )

    with pytest.raises(AllegroError):
        await ask(ways[0].oauth)

    assert await pool.fetchval(
        "SELECT theoretical_arrival_at > now() - interval '1 minute' FROM client_budgets WHERE client_id = $1",
        ways[0].settings.allegro_client_id,
    )
