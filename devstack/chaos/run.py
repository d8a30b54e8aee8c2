"""One run: connect the sellers, let them sell while faults strike, call the faults off, wait, compare everything."""

import argparse
import asyncio
import json
import logging
import os
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.table import Table

from devstack import processes
from devstack.allegro import Control
from devstack.canary import Scanner, look_through_files, look_through_tables, look_through_topics
from devstack.chaos import states, verdict
from devstack.chaos.injector import Injected, Injector
from devstack.chaos.plan import REPLICAS, make_plan
from devstack.chaos.watch import Watch, violations, watch_rows
from devstack.errors import DevstackError
from devstack.ledger import Comparison, compare, parse
from devstack.secrecy import Keys, known_secrets, look_through_answer
from devstack.stack import Stack, without_ours
from shared.topics import Topics

_POLL_SECONDS = 1.0
_CONSENT_SECONDS = 120.0
_TASK_SECONDS = 15.0
_SHOWN = 20
_QUIET_SECONDS = 15.0
_LIST_LAG_SECONDS = 5.0
# Between two steps of an order: so long that some are stored before they are merged with others.
_STEP_SECONDS = 2.0
_TIMEOUT_SECONDS = 5.0
# Bodies that PostgreSQL or ordinary readers stumble over, and that are nevertheless orders. They stay: they are data.
_TOXIC = {"toxic": {"rate": 0.02, "kinds": ["nul", "duplicate_keys", "huge_number", "big"], "amount": 200_000}}
_LYING_JOURNAL = {
    "journal_missing": 0.02,
    "journal_duplicate": 0.05,
    "journal_late": {"rate": 0.05, "amount": 5},
    "journal_shuffle": {"rate": 0.1, "amount": 3},
    "event_stats_null": 0.3,
    "list_lag_seconds": _LIST_LAG_SECONDS,
    "list_repeat": 0.1,
    "list_skip": 0.1,
    "list_slip": 0.1,
    "total_count_lies": 0.1,
    "merges": 0.05,
}
_BAD_NETWORK = {
    "http_429": {"rate": 0.002, "amount": 2},
    "http_5xx": 0.03,
    # Silent until the client gives up, which it does after _TIMEOUT_SECONDS; of slow bodies one half takes too long.
    "timeout": {"rate": 0.005, "amount": 0},
    "slow_body": {"rate": 0.01, "amount": _TIMEOUT_SECONDS * 1.4},
    "cut_connection": 0.02,
    "malformed_json": 0.02,
    "captcha_403": 0.1,
    "refresh_answer_lost": 0.15,
    # Nobody calls during a block. If it outlasted the 60 s for which a spent refresh token still works, a pair whose
    # answer was lost just before it could not be asked for again, and only the seller could mend that.
    "token_endpoint_429": {"rate": 0.15, "amount": 2},
    "invalid_grant_once": {"times": 2},
}
_FAULTS = {**_LYING_JOURNAL, **_BAD_NETWORK, **_TOXIC}
# Where Allegro alone is at fault: some events come hours late, which is after everything has been compared.
_LYING_ALLEGRO = {
    **_LYING_JOURNAL,
    "journal_missing": 0.01,
    "journal_late": {"rate": 0.02, "amount": 7200},
    "event_stats_null": 1.0,
}
_AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError, httpx.HTTPError)

# language=sql
_STATE = """
SELECT (SELECT count(*) FROM orders WHERE gone_at IS NULL) AS orders, (SELECT count(*) FROM order_events) AS events,
       (SELECT count(*) FROM pending_fetches) AS pending,
       (SELECT count(*) FROM sync_history WHERE completed_at IS NULL) AS runs,
       (SELECT count(*) FROM task_history WHERE status IN ('queued', 'running', 'stopping')) AS tasks,
       (SELECT count(*) FROM order_state_outbox) AS outbox,
       (SELECT count(*) FROM user_tokens WHERE status <> 'active') AS tokens
"""

_LOADED = "SELECT count(*) FROM sync_history WHERE kind = 'initial' AND completed_at IS NOT NULL"

_COVERED = "SELECT user_token_id, covered_event_id FROM journal_cursors"

_LAST_RUN = "SELECT * FROM sync_history WHERE task_id = $1"

# A look moves the time of an order that a page of the list leaves alone if nothing has changed.
_LOOKED_AT = """
SELECT count(*) FROM orders
 WHERE user_token_id = $1 AND observed_at >= $2 AND gone_at IS NULL
   AND NOT (observed_by = 'list' AND allegro_order_id = ANY($3))
"""

