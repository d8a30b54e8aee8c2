"""The whole product on one machine: PostgreSQL, broker, Allegro (simulated unless told otherwise), four services.

Everything lives in one folder and on free loopback ports, so any number of stacks run side by side.
"""

import base64
import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import asyncpg

from devstack import processes
from devstack.allegro import SimulatedAllegro
from devstack.brokers import choose_broker, choose_database
from devstack.ports import free_port, release
from devstack.processes import ROOT, Child

# In the order of their start.
SERVICES = ("api", "poller", "enricher", "writer")
SERVERS = ("Kafka", "PostgreSQL")
# What the product's variables begin with: a demo must not pick up those of whoever runs it.
OURS = ("ALLEGRO_", "API_", "DATABASE_", "ENCRYPTION_", "ENRICHER_", "KAFKA", "LOG_", "POLLER_", "SYNC_", "WRITER_")
READY_SECONDS = 100.0
"""Within which a service that was started is ready, also where many start on a busy machine."""
_SETUP_SECONDS = 120.0
_GRACE_SECONDS = 30.0


def without_ours(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment less every variable that the product reads."""
    return {name: value for name, value in environ.items() if not name.startswith(OURS)}


def replica_names(replicas: int) -> list[str]:
    """The first replica of a service has the service's own name, the others a number after it."""
    return [
        service if number == 1 else f"{service}-{number}" for number in range(1, replicas + 1) for service in SERVICES
    ]


class Stack:
    """Starts everything in order and stops it in reverse; leaving the `with` block stops what runs."""

    def __init__(
        self,
        folder: Path,
        choice: Mapping[str, str],
        environment: Mapping[str, str],
        *,
        simulator_options: Sequence[str] | None,
        durable: bool,
        working_folder: Path,
        say: Callable[[str], None],
    ) -> None:
        """`choice` names the servers (`devstack.brokers`), `environment` is what the services get on top of ours;
        without `simulator_options` they talk to the Allegro that their environment names."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.logs = folder / "logs"
        self.services_started_at = 0.0
        self._say = say
        self._ports = _Ports(folder / "ports.json")
        self.database = choose_database(choice, folder / "postgres", durable=durable, port=self._ports.of("postgres"))
        self.broker = choose_broker(choice, folder / "broker", port=self._ports.of("broker"))
        self.simulator = (
            None
            if simulator_options is None
            else SimulatedAllegro(self.logs, self._ports.of("simulator"), simulator_options)
        )
        self._environment = dict(environment)
        self._working_folder = working_folder
        self.services: dict[str, Child] = {}

    def url(self, service: str) -> str:
        """The base address of a service."""
        return f"http://127.0.0.1:{self._ports.of(service)}"

    def __enter__(self) -> "Stack":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_servers(self) -> None:
        """PostgreSQL, the broker, and the simulated Allegro if there is to be one."""
        self.logs.mkdir(parents=True, exist_ok=True)
        if self.simulator is not None:
            self.simulator.start()
        self._timed(f"PostgreSQL ({self.database.name})", self.database.start)
        self._timed(f"Kafka ({self.broker.name})", self.broker.start)
        if self.simulator is not None:
            self._timed("simulated Allegro", self.simulator.wait_until_ready)

    def set_up(self) -> None:
        """Migrate the database and create the topics; does nothing where that is done."""
        command = [sys.executable, "-m", "cli", "setup"]
        environment = self.environment()
        self._timed(
            "migrations and topics",
            lambda: processes.run(command, env=environment, folder=self._working_folder, seconds=_SETUP_SECONDS),
        )

    def start_services(self, *, replicas: int = 1) -> None:
        """Start all at once; they may come up in any order, so nothing is waited for."""
        self.services = {name: self.process(name) for name in replica_names(replicas)}
        self.services_started_at = time.time()
        for child in self.services.values():
            child.start()

    def process(self, name: str, *, launcher: Sequence[str] = ()) -> Child:
        """A service's replica, not started; `launcher` is a module, and its arguments, that runs the service's own."""
        service = name.partition("-")[0]
        environment = self.environment()
        environment[f"{service.upper()}_HTTP_PORT"] = str(self._ports.of(name))
        return Child(
            name,
            [sys.executable, "-m", *launcher, f"services.{service}"],
            log=self.logs / f"{name}.out",
            env=environment,
            folder=self._working_folder,
            grace_seconds=_GRACE_SECONDS,
        )

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """One connection to the database, for one question: PostgreSQL may be killed before the next."""
        connection = await asyncpg.connect(self.database.url(), timeout=10, command_timeout=60)
        try:
            yield connection
        finally:
            await connection.close(timeout=10)

    def seconds_since_start(self) -> float:
        """How long ago the services were started."""
        return time.time() - self.services_started_at

    def wait_until_ready(self, service: str) -> None:
        """Wait for a service's own word that it is ready."""
        child = self.services[service]
        self._timed(service, lambda: child.wait_until_http(f"{self.url(service)}/readyz", READY_SECONDS))

    def kill(self, name: str) -> None:
        """kill -9 a service or one of the servers."""
        if name == "Kafka":
            self.broker.kill()
        elif name == "PostgreSQL":
            self.database.kill()
        else:
            self.services[name].kill()

    def start_again(self, name: str) -> None:
        """Start what was killed or died; a broker comes back with its topics, though perhaps empty ones."""
        if name == "Kafka":
            self.broker.start()
            self.set_up()
        elif name == "PostgreSQL":
            self.database.start()
        else:
            self.services[name].start()

    def stop(self) -> None:
        """Stop what runs, in reverse order; the services together, since each finishes the work it has in hand."""
        for child in self.services.values():
            child.ask_to_stop()
        for child in reversed(self.services.values()):
            child.stop()
        if self.simulator is not None:
            self.simulator.stop()
        self.broker.stop()
        self.database.stop()
        self._ports.release()

    def environment(self) -> dict[str, str]:
        """What the services and the command line are started with."""
        environment = {
            **self._environment,
            "DATABASE_URL": self.database.url(),
            "KAFKA_BOOTSTRAP_SERVERS": self.broker.bootstrap_servers,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        if self.broker.session_timeout_seconds is not None:
            environment.setdefault("KAFKA_SESSION_TIMEOUT_SECONDS", str(self.broker.session_timeout_seconds))
        if self.broker.fetch_wait_seconds is not None:
            environment.setdefault("KAFKA_FETCH_WAIT_SECONDS", str(self.broker.fetch_wait_seconds))
        for service in SERVICES:
            environment[f"{service.upper()}_HTTP_HOST"] = "127.0.0.1"
            environment[f"{service.upper()}_HTTP_PORT"] = str(self._ports.of(service))
        if self.simulator is not None:
            environment |= self.simulator.environment()
        if not (environment.get("ENCRYPTION_KEYS") or environment.get("ENCRYPTION_KEYS_FILE")):
            environment["ENCRYPTION_KEYS_FILE"] = str(self._encryption_keys())
        return environment

    def _encryption_keys(self) -> Path:
        """A key of this folder's own, made once: without it, the tokens in its database cannot be read again."""
        path = self.folder / "encryption_keys"
        if not path.exists():
            key = base64.b64encode(secrets.token_bytes(32)).decode()
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(f"devstack:{key}\n")
        return path

    def _timed(self, what: str, start: Callable[[], object]) -> None:
        began = time.monotonic()
        start()
        self._say(f"{what}: {time.monotonic() - began:.1f} s")


class _Ports:
    """The stack's ports by name, kept in its folder: addresses outlive a restart if nobody took them meanwhile."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ports: dict[str, int] = {}
        try:
            self._last: dict[str, int] = json.loads(file.read_text())
        except (FileNotFoundError, ValueError):
            self._last = {}

    def of(self, name: str) -> int:
        if name not in self._ports:
            self._ports[name] = free_port(self._last.get(name))
            self._file.write_text(json.dumps(self._last | self._ports))
        return self._ports[name]

    def release(self) -> None:
        for port in self._ports.values():
            release(port)
        self._ports.clear()
