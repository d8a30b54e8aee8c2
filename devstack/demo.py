"""`make demo`: three sellers, two thousand orders, four services; afterwards the tables equal what was served.

Everything a user does goes over our own REST API; only the sellers' consent and their new orders are the simulator's.
"""

import argparse
import asyncio
import contextlib
import os
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from devstack import processes
from devstack.allegro import Control
from devstack.errors import DevstackError
from devstack.ledger import Comparison, compare
from devstack.secrecy import Findings, Keys, SecretsTrial
from devstack.stack import SERVERS, SERVICES, Stack, without_ours

_POLL_SECONDS = 0.5
_PLAIN_LINE_SECONDS = 3.0
_CONSENT_SECONDS = 90.0
_WITHOUT_CONSENT_SECONDS = 3.0
_CHAOS = {"services": SERVICES, "all": (*SERVICES, *SERVERS)}


@dataclass(frozen=True)
class Plan:
    """How much happens, and how long it may take."""

    sellers: int = 3
    orders: int = 750
    live_orders: int = 150
    live_rate: float = 10.0
    seed: int = 1
    chaos: Sequence[str] = ()
    limit_seconds: float = 240.0
    keep: bool = False


@dataclass
class Outcome:
    """What the summary tells."""

    setup_seconds: float = 0.0
    work_seconds: float = 0.0
    first_order_seconds: float | None = None
    requests: Mapping[str, int] = field(default_factory=dict)
    kills: list[str] = field(default_factory=list)
    comparison: Comparison = field(default_factory=Comparison)
    secrecy: Findings = field(default_factory=Findings)

    @property
    def good(self) -> bool:
        return self.comparison.equal and not self.secrecy.problems


@dataclass(frozen=True)
class Connected:
    """A seller who has consented, by all their names."""

    user: str
    seller_id: str
    token_id: int
    device_code: str


@dataclass(frozen=True)
class Counts:
    """How far it is: rows in our tables, rows that Allegro has served or will, orders known and not yet looked at."""

    orders: int
    expected_orders: int
    events: int
    expected_events: int
    pending: int
    live_is_over: bool

    @property
    def look_complete(self) -> bool:
        enough = self.orders >= self.expected_orders and self.events >= self.expected_events
        return enough and self.live_is_over and self.pending == 0


