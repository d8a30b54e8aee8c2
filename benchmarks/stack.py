"""The servers, the simulated Allegro and any number of replicas of each service, for one benchmark.

The servers come from `devstack`, so `KAFKA=`, `DATABASE_URL` and `KAFKA_BOOTSTRAP_SERVERS` choose them here, too. Each
run of services has topics of its own: what an earlier one left behind does not count for the next.
"""

import asyncio
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path

import asyncpg
import psutil
import uvloop

from devstack.allegro import Control
from devstack.kafka_client import finish
from devstack.ports import free_port, release
from devstack.postgres import Postgres
from devstack.processes import Child
from devstack.stack import READY_SECONDS, Stack, without_ours
from shared.allegro.connection import Allegro, connect
from shared.database import open_pool
from shared.health import Health
from shared.service import BackgroundLoops
from shared.settings import AllegroSettings, DatabaseSettings, EncryptionSettings, KafkaSettings
from shared.topics import Topics, create_topics

NO_LIMITS = ("--client-limit", "0", "--events-limit", "0", "--list-limit", "0", "--detail-limit", "0")
_CONNECTING = ("--device-limit", "0", "--device-interval", "1")
_CONSENTS_AT_A_TIME = 50


class Settings(DatabaseSettings, KafkaSettings, AllegroSettings, EncryptionSettings):
    """What a benchmark itself needs to act as a service does."""


@dataclass(frozen=True)
class Seller:
    """A connected seller: our token and Allegro's id."""

    token_id: int
    seller_id: str


class Replica:
    """One process of a service, and what it has cost since it was started."""

    def __init__(self, service: str, child: Child, port: int) -> None:
        self.service = service
        self.child = child
        self.port = port

    def kill(self) -> None:
        self.child.kill()
        release(self.port)

    def cpu_seconds(self) -> float:
        times = psutil.Process(self.child.pid).cpu_times()
        return float(times.user + times.system)

    def most_resident_bytes(self) -> int:
        """The most that it ever had of the machine's memory, shared pages counted whole (VmHWM, proc(5))."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024

    def memory_bytes(self) -> int:
        """What it holds of the machine's memory by itself; pages shared with other processes are not counted."""
        return int(psutil.Process(self.child.pid).memory_full_info().uss)


class BenchStack:
    """A running stack without services; `services` starts some."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        assert stack.simulator is not None  # noqa: S101 - a benchmark always has one
        self.simulator_pid = stack.simulator.child.pid
        self.simulator_url = stack.simulator.url
        self.database = stack.database

    def control(self) -> Control:
        return Control(self.simulator_url)

    @property
    def postgres_pid(self) -> int:
        """Of the embedded server; raises RuntimeError where another one is used."""
        server = self._stack.database
        if not isinstance(server, Postgres):
            raise RuntimeError("the CPU of PostgreSQL can be measured only without DATABASE_URL")
        return server.pid

    @property
    def folder(self) -> Path:
        """Where the run keeps data and logs."""
        return self._stack.folder

    def environment(self, **extra: str) -> dict[str, str]:
        """What services are started with."""
        return {**self._stack.environment(), **extra}

    def settings(self, environment: Mapping[str, str] | None = None) -> Settings:
        """The same as settings, without the limits that would slow a benchmark's own preparations down."""
        known = {
            name.lower(): value
            for name, value in (environment or self.environment()).items()
            if name.lower() in Settings.model_fields
        }
        many = {name: 1_000_000_000 for name in Settings.model_fields if name.endswith("_limit_per_minute")}
        return Settings.model_validate({**known, **many})

    def fresh_topics(self, *, partitions: int = 12) -> dict[str, str]:
        """Create topics under a new prefix; returns what the services of one run get told."""
        prefix = f"bench-{secrets.token_hex(4)}-"
        settings = self.settings()
        finish(
            create_topics(settings.kafka_bootstrap_servers, Topics(prefix), partitions=partitions, replication_factor=1)
        )
        return self.environment(KAFKA_TOPIC_PREFIX=prefix)

    @contextmanager
    def services(self, environment: Mapping[str, str], **replicas: int) -> Iterator[dict[str, list[Replica]]]:
        """So many replicas of each service, ready; killed at the end of the block."""
        started: dict[str, list[Replica]] = {service: [] for service in replicas}
        try:
            for service, count in replicas.items():
                for number in range(count):
                    started[service].append(self._start(service, number, environment))
            for each in started.values():
                for replica in each:
                    replica.child.wait_until_http(f"http://127.0.0.1:{replica.port}/readyz", READY_SECONDS)
            yield started
        finally:
            # Nothing of a run is kept, so nobody has to finish what is in hand.
            for each in started.values():
                for replica in each:
                    replica.kill()

    def _start(self, service: str, number: int, environment: Mapping[str, str]) -> Replica:
        port = free_port()
        child = Child(
            f"{service} {number}",
            [sys.executable, "-m", f"services.{service}"],
            log=self._stack.logs / f"{service}-{number}.out",
            env={**environment, f"{service.upper()}_HTTP_PORT": str(port)},
            folder=self.folder,
            grace_seconds=30,
        )
        child.start()
        return Replica(service, child, port)

    @asynccontextmanager
    async def pool(self) -> AsyncIterator[asyncpg.Pool]:
        opened = await open_pool(self._stack.database.url(), service="benchmark", max_size=10)
        try:
            yield opened
        finally:
            opened.terminate()

    @asynccontextmanager
    async def allegro(self, pool: asyncpg.Pool) -> AsyncIterator[Allegro]:
        """The product's own way to Allegro, without limits."""
        settings = self.settings()
        async with AsyncExitStack() as stack, BackgroundLoops(Health()) as loops:
            yield await connect(stack, settings, settings.keyring(), pool, loops)

    async def connect_sellers(self, pool: asyncpg.Pool, count: int, *, names: int = 1) -> list[Seller]:
        """Connect sellers by the device flow, each under so many names; no schedule, no cursor and no task with it."""
        async with self.allegro(pool) as allegro, self.control() as control:
            places = asyncio.Semaphore(_CONSENTS_AT_A_TIME)

            async def one(number: int) -> list[Seller]:
                async with places:
                    code = await allegro.oauth.start_device_flow()
                    seller_id = await control.consent(code.user_code)
                    await asyncio.sleep(code.interval)
                    pair = await allegro.oauth.poll_device_code(code.device_code)
                    async with pool.acquire() as connection, connection.transaction():
                        return [
                            Seller(
                                await allegro.vault.store_new(connection, f"bench-{number * names + name}", pair),
                                seller_id,
                            )
                            for name in range(names)
                        ]

            return [*chain.from_iterable(await asyncio.gather(*(one(number) for number in range(count))))]


