"""Does to a running stack what the plan says, and notes when each fault began and ended."""

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
import httpx
import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaError

from devstack.allegro import Control
from devstack.canary import Scanner, look_through_topics
from devstack.chaos.broker_view import Firsts, committed_offsets, delete_topics, first_records, members_of, survivors
from devstack.chaos.leases import Fences, leases_of, taken_over
from devstack.chaos.plan import REPLICAS, Injection, Kind, replicas_of, service_of
from devstack.chaos.shifted_clock import SET_RIGHT
from devstack.chaos.spoiled import spoiled_records
from devstack.errors import DevstackError
from devstack.postgres import Postgres
from devstack.processes import Child
from devstack.secrecy import look_through_answer
from devstack.stack import READY_SECONDS, Stack
from devstack.tansu import Tansu
from shared.leaderless_group import free_if_leaderless
from shared.settings import KafkaSettings
from shared.topics import Topics, create_topics

# So long the next fault of a lane waits for the target of the last one; servers that are away hold it up, too.
_UP_SECONDS = 20.0
_GROUP_EMPTY_SECONDS = 30.0
_AGAIN_SECONDS = 60.0
_ENOUGH_SECONDS = 10.0
_CLOCK_TOLERANCE_SECONDS = 10.0
_SCAN_SECONDS = 20.0
# A busy machine, or one that has just started a server, answers late: asked again, but not for ever.
_PATIENCE_SECONDS = 180.0
_LOOK_SECONDS = 0.25
_AMID_WORK_SECONDS = 20.0
_MOMENT_SECONDS = 0.05
_SESSION_SECONDS = 10.0
_POLL_MS = 250
# A replica that stands still does not answer, and others wait for it no longer.
_ANSWER_SECONDS = 10.0
# Longer than consumers need, even after a leader of their group was lost.
_HIDDEN_SECONDS = 100.0
# A refresh that fails meets nobody: few sellers, many faults.
_CLASHES = 3
_JOINED = re.compile(r'orders_backup_token_refreshes_total\{outcome="joined"\} (\S+)')
_PARTITIONS = 12


_AWAY = (KafkaError, OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, httpx.HTTPError)
_Answer = TypeVar("_Answer")


class UnansweredError(DevstackError):
    """A server did not answer the harness for so long that the fault cannot be judged."""


@dataclass
class Injected:
    """A fault that was done: when it began and when its target was itself again, in seconds since 1970."""

    injection: Injection
    began: float
    ended: float = 0.0
    effect: str = ""
    """What shows that it was done, where that is not plain."""
    in_vain: str = ""
    """Why it was none."""
    recovery_seconds: float = 0.0
    undisturbed_seconds: float = 0.0
    """What of it no other fault lasted."""


@dataclass
class LookedThrough:
    """Records that were looked through for secrets before they were lost, and looks that found no time for it."""

    records: int = 0
    broken_off: list[str] = field(default_factory=list)