class Display:
    """Two bars on a terminal, a line every few seconds anywhere else."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plain_at = 0.0
        self._bars = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._orders = self._bars.add_task("orders", total=None, note="")
        self._events = self._bars.add_task("events", total=None, note="")

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, counts: Counts) -> None:
        note = f"{counts.pending} to fetch" if counts.pending else ""
        self._bars.update(self._orders, completed=counts.orders, total=counts.expected_orders, note=note)
        note = "" if counts.live_is_over else "the shops are selling"
        self._bars.update(self._events, completed=counts.events, total=counts.expected_events, note=note)
        if not self._console.is_terminal and time.monotonic() - self._plain_at >= _PLAIN_LINE_SECONDS:
            self._plain_at = time.monotonic()
            self._console.print(
                f"  orders {counts.orders}/{counts.expected_orders}, events {counts.events}/{counts.expected_events}, "
                f"{counts.pending} to fetch"
            )

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False)


class Demo:
    """One run against a stack whose services have just been started."""

    def __init__(
        self, plan: Plan, stack: Stack, control: Control, trial: SecretsTrial, display: Display, outcome: Outcome
    ) -> None:
        self._plan = plan
        self._stack = stack
        self._control = control
        self._trial = trial
        self._display = display
        self._outcome = outcome
        self._sellers: list[Connected] = []
        self._trials_are_over = False
        self._random = random.Random(plan.seed)  # noqa: S311 - a run can be repeated by its seed

    async def run(self) -> None:
        """Connect the sellers, let them sell, try what may go wrong, wait until the tables look complete, compare."""
        users = [f"shop-{number}" for number in range(1, self._plan.sellers + 1)]
        async with httpx.AsyncClient(
            base_url=f"{self._stack.url('api')}/api/v1",
            timeout=30,
            follow_redirects=True,
            event_hooks={"response": [self._trial.saw]},
        ) as api:
            self._sellers = await asyncio.gather(*(self._connect(api, user) for user in users))
            await self._control.start_live(self._plan.live_orders, self._plan.live_rate)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._try_it(api))
                tasks.create_task(self._until_equal())
            await self._trial.look_while_it_runs(api, users)
        async with self._stack.connection() as database:
            first = await database.fetchval("SELECT min(created_at) FROM orders")
        if first is not None:
            self._outcome.first_order_seconds = first.timestamp() - self._stack.services_started_at

    async def _connect(self, api: httpx.AsyncClient, user: str, *, seller_id: str | None = None) -> Connected:
        """The device flow, as an integrator does it; whichever seller comes next agrees, or the one given."""
        answer = await api.post("/tokens/auth/initialize", json={"user_id": user})
        answer.raise_for_status()
        authorization = answer.json()
        seller_id = await self._control.consent(authorization["user_code"], seller_id=seller_id)
        deadline = time.monotonic() + _CONSENT_SECONDS
        while time.monotonic() < deadline:
            answer = await api.get(f"/tokens/auth/task/{authorization['task_id']}")
            answer.raise_for_status()
            task = answer.json()
            if task["status"] == "SUCCESS":
                self._display.say(f"{user} is connected (token {task['token_id']})")
                return Connected(user, seller_id, task["token_id"], authorization["device_code"])
            if task["status"] == "FAILURE":
                raise DevstackError(f"{user} could not be connected: {task}")
            await asyncio.sleep(_POLL_SECONDS)
        raise DevstackError(f"{user} was not connected within {_CONSENT_SECONDS:g} s of the seller's consent")

    async def _try_it(self, api: httpx.AsyncClient) -> None:
        """Everything that is done to it while the shops sell."""
        if self._plan.chaos:
            await self._kill_each()
        await self._trial.rotate_keys(api, [seller.token_id for seller in self._sellers])
        first = self._sellers[0]
        await self._trial.provoke(api, first.seller_id, first.token_id, first.device_code)
        await self._lose_and_regain(api, self._sellers[-1])
        self._trials_are_over = True

    async def _lose_and_regain(self, api: httpx.AsyncClient, seller: Connected) -> None:
        """A seller withdraws consent, goes on selling, and consents again: afterwards nothing may be missing."""
        await self._control.withdraw_consent(seller.seller_id)
        deadline = time.monotonic() + _CONSENT_SECONDS
        while (status := (await api.get(f"/tokens/{seller.token_id}")).json()["status"]) != "reauthorization_required":
            if time.monotonic() > deadline:
                raise DevstackError(f"{seller.user} withdrew consent, and the token is {status} still")
            await asyncio.sleep(_POLL_SECONDS)
        self._display.say(f"{seller.user} has withdrawn consent")
        if not (await self._control.live())["active"]:
            await self._control.start_live(self._plan.sellers, self._plan.live_rate)
        await asyncio.sleep(_WITHOUT_CONSENT_SECONDS)
        again = await self._connect(api, seller.user, seller_id=seller.seller_id)
        if again.token_id != seller.token_id:
            raise DevstackError(f"{seller.user} consented again and became another token: {again.token_id}")

    async def _kill_each(self) -> None:
        """kill -9 one victim after the other in the middle of its work, and start it again."""
        victims = list(self._plan.chaos)
        self._random.shuffle(victims)
        for victim in victims:
            await asyncio.sleep(self._random.uniform(0.5, 3.0))
            if not (await self._control.live())["active"]:
                await self._control.start_live(self._plan.live_orders // len(victims), self._plan.live_rate)
                await asyncio.sleep(self._random.uniform(0.5, 2.0))
            self._stack.kill(victim)
            self._outcome.kills.append(f"{victim} after {self._stack.seconds_since_start():.0f} s")
            self._display.say(f"kill -9 {victim}")
            await asyncio.sleep(self._random.uniform(0.0, 1.0))
            self._stack.start_again(victim)
            if victim in SERVICES:
                await asyncio.to_thread(self._stack.wait_until_ready, victim)

    async def _until_equal(self) -> None:
        """Wait until the tables look complete, then until they are equal to the ledger, or the time is up."""
        deadline = time.monotonic() + self._plan.limit_seconds
        while True:
            try:
                counts = await self._counts()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                if not self._plan.chaos:
                    raise
                await asyncio.sleep(_POLL_SECONDS)
                continue
            self._display.show(counts)
            self._check_services()
            late = time.monotonic() > deadline
            if late or (counts.look_complete and self._trials_are_over):
                async with self._stack.connection() as database:
                    self._outcome.comparison = await compare(
                        self._control, [seller.seller_id for seller in self._sellers], database
                    )
                if late or self._outcome.comparison.equal:
                    return
            await asyncio.sleep(_POLL_SECONDS)

    async def _counts(self) -> Counts:
        summary = await self._control.summary()
        live = await self._control.live()
        async with self._stack.connection() as database:
            row = await database.fetchrow(
                "SELECT (SELECT count(*) FROM orders WHERE gone_at IS NULL) AS orders,"
                " (SELECT count(*) FROM order_events) AS events,"
                " (SELECT count(*) FROM pending_fetches) AS pending"
            )
        return Counts(
            orders=row["orders"],
            expected_orders=summary["orders"],
            events=row["events"],
            expected_events=summary["events"],
            pending=row["pending"],
            live_is_over=not live["active"],
        )

    def _check_services(self) -> None:
        """A service that ended by itself is a failure, even if the others could finish without it."""
        for name, child in self._stack.services.items():
            if child.exit_code is not None and not self._plan.chaos:
                raise DevstackError(
                    f"{name} ended with exit code {child.exit_code}. Its last lines:\n{processes.tail(child.log)}"
                )


def summary_table(plan: Plan, outcome: Outcome, broker: str) -> Table:
    """What happened, in one table."""
    comparison = outcome.comparison
    table = Table(title=f"{plan.sellers} sellers on {broker}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("orders", str(comparison.orders))
    table.add_row("events", str(comparison.events))
    table.add_row("seconds until everything ran", f"{outcome.setup_seconds:.1f}")
    table.add_row("seconds from the services' start to the end", f"{outcome.work_seconds:.1f}")
    if outcome.first_order_seconds is not None:
        table.add_row("seconds to the first order in PostgreSQL", f"{outcome.first_order_seconds:.1f}")
    for kill in outcome.kills:
        table.add_row("kill -9", kill)
    table.add_row("requests spent", str(sum(outcome.requests.values())))
    for endpoint, number in sorted(outcome.requests.items(), key=lambda item: -item[1]):
        table.add_row(f"  {endpoint}", str(number))
    secrecy = outcome.secrecy
    table.add_row("secrets moved to another key meanwhile", str(secrecy.secrets_moved))
    table.add_row("  calls while they moved", str(secrecy.calls_meanwhile))
    table.add_row("looked through for secrets, MB", f"{secrecy.megabytes:.0f}")
    for what, number in secrecy.looked_through.items():
        table.add_row(f"  {what}", str(number))
    style = "red" if secrecy.problems else "green"
    table.add_row("secrets found, calls failed", f"[{style}]{len(secrecy.problems)}[/{style}]")
    style = "green" if comparison.equal else "red"
    table.add_row("differences from the ledger", f"[{style}]{comparison.differences}[/{style}]")
    return table


async def _work(plan: Plan, stack: Stack, keys: Keys, console: Console, outcome: Outcome) -> SecretsTrial:
    assert stack.simulator is not None  # noqa: S101 - a demo always has one
    async with Control(stack.simulator.url) as control:
        with Display(console) as display:
            trial = SecretsTrial(stack, control, keys, display.say)
            outcome.secrecy = trial.findings
            await Demo(plan, stack, control, trial, display, outcome).run()
        outcome.requests = await control.requests()
    return trial


async def _check_is_empty(stack: Stack) -> None:
    """A database given by DATABASE_URL may hold somebody's orders: those are not compared with a simulator."""
    async with stack.connection() as database:
        if await database.fetchval("SELECT EXISTS (SELECT FROM user_tokens)"):
            raise DevstackError(
                "The database of DATABASE_URL already has connected sellers: the demo needs an empty one."
            )


