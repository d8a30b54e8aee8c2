"""Loops survive outages and bugs, end in time, and tell the truth about themselves."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from aiokafka.errors import KafkaConnectionError
from prometheus_client import REGISTRY

from shared.errors import PermanentError, TransientError
from shared.health import Health
from shared.service import BackgroundLoops, backoff_seconds, is_transient


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


@pytest.fixture
async def loops(health: Health, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BackgroundLoops]:
    monkeypatch.setattr("shared.service._FIRST_BACKOFF_SECONDS", 0.001)
    async with BackgroundLoops(health, stop_seconds=5) as opened:
        yield opened


def failures(loop: str, cause: str) -> float:
    return REGISTRY.get_sample_value("orders_backup_loop_failures_total", {"loop": loop, "cause": cause}) or 0.0


class Work:
    """Plays back outcomes; afterwards it has nothing to do."""

    def __init__(self, *outcomes: Any) -> None:
        self._outcomes = list(outcomes)
        self.rounds = 0
        self.done = asyncio.Event()

    async def __call__(self) -> bool:
        self.rounds += 1
        outcome = self._outcomes.pop(0) if self._outcomes else False
        if not self._outcomes:
            self.done.set()
        if isinstance(outcome, Exception):
            raise outcome
        return bool(outcome)


async def finished(work: Work) -> None:
    async with asyncio.timeout(10):
        await work.done.wait()


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (TransientError("503"), True),
        (KafkaConnectionError("away"), True),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (asyncpg.DeadlockDetectedError("x"), True),
        (asyncpg.InterfaceError("connection is closed"), True),
        (PermanentError("never"), False),
        (KeyError("a bug"), False),
        (asyncpg.DataError("value out of int32 range"), False),
        (asyncpg.UndefinedColumnError("x"), False),
    ],
)
def test_what_passes_by_itself_is_told_from_a_bug(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


def test_waits_double_up_to_a_limit() -> None:
    assert [backoff_seconds(failures, jitter=1.0) for failures in (1, 2, 3, 99)] == [0.5, 1.0, 2.0, 15.0]
    assert backoff_seconds(99, jitter=0.0) == 7.5


async def test_a_loop_goes_on_after_an_outage_and_after_a_bug(loops: BackgroundLoops) -> None:
    work = Work(TransientError("away"), KeyError("bug"), True, True)

    loops.run_every("survivor", 60, work)
    await finished(work)

    assert work.rounds >= 4
    assert (failures("survivor", "outage"), failures("survivor", "bug")) == (1, 1)


async def test_a_loop_does_not_wait_while_there_is_more_and_wakes_when_told(loops: BackgroundLoops) -> None:
    wake = asyncio.Event()
    work = Work(True, True, False)
    loops.run_every("waker", 3600, work, wake=wake)
    await finished(work)
    before = work.rounds
    work.done.clear()

    wake.set()
    await finished(work)

    assert (before, work.rounds) == (3, 4)


async def test_a_loop_that_rests_hears_afterwards_what_it_was_told_meanwhile(loops: BackgroundLoops) -> None:
    now = asyncio.get_running_loop().time
    wake = asyncio.Event()
    work = Work(False)
    began = now()
    loops.run_every("rester", 3600, work, wake=wake, rest_seconds=0.2)
    await finished(work)
    work.done.clear()

    wake.set()
    await finished(work)

    assert work.rounds == 2
    assert now() - began >= 0.19  # clocks are coarse


async def test_a_loop_that_is_stuck_is_not_alive_although_its_process_is(
    loops: BackgroundLoops, health: Health, clock: Clock
) -> None:
    stuck = asyncio.Event()
    loops.keep_running("stuck", stuck.wait, within_seconds=30)  # type: ignore[arg-type]
    at_first = health.liveness().good
    clock.seconds = 100

    assert at_first
    assert list(health.liveness().wrong) == ["stuck"]
    assert health.liveness().response().status_code == 503


async def test_a_service_is_ready_when_started_and_names_what_is_away(health: Health) -> None:
    async def away() -> None:
        raise ConnectionRefusedError("port 5432, Bearer abc.def")

    before = (await health.readiness()).wrong
    health.started()
    ready = (await health.readiness()).good
    health.add_check("database", away)

    wrong = (await health.readiness()).wrong

    assert before == {"service": "not started"}
    assert ready
    assert list(wrong) == ["database"]
    assert "abc" not in wrong["database"]


async def test_loops_end_within_their_deadline_even_if_one_does_not(
    health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    loops = BackgroundLoops(health, stop_seconds=0.05)
    loops.keep_running("stubborn", stubborn)
    await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await loops.stop()
    release.set()

    assert "did not stop in time" in caplog.text
    assert health.liveness().good