_CHANGES_SINCE = "SELECT order_id, op FROM chaos.changes WHERE user_token_id = $1 AND id > $2 ORDER BY id"


@dataclass(frozen=True)
class Options:
    """How long, and how much."""

    minutes: float = 3.0
    seed: int = 7
    sellers: int = 4
    orders: int = 1000
    live_rate: float = 4.0
    drain_seconds: float = 600.0
    calm: bool = False
    keep: bool = False

    @property
    def unlisted(self) -> Sequence[str]:
        """Users who are loaded before the first fault, and not listed again before the comparison: what is lost of
        them, no listing brings back. None where only Allegro is at fault, from the first listing on."""
        return () if self.calm else [f"shop-{number}" for number in range(2, self.sellers + 1, 2)]

    @property
    def listed(self) -> Sequence[str]:
        """Users whose first load is under way when the first fault strikes, and who are listed all the time."""
        return [user for number in range(1, self.sellers + 1) if (user := f"shop-{number}") not in self.unlisted]

    @property
    def faults(self) -> Mapping[str, object]:
        """Of Allegro, while the sellers sell."""
        return _LYING_ALLEGRO if self.calm else _FAULTS

    @property
    def first_faults(self) -> Mapping[str, object]:
        """Of Allegro, from the first consent on. A body that is toxic only later would change without an event."""
        return _LYING_ALLEGRO if self.calm else {**_TOXIC, "event_stats_null": 0.5}

    @property
    def lasting_faults(self) -> Mapping[str, object]:
        """Of Allegro, until the end."""
        return _LYING_ALLEGRO if self.calm else _TOXIC


@dataclass
class Report:
    """What a run has shown: `checks` has the complaints of each check, and all have to be empty."""

    checks: dict[str, list[str]] = field(default_factory=dict)
    done: list[Injected] = field(default_factory=list)
    left_out: int = 0
    memory: Mapping[str, float] = field(default_factory=dict)
    growth: Mapping[str, float] = field(default_factory=dict)
    struck: Mapping[str, int] = field(default_factory=dict)
    timeouts: int = 0
    comparison: Comparison = field(default_factory=Comparison)
    waits: Sequence[float] = ()
    drain_seconds: float = 0.0
    looked_through: dict[str, int] = field(default_factory=dict)
    looks_broken_off: int = 0
    """Topics that were lost before they had been looked through for secrets: there was no time."""
    megabytes: float = 0.0
    states: int = 0
    withheld: int = 0
    found_by_last_listing: int = 0

    @property
    def good(self) -> bool:
        return not any(self.checks.values())

    def as_json(self, options: Options, *, broken: str = "") -> str:
        """The last line of the run: the counts; of a broken run as far as they go."""
        verdict_in_a_word = "passed" if self.good else "failed"
        return json.dumps(
            {
                "chaos": "broken" if broken else verdict_in_a_word,
                **({"error": broken} if broken else {}),
                "seed": options.seed,
                "minutes": options.minutes,
                "faults": len(self.done),
                "faults_in_vain": sum(bool(one.in_vain) for one in self.done),
                "faults_left_out": self.left_out,
                "allegro_faults": sum(self.struck.values()),
                "timeouts": self.timeouts,
                "orders": self.comparison.orders,
                "merged": self.comparison.merged,
                "events": self.comparison.events,
                "states": self.states,
                "withheld": self.withheld,
                "found_by_last_listing": self.found_by_last_listing,
                "differences": self.comparison.differences,
                "problems": {name: len(complaints) for name, complaints in self.checks.items()},
                "recovery_seconds_p50": round(
                    verdict.quantile(sorted(one.recovery_seconds for one in self.done), 0.5), 1
                ),
                "recovery_seconds_max": round(max((one.recovery_seconds for one in self.done), default=0.0), 1),
                "recovery_seconds_undisturbed_max": round(
                    max((one.undisturbed_seconds for one in self.done), default=0.0), 1
                ),
                "wait_seconds": {
                    name: round(verdict.quantile(self.waits, share), 1)
                    for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
                },
                "drain_seconds": round(self.drain_seconds, 1),
                "memory_mb": {name: round(used) for name, used in self.memory.items()},
                "growth_mb": {name: round(grown) for name, grown in self.growth.items()},
                "looked_through": {
                    **self.looked_through,
                    "megabytes": round(self.megabytes),
                    "broken_off": self.looks_broken_off,
                },
            }
        )


