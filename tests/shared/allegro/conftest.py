"""A fake Allegro and the way to it."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from shared.allegro.http import open_http
from shared.database import open_pool
from tests.shared.allegro.builders import Way, settings
from tests.shared.allegro.fake_allegro import FakeAllegro


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=10)
    yield opened
    opened.terminate()


@pytest.fixture
async def allegro() -> AsyncIterator[FakeAllegro]:
    async with FakeAllegro().running() as fake:
        yield fake


@pytest.fixture
async def way(pool: asyncpg.Pool, allegro: FakeAllegro) -> AsyncIterator[Way]:
    chosen = settings(allegro.url)
    async with open_http(chosen) as http:
        yield await Way(pool, http, chosen).synchronise()
