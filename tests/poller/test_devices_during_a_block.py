"""Nobody may call: device codes are not asked for, and not all at once when it is over (A2, P5)."""

import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from services.poller.devices import DevicePoller
from services.poller.leases import Leases
from services.poller.slots import Slots
from shared.allegro.http import open_http
from shared.encryption import Secret
from shared.token_vault import device_code_binding
from tests.canary import a_secret
from tests.poller.conftest import SETTINGS
from tests.shared.allegro.builders import Way, settings
from tests.shared.allegro.fake_allegro import FakeAllegro

pytestmark = pytest.mark.integration

CODE = a_secret("device-code")


@pytest.fixture
async def allegro() -> AsyncIterator[FakeAllegro]:
    async with FakeAllegro().running() as fake:
        yield fake


@pytest.fixture
async def way(pool: asyncpg.Pool, allegro: FakeAllegro) -> AsyncIterator[Way]:
    chosen = settings(allegro.url)
    async with open_http(chosen) as http:
        yield await Way(pool, http, chosen).synchronise()


async def a_code(way: Way) -> None:
    task_id = uuid4()
    sealed = way.keyring.seal(Secret(CODE), belongs_to=device_code_binding(task_id))
    await way.pool.execute(
        "INSERT INTO device_authorizations (task_id, user_id, device_code, device_code_digest, key_id, user_code,"
        "  verification_uri, verification_uri_complete, interval_seconds, expires_at, next_poll_at)"
        " VALUES ($1, 'shop-1', $2, $3, $4, 'abc', 'u', 'u', 5, now() + interval '1 hour', now())",
        task_id,
        sealed.envelope,
        hashlib.sha256(CODE.encode()).digest(),
        sealed.key_id,
    )


async def test_polls_are_put_off_while_everybody_is_blocked(
    way: Way, allegro: FakeAllegro, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.poller.devices._PATIENCE", timedelta(seconds=0.05))
    await a_code(way)
    allegro.consented.add(CODE)
    slots = Slots("devices", 4)
    poller = DevicePoller(way.pool, way.oauth, way.vault, way.keyring, Leases(way.pool, seconds=60), slots, SETTINGS)
    await way.limits.block(timedelta(hours=1))

    for _ in range(3):
        await way.pool.execute("UPDATE device_authorizations SET next_poll_at = now()")
        await poller.turn()
        await slots.idle()

    row = await way.pool.fetchrow("SELECT *, next_poll_at - now() AS due_in FROM device_authorizations")
    assert allegro.token_requests == 0
    assert (row["status"], row["lease_owner"], row["polls"]) == ("PENDING", None, 3)
    assert timedelta(0) < row["due_in"] <= timedelta(seconds=5)
