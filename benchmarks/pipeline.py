"""From Allegro to PostgreSQL, against what people use today: `make bench-pipeline`

Everybody gets the same job: the same sellers of the same simulated Allegro (no limits, no latency), the same embedded
PostgreSQL, one run after the other on an otherwise idle machine. `list` brings every order of every seller by list
pages (what an initial load does); `events` reads the journal and fetches every order that it names by itself.

Ours runs as it is operated: four processes, a broker in between, every batch acknowledged by it or committed before it
counts. The broker is the embedded one, which keeps its data in memory; PostgreSQL writes to the disk. The others run as
their documentation shows it, with their defaults. The clock of
ours runs from the request (tasks of all sellers, or their schedules activated) to the commit of the last order, so that
noticing the tasks and planning them count; that of the others from the call of their own `run` to its end, so that
nobody's imports count: Singer's two programs are imported once by themselves, and what that took is subtracted. Nobody
is warm: each run is the first job of new processes, and nothing was brought before. CPU seconds are those of all
processes of a tool, ours with the broker; PostgreSQL's and the simulator's count for nobody.

The pair with the goal, ours and dlt's asynchronous way, runs in turns, and the median counts. The slow tools get fewer
sellers, with as many orders each: what they do once for each seller weighs as much as for all.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, Literal

import httpx
import psutil
import uvloop

from benchmarks.report import Measure, report
from benchmarks.seller import access_token
from benchmarks.stack import BenchStack
from devstack.allegro import Control, SimulatedAllegro
from devstack.processes import ROOT, run
from devstack.stack import SERVICES, Stack, without_ours
from shared.sync_start import begin_sync

Mode = Literal["list", "events"]

_PEERS = Path(__file__).parent / "peers"
_NO_LIMITS = [word for name in ("client", "events", "list", "detail", "device") for word in (f"--{name}-limit", "0")]
_LIMITS = ("CLIENT", "EVENTS", "LIST", "DETAIL", "DEVICE")
_POLL_SECONDS = 0.1
_NEVER = timedelta(days=10)
# The API takes the requests and does nothing on the way; it counts nevertheless.
_POSTGRESQL = "PostgreSQL"
_OURS = (*SERVICES, "broker")
_LONGEST_RUN_SECONDS = 1800.0
# What the issue asks for (#6): ours against dlt's asynchronous way.
_GOALS: Mapping[Mode, float] = {"list": 2.0, "events": 1.2}


@dataclass(frozen=True)
class Load:
    """How many orders there are to bring."""

    mode: Mode
    sellers: int
    orders: int
    """Of each seller."""

    @property
    def total(self) -> int:
        return self.sellers * self.orders


@dataclass(frozen=True)
class Result:
    """What bringing them took."""

    orders: int
    seconds: float
    cpu_seconds: float
    by_process: Mapping[str, float] = field(default_factory=dict)
    """CPU seconds, those of servers that count for nobody included."""

    @property
    def rate(self) -> float:
        return self.orders / self.seconds

    @property
    def cpu_per_thousand(self) -> float:
        return self.cpu_seconds / self.orders * 1000


@dataclass(frozen=True)
class Peer:
    """Another tool: its environment is made from a lock file, its program answers with seconds and CPU seconds."""

    name: str
    environment: str
    program: str


PEERS = (
    Peer("dlt, async", "dlt", "dlt_async.py"),
    Peer("dlt, rest_api", "dlt", "dlt_rest_api.py"),
    Peer("PyAirbyte", "pyairbyte", "pyairbyte.py"),
    Peer("Singer", "singer", "singer.py"),
)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def _stack(load: Load) -> Iterator[Stack]:
    """PostgreSQL, broker and simulated Allegro, all new."""
    history = load.orders if load.mode == "list" else 0
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(
            Path(folder),
            os.environ,
            {
                **without_ours(os.environ),
                **{f"ALLEGRO_{name}_LIMIT_PER_MINUTE": "100000000" for name in _LIMITS},
                # Younger than this, an order is never fetched by a list page: each one by itself.
                **({"SYNC_LIST_LAG_SECONDS": "3600"} if load.mode == "events" else {}),
            },
            simulator_options=[
                *("--sellers", str(load.sellers), "--orders", str(history), "--history-days", "360"),
                *("--device-interval", "1", *_NO_LIMITS),
            ],
            durable=True,
            working_folder=Path(folder),
            say=lambda _text: None,
        )
        with stack:
            stack.start_servers()
            yield stack


def _allegro(stack: Stack) -> SimulatedAllegro:
    if stack.simulator is None:
        raise RuntimeError("a stack without a simulated Allegro")
    return stack.simulator


async def _sell(control: Control, load: Load) -> None:
    """New orders, one event each, all before the clock starts."""
    if load.mode == "events":
        await control.start_live(load.total, 100_000.0, events_per_order=1, history=0.0)
        while (await control.live())["active"]:  # noqa: ASYNC110 - another process tells
            await asyncio.sleep(_POLL_SECONDS)


async def _peer(stack: Stack, load: Load, peer: Peer, python: Path) -> Result:
    allegro = _allegro(stack)
    async with Control(allegro.url) as control, httpx.AsyncClient(base_url=allegro.url) as http:
        tokens = [await access_token(http, allegro.environment()) for _ in range(load.sellers)]
        await _sell(control, load)
        expected = await _to_bring(control, load)
    job = stack.folder / "job.json"
    job.write_text(
        json.dumps({"mode": load.mode, "url": allegro.url, "tokens": tokens, "database": stack.database.url()})
    )
    environment = {
        **os.environ,
        "HOME": str(stack.folder),
        "DO_NOT_TRACK": "1",
        "AIRBYTE_OFFLINE_MODE": "1",
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        "RUNTIME__LOG_LEVEL": "ERROR",
        "DLT_DATA_DIR": str(stack.folder / "dlt"),
    }
    before = _cpu_of_postgresql(stack)
    output = await asyncio.to_thread(
        run,
        [python, _PEERS / peer.program, job],
        env=environment,
        folder=stack.folder,
        seconds=_LONGEST_RUN_SECONDS,
    )
    spent = {_POSTGRESQL: _cpu_of_postgresql(stack) - before}
    answer = json.loads(output.strip().splitlines()[-1])
    async with stack.connection() as database:
        stored = await database.fetchval("SELECT count(DISTINCT id) FROM peer.orders")
    if stored != expected:
        raise RuntimeError(f"{peer.name} stored {stored} orders of {expected}")
    return Result(stored, answer["seconds"], answer["cpu_seconds"], spent)


def _cpu_of_postgresql(stack: Stack) -> float:
    pid = getattr(stack.database, "pid", None)
    return 0.0 if pid is None else _cpu_of(pid)


async def _to_bring(control: Control, load: Load) -> int:
    """How many orders the job is about: one in a thousand has no event, and nobody who reads the journal sees it."""
    there = await control.summary()
    return int(there["orders" if load.mode == "list" else "events"])


Around = Callable[[Stack], AbstractAsyncContextManager[None]]
"""What else happens while the job is done, from right before it to right after it."""


@asynccontextmanager
async def _nothing(_stack: Stack) -> AsyncIterator[None]:
    yield


class Ours:
    """The product, as `make up` runs it."""

    def __init__(self, stack: Stack, load: Load, control: Control, api: httpx.AsyncClient, around: Around) -> None:
        self._stack = stack
        self._around = around
        self._load = load
        self._control = control
        self._api = api
        self._users = [f"shop-{number}" for number in range(load.sellers)]

    async def measure(self) -> Result:
        """Connect the sellers, then the job."""
        if self._load.mode == "list":
            return await self._list()
        return await self._events()

    async def _list(self) -> Result:
        """First loads, begun as a consent begins them, but of all sellers at once; the journals are left alone, as the
        others leave them."""
        bench = BenchStack(self._stack)
        async with bench.pool() as pool:
            sellers = await bench.connect_sellers(pool, self._load.sellers)
            orders = await _to_bring(self._control, self._load)

            async def begin() -> None:
                async with pool.acquire() as connection, connection.transaction():
                    for seller in sellers:
                        await begin_sync(connection, seller.token_id, interval=_NEVER, full_interval=_NEVER)
                    await connection.execute("UPDATE active_sync_schedules SET status = 'paused'")

            return await self._timed(orders, [begin()])

    async def _events(self) -> Result:
        await asyncio.gather(*(self._connect(user) for user in self._users))
        await self._until(0)
        await asyncio.gather(*(self._post("/sync/deactivate", {"user_id": user}) for user in self._users))
        await _sell(self._control, self._load)
        orders = await _to_bring(self._control, self._load)
        return await self._timed(orders, [self._post("/sync/activate", {"user_id": user}) for user in self._users])

    async def _timed(self, orders: int, requests: Sequence[Awaitable[Any]]) -> Result:
        async with self._around(self._stack):
            before, began = self._cpu(), time.perf_counter()
            await asyncio.gather(*requests)
            await self._until(orders)
            seconds = time.perf_counter() - began
            # The states that are published after the last commit are not waited for, and yet they are our cost.
            await self._until_published()
            after = self._cpu()
        spent = {name: after[name] - before[name] for name in after}
        return Result(orders, seconds, sum(spent.get(name, 0.0) for name in _OURS), spent)

    async def _until_published(self) -> None:
        async with self._stack.connection() as database, asyncio.timeout(_LONGEST_RUN_SECONDS):
            while await database.fetchval("SELECT EXISTS (SELECT FROM order_state_outbox)"):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        answer = await self._api.post(path, json=body)
        answer.raise_for_status()
        return answer.json()

    async def _connect(self, user: str) -> None:
        authorization = await self._post("/tokens/auth/initialize", {"user_id": user})
        await self._control.consent(authorization["user_code"])
        while True:
            answer = await self._api.get(f"/tokens/auth/task/{authorization['task_id']}")
            if answer.raise_for_status().json()["status"] == "SUCCESS":
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _until(self, orders: int) -> None:
        """Wait until that many orders are committed, nothing is owed and no listing goes on."""
        deadline = time.monotonic() + _LONGEST_RUN_SECONDS
        async with self._stack.connection() as database:
            while True:
                row = await database.fetchrow(
                    "SELECT (SELECT count(*) FROM orders) AS orders, (SELECT count(*) FROM pending_fetches) AS owed,"
                    " (SELECT count(*) FROM task_history WHERE status IN ('queued', 'running')) AS tasks"
                )
                if row["orders"] >= orders and not row["owed"] and not row["tasks"]:
                    return
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not done in time: {dict(row)}")
                await asyncio.sleep(_POLL_SECONDS)

    def _cpu(self) -> Mapping[str, float]:
        """CPU seconds so far, by process; those of our own and of the servers."""
        stack = self._stack
        roots = {name: child.pid for name, child in stack.services.items()} | {
            "broker": getattr(stack.broker, "pid", None),
            _POSTGRESQL: getattr(stack.database, "pid", None),
            "simulator": _allegro(stack).child.pid,
        }
        return {name: _cpu_of(pid) for name, pid in roots.items() if pid is not None}


def _cpu_of(pid: int) -> float:
    """Of a process and its children, those that have ended included."""
    root = psutil.Process(pid)
    mine = root.cpu_times()
    total = mine.user + mine.system + mine.children_user + mine.children_system
    for child in root.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return total


@asynccontextmanager
async def _product(stack: Stack) -> AsyncIterator[tuple[Control, httpx.AsyncClient]]:
    async with (
        Control(_allegro(stack).url) as control,
        httpx.AsyncClient(base_url=f"{stack.url('api')}/api/v1", timeout=60) as api,
    ):
        yield control, api


def measure_ours(load: Load, around: Around = _nothing) -> Result:
    """Start everything, do the job once, stop everything."""

    async def measure() -> Result:
        async with _product(stack) as (control, api):
            return await Ours(stack, load, control, api, around).measure()

    with _stack(load) as stack:
        stack.set_up()
        stack.start_services()
        for service in stack.services:
            stack.wait_until_ready(service)
        return uvloop.run(measure())


def _environments(folder: Path, peers: Sequence[Peer]) -> Mapping[str, Path]:
    """Each peer's own environment, from its lock file; kept between runs."""
    uv = Path(sys.executable).with_name("uv")
    pythons = {}
    for name in dict.fromkeys(peer.environment for peer in peers):
        environment = folder / name
        python = environment / "bin" / "python"
        lock = _PEERS / f"{name}.lock"
        if not python.exists():
            run([uv, "venv", "--quiet", "--python", sys.executable, environment])
        run([uv, "pip", "sync", "--quiet", "--python", python, "--require-hashes", lock], seconds=900)
        pythons[name] = python
    return pythons


