"""The real client of Allegro's API over answers that are made up."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx

from shared.allegro.client import AllegroClient
from shared.allegro.http import open_http
from shared.clock import Clock
from tests.shared.allegro.builders import settings
from tests.shared.allegro.test_client import NO_OUTAGE, Limits, Vault


async def _no_pause(_seconds: float) -> None:
    return


@asynccontextmanager
async def an_allegro(answer: Callable[[httpx.Request], httpx.Response], clock: Clock) -> AsyncIterator[AllegroClient]:
    """A client whose requests `answer` answers; no limits, a token that is good, no pauses between attempts."""
    chosen = settings("https://api.example")
    async with open_http(chosen, transport=httpx.MockTransport(answer)) as http:
        yield AllegroClient(http, chosen, Vault(), Limits(), NO_OUTAGE, clock, sleep=_no_pause)  # type: ignore[arg-type]
