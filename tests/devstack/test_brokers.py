"""Which broker is chosen, and what each of them keeps over a restart."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import UnknownTopicOrPartitionError

from devstack import apache_kafka
from devstack.apache_kafka import ApacheKafka, KafkaUnavailableError
from devstack.brokers import Broker, GivenBroker, GivenDatabase, choose_broker, choose_database
from devstack.containers import DockerUnavailableError
from devstack.errors import DevstackError
from devstack.postgres import Postgres
from devstack.tansu import Tansu

pytestmark = pytest.mark.timeout(900)  # whoever is the first fetches Apache Kafka

needs_apache_kafka = pytest.mark.skipif(
    shutil.which("java") is None or shutil.which("mvn") is None, reason="Apache Kafka needs java and mvn"
)


def test_the_embedded_broker_is_the_default(tmp_path: Path) -> None:
    assert isinstance(choose_broker({"KAFKA": ""}, tmp_path), Tansu)


def test_apache_kafka_is_chosen_by_name(tmp_path: Path) -> None:
    assert isinstance(choose_broker({"KAFKA": "apache"}, tmp_path), ApacheKafka)


def test_a_given_broker_wins(tmp_path: Path) -> None:
    broker = choose_broker({"KAFKA": "apache", "KAFKA_BOOTSTRAP_SERVERS": "kafka:9092"}, tmp_path)

    assert isinstance(broker, GivenBroker)
    assert broker.bootstrap_servers == "kafka:9092"


def test_a_given_database_wins(tmp_path: Path) -> None:
    database = choose_database({"KAFKA": "docker", "DATABASE_URL": "postgresql://db/x"}, tmp_path, durable=True)

    assert isinstance(database, GivenDatabase)
    assert database.url() == "postgresql://db/x"


def test_without_a_given_one_postgresql_is_embedded(tmp_path: Path) -> None:
    assert isinstance(choose_database({}, tmp_path, durable=True), Postgres)


def test_an_unknown_broker_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DevstackError, match="KAFKA=rabbit is not known: choose embedded, apache or docker"):
        choose_broker({"KAFKA": "rabbit"}, tmp_path)


def test_a_machine_without_java_is_told_so_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)

    with pytest.raises(KafkaUnavailableError, match=r"^Apache Kafka needs Java 17 or newer and there is no `java`"):
        ApacheKafka(tmp_path).start()


def test_a_machine_with_an_old_java_is_told_so_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("JAVA_HOME", raising=False)

    with pytest.raises(KafkaUnavailableError, match=r"`java` is version 11"):
        ApacheKafka(tmp_path).start()


def test_a_machine_without_maven_is_told_so_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    with pytest.raises(KafkaUnavailableError, match=r"^Apache Kafka is fetched with Maven and there is no `mvn`"):
        apache_kafka.jars()


def test_what_maven_says_is_shown_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maven = tmp_path / "mvn"
    maven.write_text("#!/bin/sh\necho 'Could not transfer artifact'; exit 1\n")
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    with pytest.raises(
        KafkaUnavailableError, match=r"(?s)could not be fetched with Maven.*Could not transfer artifact"
    ):
        apache_kafka.jars()

    assert [path.name for path in (tmp_path / "orders-backup-devstack").iterdir()] == ["lock"]


# The Docker client leaves its socket to the garbage collector when no engine answers.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_machine_without_docker_is_told_so_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")

    with pytest.raises(DockerUnavailableError, match=r"^KAFKA=docker needs a Docker engine and none answers"):
        choose_broker({"KAFKA": "docker"}, tmp_path).start()


@pytest.fixture(scope="module", params=["embedded", pytest.param("apache", marks=needs_apache_kafka)])
def own_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker of this module's own, which may be restarted."""
    chosen = choose_broker({"KAFKA": request.param}, tmp_path_factory.mktemp("broker"))
    chosen.start()
    yield chosen
    chosen.stop()


async def create_topic(broker: Broker, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


async def topics(broker: Broker) -> set[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        return set(await admin.list_topics())
    finally:
        await admin.close()


async def produce(broker: Broker, topic: str, *values: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, acks="all") as producer:
        for value in values:
            await producer.send_and_wait(topic, value, key=b"k", headers=[("h", b"1")])


async def consume(broker: Broker, topic: str, group: str, count: int) -> list[bytes | None]:
    """Read `count` records as a member of `group` and commit them."""
    async with AIOKafkaConsumer(
        topic,
        bootstrap_servers=broker.bootstrap_servers,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        # With the defaults the embedded broker may take 18 s to let the next member in.
        session_timeout_ms=6_000,
        heartbeat_interval_ms=500,
    ) as consumer:
        records = [await consumer.getone() for _ in range(count)]
        await consumer.commit({TopicPartition(topic, 0): records[-1].offset + 1})
    return [record.value for record in records]


@pytest.mark.integration
async def test_records_go_in_and_come_out_in_order(own_broker: Broker, topic_prefix: str) -> None:
    topic = f"{topic_prefix}round-trip"
    await create_topic(own_broker, topic)

    await produce(own_broker, topic, b"1", b"2", b"3")

    assert await consume(own_broker, topic, f"{topic_prefix}group", 3) == [b"1", b"2", b"3"]


@pytest.mark.integration
async def test_a_group_goes_on_behind_what_it_committed(own_broker: Broker, topic_prefix: str) -> None:
    topic, group = f"{topic_prefix}resume", f"{topic_prefix}group"
    await create_topic(own_broker, topic)
    await produce(own_broker, topic, b"1", b"2", b"3")
    await consume(own_broker, topic, group, 2)

    assert await consume(own_broker, topic, group, 1) == [b"3"]


@pytest.mark.integration
async def test_what_a_restart_leaves(own_broker: Broker, topic_prefix: str) -> None:
    """Apache Kafka keeps topics, records and the group's position; the embedded broker forgets everything."""
    topic, group = f"{topic_prefix}restart", f"{topic_prefix}group"
    await create_topic(own_broker, topic)
    await produce(own_broker, topic, b"1", b"2")
    await consume(own_broker, topic, group, 1)

    own_broker.restart()

    if isinstance(own_broker, Tansu):
        assert topic not in await topics(own_broker)
    else:
        assert await consume(own_broker, topic, group, 1) == [b"2"]


@pytest.mark.integration
async def test_a_killed_broker_starts_again(own_broker: Broker, topic_prefix: str) -> None:
    assert isinstance(own_broker, Tansu | ApacheKafka)
    own_broker.kill()

    own_broker.start()

    await create_topic(own_broker, f"{topic_prefix}after")
    async with asyncio.timeout(60):
        while f"{topic_prefix}after" not in await topics(own_broker):  # noqa: ASYNC110 - it is shown a moment later
            await asyncio.sleep(0.1)


@pytest.mark.integration
async def test_a_topic_is_not_made_by_a_typo(own_broker: Broker, topic_prefix: str) -> None:
    if isinstance(own_broker, Tansu):
        pytest.skip("the embedded broker has no such switch")

    async with AIOKafkaProducer(bootstrap_servers=own_broker.bootstrap_servers, request_timeout_ms=5_000) as producer:
        with pytest.raises(UnknownTopicOrPartitionError):
            await producer.send_and_wait(f"{topic_prefix}typo", b"1")

    assert f"{topic_prefix}typo" not in await topics(own_broker)
