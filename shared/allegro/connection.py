"""Everything a service needs to call Allegro, opened together: HTTP, clock, limits, token vault, client."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import asyncpg
import httpx

from shared.allegro.client import AllegroClient
from shared.allegro.http import open_http
from shared.allegro.oauth import AllegroOAuth
from shared.allegro.outage import REPORT_SECONDS, Outage
from shared.clock import DatabaseClock
from shared.database import database_now, until_database_answers
from shared.encryption import Keyring
from shared.errors import ConfigurationError
from shared.key_rotation import check_keys
from shared.request_limits import RequestLimits
from shared.service import BackgroundLoops
from shared.settings import AllegroSettings
from shared.token_vault import TokenVault

_CLOCK_SECONDS = 60.0
_BLOCK_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Allegro:
    """The way to Allegro."""

    client: AllegroClient
    oauth: AllegroOAuth
    vault: TokenVault
    limits: RequestLimits
    clock: DatabaseClock


async def connect(
    stack: AsyncExitStack,
    settings: AllegroSettings,
    keyring: Keyring,
    pool: asyncpg.Pool,
    loops: BackgroundLoops,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Allegro:
    """Open the way to Allegro; `stack` closes it, `loops` keep clock and limits true.

    Waits as long as PostgreSQL is away. Raises ConfigurationError if there are no tables, or the encryption keys do not
    fit the stored tokens.
    """
    try:
        await until_database_answers(partial(check_keys, pool, keyring))
    except asyncpg.UndefinedTableError as error:
        raise ConfigurationError("DATABASE_URL: there are no tables yet: run `orders-backup setup`") from error
    clock = DatabaseClock()
    synchronise = partial(clock.synchronise, partial(database_now, pool))
    await until_database_answers(synchronise)
    http = await stack.enter_async_context(open_http(settings, transport=transport))
    limits = RequestLimits(pool, settings)
    stack.push_async_callback(limits.close)
    outage = Outage(pool, settings.allegro_client_id)
    oauth = AllegroOAuth(http, settings, limits)
    vault = TokenVault(pool, keyring, oauth, limits)
    stack.push_async_callback(vault.close)
    loops.run_every("clock", _CLOCK_SECONDS, synchronise)
    loops.run_every("outage", REPORT_SECONDS, outage.report)
    loops.run_every("blocks", _BLOCK_WATCH_SECONDS, limits.notice_block, wake=limits.noticed)
    # Runs first when the stack ends: nobody calls any more when the way is closed.
    stack.push_async_callback(loops.stop)
    return Allegro(AllegroClient(http, settings, vault, limits, outage, clock), oauth, vault, limits, clock)