class Chaos:
    """One run against a stack whose services have just been started."""

    def __init__(
        self,
        options: Options,
        stack: Stack,
        control: Control,
        scanner: Scanner,
        report: Report,
        say: Callable[[str], None],
    ) -> None:
        self._options = options
        self._stack = stack
        self._control = control
        self._scanner = scanner
        self._report = report
        self._say = say
        self._sellers: dict[int, str] = {}
        self._users: dict[int, str] = {}
        self._withheld: set[str] = set()
        self._began_us = 0
        """When the sellers began to sell."""
        self._topics = Topics(stack.environment()["KAFKA_TOPIC_PREFIX"])

    async def run(self) -> None:
        """Everything; what is wrong ends up in the report."""
        async with self._stack.connection() as database:
            await watch_rows(database)
        await self._control.set_faults(self._options.first_faults)
        async with self._api("api") as api:
            if not self._options.calm:
                await asyncio.gather(*(self._connect(api, user) for user in self._options.unlisted))
                await self._until_loaded()
            await asyncio.gather(*(self._connect(api, user) for user in self._options.listed))
        seconds = self._options.minutes * 60
        await self._control.set_faults(self._options.faults)
        self._began_us = time.time_ns() // 1000
        await self._control.start_live(
            round(seconds * self._options.live_rate), self._options.live_rate, step_seconds=_STEP_SECONDS
        )
        injector = Injector(
            self._stack, self._control, list(self._sellers), self._options.faults, self._scanner, self._say
        )
        watch = Watch(self._stack, injector.down.__contains__)
        watching = asyncio.create_task(watch.run())
        asking = asyncio.create_task(asyncio.sleep(0) if self._options.calm else self._ask_for_listings())
        try:
            await injector.run([] if self._options.calm else make_plan(self._options.seed, seconds), seconds)
            asking.cancel()
            await self._control.set_faults(self._options.lasting_faults)
            self._say("waiting until nothing is owed any more")
            await self._settle(injector)
            await self._judge_before_the_last_listing()
            await self._list_once_more()
            await self._judge(injector, watch)
        finally:
            watching.cancel()
            asking.cancel()
            ends = await asyncio.gather(watching, asking, return_exceptions=True)
            self._report.done, self._report.left_out = injector.done, injector.left_out
        for end in ends:
            if isinstance(end, Exception):
                raise end

    def _api(self, name: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"{self._stack.url(name)}/api/v1", timeout=60, event_hooks={"response": [self._saw]}
        )

    async def _saw(self, answer: httpx.Response) -> None:
        await look_through_answer(self._scanner, answer)
        self._count("answers", 1)

    def _count(self, what: str, number: int) -> None:
        self._report.looked_through[what] = self._report.looked_through.get(what, 0) + number

    async def _connect(self, api: httpx.AsyncClient, user: str) -> None:
        """The device flow, before anything goes wrong: what may go wrong in it has tests of its own."""
        authorization = (await api.post("/tokens/auth/initialize", json={"user_id": user})).raise_for_status().json()
        seller = await self._control.consent(authorization["user_code"])
        async with asyncio.timeout(_CONSENT_SECONDS):
            while True:
                task = (await api.get(f"/tokens/auth/task/{authorization['task_id']}")).raise_for_status().json()
                if task["status"] != "PENDING":
                    break
                await asyncio.sleep(_POLL_SECONDS)
        if task["status"] != "SUCCESS":
            raise DevstackError(f"{user} could not be connected: {task}")
        self._sellers[task["token_id"]] = seller
        self._users[task["token_id"]] = user

    async def _until_loaded(self) -> None:
        async with asyncio.timeout(self._options.drain_seconds), self._stack.connection() as database:
            while True:
                if await database.fetchval(_LOADED) == len(self._sellers):
                    return
                await asyncio.sleep(_POLL_SECONDS)

    async def _ask_for_listings(self) -> None:
        """While faults strike, listings are always under way; whether the API answers is of no matter here. Only of
        every other seller: what is lost of the others no listing brings back before the comparison."""
        kinds = ({"kind": "full"}, {"from": "2026-01-01T00:00:00Z"})
        users = self._options.listed
        for number, body in enumerate(cycle(kinds)):
            async with self._api("api" if number % 2 else "api-2") as api:
                try:
                    await api.post(f"/sync/manual/{users[number // 2 % len(users)]}", json=body)
                except httpx.HTTPError as error:
                    self._say(f"  the API did not take a task: {type(error).__name__}")
            await asyncio.sleep(_TASK_SECONDS)

    async def _settle(self, injector: Injector) -> None:
        """Wait until nothing is owed any more; what still is when the time is up is found by the checks."""
        began = written_at = time.monotonic()
        with suppress(DevstackError):  # what does not come back shows below
            await injector.until_ready()
        shown, written = 0.0, -1
        while time.monotonic() - began < self._options.drain_seconds:
            live = await self._control.live()
            wanted = (await self._control.summary())["events"]
            try:
                async with self._stack.connection() as database:
                    state = await database.fetchrow(_STATE)
            except _AWAY:
                await asyncio.sleep(_POLL_SECONDS)
                continue
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                self._say(f"  {dict(state)} of {wanted} events")
            owed = state["pending"] + state["runs"] + state["tasks"] + state["outbox"] + state["tokens"]
            if wanted != written:
                written, written_at = wanted, time.monotonic()
            # Where events come hours late, all is over when no other one has come for a while.
            is_quiet = self._options.calm and time.monotonic() - written_at > _QUIET_SECONDS
            sells = live["remaining"] or live["steps_to_come"] or (live["events_to_come"] and not is_quiet)
            if not sells and state["events"] >= wanted and not owed:
                break
            await asyncio.sleep(_POLL_SECONDS)
        self._report.drain_seconds = time.monotonic() - began

    async def _judge_before_the_last_listing(self) -> None:
        """What the journal told of has to be stored by now, and no listing is to thank for it."""
        async with self._stack.connection() as database:
            self._withheld = await self._find_withheld(database)
            found = await compare(self._control, list(self._sellers.values()), database, may_differ=self._withheld)
        self._report.withheld = len(self._withheld)
        self._report.checks["before the last listing"] = [str(difference) for difference in found.shown]

    async def _find_withheld(self, database: asyncpg.Connection) -> set[str]:
        """The orders that only a listing can bring."""
        covered = {row["user_token_id"]: row["covered_event_id"] or 0 for row in await database.fetch(_COVERED)}
        return {
            line["order_id"]
            for token, seller in self._sellers.items()
            async for line in self._ledger_of(seller)
            if verdict.may_differ(line, covered[token])
        }

    async def _ledger_of(self, seller_id: str) -> AsyncIterator[Mapping[str, Any]]:
        async for line in self._control.ledger("orders", seller_id):
            yield parse(line)

    async def _list_once_more(self) -> None:
        """One reconciliation of every seller: it finds what the journal never told, and its counts are exact."""
        summary = {one["seller_id"]: one for one in (await self._control.summary())["by_seller"]}
        complaints: list[str] = []
        async with self._api("api") as api, self._stack.connection() as database:
            before = await database.fetchval("SELECT coalesce(max(id), 0) FROM chaos.changes")
            tasks = {
                token: (await api.post(f"/sync/manual/{user}", json={"kind": "full"})).raise_for_status().json()
                for token, user in self._users.items()
            }
            for token, task in tasks.items():
                run = await self._end_of(database, task["task_id"])
                if run is None:
                    complaints.append(f"the last listing of {self._users[token]} did not end")
                    continue
                changes = await database.fetch(_CHANGES_SINCE, token, before)
                made = Counter(change["op"] for change in changes)
                complaints += verdict.wrong_listing(
                    run,
                    listed=summary[self._sellers[token]]["orders"],
                    looked_at=await database.fetchval(
                        _LOOKED_AT, token, run["started_at"], [change["order_id"] for change in changes]
                    ),
                    added=made["added"],
                    updated=made["updated"],
                )
                complaints += verdict.unexpected_changes(changes, self._withheld)
                self._report.found_by_last_listing += len(changes)
        self._report.checks["last listing"] = complaints

    async def _end_of(self, database: asyncpg.Connection, task_id: str) -> Mapping[str, Any] | None:
        try:
            async with asyncio.timeout(self._options.drain_seconds):
                while True:
                    run = await database.fetchrow(_LAST_RUN, task_id)
                    if run is not None and run["completed_at"] is not None:
                        return dict(run)
                    await asyncio.sleep(_POLL_SECONDS / 4)
        except TimeoutError:
            return None

    async def _judge(self, injector: Injector, watch: Watch) -> None:
        report, checks = self._report, self._report.checks
        async with self._stack.connection() as database:
            checks["states"] = await self._states(database)
            report.comparison = await compare(self._control, list(self._sellers.values()), database)
            checks["ledger"] = [str(difference) for difference in report.comparison.shown]
            checks["rows that went back"] = await violations(database)
            checks["stuck"] = await verdict.stuck(database)
            checks |= await verdict.wrong_rows(database)
            checks["dead letters"] = await verdict.dead_letters(database, injector.spoiled)
            found, checks["events without a look"] = await verdict.waits(database)
            report.waits = sorted(wait.seconds for wait in found if wait.visible >= self._began_us)
            verdict.note_recovery(injector.done, found)
            checks["recovery"] = verdict.too_slow(injector.done)
            checks["tokens that do not work"] = await self._useless_tokens()
            await self._look_for_secrets(database)
        if not self._options.calm:
            self._count("records before they were lost", injector.looked_through.records)
        report.looks_broken_off = len(injector.looked_through.broken_off)
        report.struck = (await self._control.stats())["faults_struck"]
        async with httpx.AsyncClient(timeout=30) as http:
            await watch.ask_once(http)
        report.timeouts = watch.timeouts
        checks["faults in vain"] = verdict.in_vain(injector.done)
        checks["faults of Allegro that never struck"] = verdict.not_struck(self._options.faults, report.struck)
        if "timeout" in self._options.faults and not report.timeouts:
            checks["faults of Allegro that never struck"].append("no service ever waited in vain for an answer")
        checks["services that ended"] = [*watch.deaths, *injector.unclean_ends]
        lives = list(watch.lives.values())
        checks["memory"] = verdict.too_much_memory(lives)
        report.memory, report.growth = watch.most_memory, verdict.most_growth(lives)

    async def _states(self, database: asyncpg.Connection) -> list[str]:
        """What is published follows what is stored: wait for it, a while."""
        broker = self._stack.broker.bootstrap_servers
        deadline = time.monotonic() + self._options.drain_seconds / 4
        while True:
            try:
                found = await states.differing_states(database, broker, self._topics.order_state)
            except KafkaError as error:
                found = [f"the topic of states cannot be read: {error!r}"]
            if not found or time.monotonic() > deadline:
                self._report.states = await database.fetchval("SELECT count(*) FROM orders")
                return found
            await asyncio.sleep(_POLL_SECONDS)

    async def _useless_tokens(self) -> list[str]:
        async with self._api("api") as api:
            answers = {token: await api.post(f"/tokens/{token}/validate") for token in self._sellers}
        return [
            f"token {token}: {answer.status_code} {answer.text}"
            for token, answer in answers.items()
            if not (answer.is_success and answer.json()["valid"])
        ]

    async def _look_for_secrets(self, database: asyncpg.Connection) -> None:
        async with httpx.AsyncClient(timeout=30) as http:
            for name in self._stack.services:
                answer = (await http.get(f"{self._stack.url(name)}/metrics")).raise_for_status()
                self._scanner.look(f"metrics of {name}", answer.text)
                self._count("metrics", len(answer.text))
        self._count("tables", await look_through_tables(self._scanner, database))
        broker = self._stack.broker.bootstrap_servers
        self._count("records", await look_through_topics(self._scanner, broker, self._topics.prefix))


