"""Publications that are given up leave nothing behind, and take nothing from those that share a batch with them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError, ProducerClosed
from hypothesis import given
from hypothesis import strategies as st

from shared.kafka import PublishFailedError, RecordProducer
from shared.kafka_batches import Batch, Batches, ended
from shared.settings import KafkaSettings

_PARTITIONS = 3
_ROOM = 50
_KEYS = 200
_ROUNDS = 10

Record = tuple[bytes | None, bytes | None]


class _Builder:
    """A batch that has room for so many records."""

    def __init__(self, room: int) -> None:
        self.records: list[Record] = []
        self._room = room

    def append(
        self, *, timestamp: None, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]
    ) -> object | None:
        del timestamp, headers
        if len(self.records) == self._room:
            return None
        self.records.append((key, value))
        return self


class _Silent:
    """In place of aiokafka's producer: it takes a batch of each partition, and the next one when Kafka has answered."""

    def __init__(self, *, room: int = _ROOM, partitions: int = _PARTITIONS) -> None:
        self.answers: asyncio.Queue[bool] = asyncio.Queue()
        """Whether Kafka takes a batch that waits, one after the other."""
        self.taken: list[list[Record]] = []
        """Records of the batches that were handed over, whether or not Kafka has taken them."""
        self.kept: list[Record] = []
        self._room = room
        self._partitions = partitions

    async def start(self) -> None:
        """There is nothing to connect to."""

    async def stop(self) -> None:
        """There is nothing to close."""

    async def partitions_for(self, _topic: str) -> set[int]:
        return set(range(self._partitions))

    def create_batch(self) -> _Builder:
        return _Builder(self._room)

    async def send_batch(self, builder: _Builder, _topic: str, *, partition: int) -> "asyncio.Future[None]":
        del partition
        self.taken.append(builder.records)
        if not await self.answers.get():
            raise KafkaTimeoutError
        self.kept += builder.records
        acknowledged = asyncio.get_running_loop().create_future()
        acknowledged.set_result(None)
        return acknowledged

    def answer_from_now_on(self) -> None:
        for _ in range(10_000):
            self.answers.put_nowait(True)


def _under_way() -> int:
    return sum(task.get_name().startswith("send to ") for task in asyncio.all_tasks())


async def _until_under_way(batches: int) -> None:
    async with asyncio.timeout(10):
        while _under_way() != batches:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


async def _given_up(batches: set[Batch]) -> None:
    """Wait for them as a publication does, and give up at once."""
    waiting = asyncio.create_task(ended(batches))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def _publish_each_key(producer: RecordProducer, value: bytes) -> list[Any]:
    """A publication for each key, all at once; returns what became of them."""
    publications = [producer.publish_all("orders", [(b"%d" % key, value, [])]) for key in range(_KEYS)]
    return await asyncio.gather(*publications, return_exceptions=True)


