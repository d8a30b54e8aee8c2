"""KAFKA=docker: the broker and PostgreSQL as containers, where a Docker engine answers."""

import asyncio
import secrets
import time
from typing import Any

import asyncpg

from devstack import kafka_client
from devstack.apache_kafka import version
from devstack.errors import DevstackError
from devstack.ports import free_port

_POSTGRES_IMAGE = "postgres:18"
_KAFKA_IMAGE = "apache/kafka"
_START_SECONDS = 120.0


class DockerUnavailableError(DevstackError):
    """No Docker engine answers on this machine."""


def _container(image: str) -> Any:
    """A container that is not started; raises if nothing could start it."""
    import docker  # type: ignore[import-untyped]
    from docker.errors import DockerException  # type: ignore[import-untyped]
    from testcontainers.core.container import DockerContainer

    try:
        docker.from_env(timeout=10).ping()
    except DockerException as error:
        raise DockerUnavailableError(
            "KAFKA=docker needs a Docker engine and none answers on this machine: start one, or use KAFKA=embedded."
        ) from error
    return DockerContainer(image)


class DockerKafka:
    """One Apache Kafka node in a container, reached on a loopback port that is chosen before it starts.

    The node must tell clients the address that reaches it from outside, so the port cannot be left to Docker.
    """

    session_timeout_seconds = 6.0
    fetch_wait_seconds = None

    def __init__(self, *, port: int | None = None) -> None:
        self.name = f"Docker {_KAFKA_IMAGE}:{version()}"
        self._port = port or free_port()
        self._host = "127.0.0.1"
        self._running: Any = None

    @property
    def bootstrap_servers(self) -> str:
        return f"{self._host}:{self._port}"

    def start(self) -> None:
        container = _container(f"{_KAFKA_IMAGE}:{version()}")
        self._host = container.get_container_host_ip().replace("localhost", "127.0.0.1")
        # The image takes either its own defaults or a complete configuration.
        container = container.with_bind_ports(9092, self._port).with_envs(
            KAFKA_NODE_ID="1",
            KAFKA_PROCESS_ROLES="broker,controller",
            KAFKA_CONTROLLER_QUORUM_VOTERS="1@localhost:9093",
            KAFKA_CONTROLLER_LISTENER_NAMES="CONTROLLER",
            KAFKA_LISTENERS="PLAINTEXT://:9092,CONTROLLER://:9093",
            KAFKA_ADVERTISED_LISTENERS=f"PLAINTEXT://{self.bootstrap_servers}",
            KAFKA_LISTENER_SECURITY_PROTOCOL_MAP="CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            KAFKA_INTER_BROKER_LISTENER_NAME="PLAINTEXT",
            KAFKA_AUTO_CREATE_TOPICS_ENABLE="false",
            KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR="1",
            KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR="1",
            KAFKA_TRANSACTION_STATE_LOG_MIN_ISR="1",
            KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS="0",
        )
        self._running = container.start()
        self._wait()

    @property
    def running(self) -> bool:
        if self._running is None:
            return False
        container = self._running.get_wrapped_container()
        container.reload()
        return str(container.status) == "running"

    def stop(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None

    def kill(self) -> None:
        raise DevstackError("Chaos with containers is not supported: their ports and data would go with them.")

    def restart(self) -> None:
        """Restart the container: same port, same data."""
        self._running.get_wrapped_container().restart()
        self._wait()

    def wipe(self) -> None:
        """Another container on the same port."""
        self.stop()
        self.start()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not kafka_client.has_metadata(self.bootstrap_servers):
            if time.monotonic() > deadline:
                raise DevstackError(f"{self.name} gave no metadata after {_START_SECONDS:g} s.")
            time.sleep(0.2)


class DockerPostgres:
    """PostgreSQL in a container."""

    name = f"Docker {_POSTGRES_IMAGE}"

    def __init__(self) -> None:
        self._password = secrets.token_urlsafe(24)
        self._running: Any = None

    def url(self) -> str:
        host = self._running.get_container_host_ip().replace("localhost", "127.0.0.1")
        return f"postgresql://orders:{self._password}@{host}:{self._running.get_exposed_port(5432)}/orders"

    def start(self) -> None:
        container = _container(_POSTGRES_IMAGE).with_exposed_ports(5432)
        self._running = container.with_envs(
            POSTGRES_USER="orders", POSTGRES_PASSWORD=self._password, POSTGRES_DB="orders"
        ).start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._accepts():
            if time.monotonic() > deadline:
                raise DevstackError(f"{self.name} accepted no connection after {_START_SECONDS:g} s.")
            time.sleep(0.2)

    @property
    def running(self) -> bool:
        if self._running is None:
            return False
        container = self._running.get_wrapped_container()
        container.reload()
        return str(container.status) == "running"

    def stop(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None

    def kill(self) -> None:
        raise DevstackError("Chaos with containers is not supported: their ports and data would go with them.")

    def _accepts(self) -> bool:
        async def connect() -> None:
            async with asyncio.timeout(5):
                connection = await asyncpg.connect(self.url())
                await connection.close()

        try:
            kafka_client.finish(connect())
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True
