"""Alive means that it makes progress: a hung consumer turns red though its process answers; an idle one stays green."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial

import pytest

from services.enricher.lanes import Lanes
from shared.delivery import open_consumer
from shared.health import Health
from shared.service import BackgroundLoops
from shared.settings import KafkaSettings

pytestmark = pytest.mark.integration

_WITHIN_SECONDS = 30.0


class InterruptedRoundError(ConnectionError):
    """What ends the first round of the consumer."""


class Clock:
    """Seconds that pass only when a test says so."""

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
async def loops(health: Health) -> AsyncIterator[BackgroundLoops]:
    async with BackgroundLoops(health, stop_seconds=10) as opened:
        yield opened


async def turns(health: Health, *, red: bool) -> None:
    """Wait until liveness is what it should be."""
    async with asyncio.timeout(30):
        while health.liveness().good is red:  # noqa: ASYNC110 - the loop tells nobody but `health`
            await asyncio.sleep(0.01)


@pytest.fixture
def lanes(kafka_bootstrap: str, fresh_topics: str, health: Health) -> Lanes:
    """A consumer without a single record to consume."""
    settings = KafkaSettings(kafka_bootstrap_servers=(kafka_bootstrap,), kafka_topic_prefix=fresh_topics)

    async def nothing_comes(_records: object) -> None:
        raise AssertionError("a record came")

    return Lanes(
        partial(open_consumer, settings, group="idle", service="test", max_poll_interval_ms=60_000),
        settings.topics.order_events,
        nothing_comes,
        max_batch=10,
        drain_seconds=1,
        progressed=partial(health.progressed, "consume"),
    )


async def test_an_idle_consumer_stays_alive(loops: BackgroundLoops, health: Health, clock: Clock, lanes: Lanes) -> None:
    loops.keep_running("consume", lanes.run, within_seconds=_WITHIN_SECONDS)
    for _ in range(3):
        clock.seconds += 10 * _WITHIN_SECONDS

        await turns(health, red=False)

    assert health.liveness().good


async def test_a_hung_consumer_is_dead_although_its_process_answers(
    loops: BackgroundLoops, health: Health, clock: Clock, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops.keep_running("consume", lanes.run, within_seconds=_WITHIN_SECONDS)
    clock.seconds += 10 * _WITHIN_SECONDS
    await turns(health, red=False)
    hung = asyncio.Event()

    async def never(_consumer: object) -> None:
        hung.set()
        await asyncio.Event().wait()

    def interrupt(_consumer: object) -> None:
        raise InterruptedRoundError

    # The round in hand ends by an outage; the next one hangs.
    monkeypatch.setattr(lanes, "_hold_back", interrupt)
    monkeypatch.setattr(lanes, "_take", never)
    async with asyncio.timeout(60):
        await hung.wait()
    clock.seconds += 10 * _WITHIN_SECONDS

    answer = health.liveness().response()
    ready = await health.readiness()

    assert answer.status_code == 503
    assert list(json.loads(answer.body)["wrong"]) == ["consume"]
    assert "consume" in ready.wrong


async def test_a_loop_of_rounds_that_has_nothing_to_do_stays_alive_and_a_hung_one_does_not(
    loops: BackgroundLoops, health: Health, clock: Clock
) -> None:
    hang = asyncio.Event()
    began = asyncio.Event()

    async def work() -> bool:
        if hang.is_set():
            began.set()
            await asyncio.Event().wait()
        return False

    loops.run_every("rounds", 0.01, work, within_seconds=_WITHIN_SECONDS)
    clock.seconds += 10 * _WITHIN_SECONDS
    await turns(health, red=False)
    idle = health.liveness().good

    hang.set()
    async with asyncio.timeout(10):
        await began.wait()
    clock.seconds += 10 * _WITHIN_SECONDS

    assert idle
    assert list(health.liveness().wrong) == ["rounds"]