@contextlib.contextmanager
def _temporary_folder(*, keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="orders-backup-demo-"))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder)


def _show_logs(stack: Stack, console: Console) -> None:
    for name, child in stack.services.items():
        console.rule(f"{name}: last lines")
        console.print(processes.tail(child.log, 15), markup=False, highlight=False)


def run(plan: Plan, console: Console) -> int:
    """The whole demo; 0 only if the tables are equal to the ledger."""
    began = time.monotonic()
    outcome = Outcome()
    with _temporary_folder(keep=plan.keep) as folder:
        keys = Keys.make(folder)
        stack = Stack(
            folder,
            os.environ,
            {
                **without_ours(os.environ),
                "SYNC_INTERVAL_SECONDS": "2",
                # How long what a killed process held, or a killed broker lost, is waited for: the defaults (minutes)
                # are made for machines that are replaced, and longer than the demo.
                "POLLER_LEASE_SECONDS": "10",
                "POLLER_REDELIVERY_SECONDS": "15",
                "POLLER_WINDOW_REDELIVERY_SECONDS": "30",
                "ENCRYPTION_KEYS_FILE": str(keys.new_first),
                "LOG_DIR": str(folder / "logs"),
                # A given broker may already have topics of these names.
                "KAFKA_TOPIC_PREFIX": f"demo-{secrets.token_hex(4)}-",
            },
            simulator_options=[
                *("--sellers", str(plan.sellers)),
                *("--orders", str(plan.orders)),
                *("--seed", str(plan.seed)),
                *("--device-interval", "2"),  # Allegro says 5: nobody here has to find a phone first
            ],
            durable=True,
            working_folder=folder,
            say=lambda text: console.print(text, highlight=False),
        )
        with stack:
            stack.start_servers()
            stack.set_up()
            asyncio.run(_check_is_empty(stack))
            stack.start_services()
            try:
                stack.wait_until_ready("api")
                outcome.setup_seconds = time.monotonic() - began
                trial = asyncio.run(_work(plan, stack, keys, console, outcome))
                outcome.work_seconds = stack.seconds_since_start()
            except BaseException:
                _show_logs(stack, console)
                raise
            if not outcome.comparison.equal:
                _show_logs(stack, console)
        trial.look_at_files()
        if plan.keep:
            console.print(f"data and logs are kept in {folder}", highlight=False)
    console.print(summary_table(plan, outcome, stack.broker.name))
    for difference in outcome.comparison.shown:
        console.print(str(difference), markup=False, highlight=False)
    for problem in outcome.secrecy.problems:
        console.print(problem, markup=False, highlight=False, soft_wrap=True)
    return 0 if outcome.good else 1


def plan_from(arguments: Sequence[str]) -> Plan:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m devstack demo", description=(__doc__ or "").split("\n")[0])
    defaults = Plan()
    parser.add_argument("--sellers", type=int, default=defaults.sellers)
    parser.add_argument("--orders", type=int, default=defaults.orders, help="historical orders of each seller")
    parser.add_argument("--live-orders", type=int, default=defaults.live_orders, help="new orders while it runs")
    parser.add_argument("--live-rate", type=float, default=defaults.live_rate, help="new orders a second")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the orders and of the kills")
    parser.add_argument(
        "--chaos",
        nargs="?",
        choices=[*_CHAOS],
        const="services",
        help="kill -9 each service (all: the broker and PostgreSQL, too) in the middle",
    )
    parser.add_argument("--limit-seconds", type=float, help="give up after so long")
    parser.add_argument("--keep", action="store_true", help="keep data and logs, and say where")
    values = vars(parser.parse_args(arguments))
    # What a broker lost with its data is sent again after two minutes, and what is lost in turn after two more.
    values["limit_seconds"] = values["limit_seconds"] or (480.0 if values["chaos"] == "all" else defaults.limit_seconds)
    return Plan(**{**values, "chaos": _CHAOS.get(values["chaos"], ())})