def show(mode: Mode, name: str, result: Result) -> None:
    """Print a line of the table."""
    _say(
        f"{mode:<7} {name:<14} {result.rate:>7.0f} orders/s {result.cpu_per_thousand:>6.2f} CPU s per 1,000"
        f"   ({result.orders} orders in {result.seconds:.1f} s)"
    )
    if result.by_process:
        parts = ", ".join(f"{who} {spent / result.orders * 1000:.2f}" for who, spent in result.by_process.items())
        _say(f"{'':<7} CPU s per 1,000: {parts}")


Results = Mapping[str, Sequence[Result]]
"""By tool, one for each run."""


def _rate(results: Sequence[Result]) -> float:
    return median(result.rate for result in results)


def _cost(results: Sequence[Result]) -> float:
    return median(result.cpu_per_thousand for result in results)


def _whole_cost(results: Sequence[Result]) -> float:
    """With what PostgreSQL spends on it."""
    return median(result.cpu_per_thousand + result.by_process[_POSTGRESQL] / result.orders * 1000 for result in results)


def _measures(mode: Mode, ours: Sequence[Result], others: Results) -> list[Measure]:
    measures = []
    mine = _rate(ours)
    for name, results in others.items():
        key = name.replace(", ", "-").lower()
        goal = _GOALS[mode] if name == PEERS[0].name else 1.0
        theirs = _rate(results)
        measures.append(Measure(f"pipeline.{mode}-vs-{key}", mine, "orders/s", theirs, mine / theirs, goal))
    if PEERS[0].name in others:
        cost, theirs = _cost(ours), _cost(others[PEERS[0].name])
        measures.append(
            Measure(f"pipeline.{mode}-cpu-vs-dlt-async", cost, "CPU s per 1,000 orders", theirs, theirs / cost, 1.0)
        )
        # There to be known: nobody else keeps events, runs and states, or an index for each way of reading.
        cost, theirs = _whole_cost(ours), _whole_cost(others[PEERS[0].name])
        measures.append(
            Measure(
                f"pipeline.{mode}-cpu-with-postgresql-vs-dlt-async",
                cost,
                "CPU s per 1,000 orders",
                theirs,
                theirs / cost,
                0.0,
            )
        )
    return measures


