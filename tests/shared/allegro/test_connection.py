"""The way to Allegro is opened and closed in the right order."""

import asyncio
from contextlib import AsyncExitStack

import asyncpg
import pytest

from shared.allegro.connection import connect
from shared.encryption import Keyring
from shared.errors import ConfigurationError
from shared.health import Health
from shared.service import BackgroundLoops
from tests.shared.allegro.builders import KEYS, TWO_KEYS, Way, settings
from tests.shared.allegro.fake_allegro import FakeAllegro

pytestmark = pytest.mark.integration


async def test_it_calls_notices_blocks_and_gives_every_connection_back(
    pool: asyncpg.Pool, way: Way, allegro: FakeAllegro
) -> None:
    token_id = await way.connected(allegro.pair())
    async with AsyncExitStack() as stack:
        loops = await stack.enter_async_context(BackgroundLoops(Health()))
        opened = await connect(stack, settings(allegro.url), Keyring.parse(KEYS), pool, loops)
        seller = await opened.client.me(token_id)
        await way.limits.block()
        async with asyncio.timeout(30):
            while not opened.limits.blocked_seconds:  # noqa: ASYNC110 - the news comes by itself
                await asyncio.sleep(0)

    assert seller.login == "shop"
    assert pool.get_idle_size() == pool.get_size()


async def test_keys_that_do_not_fit_stop_the_start(pool: asyncpg.Pool, way: Way, allegro: FakeAllegro) -> None:
    await way.connected(allegro.pair())
    other = Keyring.parse(TWO_KEYS.split(",")[0])
    async with AsyncExitStack() as stack:
        loops = await stack.enter_async_context(BackgroundLoops(Health()))

        with pytest.raises(ConfigurationError, match="key 'k1' is missing"):
            await connect(stack, settings(allegro.url), other, pool, loops)
