"""What every peer is asked to do, and what it answers. Standard library only: it runs in the peers' environments."""

import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PAGE = 100
EVENTS_PAGE = 1000
ACCEPT = "application/vnd.allegro.public.v1+json"
USER_AGENT = "Benchmark/1.0 (+https://example.org/benchmark)"


@dataclass(frozen=True)
class Job:
    """`list`: all orders of every seller by pages. `events`: the journal, then each order it names by itself."""

    mode: Literal["list", "events"]
    url: str
    tokens: tuple[str, ...]
    database: str

    @classmethod
    def read(cls) -> "Job":
        document = json.loads(Path(sys.argv[1]).read_text())
        return cls(document["mode"], document["url"], tuple(document["tokens"]), document["database"])

    def headers(self, token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}", "Accept": ACCEPT, "User-Agent": USER_AGENT}


@dataclass(frozen=True)
class Spent:
    """Seconds of the wall clock and of CPU."""

    seconds: float
    cpu_seconds: float


class Stopwatch:
    """Wall and CPU time of this process and its children, from here on: imports are not part of it."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = _cpu_seconds()

    def read(self) -> Spent:
        return Spent(time.perf_counter() - self._wall, _cpu_seconds() - self._cpu)

    def report(self, *, less: Spent = Spent(0.0, 0.0)) -> None:
        """The last line of the output."""
        spent = self.read()
        document = {"seconds": spent.seconds - less.seconds, "cpu_seconds": spent.cpu_seconds - less.cpu_seconds}
        sys.stdout.write(json.dumps(document) + "\n")


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
