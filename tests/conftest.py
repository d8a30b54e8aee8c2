"""What every test may ask for: an empty or migrated database of its own, a broker, names nobody else uses.

One PostgreSQL and one broker serve the whole session, started when the first test asks. Which ones: `KAFKA=` and
`DATABASE_URL` / `KAFKA_BOOTSTRAP_SERVERS`, as for the demo (`devstack.brokers`).
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil
import pytest
from hypothesis import HealthCheck, settings
from prometheus_client import generate_latest

from devstack.apache_kafka import jars
from devstack.brokers import Broker, Database, choose_broker, choose_database
from devstack.errors import DevstackError
from devstack.kafka_client import finish
from tests.canary import Watch

# How fast an example is tells of the machine, not of the code. The examples are the same ones each time, so that a run
# that fails can be repeated; new ones are looked for with `--hypothesis-profile=explore`.
_ON_ANY_MACHINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", _ON_ANY_MACHINE)
settings.register_profile("repeat", _ON_ANY_MACHINE, derandomize=True)
settings.load_profile("repeat")

# The choice of servers is read once, here; after that no test sees the variables of whoever runs it.
_CHOICE = {name: os.environ.get(name, "") for name in ("KAFKA", "KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL")}
_OURS = ("ALLEGRO_", "API_", "DATABASE_", "ENCRYPTION_", "ENRICHER_", "KAFKA", "LOG_", "POLLER_", "SYNC_", "WRITER_")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of ours and no `.env` of the developer reaches a test."""
    for name in list(os.environ):
        if name.startswith(_OURS):
            monkeypatch.delenv(name)

    from shared.settings import Group

    def without_dotenv(_cls: object, *, init_settings: object, env_settings: object, **_others: object) -> object:
        return init_settings, env_settings

    monkeypatch.setattr(Group, "settings_customise_sources", without_dotenv)


@pytest.fixture(scope="session")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """Looks for secrets all the time (`tests.canary`); at the end also in metrics and in the files of the tests."""
    watch = Watch()
    watch.listen()

    yield watch

    watch.look("metrics", generate_latest())
    watch.look_at_log_files(tmp_path_factory.getbasetemp())
    _fail_on_leaks(watch)


@pytest.fixture(autouse=True)
def _no_secret_comes_out(watch: Watch) -> Iterator[None]:
    """Set up before every other fixture of a test, so that what those look at when they end is in it."""
    watch.listen()

    yield

    _fail_on_leaks(watch)


def _fail_on_leaks(watch: Watch) -> None:
    leaks = watch.take()
    if leaks:
        pytest.fail("secrets have come out:\n" + "\n".join(map(str, leaks)), pytrace=False)


def pytest_sessionstart() -> None:
    """Apache Kafka is fetched before the first test, whose time has a limit."""
    if _CHOICE["KAFKA"] == "apache" and not _CHOICE["KAFKA_BOOTSTRAP_SERVERS"]:
        with _without_it_no_test():
            jars()


@contextmanager
def _without_it_no_test() -> Iterator[None]:
    """What cannot be had on this machine is said once, in one sentence, instead of by every test."""
    try:
        yield
    except DevstackError as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Fail loudly if a server or service that a test started is still running at the end."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    yield

    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    names = []
    for child in left:
        try:
            command = " ".join(child.cmdline()) or child.name()
            if "multiprocessing.resource_tracker" in command:
                continue
            names.append(f"{child.pid}: {command}")
            child.kill()
        except psutil.NoSuchProcess:
            continue
    if names:
        pytest.fail("processes were left running:\n" + "\n".join(names))


@pytest.fixture(scope="session")
def server_folder(_no_process_is_left: None, watch: Watch) -> Iterator[Path]:
    """Where the session's servers keep data and logs."""
    folder = Path(tempfile.mkdtemp(prefix="orders-backup-tests-"))

    yield folder

    watch.look_at_log_files(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_server(server_folder: Path) -> Iterator[Database]:
    """The PostgreSQL of this session, without durability: only the machine could lose data, and tests keep none."""
    with _without_it_no_test():
        database = choose_database(_CHOICE, server_folder / "postgres", durable=False)
        database.start()

    yield database

    database.stop()


@pytest.fixture(scope="session")
def broker(server_folder: Path) -> Iterator[Broker]:
    """The broker of this session. A test that kills or empties a broker starts its own."""
    with _without_it_no_test():
        chosen = choose_broker(_CHOICE, server_folder / "broker")
        chosen.start()

    yield chosen

    chosen.stop()


@pytest.fixture(scope="session")
def kafka_bootstrap(broker: Broker) -> str:
    """`host:port` of the session's broker; use `topic_prefix` to have topics and groups of one's own."""
    return broker.bootstrap_servers


@pytest.fixture
def topic_prefix() -> str:
    """A prefix for topics and groups that no other test uses."""
    return f"test-{secrets.token_hex(5)}-"


@pytest.fixture
def fresh_topics(topic_prefix: str, kafka_bootstrap: str, watch: Watch) -> Iterator[str]:
    """The product's topics, just created with three partitions, under the prefix that is returned."""
    from shared.topics import Topics, create_topics

    finish(create_topics([kafka_bootstrap], Topics(topic_prefix), partitions=3, replication_factor=1))

    yield topic_prefix

    watch.look_at_topics(kafka_bootstrap, topic_prefix)


def _with_database(url: str, database: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _new_database(server: Database, template: str, watch: Watch) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    # FILE_COPY is the quicker strategy without fsync, WAL_LOG with it.
    strategy = " STRATEGY file_copy" if server.name == "embedded" else ""
    finish(_execute(server.url(), f"CREATE DATABASE {name} TEMPLATE {template}{strategy}"))

    yield _with_database(server.url(), name)

    watch.look_at_database(_with_database(server.url(), name))
    finish(_execute(server.url(), f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def _template_database(postgres_server: Database) -> Iterator[str]:
    """One migrated database; every test's own is a copy of it."""
    from migrations.run import upgrade

    name = f"template_{secrets.token_hex(6)}"
    finish(_execute(postgres_server.url(), f"CREATE DATABASE {name} TEMPLATE template0"))
    finish(upgrade(_with_database(postgres_server.url(), name)))

    yield name

    finish(_execute(postgres_server.url(), f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def database_url(postgres_server: Database, _template_database: str, watch: Watch) -> Iterator[str]:
    """A database of this test alone, at the newest revision."""
    yield from _new_database(postgres_server, _template_database, watch)


@pytest.fixture
def empty_database_url(postgres_server: Database, watch: Watch) -> Iterator[str]:
    """A database of this test alone, without a single table."""
    yield from _new_database(postgres_server, "template0", watch)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what talks to the session's broker: that is what differs between `KAFKA=embedded` and `KAFKA=apache`."""
    for item in items:
        if "kafka_bootstrap" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.broker)
