"""`make up` as somebody sees it: it comes up, repairs itself, stops cleanly, keeps its data, leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

_UP = "Ctrl-C stops everything"


class Up:
    """One `python -m devstack up` and what it prints."""

    def __init__(self, data: Path, output: Path, *options: str) -> None:
        self.output = output
        self._errors = output.with_suffix(".errors")
        environment = {**os.environ, "DATA_DIR": str(data), "PYTHONUNBUFFERED": "1"}
        with output.open("wb") as out, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "devstack", "up", "--sellers", "1", "--orders", "5", *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env=environment,
                cwd=Path(__file__).parents[2],
            )

    @property
    def printed(self) -> str:
        return self.output.read_text() + self._errors.read_text()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.printed or self.process.poll() is not None)
        assert text in self.printed, self.printed

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, words: str) -> psutil.Process:
        return next(child for child in self.children() if words in " ".join(child.cmdline()))

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.1)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def up(*options: str) -> Up:
        started.append(Up(tmp_path / "data", tmp_path / f"output-{len(started)}", *options))
        return started[-1]

    yield up
    for one in started:
        one.process.kill()
        one.process.wait()


def test_it_repairs_itself_stops_cleanly_and_comes_back(start: Callable[..., Up], tmp_path: Path) -> None:
    first = start()
    first.wait_for(_UP)
    api = re.search(r"API documentation\s+(http://\S+)/docs", first.printed)
    children = first.children()
    key = (tmp_path / "data" / "encryption_keys").read_bytes()

    first.child("services.writer").kill()
    first.wait_for("writer was started again")
    children += first.children()
    code = first.end(signal.SIGTERM)
    _, alive = psutil.wait_procs(children, timeout=10)

    second = start("--json")
    second.wait_for(_UP)
    places = json.loads(second.output.read_text())

    assert (code, alive) == (0, [])
    assert api is not None
    assert places["api"] == api[1]
    assert Path(places["addresses_file"]).exists()
    assert (tmp_path / "data" / "encryption_keys").read_bytes() == key
    assert second.end(signal.SIGINT) == 0


def test_a_second_one_in_the_same_folder_is_refused(start: Callable[[], Up]) -> None:
    first = start()
    wait_until(lambda: "PostgreSQL" in first.printed)

    second = start()
    code = second.process.wait(60)
    ended = first.end(signal.SIGTERM)

    assert code == 1
    assert "Another `make up` works in" in second.printed
    assert ended == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
def test_killing_it_leaves_no_process_behind(start: Callable[[], Up]) -> None:
    up = start()
    up.wait_for(_UP)
    children = up.children()

    up.end(signal.SIGKILL)

    _, alive = psutil.wait_procs(children, timeout=20)
    assert len(children) >= 7
    assert alive == []