async def test_nothing_piles_up_while_kafka_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every caller repeats what it gave up, for as long as it takes."""
    silent = _Silent()
    monkeypatch.setattr("shared.kafka.AIOKafkaProducer", lambda **_: silent)
    where = KafkaSettings(kafka_bootstrap_servers=("127.0.0.1:1",))
    left = []
    async with RecordProducer(where, service="test", deadline_seconds=0.1) as producer, asyncio.timeout(60):
        for number in range(_ROUNDS):
            outcomes = await _publish_each_key(producer, b"round %d" % number)
            assert {type(outcome) for outcome in outcomes} == {PublishFailedError}
            left.append(_under_way())
        silent.answer_from_now_on()
        while await _publish_each_key(producer, b"at last") != [None] * _KEYS:
            pass  # a slow machine: the callers repeat here, too

    assert max(left) <= _PARTITIONS
    assert len(silent.taken[0]) <= _ROOM
    assert {value for _, value in silent.kept} <= {b"round 0", b"at last"}
    assert {key for key, value in silent.kept if value == b"at last"} == {b"%d" % key for key in range(_KEYS)}


async def _two_behind_one(batches: Batches) -> tuple[set[Batch], set[Batch], set[Batch]]:
    """A publication that Kafka has and does not answer, and two that share a batch in the queue behind it."""
    first = await batches.put("orders", [(b"one", b"first", [])])
    await _until_under_way(1)
    mine = await batches.put("orders", [(b"one", b"mine", [])])
    yours = await batches.put("orders", [(b"one", b"yours", [])])
    await _until_under_way(2)
    return first, mine, yours


async def test_a_batch_in_the_queue_goes_out_while_one_of_two_publications_waits_for_it() -> None:
    silent = _Silent()
    batches = Batches(silent)
    first, mine, yours = await _two_behind_one(batches)

    await _given_up(mine)
    silent.answer_from_now_on()
    await ended(first | yours)

    assert mine == yours
    assert [batch.acknowledged.exception() for batch in yours] == [None]
    assert silent.kept == [(b"one", b"first"), (b"one", b"mine"), (b"one", b"yours")]


async def test_a_batch_in_the_queue_is_withdrawn_when_its_last_publication_gives_up() -> None:
    silent = _Silent()
    batches = Batches(silent)
    first, mine, yours = await _two_behind_one(batches)

    await _given_up(mine)
    await _given_up(yours)
    await _until_under_way(1)
    silent.answer_from_now_on()
    next_one = await batches.put("orders", [(b"one", b"next", [])])
    await ended(first | next_one)

    assert silent.kept == [(b"one", b"first"), (b"one", b"next")]


async def test_what_is_given_up_while_records_are_still_gathered_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.kafka_batches._SHORT_LINGER_SECONDS", 0.5)
    silent = _Silent()
    batches = Batches(silent)
    silent.answer_from_now_on()

    await _given_up(await batches.put("orders", [(b"one", b"mine", [])]))
    await ended(await batches.put("orders", [(b"two", b"of another partition", [])]))  # they leave together

    assert silent.kept == [(b"two", b"of another partition")]


async def test_a_batch_that_was_handed_over_ends_although_nobody_waits() -> None:
    silent = _Silent()
    batches = Batches(silent)
    mine = await batches.put("orders", [(b"one", b"mine", [])])
    await _until_under_way(1)

    await _given_up(mine)
    silent.answer_from_now_on()
    await _until_under_way(0)

    assert [batch.acknowledged.exception() for batch in mine] == [None]
    assert silent.kept == [(b"one", b"mine")]


@dataclass
class _Publication:
    key: bytes
    values: list[bytes]
    batches: set[Batch]
    waiting: "asyncio.Task[None]" = field(init=False)
    gave_up: bool = False

    def __post_init__(self) -> None:
        self.waiting = asyncio.create_task(ended(self.batches))

    def give_up(self) -> None:
        self.gave_up |= self.waiting.cancel()

    @property
    def succeeded(self) -> bool:
        return not self.gave_up and all(batch.acknowledged.exception() is None for batch in self.batches)


_STEPS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from([b"a", b"b"]), st.integers(1, 5)),
    st.tuples(st.just("give up"), st.integers(1, 5)),
    st.tuples(st.just("answer"), st.booleans()),
    st.tuples(st.just("go on"), st.integers(1, 4)),
)


async def _play(steps: list[tuple[Any, ...]], silent: _Silent) -> list[_Publication]:
    """Do the steps, then let Kafka answer until everything has ended."""
    batches = Batches(silent)
    publications: list[_Publication] = []
    for step, *given_with_it in steps:
        if step == "publish":
            key, count = given_with_it
            values = [b"%d-%d" % (len(publications), number) for number in range(count)]
            mine = await batches.put("orders", [(key, value, []) for value in values])
            publications.append(_Publication(key, values, mine))
            await asyncio.sleep(0)  # it waits from here on
        elif step == "give up" and given_with_it[0] <= len(publications):
            publications[-given_with_it[0]].give_up()
        elif step == "answer":
            silent.answers.put_nowait(given_with_it[0])
        elif step == "go on":
            for _ in range(given_with_it[0]):
                await asyncio.sleep(0)
    silent.answer_from_now_on()
    async with asyncio.timeout(10):
        await asyncio.gather(*(publication.waiting for publication in publications), return_exceptions=True)
    await _until_under_way(0)
    return publications


@given(steps=st.lists(_STEPS, min_size=10, max_size=40))
async def test_whatever_is_given_up_those_that_succeed_are_whole_and_in_order(steps: list[tuple[Any, ...]]) -> None:
    silent = _Silent(room=3, partitions=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.kafka_batches._SHORT_LINGER_SECONDS", 0.0)
        publications = await _play(steps, silent)

    waited_for = {batch for one in publications if not one.gave_up for batch in one.batches}
    assert not any(isinstance(batch.acknowledged.exception(), ProducerClosed) for batch in waited_for)
    for key in (b"a", b"b"):
        succeeded = [value for one in publications if one.succeeded and one.key == key for value in one.values]
        assert [value for found, value in silent.kept if found == key and value in succeeded] == succeeded
