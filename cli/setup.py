"""`orders-backup setup`: bring database and topics to where this version needs them. Safe to repeat."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from aiokafka.errors import KafkaError
from sqlalchemy.exc import DBAPIError

from cli.output import AsJson, show_json
from migrations.run import current, upgrade
from shared.database import TRANSIENT_DATABASE_ERRORS
from shared.errors import TransientError
from shared.kafka_connection import connection_options
from shared.settings import DatabaseSettings, KafkaSettings, load
from shared.topics import create_topics

_PAUSE_SECONDS = 0.5
_AWAY = (KafkaError, *TRANSIENT_DATABASE_ERRORS)

_Result = TypeVar("_Result")


class _Settings(DatabaseSettings, KafkaSettings):
    """What the set-up needs."""


def setup(
    wait: Annotated[float, typer.Option(help="Seconds to wait for PostgreSQL and Kafka.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Migrate the database and create the topics that are missing."""
    asyncio.run(_setup(load(_Settings), wait, as_json=as_json))


async def _setup(settings: _Settings, patience: float, *, as_json: bool) -> None:
    deadline = time.monotonic() + patience
    url = settings.database_url.get_secret_value()

    async def migrate() -> tuple[str | None, str | None]:
        before = await current(url)
        await upgrade(url)
        return before, await current(url)

    before, after = await _patiently("PostgreSQL", migrate, deadline)
    if not as_json:
        typer.echo(f"database: revision {after}" + ("" if before == after else f" (was {before or 'empty'})"))

    created = await _patiently(
        "Kafka",
        lambda: create_topics(
            settings.kafka_bootstrap_servers,
            settings.topics,
            partitions=settings.kafka_topic_partitions,
            replication_factor=settings.kafka_replication_factor,
            connection=connection_options(settings),
        ),
        deadline,
    )
    if as_json:
        show_json({"revision": after, "revision_before": before, "topics_created": list(created)})
    else:
        typer.echo(f"topics: created {', '.join(created)}" if created else "topics: all there")


async def _patiently(what: str, work: Callable[[], Awaitable[_Result]], deadline: float) -> _Result:
    """Do the work as soon as the other side is there; raises TransientError once the deadline has passed."""
    while True:
        try:
            return await work()
        except (*_AWAY, DBAPIError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            if isinstance(error, DBAPIError) and not isinstance(getattr(cause, "__cause__", cause), _AWAY):
                raise
            if time.monotonic() >= deadline:
                raise TransientError(f"{what} is not reachable: {cause}") from error
            await asyncio.sleep(_PAUSE_SECONDS)
