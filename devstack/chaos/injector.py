"""Does to a running stack what the plan says, and notes when each fault began and ended."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaError

from devstack.allegro import Control
from devstack.chaos.plan import REPLICAS, Injection, Kind
from devstack.errors import DevstackError
from devstack.postgres import Postgres
from devstack.stack import Stack, replica_names
from shared.topics import Topics, create_topics

_READY_SECONDS = 60.0
_GROUP_EMPTY_SECONDS = 60.0
_LOOK_SECONDS = 0.25
_POLL_MS = 250
# A replica that stands still does not answer, and others wait for it no longer.
_ANSWER_SECONDS = 10.0
_PARTITIONS = 12


@dataclass
class Injected:
    """A fault that was done: when it began and when its target was itself again, in seconds since 1970."""

    injection: Injection
    began: float
    ended: float = 0.0
    recovery_seconds: float = 0.0


class Injector:
    """One run's faults. All but the pauses, clocks and outages are done when `run` comes back."""

    def __init__(
        self,
        stack: Stack,
        control: Control,
        tokens: Sequence[int],
        faults: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._stack = stack
        self._control = control
        self._tokens = tokens
        self._faults = faults
        self._say = say
        self.done: list[Injected] = []
        self.down: set[str] = set()
        """Replicas that do not run because we stopped them."""

    async def run(self, plan: Sequence[Injection]) -> None:
        """Do everything that is planned, each at its time or as soon as the one before it allows."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for injection in plan:
                await asyncio.sleep(max(0.0, started + injection.at_seconds - time.monotonic()))
                self._say(f"  {time.monotonic() - started:5.1f} s: {injection}")
                doing = tasks.create_task(self._do(injection))
                if injection.kind not in (Kind.PAUSE, Kind.CLOCK, Kind.ALLEGRO_AWAY):
                    await doing

    async def _do(self, injection: Injection) -> None:
        ways: Mapping[Kind, Callable[[Injection], Awaitable[None]]] = {
            Kind.KILL: self._kill,
            Kind.RESTART: self._restart,
            Kind.PAUSE: self._pause,
            Kind.CLOCK: self._shift_clock,
            Kind.POSTGRES_FAST: self._restart_postgres,
            Kind.POSTGRES_IMMEDIATE: self._restart_postgres,
            Kind.BROKER_RESTART: self._restart_broker,
            Kind.BROKER_WIPE: self._wipe_broker,
            Kind.TOPICS: self._create_topics_again,
            Kind.OFFSETS: self._reset_offsets,
            Kind.REFRESHES: self._clash_refreshes,
            Kind.ALLEGRO_AWAY: self._take_allegro_away,
        }
        injected = Injected(injection, time.time())
        self.done.append(injected)
        await ways[injection.kind](injection)
        injected.ended = time.time()

    async def _kill(self, injection: Injection) -> None:
        self.down.add(injection.target)
        self._stack.kill(injection.target)
        await asyncio.sleep(injection.for_seconds)
        await self._start(injection.target)

    async def _restart(self, injection: Injection) -> None:
        self.down.add(injection.target)
        await asyncio.to_thread(self._stack.services[injection.target].stop)
        await self._start(injection.target)

    async def _pause(self, injection: Injection) -> None:
        child = self._stack.services[injection.target]
        child.send(signal.SIGSTOP)
        await asyncio.sleep(injection.for_seconds)
        child.send(signal.SIGCONT)

    async def _shift_clock(self, injection: Injection) -> None:
        launcher = ("devstack.chaos.shifted_clock", str(injection.shift_seconds))
        await self._replace(injection.target, launcher)
        await asyncio.sleep(injection.for_seconds)
        await self._replace(injection.target, ())

    async def _replace(self, name: str, launcher: Sequence[str]) -> None:
        self.down.add(name)
        self._stack.kill(name)
        self._stack.services[name] = self._stack.process(name, launcher=launcher)
        await self._start(name)

    async def _restart_postgres(self, injection: Injection) -> None:
        database = self._stack.database
        if not isinstance(database, Postgres):
            raise DevstackError("Chaos needs a PostgreSQL of its own: unset DATABASE_URL.")
        await asyncio.to_thread(database.stop, "fast" if injection.kind is Kind.POSTGRES_FAST else "immediate")
        await asyncio.sleep(injection.for_seconds)
        database.start()

    async def _restart_broker(self, _injection: Injection) -> None:
        self._stack.broker.restart()

    async def _wipe_broker(self, _injection: Injection) -> None:
        self._stack.broker.wipe()

    async def _create_topics_again(self, _injection: Injection) -> None:
        """Delete every topic while everybody uses it. The services create what is missing, too: whoever is first."""
        topics = Topics(self._stack.environment()["KAFKA_TOPIC_PREFIX"])
        admin = AIOKafkaAdminClient(bootstrap_servers=self._stack.broker.bootstrap_servers)
        await admin.start()
        try:
            present = set(await admin.list_topics())
            await admin.delete_topics([name for name in topics.all() if name in present])
        finally:
            await admin.close()
        await self._until_topics_exist(topics)

    async def _until_topics_exist(self, topics: Topics) -> None:
        """A topic that is still being deleted cannot be created."""
        async with asyncio.timeout(_GROUP_EMPTY_SECONDS):
            while True:
                try:
                    await create_topics(
                        [self._stack.broker.bootstrap_servers], topics, partitions=_PARTITIONS, replication_factor=1
                    )
                except KafkaError:
                    await asyncio.sleep(_LOOK_SECONDS)
                else:
                    return

    async def _reset_offsets(self, injection: Injection) -> None:
        """Stop a service's replicas, since a group in use takes no offsets from others, and begin at 0 again."""
        names = [name for name in replica_names(REPLICAS) if name.partition("-")[0] == injection.target]
        self.down.update(names)
        for name in names:
            self._stack.services[name].ask_to_stop()
        for name in names:
            await asyncio.to_thread(self._stack.services[name].stop)
        topics = Topics(self._stack.environment()["KAFKA_TOPIC_PREFIX"])
        for group, consumed in _groups(injection.target, topics).items():
            await self._commit_zero(group, consumed)
        for name in names:
            await self._start(name)

    async def _commit_zero(self, group: str, topics: Sequence[str]) -> None:
        """Join the group as its only member and commit 0 everywhere. The embedded broker takes offsets from members
        only, and remembers those that left until their session is over."""
        consumer = AIOKafkaConsumer(
            *topics,
            bootstrap_servers=self._stack.broker.bootstrap_servers,
            group_id=group,
            enable_auto_commit=False,
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=round((self._stack.broker.session_timeout_seconds or 10.0) * 1000),
            heartbeat_interval_ms=400,
        )
        partitions = {TopicPartition(topic, number) for topic in topics for number in range(_PARTITIONS)}
        async with asyncio.timeout(_GROUP_EMPTY_SECONDS):
            await consumer.start()
            try:
                while consumer.assignment() != partitions:
                    await consumer.getmany(timeout_ms=_POLL_MS)  # takes part in the rebalance; nothing is kept
                await consumer.commit(dict.fromkeys(partitions, 0))
            finally:
                await consumer.stop()

    async def _clash_refreshes(self, _injection: Injection) -> None:
        """End all access tokens, and ask every replica of the API for a refresh of every token at once."""
        await self._control.expire_access()
        urls = [self._stack.url(name) for name in replica_names(REPLICAS) if name.startswith("api")]
        async with httpx.AsyncClient(timeout=_ANSWER_SECONDS) as http:
            # What they answer is of no matter here: that no token dies of it is checked at the end.
            await asyncio.gather(
                *(
                    http.post(f"{url}/api/v1/tokens/{token}/refresh")
                    for url in urls
                    for token in self._tokens
                    for _ in range(2)
                ),
                return_exceptions=True,
            )

    async def _take_allegro_away(self, injection: Injection) -> None:
        await self._control.set_faults({**self._faults, "maintenance": True})
        await asyncio.sleep(injection.for_seconds)
        await self._control.set_faults(self._faults)

    async def _start(self, name: str) -> None:
        child = self._stack.services[name]
        child.start()
        self.down.discard(name)

    async def until_ready(self) -> None:
        """Wait until every replica says that it is ready."""
        for name, child in self._stack.services.items():
            await asyncio.to_thread(child.wait_until_http, f"{self._stack.url(name)}/readyz", _READY_SECONDS)


def _groups(service: str, topics: Topics) -> Mapping[str, Sequence[str]]:
    """The groups in which a service consumes, with their topics."""
    if service == "writer":
        return {f"{topics.prefix}writer": (topics.order_events, topics.orders, topics.dead_letters)}
    return {f"{topics.prefix}{service}-{topic}": (topic,) for topic in (topics.order_events, topics.order_windows)}
