"""`make up`: the whole product, until it is asked to stop; its data stays in one folder.

Without ALLEGRO_CLIENT_ID it talks to a simulated Allegro, with it to the real one (ALLEGRO_ENVIRONMENT).
"""

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit, urlunsplit

from dotenv import dotenv_values
from rich.console import Console

from devstack.errors import DevstackError
from devstack.processes import ROOT
from devstack.stack import SERVICES, Stack

_ADDRESSES = "up.env"
_SETTINGS = "services.env"
_LOOK_SECONDS = 0.5
_FIRST_BACKOFF_SECONDS = 1.0
_LONGEST_BACKOFF_SECONDS = 30.0
_HEALTHY_SECONDS = 60.0


class StopRequestedError(Exception):
    """Somebody pressed Ctrl-C or sent SIGTERM."""


@dataclass(frozen=True)
class Plan:
    """What the command line says."""

    sellers: int = 3
    orders: int = 200
    seed: int = 1
    as_json: bool = False

    def simulator_options(self, folder: Path) -> list[str]:
        return [
            *("--sellers", str(self.sellers)),
            *("--orders", str(self.orders)),
            *("--seed", str(self.seed)),
            *("--state-file", str(folder / "simulator.state")),
        ]


class Restarts:
    """When something that keeps dying is started again: soon at first, then ever later."""

    def __init__(self, started: float) -> None:
        self.delay = _FIRST_BACKOFF_SECONDS
        self.due: float | None = None
        self._started = started

    def died(self, now: float) -> float:
        """Note a death; returns in how many seconds the next start is due."""
        if self.due is None and now - self._started >= _HEALTHY_SECONDS:
            self.delay = _FIRST_BACKOFF_SECONDS
        delay = self.delay
        self.due = now + delay
        self.delay = min(delay * 2, _LONGEST_BACKOFF_SECONDS)
        return delay

    def started(self, now: float) -> None:
        self.due = None
        self._started = now


def environment_with_dotenv(environ: Mapping[str, str], dotenv: Path) -> dict[str, str]:
    """The environment on top of what `.env` says, as the services themselves read it."""
    values = {name: value for name, value in dotenv_values(dotenv).items() if value}
    return {**values, **environ}