def fault_table(report: Report) -> Table:
    """Every fault with its time and how long it took until what happened meanwhile was stored."""
    table = Table(title="faults", title_justify="left")
    table.add_column("at")
    table.add_column("fault")
    table.add_column("lasted", justify="right")
    table.add_column("recovered after", justify="right")
    table.add_column("undisturbed", justify="right")
    table.add_column("effect")
    for one in report.done:
        table.add_row(
            time.strftime("%H:%M:%S", time.gmtime(one.began)),
            str(one.injection),
            f"{one.ended - one.began:.1f} s" if one.ended else "not over",
            f"{one.recovery_seconds:.1f} s",
            f"{one.undisturbed_seconds:.1f} s",
            one.effect,
        )
    return table


def check_table(report: Report) -> Table:
    """Every check with the number of its complaints."""
    table = Table(title="checks", title_justify="left")
    table.add_column("check")
    table.add_column("problems", justify="right")
    for name, complaints in report.checks.items():
        style = "red" if complaints else "green"
        table.add_row(name, f"[{style}]{len(complaints)}[/{style}]")
    return table


def run(options: Options, console: Console) -> int:
    """The whole run; 0 only if every check holds. The last line is JSON, also of a run that could not be finished."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    report = Report()
    try:
        _run_and_tell(options, console, report, say)
    except BaseException as error:  # noqa: BLE001 - whoever reads the last line learns that there is no verdict
        say("".join(traceback.format_exception(error)))
        say(report.as_json(options, broken=repr(error)))
        return 130 if isinstance(error, KeyboardInterrupt) else 2
    say(report.as_json(options))
    return 0 if report.good else 1


def _run_and_tell(options: Options, console: Console, report: Report, say: Callable[[str], None]) -> None:
    # What the harness's own clients meet while the broker is away is no news.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="orders-backup-chaos-"))
    try:
        _run_in(folder, options, report, say)
    finally:
        console.print(fault_table(report))
        if options.keep:
            say(f"data and logs are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    say("Allegro's own: " + ", ".join(f"{name} {number}" for name, number in sorted(report.struck.items())))
    console.print(check_table(report))
    for name, complaints in report.checks.items():
        for complaint in complaints[:_SHOWN]:
            say(f"{name}: {complaint}")


def _run_in(folder: Path, options: Options, report: Report, say: Callable[[str], None]) -> None:
    keys = Keys.make(folder)
    stack = Stack(
        folder,
        os.environ,
        {**without_ours(os.environ), **_settings(), "ENCRYPTION_KEYS_FILE": str(keys.new_first)},
        simulator_options=[
            *("--sellers", str(options.sellers)),
            *("--orders", str(options.orders)),
            *("--seed", str(options.seed)),
            # All sellers come at once: the limit on new device codes is no part of this.
            *("--device-interval", "1", "--device-limit", "0"),
            # Refreshed every half minute: a refresh is under way whenever a fault strikes.
            *("--token-lifetime", "60"),
        ],
        durable=True,
        working_folder=folder,
        say=say,
    )
    with stack:
        stack.start_servers()
        asyncio.run(_remember_commit_times(stack))
        stack.database.stop()
        stack.database.start()
        stack.set_up()
        stack.start_services(replicas=REPLICAS)
        scanner = Scanner(known_secrets(stack, keys))
        for name in stack.services:
            stack.wait_until_ready(name)
        try:
            asyncio.run(_work(options, stack, scanner, report, say))
        except BaseException:
            for name, child in stack.services.items():
                say(f"last lines of {name}:\n{processes.tail(child.log, 15)}")
            raise
    report.looked_through["files"] = look_through_files(scanner, folder, ("*.log*", "*.out"))
    report.megabytes = scanner.bytes_looked_at / 1e6
    report.checks["secrets"] = [
        *(str(leak) for leak in scanner.leaks),
        *verdict.nothing_looked_at(report.looked_through),
    ]


async def _remember_commit_times(stack: Stack) -> None:
    async with stack.connection() as database:
        await database.execute("ALTER SYSTEM SET track_commit_timestamp = on")


async def _work(options: Options, stack: Stack, scanner: Scanner, report: Report, say: Callable[[str], None]) -> None:
    assert stack.simulator is not None  # noqa: S101 - chaos always has one
    async with Control(stack.simulator.url) as control:
        await Chaos(options, stack, control, scanner, report, say).run()


def _settings() -> Mapping[str, str]:
    """Waits made for machines that are replaced, shortened to those of a run of minutes."""
    return {
        "SYNC_INTERVAL_SECONDS": "2",
        "SYNC_LIST_LAG_SECONDS": str(2 * _LIST_LAG_SECONDS),
        "POLLER_LEASE_SECONDS": "10",
        "POLLER_REDELIVERY_SECONDS": "15",
        "POLLER_WINDOW_REDELIVERY_SECONDS": "30",
        "ALLEGRO_TIMEOUT_SECONDS": f"{_TIMEOUT_SECONDS:g}",
        "ALLEGRO_DEVICE_LIMIT_PER_MINUTE": "1000",
        "KAFKA_TOPIC_PREFIX": "chaos-",
    }


def options_from(arguments: Sequence[str]) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m devstack chaos", description=(__doc__ or "").split("\n")[0])
    defaults = Options()
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="how long faults strike")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the orders and of the faults")
    parser.add_argument("--sellers", type=int, default=defaults.sellers)
    parser.add_argument("--orders", type=int, default=defaults.orders, help="historical orders of each seller")
    parser.add_argument("--live-rate", type=float, default=defaults.live_rate, help="new orders a second")
    parser.add_argument(
        "--drain-seconds", type=float, default=defaults.drain_seconds, help="how long to wait afterwards"
    )
    parser.add_argument(
        "--calm", action="store_true", help="break nothing of ours: Allegro alone lies, and until the very end"
    )
    parser.add_argument("--keep", action="store_true", help="keep data and logs, and say where")
    return Options(**vars(parser.parse_args(arguments)))