async def give_schedules(
    pool: asyncpg.Pool, sellers: Sequence[Seller], *, interval_seconds: int, spread: timedelta = timedelta()
) -> None:
    """Have the sellers' journals read from now on, as if their initial loads were done."""
    token_ids = [seller.token_id for seller in sellers]
    await pool.execute(
        "INSERT INTO journal_cursors (user_token_id, stored_event_id, covered_event_id)"
        " SELECT id, micros, micros FROM unnest($1::bigint[]) AS t (id),"
        " (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS micros) AS now",
        token_ids,
    )
    await pool.execute(
        "INSERT INTO active_sync_schedules (user_token_id, user_id, interval_seconds, next_run, next_full_run)"
        " SELECT id, user_id, $2, now() + random() * $3::interval, now() + interval '10 days' FROM user_tokens"
        " WHERE id = ANY($1::bigint[])",
        token_ids,
        interval_seconds,
        spread,
    )


@contextmanager
def bench_stack(
    simulator_options: Sequence[str],
    environment: Mapping[str, str],
    *,
    commit_times: bool = False,
    choice: Mapping[str, str] = os.environ,
) -> Iterator[BenchStack]:
    """PostgreSQL with the newest schema, a broker and a simulated Allegro, in a folder that goes away afterwards.

    `environment` is what the services get on top of ours, `choice` names the servers. With `commit_times`, PostgreSQL
    remembers when a row was committed.
    """
    with tempfile.TemporaryDirectory(prefix="orders-backup-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        stack = Stack(
            folder,
            choice,
            {**without_ours(os.environ), "KAFKA_TOPIC_PREFIX": f"bench-{secrets.token_hex(4)}-", **environment},
            simulator_options=[*_CONNECTING, *simulator_options],
            durable=True,
            working_folder=folder,
            say=lambda _text: None,
        )
        with stack:
            stack.start_servers()
            if commit_times:
                remember_commit_times(stack)
            stack.set_up()
            yield BenchStack(stack)


def remember_commit_times(stack: Stack) -> None:
    """Have PostgreSQL remember when a row was committed; restarts it."""

    async def switch_on() -> None:
        async with stack.connection() as connection:
            await connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")

    uvloop.run(switch_on())
    stack.database.stop()
    stack.database.start()


def say(text: str) -> None:
    """A line for whoever watches; results go through `benchmarks.report`."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