def _in_turns(
    load: Load, peers: Sequence[Peer], pythons: Mapping[str, Path], turns: int
) -> tuple[Sequence[Result], Results]:
    """Ours and the peer with the goal so many times, one after the other; the other peers once."""
    ours: list[Result] = []
    others: dict[str, list[Result]] = {peer.name: [] for peer in peers}
    for turn in range(turns):
        ours.append(measure_ours(load))
        show(load.mode, "ours", ours[-1])
        for peer in peers:
            if turn == 0 or peer is PEERS[0]:
                with _stack(load) as stack:
                    result = uvloop.run(_peer(stack, load, peer, pythons[peer.environment]))
                others[peer.name].append(result)
                show(load.mode, peer.name, result)
    return ours, others


def main() -> None:
    """Run the benchmark; the exit code is 0 only if the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sellers", type=int, default=10)
    parser.add_argument("--list-orders", type=int, default=4000, help="of each seller, by list pages")
    parser.add_argument("--event-orders", type=int, default=2000, help="of each seller, one by one")
    parser.add_argument("--turns", type=int, default=5, help="of ours and of dlt's asynchronous way")
    parser.add_argument("--mode", choices=("list", "events"), action="append", help="only this one")
    parser.add_argument("--peer", action="append", help="only tools whose name contains this; 'none': only ours")
    options = parser.parse_args()
    peers = [peer for peer in PEERS if options.peer is None or any(text in peer.name for text in options.peer)]
    pythons = _environments(ROOT / ".bench", peers)
    measures: list[Measure] = []
    modes: tuple[Mode, ...] = ("list", "events")
    for mode in modes:
        if options.mode and mode not in options.mode:
            continue
        orders = options.list_orders if mode == "list" else options.event_orders
        measures += _measures(mode, *_in_turns(Load(mode, options.sellers, orders), peers, pythons, options.turns))
    sys.exit(0 if report(measures) else 1)


if __name__ == "__main__":
    main()
