"""What the time of each stage goes into: `make bench-floor`

Does the job of `make bench-pipeline` with our product alone while py-spy looks at every stage a hundred times a
second, and says what part of its working time each stage spends in the Kafka client, in JSON, in HTTP, in SQL, in the
event loop, and in our own code. Writes a flame graph of each stage into `docs/flames/`.

py-spy has to be allowed to look at the processes that this one starts: as root, or where the kernel lets a process
trace its children (`kernel.yama.ptrace_scope` 0 or 1).
"""

import argparse
import asyncio
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.pipeline import Load, Mode, measure_ours, show
from benchmarks.report import Measure, report
from devstack.processes import ROOT
from devstack.stack import Stack

_STAGES: Final = ("poller", "enricher", "writer")
_PICTURES: Final = ROOT / "docs" / "flames"
_PY_SPY: Final = Path(sys.executable).with_name("py-spy")
_SAMPLES_A_SECOND: Final = 100
_OURS: Final = "our own code"
_HTTP: Final = "HTTP"
# reqwest's threads are without Python, and py-spy does not see them: what they used is counted as if it had been seen.
_HTTP_THREADS: Final = "pyreqwest"
_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
# What our own code may take of the working time of all stages; no issue states one, so: less than the libraries do.
_GOAL: Final = 0.5
_FUNCTIONS: Final = 4
# Less of a stage's time is not worth a line.
_LEAST_SHARE: Final = 0.01
# The innermost frame that belongs to one of these decides. Where C code works, its Python caller is what is seen:
# msgspec's in the two modules of ours that read bodies and records.
_KINDS: Final = {
    "Kafka client": ("aiokafka/",),
    _HTTP: ("httpx/", "pyreqwest/", "shared/allegro/http.py", "shared/allegro/transport.py"),
    "SQL": ("asyncpg/",),
    "JSON": ("json/", "msgspec/", "shared/messages.py", "shared/allegro/bodies.py"),
    "encryption": ("cryptography/", "shared/encryption.py"),
    "metrics and logs": ("prometheus_client/", "logging/", "structlog/", "shared/logs.py"),
    _OURS: ("services/", "shared/"),
}
# What is in every stack says nothing.
_RUNS_EVERYTHING: Final = re.compile(r"services/\w+/__main__\.py|shared/service\.py")
_LOOP: Final = "event loop and its sockets"


def told_by(stack: str) -> tuple[str, str]:
    """What a sample belongs to, and the function that says so; frames come outermost first, parted by semicolons."""
    for frame in reversed(stack.split(";")):
        function, _, place = frame.rpartition(" (")
        for kind, beginnings in _KINDS.items():
            if place.startswith(beginnings) and not _RUNS_EVERYTHING.match(place):
                return kind, function
    return _LOOP, ""


@dataclass
class Samples:
    """How often a stage was seen in each kind of work, and in which functions of ours."""

    kinds: Counter[str] = field(default_factory=Counter)
    own: Counter[str] = field(default_factory=Counter)

    def add(self, lines: Iterable[str]) -> None:
        """Count py-spy's folded stacks."""
        for line in lines:
            stack, _, number = line.rpartition(" ")
            kind, function = told_by(stack)
            self.kinds[kind] += int(number)
            if kind == _OURS:
                self.own[function] += int(number)

    def add_http(self, cpu_seconds: float) -> None:
        """Count what reqwest's threads used, which the samples do not show."""
        self.kinds[_HTTP] += round(cpu_seconds * _SAMPLES_A_SECOND)

    def shares(self) -> dict[str, float]:
        """Each kind's part, the largest first."""
        return {kind: number / self.kinds.total() for kind, number in self.kinds.most_common()}

    def largest_own(self, number: int) -> dict[str, float]:
        """Our functions with the largest parts."""
        return {function: seen / self.kinds.total() for function, seen in self.own.most_common(number)}


