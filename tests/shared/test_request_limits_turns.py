"""One seller's pace in process: first come, first served, one place in the common queue, bounded memory."""

import asyncio
from itertools import pairwise

import pytest

from shared.limits import turns as turns_module
from shared.limits.pace import Pace
from shared.limits.turns import Turns


class Time:
    """Passes only in sleep."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def turns(time: Time) -> Turns:
    return Turns(monotonic=time.monotonic, sleep=time.sleep)


SIXTY = Pace.of(60, minute_seconds=60)


async def test_requests_of_one_key_are_an_interval_apart(turns: Turns, time: Time) -> None:
    moments = []
    for _ in range(4):
        async with turns.turn("a", SIXTY):
            moments.append(time.now)

    gaps = [later - sooner for sooner, later in pairwise(moments)]
    assert gaps == pytest.approx([SIXTY.interval - SIXTY.tolerance, SIXTY.interval, SIXTY.interval], abs=0.4)
    assert sum(gaps) >= 3 * SIXTY.interval - SIXTY.tolerance - 1e-9


async def test_keys_do_not_wait_for_each_other(turns: Turns, time: Time) -> None:
    for key in range(100):
        async with turns.turn(key, SIXTY):
            assert time.now == 100.0


async def test_a_key_is_in_the_common_queue_once_and_others_pass(turns: Turns) -> None:
    inside: list[str] = []
    go_on = asyncio.Event()

    async def call(key: str) -> None:
        async with turns.turn(key, SIXTY):
            inside.append(key)
            await go_on.wait()

    calls = [asyncio.create_task(call(key)) for key in ("a", "a", "a", "b")]
    await asyncio.sleep(0)
    waiting = list(inside)
    go_on.set()
    await asyncio.gather(*calls)

    assert waiting == ["a", "b"]


async def test_a_call_that_is_cancelled_takes_no_slot(turns: Turns, time: Time) -> None:
    async def call() -> None:
        async with turns.turn("a", SIXTY):
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])

    async with turns.turn("a", SIXTY):
        assert time.now == 100.0


async def test_waiting_for_the_common_allowance_takes_no_slot_either(turns: Turns, time: Time) -> None:
    async with turns.turn("a", SIXTY):
        await time.sleep(30)

    async with turns.turn("a", SIXTY):
        assert time.now == pytest.approx(130 + SIXTY.interval - SIXTY.tolerance, abs=0.01)


async def test_keys_that_rest_are_forgotten(turns: Turns, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in range(10 * turns_module._SMALLEST_SWEEP):
        async with turns.turn(key, SIXTY):
            time.now += 0.01

    assert len(turns) < 2 * turns_module._SMALLEST_SWEEP


async def test_keys_in_use_are_not_forgotten(turns: Turns, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "_SMALLEST_SWEEP", 1)
    turns._sweep_at = 1
    async with turns.turn("a", SIXTY):
        for key in range(10):
            async with turns.turn(key, SIXTY):
                time.now += 10
        moment = time.now

    async with turns.turn("a", SIXTY):
        assert time.now == pytest.approx(moment + SIXTY.interval - SIXTY.tolerance, abs=0.5)
