"""The connection to PostgreSQL: one way to open a pool, raw JSON bytes in and out, errors worth waiting for."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from prometheus_client import Gauge

from shared.errors import ConfigurationError
from shared.patience import until_answered

# What goes away when PostgreSQL restarts, fails over (it is read-only until then), resolves a deadlock, is out of
# connections, memory or disk, or cannot read or write its files.
TRANSIENT_DATABASE_ERRORS: tuple[type[Exception], ...] = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # The server has said good-bye on this connection, but its end has not arrived yet ("another operation (2)").
    asyncpg.InternalClientError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalServerError,
    asyncpg.LockNotAvailableError,
    OSError,
    TimeoutError,
)

# The first is an InterfaceError as well, and would be waited for.
_WRONG_ADDRESS = (
    asyncpg.ClientConfigurationError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)

POOL = Gauge(
    "orders_backup_database_pool_connections",
    "Connections to PostgreSQL by `state`: `used`, `idle`, and `limit`, of which no more are opened.",
    ["state"],
)

_CLOSE_SECONDS = 5.0
_JSONB_VERSION = b"\x01"

_Answer = TypeVar("_Answer")


def sqlalchemy_url(database_url: str) -> str:
    """The same address with SQLAlchemy's name for the asyncpg driver."""
    parts = urlsplit(database_url)
    return urlunsplit(parts._replace(scheme="postgresql+asyncpg"))


async def _pass_jsonb_through(connection: asyncpg.Connection) -> None:
    """Hand jsonb over as the bytes that came, without decoding: orders are never parsed and re-encoded."""
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        format="binary",
        encoder=lambda raw: _JSONB_VERSION + raw,
        decoder=lambda raw: raw[1:],
    )


async def _leave_as_it_is(_connection: asyncpg.Connection) -> None:
    """Nothing to undo when a connection is given back; the driver rolls an open transaction back before.

    asyncpg would send `RESET ALL` and more after every use, which doubles the round trips of a single statement. So
    nobody may leave anything behind: settings are `SET LOCAL`, locks and cursors belong to a transaction, and who
    listens stops listening.
    """


async def open_pool(database_url: str, *, service: str, max_size: int) -> asyncpg.Pool:
    """Open a pool whose `jsonb` values are `bytes`.

    Raises ConfigurationError if the address is wrong, and the driver's errors if PostgreSQL is away.
    """
    try:
        return await asyncpg.create_pool(
            database_url,
            min_size=1,
            max_size=max_size,
            init=_pass_jsonb_through,
            reset=_leave_as_it_is,
            command_timeout=60,
            timeout=10,
            server_settings={
                "application_name": f"orders-backup/{service}",
                "idle_in_transaction_session_timeout": "60000",
                "timezone": "UTC",
            },
        )
    except _WRONG_ADDRESS as error:
        raise ConfigurationError(f"DATABASE_URL: {error}") from error


async def wait_for_pool(database_url: str, *, service: str, max_size: int) -> asyncpg.Pool:
    """Like `open_pool`, but waits as long as PostgreSQL is away."""
    pool = await until_database_answers(partial(open_pool, database_url, service=service, max_size=max_size))
    tell_pool(pool)
    return pool


async def until_database_answers(ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """The answer to a question that a service asks when it starts; waits as long as PostgreSQL is away."""
    return await until_answered("PostgreSQL", ask, TRANSIENT_DATABASE_ERRORS)


def tell_pool(pool: asyncpg.Pool) -> None:
    """Let Prometheus read the use of this process's pool whenever it asks."""
    POOL.labels("used").set_function(lambda: pool.get_size() - pool.get_idle_size())
    POOL.labels("idle").set_function(pool.get_idle_size)
    POOL.labels("limit").set_function(pool.get_max_size)


async def close_pool(pool: asyncpg.Pool) -> None:
    """Close the pool; a connection that does not end in time is cut off."""
    try:
        await asyncio.wait_for(pool.close(), _CLOSE_SECONDS)
    except TimeoutError:
        pool.terminate()


async def database_now(connection: asyncpg.Pool | asyncpg.Connection) -> datetime:
    """PostgreSQL's wall clock at this moment."""
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return now