class Injector:
    """One run's faults; all are done when `run` comes back.

    What a fault holds (a service, a server) no other fault touches until the target is up again, however long that
    takes on this machine: the plan's times are when a fault begins at the earliest.
    """

    def __init__(
        self,
        stack: Stack,
        control: Control,
        tokens: Sequence[int],
        faults: Mapping[str, Any],
        scanner: Scanner,
        say: Callable[[str], None],
    ) -> None:
        self._stack = stack
        self._control = control
        self._tokens = tokens
        self._faults = faults
        self._scanner = scanner
        self._say = say
        self._topics = Topics(stack.environment()["KAFKA_TOPIC_PREFIX"])
        self._held: dict[str, asyncio.Lock] = {}
        self.looked_through = LookedThrough()
        self.done: list[Injected] = []
        self.left_out = 0
        self.down: set[str] = set()
        """Replicas that do not run because we stopped them."""
        self.spoiled: set[bytes] = set()
        """Records that have to be dead letters, and nothing else."""
        self.unclean_ends: list[str] = []
        """Services that were asked to end, and did not do so by themselves or not well."""

    @property
    def _session_seconds(self) -> float:
        return self._stack.broker.session_timeout_seconds or _SESSION_SECONDS

    async def run(self, plan: Sequence[Injection], seconds: float) -> None:
        """Do what is planned, each at its time or as soon as those before it allow.

        On a slow machine some would begin when the time is up. They are left out, but for those whose like has not
        been done yet: of these a run must not have fewer.
        """
        started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for injection in plan:
                await asyncio.sleep(max(0.0, started + injection.at_seconds - time.monotonic()))
                tasks.create_task(self._do(injection, started, seconds))

    async def _do(self, injection: Injection, started: float, seconds: float) -> None:
        ways: Mapping[Kind, Callable[[Injected], Awaitable[None]]] = {
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
            Kind.SPOILED: self._spoil_topics,
            Kind.REFRESHES: self._clash_refreshes,
            Kind.ALLEGRO_AWAY: self._take_allegro_away,
        }
        async with self._hold(injection.holds):
            if time.monotonic() - started > seconds and any(one.injection.is_like(injection) for one in self.done):
                self.left_out += 1
                return
            self._say(f"  {time.monotonic() - started:5.1f} s: {injection}")
            injected = Injected(injection, time.time())
            self.done.append(injected)
            try:
                await ways[injection.kind](injected)
            except UnansweredError as error:
                injected.in_vain = str(error)
            injected.ended = injected.ended or time.time()

    @asynccontextmanager
    async def _hold(self, names: frozenset[str]) -> AsyncIterator[None]:
        async with AsyncExitStack() as held:
            for name in sorted(names):  # everybody in the same order, so that nobody waits for each other
                await held.enter_async_context(self._held.setdefault(name, asyncio.Lock()))
            yield

    async def _patiently(self, ask: Callable[[], Awaitable[_Answer]], what: str) -> _Answer:
        """The answer of a server that may be struck just now; raises UnansweredError after some minutes without one."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                async with asyncio.timeout(_GROUP_EMPTY_SECONDS):
                    return await ask()
            except _AWAY as error:
                if time.monotonic() > deadline:
                    raise UnansweredError(f"{what}: {error!r}") from error
                await asyncio.sleep(_LOOK_SECONDS)

    async def _kill(self, injected: Injected) -> None:
        injection = injected.injection
        self.down.add(injection.target)
        self._stack.kill(injection.target)
        await asyncio.sleep(injection.for_seconds)
        await self._start_and_wait(injected, injection.target)

    async def _restart(self, injected: Injected) -> None:
        name = injected.injection.target
        self.down.add(name)
        await self._stop(name)
        await self._start_and_wait(injected, name)

    async def _stop(self, name: str) -> None:
        code = await asyncio.to_thread(self._stack.services[name].stop)
        if code != 0:
            self.unclean_ends.append(f"{name} was asked to end and did so with exit code {code}")

    async def _pause(self, injected: Injected) -> None:
        """Longer than leases and sessions last: others have to have taken over what the process held."""
        injection = injected.injection
        child, service = self._stack.services[injection.target], service_of(injection.target)
        process = psutil.Process(child.pid)
        try:
            held = await self._stop_amid_work(child) if service == "poller" else {}
            child.send(signal.SIGSTOP)
            end = time.monotonic() + injection.for_seconds
            for group in _groups(service, self._topics):
                await self._note_absence(injected, group, end)
            await asyncio.sleep(max(0.0, end - time.monotonic()))
            if service == "poller":
                taken = await self._of_leases(lambda database: taken_over(database, held))
                injected.effect = f"others took over {len(taken)} of {len(held)} leases"
                injected.in_vain = "" if taken else injected.effect
            if not process.is_running() or process.status() != psutil.STATUS_STOPPED:
                injected.in_vain = "it did not stand still to the end"
        finally:
            child.send(signal.SIGCONT)

    async def _stop_amid_work(self, child: Child) -> Fences:
        """Have it stand still while it holds leases, which it does for moments only; returns them."""
        deadline = time.monotonic() + _AMID_WORK_SECONDS
        while True:
            child.send(signal.SIGSTOP)
            held = await self._of_leases(lambda database: leases_of(database, child.pid))
            if held:
                # A statement that was under way may have ended them.
                await asyncio.sleep(_LOOK_SECONDS)
                held = await self._of_leases(lambda database: leases_of(database, child.pid))
            if held or time.monotonic() > deadline:
                return held
            child.send(signal.SIGCONT)
            await asyncio.sleep(_MOMENT_SECONDS)

    async def _of_leases(self, look: Callable[[asyncpg.Connection], Awaitable[_Answer]]) -> _Answer:
        async def ask() -> _Answer:
            async with self._stack.connection() as database:
                return await look(database)

        return await self._patiently(ask, "looking for leases")

    async def _note_absence(self, injected: Injected, group: str, end: float) -> None:
        """Wait until the group is without a member, or for `end`.

        A broker that has lost its groups meanwhile knows only those that have joined since, which comes to the same.
        """
        began = time.monotonic()
        await asyncio.sleep(self._session_seconds)
        injected.in_vain = "its group kept it as a member"
        while injected.in_vain and time.monotonic() < end:
            try:
                if 0 < await members_of(self._stack.broker.bootstrap_servers, group) < REPLICAS:
                    injected.effect = f"its group went on without it after {time.monotonic() - began:.0f} s"
                    injected.in_vain = ""
            except _AWAY:
                pass  # the broker is struck, too
            await asyncio.sleep(_LOOK_SECONDS)

    async def _shift_clock(self, injected: Injected) -> None:
        injection = injected.injection
        launcher = ("devstack.chaos.shifted_clock", str(injection.shift_seconds))
        await self._replace(injection.target, launcher)
        try:
            await self._until_up(injection.target)
            ahead = await self._ahead(injection.target)
            await asyncio.sleep(injection.for_seconds / 2)
            self._stack.services[injection.target].send(SET_RIGHT)
            await asyncio.sleep(injection.for_seconds / 2)
            jumped = await self._ahead(injection.target)
            injected.effect = f"its clock was off by {ahead:+.0f} s, and then by {jumped:+.0f} s"
            if max(abs(ahead - injection.shift_seconds), abs(jumped)) > _CLOCK_TOLERANCE_SECONDS:
                injected.in_vain = injected.effect
        finally:
            # Started by the same command once more, it would be wrong once more.
            await self._replace(injection.target, ())
        injected.ended = time.time()
        await self._until_up(injection.target)

    async def _ahead(self, name: str) -> float:
        """By how many seconds a service's clock is ahead of ours, by the date that it states."""

        async def ask() -> float:
            async with httpx.AsyncClient(timeout=_ANSWER_SECONDS) as http:
                answer = await http.get(f"{self._stack.url(name)}/livez")
                return parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time()

        return await self._patiently(ask, f"the date of {name}")

    async def _replace(self, name: str, launcher: Sequence[str]) -> None:
        self.down.add(name)
        self._stack.kill(name)
        self._stack.services[name] = self._stack.process(name, launcher=launcher)
        await self._start(name)

    async def _restart_postgres(self, injected: Injected) -> None:
        injection = injected.injection
        database = self._stack.database
        if not isinstance(database, Postgres):
            raise DevstackError("Chaos needs a PostgreSQL of its own: unset DATABASE_URL.")
        before = await self._postgres_started_at()
        await asyncio.to_thread(database.stop, "fast" if injection.kind is Kind.POSTGRES_FAST else "immediate")
        await asyncio.sleep(injection.for_seconds)
        database.start()
        if await self._postgres_started_at() <= before:
            injected.in_vain = "it is the server of before"

    async def _postgres_started_at(self) -> datetime:
        async def ask() -> datetime:
            async with self._stack.connection() as database:
                started_at: datetime = await database.fetchval("SELECT pg_postmaster_start_time()")
                return started_at

        return await self._patiently(ask, "when PostgreSQL was started")

    async def _restart_broker(self, injected: Injected) -> None:
        before = await self._before_a_loss()
        await asyncio.to_thread(self._stack.broker.stop)
        self._stack.broker.start()
        kept = survivors(before, await self._first_records())
        # What becomes of the data is the broker's affair: the embedded one keeps it in memory only.
        injected.effect = f"{len(kept)} of {len(before)} partitions kept their records"
        if before and not kept and not isinstance(self._stack.broker, Tansu):
            injected.in_vain = "a broker that keeps its records was to be restarted, and lost them"

    async def _wipe_broker(self, injected: Injected) -> None:
        before = await self._before_a_loss()
        self._stack.broker.wipe()
        await self._note_loss(injected, before)

    async def _create_topics_again(self, injected: Injected) -> None:
        """Delete every topic while everybody uses it. The services create what is missing, too: whoever is first."""
        await self._until_topics_exist(self._topics)
        before = await self._before_a_loss()
        servers = self._stack.broker.bootstrap_servers
        deleted = await self._patiently(lambda: delete_topics(servers, self._topics.all()), "deleting topics")
        if missing := set(self._topics.all()).difference(deleted):
            injected.in_vain = f"there was no topic {', '.join(sorted(missing))}"
        await self._until_topics_exist(self._topics)
        await self._note_loss(injected, before)

    async def _before_a_loss(self) -> Firsts:
        """Look through the records while they are there, and note with which each partition begins.

        After another loss it takes moments until there is something to lose again.
        """
        await self._until_records()
        broker = self._stack.broker.bootstrap_servers
        try:
            async with asyncio.timeout(_SCAN_SECONDS):
                self.looked_through.records += await look_through_topics(self._scanner, broker, self._topics.prefix)
        except (TimeoutError, KafkaError) as error:
            self.looked_through.broken_off.append(repr(error))
        return await self._first_records()

    async def _until_records(self) -> None:
        deadline = time.monotonic() + _AGAIN_SECONDS
        while not await self._first_records() and time.monotonic() < deadline:  # noqa: ASYNC110 - others publish
            await asyncio.sleep(_LOOK_SECONDS)

    async def _first_records(self) -> Firsts:
        servers, prefix = self._stack.broker.bootstrap_servers, self._topics.prefix
        return await self._patiently(lambda: first_records(servers, prefix), "reading the oldest records")

    async def _note_loss(self, injected: Injected, before: Firsts) -> None:
        """A loss of what was not there is none, nor one after which a record stands where it stood."""
        kept = survivors(before, await self._first_records())
        injected.effect = f"{len(before)} partitions lost their records"
        if not before:
            injected.in_vain = "there were no records"
        elif kept:
            injected.in_vain = f"these kept their records: {', '.join(kept)}"

    async def _until_topics_exist(self, topics: Topics) -> None:
        """A topic that is still being deleted cannot be created."""
        servers = [self._stack.broker.bootstrap_servers]
        await self._patiently(
            lambda: create_topics(servers, topics, partitions=_PARTITIONS, replication_factor=1), "creating topics"
        )

    async def _reset_offsets(self, injected: Injected) -> None:
        """Stop a service's replicas, since a group in use takes no offsets from others, and begin at 0 again."""
        service = injected.injection.target
        names = replicas_of(service)
        groups = _groups(service, self._topics)
        await self._until_consumed(groups)
        self.down.update(names)
        for name in names:
            self._stack.services[name].ask_to_stop()
        for name in names:
            await self._stop(name)
        try:
            before = await self._committed(groups)
            for group, consumed in groups.items():
                try:
                    # In a thread of its own: the starts of servers hold up this loop for longer than a session lasts.
                    await asyncio.to_thread(asyncio.run, self._reset_group(group, consumed))
                except (TimeoutError, KafkaError) as error:
                    injected.in_vain = f"{group} could not be reset: {error!r}"
            if not_reset := sum((await self._committed(groups)).values()):
                injected.in_vain = injected.in_vain or f"the offsets still add up to {not_reset}"
        finally:
            for name in names:
                await self._start(name)
        injected.ended = time.time()
        for name in names:
            await self._until_up(name)
        await self._note_repetition(injected, groups, before)

    async def _until_consumed(self, groups: Mapping[str, Sequence[str]]) -> None:
        """Where the broker has just lost its data there is nothing yet that could come again."""
        deadline = time.monotonic() + _AGAIN_SECONDS
        await self._until_topics_exist(self._topics)
        while time.monotonic() < deadline:
            if sum((await self._committed(groups)).values()):
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _committed(self, groups: Mapping[str, Sequence[str]]) -> dict[TopicPartition, int]:
        stands: dict[TopicPartition, int] = {}
        for group, topics in groups.items():
            stands |= await self._committed_by(group, topics)
        return stands

    async def _committed_by(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """A group whose members come and go has no coordinator for moments."""
        servers = self._stack.broker.bootstrap_servers
        return await self._patiently(
            lambda: committed_offsets(servers, group, _partitions_of(topics)), f"where {group} stands"
        )

    async def _note_repetition(
        self, injected: Injected, groups: Mapping[str, Sequence[str]], before: Mapping[TopicPartition, int]
    ) -> None:
        """Records came again if the group, having stood at 0, commits them again. All of them come in the end; that
        many have after some seconds is enough to know."""
        wanted, again = sum(before.values()), 0
        began = time.monotonic()
        while again < wanted and time.monotonic() - began < (_ENOUGH_SECONDS if again else _AGAIN_SECONDS):
            await asyncio.sleep(_LOOK_SECONDS)
            now = await self._committed(groups)
            again = sum(min(offset, now.get(partition, 0)) for partition, offset in before.items())
        injected.effect = f"{again} of {wanted} records were done again"
        if not again:
            injected.in_vain = injected.in_vain or f"none of {wanted} records came again"

    async def _reset_group(self, group: str, topics: Sequence[str]) -> None:
        try:
            await self._commit_zero(group, topics)
        except TimeoutError:
            # The replicas may have been stopped in the middle of a rebalance, which the embedded broker never ends.
            await free_if_leaderless(
                KafkaSettings(kafka_bootstrap_servers=(self._stack.broker.bootstrap_servers,)), group
            )
            await self._commit_zero(group, topics)

    async def _commit_zero(self, group: str, topics: Sequence[str]) -> None:
        """Join the group as its only member and commit 0 everywhere. The embedded broker takes offsets from members
        only, and remembers those that left until their session is over."""
        consumer = AIOKafkaConsumer(
            *topics,
            bootstrap_servers=self._stack.broker.bootstrap_servers,
            group_id=group,
            enable_auto_commit=False,
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=round(self._session_seconds * 1000),
            heartbeat_interval_ms=400,
        )
        partitions = set(_partitions_of(topics))
        async with asyncio.timeout(_GROUP_EMPTY_SECONDS):
            await consumer.start()
            try:
                while consumer.assignment() != partitions:
                    await consumer.getmany(timeout_ms=_POLL_MS)  # takes part in the rebalance; nothing is kept
                await consumer.commit(dict.fromkeys(partitions, 0))
            finally:
                await consumer.stop()

    async def _spoil_topics(self, injected: Injected) -> None:
        """Put records that nobody can read among the others; the broker is spared until they are dead letters."""
        await self._until_topics_exist(self._topics)
        records = list(spoiled_records(self._topics, uuid4().hex))
        self.spoiled |= {value for _, _, value in records}
        await self._send_patiently(records)
        injected.ended = time.time()
        began, sent_again = time.monotonic(), 0
        while (waiting := await self._without_dead_letter(records)) and time.monotonic() < began + _PATIENCE_SECONDS:
            # The embedded broker hides what a topic is sent just before it is there again, and nobody owes this.
            if isinstance(self._stack.broker, Tansu) and not sent_again and time.monotonic() > began + _HIDDEN_SECONDS:
                await self._send_patiently(waiting)
                sent_again = len(waiting)
            await asyncio.sleep(_LOOK_SECONDS)
        injected.effect = (
            f"{len(records) - len(waiting)} of {len(records)} records are dead letters, {sent_again} were sent again"
        )
        if waiting:
            injected.in_vain = injected.effect

    async def _send_patiently(self, records: Sequence[tuple[str, bytes | None, bytes]]) -> None:
        await self._patiently(lambda: self._send(records), "spoiling topics")

    async def _send(self, records: Sequence[tuple[str, bytes | None, bytes]]) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self._stack.broker.bootstrap_servers)
        try:
            await producer.start()
            for topic, key, value in records:
                await producer.send_and_wait(topic, value, key)
        finally:
            await producer.stop()

    async def _without_dead_letter(
        self, records: Sequence[tuple[str, bytes | None, bytes]]
    ) -> list[tuple[str, bytes | None, bytes]]:
        async def ask() -> set[bytes]:
            async with self._stack.connection() as database:
                values = [value for _, _, value in records]
                rows = await database.fetch("SELECT DISTINCT value FROM dead_letters WHERE value = ANY($1)", values)
                return {bytes(row["value"]) for row in rows}

        found = await self._patiently(ask, "counting dead letters")
        return [record for record in records if record[2] not in found]

    async def _clash_refreshes(self, injected: Injected) -> None:
        """End all access tokens, and ask every replica of the API for a refresh of every token at once."""
        urls = [self._stack.url(name) for name in replicas_of("api")]
        for _ in range(_CLASHES):
            await self._clash_once(injected, urls)
            if not injected.in_vain:
                return

    async def _clash_once(self, injected: Injected, urls: Sequence[str]) -> None:
        pairs, joined = await self._pairs(), await self._joined(urls)
        await self._control.expire_access()
        look = partial(look_through_answer, self._scanner)
        async with httpx.AsyncClient(timeout=_ANSWER_SECONDS, event_hooks={"response": [look]}) as http:
            # What they answer is of no matter here: that no token dies of it is checked at the end.
            answers = await asyncio.gather(
                *(
                    http.post(f"{url}/api/v1/tokens/{token}/refresh")
                    for url in urls
                    for token in self._tokens
                    for _ in range(2)
                ),
                return_exceptions=True,
            )
        answered = [answer for answer in answers if isinstance(answer, httpx.Response)]
        replicas = len({answer.url.port for answer in answered})
        new = await self._pairs() - pairs
        met = await self._joined(urls) - joined
        injected.effect = (
            f"{replicas} replicas gave {len(answered)} answers and took {new} new pairs; {met} times one found"
            " that another had been quicker"
        )
        is_in_vain = replicas < len(urls) or not new or not met
        injected.in_vain = f"nothing clashed: {injected.effect}" if is_in_vain else ""

    async def _joined(self, urls: Sequence[str]) -> int:
        """How often a refresh waited for another process's and took its pair."""

        async def ask() -> int:
            async with httpx.AsyncClient(timeout=_ANSWER_SECONDS) as http:
                told = [(await http.get(f"{url}/metrics")).raise_for_status().text for url in urls]
            return sum(int(float(value)) for text in told for value in _JOINED.findall(text))

        return await self._patiently(ask, "counting refreshes that met")

    async def _pairs(self) -> int:
        """Pairs of tokens that were ever stored."""

        async def ask() -> int:
            async with self._stack.connection() as database:
                count: int = await database.fetchval("SELECT sum(generation) FROM user_tokens")
                return count

        return await self._patiently(ask, "counting pairs of tokens")

    async def _take_allegro_away(self, injected: Injected) -> None:
        before = await self._refused_by_maintenance()
        await self._control.set_faults({**self._faults, "maintenance": True})
        await asyncio.sleep(injected.injection.for_seconds)
        await self._control.set_faults(self._faults)
        refused = await self._refused_by_maintenance() - before
        injected.effect = f"{refused} calls were refused"
        if not refused:
            injected.in_vain = "nobody called"

    async def _refused_by_maintenance(self) -> int:
        struck: Mapping[str, int] = (await self._control.stats())["faults_struck"]
        return struck.get("maintenance", 0)

    async def _start(self, name: str) -> None:
        child = self._stack.services[name]
        child.start()
        self.down.discard(name)

    async def _start_and_wait(self, injected: Injected, name: str) -> None:
        await self._start(name)
        injected.ended = time.time()
        await self._until_up(name)

    async def _until_up(self, name: str) -> None:
        """Until it says that it is ready, or for as long as one may wait for it: others may have been struck, too."""
        deadline = time.monotonic() + _UP_SECONDS
        async with httpx.AsyncClient(timeout=_ANSWER_SECONDS) as http:
            while time.monotonic() < deadline:
                try:
                    if (await http.get(f"{self._stack.url(name)}/readyz")).is_success:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(_LOOK_SECONDS)

    async def until_ready(self) -> None:
        """Wait until every replica says that it is ready."""
        for name, child in self._stack.services.items():
            await asyncio.to_thread(child.wait_until_http, f"{self._stack.url(name)}/readyz", READY_SECONDS)


def _partitions_of(topics: Sequence[str]) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for topic in topics for number in range(_PARTITIONS)]


def _groups(service: str, topics: Topics) -> Mapping[str, Sequence[str]]:
    """The group in which a service consumes, if it does, with its topics."""
    consumed = {
        "writer": (topics.order_events, topics.orders, topics.dead_letters),
        "enricher": (topics.order_events, topics.order_windows),
    }
    return {f"{topics.prefix}{service}": consumed[service]} if service in consumed else {}
