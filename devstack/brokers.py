"""Which broker and which PostgreSQL a run uses: a given address wins, then KAFKA=embedded|apache|docker."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from devstack.errors import DevstackError
from devstack.postgres import Postgres
from devstack.tansu import Tansu


class Broker(Protocol):
    """What a run needs of a broker; `restart` and `wipe` keep the address."""

    @property
    def name(self) -> str: ...
    @property
    def bootstrap_servers(self) -> str: ...
    @property
    def session_timeout_seconds(self) -> float | None:
        """What suits short-lived groups on this broker; None: the product's own choice."""
        ...

    @property
    def fetch_wait_seconds(self) -> float | None:
        """What makes new records arrive soon; None: the product's own choice."""
        ...

    @property
    def running(self) -> bool: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def restart(self) -> None: ...
    def wipe(self) -> None:
        """Restart without anything it held."""
        ...


class Database(Protocol):
    """What a run needs of PostgreSQL; `url` belongs to a role that may create databases."""

    @property
    def name(self) -> str: ...
    @property
    def running(self) -> bool: ...
    def url(self) -> str: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


class GivenBroker:
    """Somebody else's broker: used, never started or stopped."""

    name = "given"
    running = True
    session_timeout_seconds = None
    fetch_wait_seconds = None

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers

    def start(self) -> None:
        from devstack import kafka_client

        if not kafka_client.has_metadata(self.bootstrap_servers):
            raise DevstackError(f"No Kafka answers at KAFKA_BOOTSTRAP_SERVERS={self.bootstrap_servers}.")

    def stop(self) -> None:
        """It was running before."""

    def kill(self) -> None:
        raise DevstackError("A broker given by KAFKA_BOOTSTRAP_SERVERS is not ours to kill.")

    def restart(self) -> None:
        raise DevstackError("A broker given by KAFKA_BOOTSTRAP_SERVERS is not ours to restart.")

    def wipe(self) -> None:
        raise DevstackError("A broker given by KAFKA_BOOTSTRAP_SERVERS is not ours to empty.")


class GivenDatabase:
    """Somebody else's PostgreSQL: used, never started or stopped."""

    name = "given"
    running = True

    def __init__(self, url: str) -> None:
        self._url = url

    def url(self) -> str:
        return self._url

    def start(self) -> None:
        """It runs."""

    def stop(self) -> None:
        """It was running before."""

    def kill(self) -> None:
        raise DevstackError("A PostgreSQL given by DATABASE_URL is not ours to kill.")


def choose_broker(environ: Mapping[str, str], folder: Path, *, port: int | None = None) -> Broker:
    """The broker that the environment asks for, not started; `port` is one that the caller was handed out."""
    given = environ.get("KAFKA_BOOTSTRAP_SERVERS", "")
    if given:
        return GivenBroker(given)
    match environ.get("KAFKA", "") or "embedded":
        case "embedded":
            return Tansu(folder, port=port)
        case "apache":
            from devstack.apache_kafka import ApacheKafka

            return ApacheKafka(folder, port=port)
        case "docker":
            from devstack.containers import DockerKafka

            return DockerKafka(port=port)
        case other:
            raise DevstackError(f"KAFKA={other} is not known: choose embedded, apache or docker.")


def choose_database(environ: Mapping[str, str], folder: Path, *, durable: bool, port: int | None = None) -> Database:
    """The PostgreSQL that the environment asks for, not started."""
    given = environ.get("DATABASE_URL", "")
    if given:
        return GivenDatabase(given)
    if environ.get("KAFKA", "") == "docker":
        from devstack.containers import DockerPostgres

        return DockerPostgres()
    return Postgres(folder, durable=durable, port=port)
