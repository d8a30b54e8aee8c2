"""Upgrade and downgrade a database; used by `orders-backup setup`, the tests and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from shared.database import sqlalchemy_url

_Result = TypeVar("_Result")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


async def _with_connection(database_url: str, work: Callable[[Connection], _Result]) -> _Result:
    engine = create_async_engine(sqlalchemy_url(database_url), poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


async def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the database to `revision`; does nothing where it stands there."""

    def work(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    await _with_connection(database_url, work)


async def downgrade(database_url: str, revision: str) -> None:
    """Take the database back to `revision` (`base` = empty)."""

    def work(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        command.downgrade(config, revision)

    await _with_connection(database_url, work)


def script_directory() -> ScriptDirectory:
    """The revisions in this folder."""
    return ScriptDirectory.from_config(_config())


def head() -> str:
    """The revision that this code was written for."""
    revision = script_directory().get_current_head()
    if revision is None:
        raise LookupError("the migrations folder holds no revision")
    return revision


async def current(database_url: str) -> str | None:
    """The revision that the database stands at, or None for an empty one."""
    return await _with_connection(
        database_url, lambda connection: MigrationContext.configure(connection).get_current_revision()
    )