def check_real_allegro(environment: Mapping[str, str]) -> None:
    """Whether there is all that the real Allegro asks for; raises with the names of what is missing."""
    needed = ("ALLEGRO_CLIENT_SECRET", "ALLEGRO_USER_AGENT")
    missing = [name for name in needed if not environment.get(name)]
    if missing:
        raise DevstackError(
            "ALLEGRO_CLIENT_ID is set, so this would talk to the real Allegro, which also needs "
            f"{' and '.join(missing)}: set what is missing (see .env.example), or unset ALLEGRO_CLIENT_ID to use the "
            "simulated one."
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder for this process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DevstackError(f"Another `make up` works in {folder}: stop it, or set DATA_DIR.") from None
        yield


def _raise_stop(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    raise StopRequestedError


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into `StopRequestedError`; a second one ends the process at once."""
    before = {number: signal.signal(number, _raise_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Watched:
    """Something that must run, and how to start it again."""

    name: str
    running: Callable[[], bool]
    start: Callable[[], object]
    log: Path | None
    restarts: Restarts


def look(watched: Sequence[Watched], now: float, say: Callable[[str], None]) -> None:
    """Note what has died, and start again what is due; one that fails to start waits longer."""
    for one in watched:
        if one.restarts.due is None:
            if not one.running():
                delay = one.restarts.died(now)
                where = f" ({one.log})" if one.log else ""
                say(f"{one.name} has ended{where}; starting it again in {delay:g} s")
        elif now >= one.restarts.due:
            try:
                one.start()
            except DevstackError as error:
                delay = one.restarts.died(now)
                say(f"{one.name} does not start; next try in {delay:g} s: {error}")
            else:
                one.restarts.started(now)
                say(f"{one.name} was started again")


def _watched(stack: Stack) -> list[Watched]:
    now = time.monotonic()
    children = dict(stack.services)
    if stack.simulator is not None:
        children["the simulated Allegro"] = stack.simulator.child
    return [
        Watched(
            "PostgreSQL", lambda: stack.database.running, partial(stack.start_again, "PostgreSQL"), None, Restarts(now)
        ),
        Watched("Kafka", lambda: stack.broker.running, partial(stack.start_again, "Kafka"), None, Restarts(now)),
        *(
            Watched(name, partial(getattr, child, "running"), child.start, child.log, Restarts(now))
            for name, child in children.items()
        ),
    ]


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}@{parts.hostname}:{parts.port or 5432}"))


def _write_addresses(stack: Stack) -> Path:
    """Where everything is, for a shell to read: `. .data/up.env`."""
    addresses = {"ORDERS_BACKUP_API_URL": stack.url("api")}
    if stack.simulator is not None:
        addresses["SIMULATOR"] = stack.simulator.url
    lines = [f"export {name}={shlex.quote(value)}" for name, value in addresses.items()]
    lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    file = stack.folder / _ADDRESSES
    half = file.with_suffix(".half")
    half.write_text("\n".join(lines) + "\n")
    return half.replace(file)


def _write_settings(stack: Stack) -> Path:
    """What the services are told, secrets too, for commands that work on PostgreSQL and Kafka themselves.

    For a shell of its own: whoever has these variables set and starts us again means servers that exist already.
    """
    lines = [
        f"export {name}={shlex.quote(value)}"
        for name, value in sorted(stack.environment().items())
        if os.environ.get(name) != value and not name.startswith("PYTHON")
    ]
    file = stack.folder / _SETTINGS
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write("\n".join(lines) + "\n")
    return file


def _tell_programs(stack: Stack) -> None:
    """Where everything is, as one line of JSON on standard output: all is ready when it comes."""
    places = {
        "api": stack.url("api"),
        "metrics": {service: f"{stack.url(service)}/metrics" for service in SERVICES},
        "simulator": None if stack.simulator is None else stack.simulator.url,
        "postgresql": _without_password(stack.database.url()),
        "kafka": stack.broker.bootstrap_servers,
        "folder": str(stack.folder),
        "addresses_file": str(stack.folder / _ADDRESSES),
        "settings_file": str(stack.folder / _SETTINGS),
    }
    sys.stdout.write(json.dumps(places) + "\n")
    sys.stdout.flush()


def _welcome(stack: Stack, console: Console) -> None:
    """Where everything is, and what to try."""
    api = stack.url("api")
    places = {
        "API documentation": f"{api}/docs",
        "health": f"{api}/health",
        **{f"metrics of {service}": f"{stack.url(service)}/metrics" for service in SERVICES},
        **({"simulated Allegro": stack.simulator.url} if stack.simulator is not None else {}),
        "PostgreSQL": _without_password(stack.database.url()),
        "Kafka": stack.broker.bootstrap_servers,
        "data, logs, keys": str(stack.folder),
    }
    console.print()
    for what, where in places.items():
        console.print(f"  {what:<20} {where}", markup=False, highlight=False, soft_wrap=True)
    console.print()
    addresses = stack.folder / _ADDRESSES
    console.print(f"For the shell: . {shlex.quote(str(addresses))}", markup=False, highlight=False, soft_wrap=True)
    console.print("What to try next: connect a seller, then read its orders.")
    lines = [
        f"curl -s -X POST {api}/api/v1/tokens/auth/initialize -H 'content-type: application/json' "
        '-d \'{"user_id": "my-shop"}\''
    ]
    if stack.simulator is not None:
        lines.append(
            f"curl -s -X POST {stack.simulator.url}/_sim/consent -H 'content-type: application/json' "
            '-d \'{"user_code": "<user_code of the answer>"}\'   # the seller agrees'
        )
        lines.append(
            f"curl -s -X POST {stack.simulator.url}/_sim/live -H 'content-type: application/json' "
            '-d \'{"orders": 20, "rate": 1}\'   # the shops sell'
        )
    else:
        lines.append("# open verification_uri_complete of the answer in a browser and agree")
    lines.append(f"curl -s {api}/api/v1/sync/status/my-shop")
    lines.append(f"curl -s '{api}/api/v1/orders/my-shop?limit=3'")
    for line in lines:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    console.print()
    console.print("Ctrl-C stops everything; the data stays.")


def run(plan: Plan, console: Console) -> int:
    """Start, watch, stop; 0 after being asked to stop."""
    console = Console(stderr=True) if plan.as_json else console

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    environment = environment_with_dotenv(os.environ, Path(".env"))
    folder = Path(environment.get("DATA_DIR") or ROOT / ".data").absolute()
    simulated = not environment.get("ALLEGRO_CLIENT_ID")
    if not simulated:
        check_real_allegro(environment)
    with _alone(folder), _signals():
        (folder / _ADDRESSES).unlink(missing_ok=True)
        stack = Stack(
            folder,
            environment,
            {"LOG_DIR": str(folder / "logs"), **environment},
            simulator_options=plan.simulator_options(folder) if simulated else None,
            durable=True,
            working_folder=Path.cwd(),
            say=say,
        )
        try:
            with stack:
                stack.start_servers()
                stack.set_up()
                stack.start_services()
                for service in SERVICES:
                    stack.wait_until_ready(service)
                _write_settings(stack)
                _write_addresses(stack)
                if plan.as_json:
                    _tell_programs(stack)
                _welcome(stack, console)
                watched = _watched(stack)
                while True:
                    time.sleep(_LOOK_SECONDS)
                    look(watched, time.monotonic(), say)
        except StopRequestedError:
            say("everything has stopped")
            return 0


def plan_from(arguments: Sequence[str]) -> Plan:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m devstack up", description=(__doc__ or "").split("\n")[0])
    defaults = Plan()
    simulated = "of the simulated Allegro"
    parser.add_argument("--sellers", type=int, default=defaults.sellers, help=simulated)
    parser.add_argument(
        "--orders", type=int, default=defaults.orders, help=f"historical orders of each seller {simulated}"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help=simulated)
    parser.add_argument(
        "--json",
        dest="as_json",
        action="store_true",
        help="once it is ready, one line of JSON on standard output that says where; all else on standard error",
    )
    return Plan(**vars(parser.parse_args(arguments)))