class Spies:
    """py-spy beside every stage: one for the shares, one for the picture."""

    def __init__(self, mode: Mode, folder: Path) -> None:
        self._mode = mode
        self._folder = folder
        self.http_seconds: dict[str, float] = {}
        """What reqwest's threads of each stage used of the CPU."""

    @asynccontextmanager
    async def around(self, stack: Stack) -> AsyncIterator[None]:
        """Watch while the body runs."""
        _PICTURES.mkdir(exist_ok=True)
        spies = [
            await self._spy(stack.services[stage].pid, form, output)
            for stage in _STAGES
            for form, output in (("raw", self.samples(stage)), ("flamegraph", self._picture(stage)))
        ]
        before = {stage: http_seconds(stack.services[stage].pid) for stage in _STAGES}
        try:
            yield
            for stage, used in before.items():
                self.http_seconds[stage] = http_seconds(stack.services[stage].pid) - used
            if not self.http_seconds["enricher"]:
                raise RuntimeError(f"the enricher has no thread {_HTTP_THREADS}* that works: what does its HTTP?")
        finally:
            for spy in spies:
                spy.send_signal(2)  # an interrupt: it writes what it has seen
            for spy in spies:
                await spy.wait()
            for stage in _STAGES:
                _forget_the_machine(self._picture(stage))

    def samples(self, stage: str) -> Path:
        """py-spy's folded stacks of a stage."""
        return self._folder / f"{self._mode}-{stage}.folded"

    def _picture(self, stage: str) -> Path:
        return _PICTURES / f"{self._mode}-{stage}.svg"

    async def _spy(self, pid: int, form: str, output: Path) -> asyncio.subprocess.Process:
        options = ["--rate", str(_SAMPLES_A_SECOND), "--duration", "unlimited", "--format", form, "--nonblocking"]
        return await asyncio.create_subprocess_exec(
            _PY_SPY,
            *("record", "--pid", str(pid), *options, "--output", _relative(output)),
            cwd=ROOT,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )


def http_seconds(pid: int) -> float:
    """CPU seconds that reqwest's threads of a process have used so far, of those that live (Linux, proc(5))."""
    ticks = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            name, stat = (thread / "comm").read_text(), (thread / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if name.startswith(_HTTP_THREADS):
            user, system = stat.rpartition(")")[2].split()[11:13]
            ticks += int(user) + int(system)
    return ticks / _CLOCK_TICKS


def _forget_the_machine(picture: Path) -> None:
    """The title is py-spy's command, which begins with where it lies."""
    picture.write_text(picture.read_text().replace(str(_PY_SPY), _PY_SPY.name))


def _relative(path: Path) -> str:
    """From the root of the repository."""
    return os.path.relpath(path, ROOT)


def _tell(mode: Mode, stage: str, seen: Samples) -> None:
    for what, parts in (("", seen.shares()), ("  of it ours: ", seen.largest_own(_FUNCTIONS))):
        told = ", ".join(f"{name} {share:.0%}" for name, share in parts.items())
        sys.stdout.write(f"{mode:<7} {stage:<10} {what}{told}\n")


def _known(mode: Mode, stage: str, seen: Samples) -> list[Measure]:
    """Where a stage's time goes; only our own share of all stages has a goal."""
    return [
        Measure(f"floor.{mode}, {stage}: {kind}", share, "of samples", 1.0, 1.0 / share, 0.0)
        for kind, share in seen.shares().items()
        if share >= _LEAST_SHARE
    ]


def main() -> None:
    """Run the benchmark; the exit code is 0 only if our own code takes no more than the share that it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sellers", type=int, default=10)
    parser.add_argument("--list-orders", type=int, default=5000, help="of each seller, by list pages")
    parser.add_argument("--event-orders", type=int, default=1000, help="of each seller, one by one")
    options = parser.parse_args()
    loads = (Load("list", options.sellers, options.list_orders), Load("events", options.sellers, options.event_orders))
    measures = []
    with tempfile.TemporaryDirectory() as folder:
        for load in loads:
            spies = Spies(load.mode, Path(folder))
            show(load.mode, "ours, watched", measure_ours(load, spies.around))
            whole = Samples()
            for stage in _STAGES:
                lines = spies.samples(stage).read_text().splitlines()
                seen = Samples()
                for samples in (seen, whole):
                    samples.add(lines)
                    samples.add_http(spies.http_seconds[stage])
                _tell(load.mode, stage, seen)
                measures += _known(load.mode, stage, seen)
            _tell(load.mode, "all", whole)
            own = whole.shares().get(_OURS, 0.0)
            measures += _known(load.mode, "all stages", whole)
            measures.append(Measure(f"floor.{load.mode}-own-share", own, "of samples", _GOAL, _GOAL / own, 1.0))
    sys.exit(0 if report(measures) else 1)


if __name__ == "__main__":
    main()
