"""What the endpoints work with, opened in the background: PostgreSQL may come later than we do, and Kafka never."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated

import asyncpg
import httpx
from fastapi import Depends, Request

from services.api.access import Caller, KnownCaller
from services.api.keys import KeyStore
from services.api.parameters import TokenId, UserIdInPath
from services.api.probes import Probes
from services.api.problems import UnavailableError, UnknownTokenError, UnknownUserError
from services.api.settings import ApiSettings
from shared.allegro.connection import Allegro, connect
from shared.allegro.outage import outage_since
from shared.database import close_pool, until_database_answers, wait_for_pool
from shared.encryption import Keyring
from shared.errors import ConfigurationError
from shared.health import Health
from shared.kafka import RecordProducer
from shared.service import BackgroundLoops

logger = logging.getLogger(__name__)

SERVICE = "api"
# So long the start waits for PostgreSQL before it answers /livez without it.
_PATIENCE_SECONDS = 1.0


@dataclass(frozen=True)
class Resources:
    """Connections of this process."""

    settings: ApiSettings
    pool: asyncpg.Pool
    allegro: Allegro
    keyring: Keyring
    producer: RecordProducer


class Connections:
    """The resources, once they are there."""

    def __init__(
        self, settings: ApiSettings, health: Health, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._settings = settings
        self._keyring = settings.keyring()
        self._health = health
        self._transport = transport
        self._resources: Resources | None = None
        self._probes: Probes | None = None

    def get(self) -> Resources:
        """Raises UnavailableError until everything is open."""
        if self._resources is None:
            raise UnavailableError("The service is starting: PostgreSQL has not answered yet; try again.")
        return self._resources

    @property
    def probes(self) -> Probes:
        """Also while PostgreSQL is away; raises UnavailableError outside of the application's life."""
        if self._probes is None:
            raise UnavailableError("The service is starting or stopping; try again.")
        return self._probes

    @asynccontextmanager
    async def opened(self, *, give_up: Callable[[], None] | None = None) -> AsyncIterator[None]:
        """Open in the background and close at the end; raises what made it impossible, such as ConfigurationError.

        An error that comes to light only after the start calls `give_up`, which has to end the service.
        """
        async with AsyncExitStack() as stack:
            self._probes = await stack.enter_async_context(
                Probes(self._settings, self._ask_database, self._ask_outage, transport=self._transport)
            )
            opening = asyncio.create_task(self._open(stack), name="open connections")
            await asyncio.wait({opening}, timeout=_PATIENCE_SECONDS)
            if opening.done():
                opening.result()
            else:
                opening.add_done_callback(partial(_watch, give_up or partial(signal.raise_signal, signal.SIGTERM)))
            try:
                yield
            finally:
                self._health.stopping()
                self._resources = self._probes = None
                opening.cancel()
                with suppress(asyncio.CancelledError):
                    await opening

    async def _open(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        pool = await wait_for_pool(
            settings.database_url.get_secret_value(), service=SERVICE, max_size=settings.database_pool_size
        )
        stack.push_async_callback(close_pool, pool)
        # It connects with the first record: whoever only reads needs no Kafka.
        producer = RecordProducer(settings, service=SERVICE)
        stack.push_async_callback(producer.stop)
        loops = await stack.enter_async_context(BackgroundLoops(self._health))
        allegro = await connect(stack, settings, self._keyring, pool, loops, transport=self._transport)
        await until_database_answers(partial(_check_access, settings, KeyStore(lambda: pool)))
        self._resources = Resources(settings, pool, allegro, self._keyring, producer)
        self._health.add_check("database", partial(pool.fetchval, "SELECT 1"))
        self._health.started()

    async def _ask_database(self) -> None:
        await self.get().pool.fetchval("SELECT 1")

    async def _ask_outage(self) -> datetime | None:
        return await outage_since(self.get().pool, self._settings.allegro_client_id)


async def _check_access(settings: ApiSettings, keys: KeyStore) -> None:
    """Warn, or raise ConfigurationError, where strangers would be let in."""
    if settings.is_on_loopback and await keys.is_empty():
        logger.warning(
            "there is no API key: whoever reaches this port may do everything",
            extra={"make_one": "orders-backup keys create NAME --scope admin"},
        )
    if not settings.is_on_loopback and not await keys.has_usable():
        raise ConfigurationError(
            f"API_HTTP_HOST: {settings.api_http_host} is reached by others, and there is no API key: make one with"
            " `orders-backup keys create NAME --scope admin`"
        )


def _watch(give_up: Callable[[], None], opening: asyncio.Task[None]) -> None:
    if not opening.cancelled() and opening.exception() is not None:
        logger.critical("the service cannot start", extra={"error": repr(opening.exception())})
        give_up()


def resources_of(request: Request) -> Resources:
    """Raises UnavailableError until everything is open."""
    connections: Connections = request.app.state.connections
    return connections.get()


# Dependencies are coroutines, also where they wait for nothing: plain functions would be run by a thread each.
async def _resources(request: Request) -> Resources:
    return resources_of(request)


Context = Annotated[Resources, Depends(_resources)]


async def _probes(request: Request) -> Probes:
    connections: Connections = request.app.state.connections
    return connections.probes


Looks = Annotated[Probes, Depends(_probes)]
"""What looks at PostgreSQL, Kafka and Allegro."""


@dataclass(frozen=True)
class User:
    """A user whose seller is connected, or was."""

    user_id: str
    token_id: int
    status: str
    status_reason: str | None


# language=sql
_USER = "SELECT user_id, id AS token_id, status, status_reason FROM user_tokens"


async def user_of(user_id: str, resources: Resources, caller: Caller) -> User:
    """Raises UnknownUserError, also for a user whom the caller's key is not for."""
    row = await resources.pool.fetchrow(f"{_USER} WHERE user_id = $1", user_id)
    if row is None or not caller.sees(user_id):
        raise UnknownUserError(user_id)
    return User(**row)


async def tokens_of(resources: Resources, caller: Caller, asked: Sequence[str] | None = None) -> list[int] | None:
    """The tokens of the users asked for, or of all that the caller sees; None: of everybody.

    Raises UnknownUserError for one who was asked for and does not exist for the caller.
    """
    users = asked or caller.users
    if users is None:
        return None
    rows = await resources.pool.fetch("SELECT id, user_id FROM user_tokens WHERE user_id = ANY($1)", users)
    seen = {row["user_id"]: row["id"] for row in rows if caller.sees(row["user_id"])}
    if len(users) > 1:
        caller.subject = None
    unknown = set(asked or ()) - seen.keys()
    if unknown:
        raise UnknownUserError(min(unknown))
    return list(seen.values())


async def _user(user_id: UserIdInPath, resources: Context, caller: KnownCaller) -> User:
    return await user_of(user_id, resources, caller)


KnownUser = Annotated[User, Depends(_user)]
"""The user named in the path; an unknown one is a 404, and so is one whom the caller's key is not for."""


async def _token(token_id: TokenId, resources: Context, caller: KnownCaller) -> User:
    row = await resources.pool.fetchrow(f"{_USER} WHERE id = $1", token_id)
    if row is None or not caller.sees(row["user_id"]):
        raise UnknownTokenError(token_id)
    return User(**row)


KnownToken = Annotated[User, Depends(_token)]
"""The seller whose token is named in the path, under the same conditions."""
