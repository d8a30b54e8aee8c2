"""Runs benchmarks one after the other and keeps what they measured: `make bench`, `make bench BENCHES="writer api"`

Each benchmark is a target `bench-NAME` of the Makefile. What its last run measured, on which machine and when, is kept
in `docs/benchmarks.json`, and as the table of `docs/benchmarks.md`. The exit code is 0 only if every goal is met.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import Measure

_DOCS = Path(__file__).parents[1] / "docs"
_KEPT = _DOCS / "benchmarks.json"
_PAGE = _DOCS / "benchmarks.md"
_BEGIN, _END = "<!-- results: made by `make bench` -->", "<!-- end of results -->"
_HEAD = "| measure | measured | against | ratio | goal | met |\n| --- | ---: | ---: | ---: | ---: | --- |"

Kept = dict[str, dict[str, Any]]
"""Of each benchmark: date, machine, commit, arguments, and its measures as they were printed."""


def measures_of(lines: Iterable[str]) -> Iterator[Measure]:
    """The measures among the lines that a benchmark printed."""
    for line in lines:
        if line.startswith('{"bench"'):
            yield Measure(**json.loads(line))


def machine() -> str:
    """What the figures were measured on, without its name."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")), platform.machine()
    )
    memory = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} x {cpu}, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}"


def commit() -> str:
    """What was measured; `+` where code was changed since. Empty without git."""
    try:
        revision = _git("rev-parse", "--short", "HEAD")
        return f"{revision}+" if _git("status", "--porcelain", "--", ":/", ":!/docs") else revision
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    told = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=_DOCS)  # noqa: S603, S607 - whichever git there is
    return told.stdout.strip()


def table(kept: Kept) -> str:
    """Everything kept, as Markdown."""
    parts = []
    for name, run in sorted(kept.items()):
        rows = "\n".join(_row(Measure(**measure)) for measure in run["measures"])
        command = f"make bench-{name}" + (f' ARGS="{run["arguments"]}"' if run.get("arguments") else "")
        when = f"{run['date']}, {run['machine']}" + (f", at {run['commit']}" if run.get("commit") else "")
        parts.append(f"### `{command}`\n\n{when}\n\n{_HEAD}\n{rows}\n")
    return "\n".join(parts)


def with_table(page: str, kept: Kept) -> str:
    """The page with the present table in the place of the former one."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{table(kept)}\n{_END}{after}"


def _row(measure: Measure) -> str:
    numbers = (f"{_short(measure.value)} {measure.unit}", _short(measure.reference), _short(measure.ratio))
    if not measure.goal:
        return f"| {measure.bench} | {' | '.join(numbers)} | | |"
    met = "yes" if measure.ratio >= measure.goal else "**no**"
    return f"| {measure.bench} | {' | '.join(numbers)} | {_short(measure.goal)} | {met} |"


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _run(name: str) -> tuple[int, list[str]]:
    """Run one benchmark, shown as it prints; returns its exit code and its lines."""
    sys.stdout.write(f"== {name}\n")
    lines = []
    command = [os.environ.get("MAKE", "make"), "--no-print-directory", f"bench-{name}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own targets
        for line in process.stdout or ():
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line)
    return process.returncode, lines


def _keep(name: str, measures: Iterable[Measure], *, now: datetime, measured: str) -> None:
    kept: Kept = json.loads(_KEPT.read_text()) if _KEPT.exists() else {}
    kept[name] = {
        "date": f"{now:%Y-%m-%d}",
        "machine": machine(),
        "commit": measured,
        "arguments": os.environ.get("ARGS", ""),
        "measures": [vars(one) for one in measures],
    }
    _KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    _PAGE.write_text(with_table(_PAGE.read_text(), kept))


def main() -> None:
    """Run the benchmarks that are named; each is kept as soon as it has ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benches", nargs="+", metavar="NAME")
    failed: Mapping[str, int] = {}
    measured = commit()  # before the first result changes a file
    for name in parser.parse_args().benches:
        code, lines = _run(name)
        measures = list(measures_of(lines))
        if measures:
            _keep(name, measures, now=datetime.now(UTC), measured=measured)
        if code:
            failed = {**failed, name: code}
    if failed:
        sys.exit(f"goals missed, or not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
