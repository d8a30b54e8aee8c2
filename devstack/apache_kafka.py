"""The real broker: Apache Kafka as one KRaft node, its jars from Maven Central, started with plain `java`.

The jars are fetched once per version of `kafka/pom.xml` into the user's cache folder. Data, unlike the embedded
broker's, survives a restart.
"""

import base64
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devstack import kafka_client
from devstack.errors import DevstackError
from devstack.ports import free_port, listens
from devstack.processes import Child, run

_HERE = Path(__file__).parent / "kafka"
_OLDEST_JAVA = 17
_FETCH_SECONDS = 600.0
_START_SECONDS = 60.0

# Small: one node on a machine that runs everything else too. C1 only: a broker that lives for a minute starts in
# half the time and never pays for C2.
_JVM = (
    "-Xms128m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.awt.headless=true",
)


class KafkaUnavailableError(DevstackError):
    """This machine cannot run Apache Kafka; the text says what is missing."""


def _java() -> str:
    """The `java` to use; raises if there is none or it is too old."""
    home = os.environ.get("JAVA_HOME", "")
    java = shutil.which("java", path=str(Path(home) / "bin")) if home else None
    java = java or shutil.which("java")
    if java is None:
        raise KafkaUnavailableError(
            f"Apache Kafka needs Java {_OLDEST_JAVA} or newer and there is no `java` on this machine: install it, "
            "or use KAFKA=embedded."
        )
    words = [java, "-version"]
    answer = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - no shell
    version = re.search(r'version "(\d+)', answer.stderr + answer.stdout)
    if version is None or int(version[1]) < _OLDEST_JAVA:
        found = version[1] if version else "unknown"
        raise KafkaUnavailableError(
            f"Apache Kafka needs Java {_OLDEST_JAVA} or newer and `java` is version {found}: install a newer one, "
            "or use KAFKA=embedded."
        )
    return java


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orders-backup-devstack"


def version() -> str:
    """The version that `kafka/pom.xml` names."""
    found = re.search(r"<kafka\.version>([^<]+)<", (_HERE / "pom.xml").read_text())
    if found is None:
        raise DevstackError("devstack/kafka/pom.xml names no kafka.version")
    return found[1]


def jars() -> Path:
    """The folder with Kafka's jars, fetched if this is the first time; two callers at once share one fetch."""
    pom = _HERE / "pom.xml"
    digest = hashlib.sha256(pom.read_bytes()).hexdigest()[:12]
    cache = _cache()
    folder = cache / f"kafka-{version()}-{digest}"
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailableError(
            "Apache Kafka is fetched with Maven and there is no `mvn` on this machine: install it, "
            "or use KAFKA=embedded."
        )
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(dir=cache) as half_done:
            try:
                run(
                    [
                        maven,
                        "--batch-mode",
                        "--quiet",
                        f"--file={pom}",
                        "dependency:copy-dependencies",
                        "-DincludeScope=runtime",
                        f"-DoutputDirectory={half_done}/jars",
                    ],
                    seconds=_FETCH_SECONDS,
                )
            except DevstackError as error:
                raise KafkaUnavailableError(
                    f"Apache Kafka {version()} could not be fetched with Maven; use KAFKA=embedded or try again. "
                    f"Maven says:\n{error}"
                ) from error
            (Path(half_done) / "jars").rename(folder)
    return folder


@dataclass(frozen=True)
class SecureListener:
    """A second way in: over TLS, and only for one user. `certificate` is a PEM file of a PKCS #8 key and its chain."""

    port: int
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
    username: str
    password: str
    certificate: Path

    @property
    def properties(self) -> dict[str, str]:
        """What it adds to the broker's properties, besides the address."""
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        plain = (
            "org.apache.kafka.common.security.plain.PlainLoginModule required "
            f'username="{self.username}" password="{self.password}" user_{self.username}="{self.password}";'
        )
        name = f"listener.name.secure.{self.mechanism.lower()}.sasl.jaas.config"
        return {
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL",
            "listener.name.secure.sasl.enabled.mechanisms": self.mechanism,
            name: plain if self.mechanism == "PLAIN" else scram,
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.certificate),
        }

    @property
    def format_options(self) -> list[str]:
        """What the storage is formatted with: a user of SCRAM is part of it."""
        if self.mechanism == "PLAIN":
            return []
        return [f"--add-scram={self.mechanism}=[name={self.username},password={self.password}]"]


class ApacheKafka:
    """One Apache Kafka node (broker and controller) on loopback ports."""

    session_timeout_seconds = 6.0  # the least that it allows
    fetch_wait_seconds = None

    def __init__(self, folder: Path, *, port: int | None = None, secure: SecureListener | None = None) -> None:
        self.port = port or free_port()
        self._secure = secure
        self._controller_port = free_port()
        self._folder = folder
        self._child: Child | None = None

    @property
    def name(self) -> str:
        return f"Apache Kafka {version()}"

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self._folder / "kafka.log"

    @property
    def pid(self) -> int:
        if self._child is None:
            raise DevstackError("Apache Kafka was never started")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    def start(self) -> None:
        """Format the storage if it is new, start, and return when a client gets metadata."""
        java = _java()
        command = [java, *_JVM, f"-Dlog4j2.configurationFile={_HERE / 'log4j2.properties'}", "-cp", f"{jars()}/*"]
        properties = self._write_properties()
        if not (self._folder / "data" / "meta.properties").exists():
            cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            format_storage = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", f"--config={properties}"]
            if self._secure is not None:
                format_storage += self._secure.format_options
            run([*command, *format_storage], seconds=_START_SECONDS)
        child = Child(self.name, [*command, "kafka.Kafka", str(properties)], log=self.log, grace_seconds=30)
        child.start()
        self._child = child
        try:
            child.wait_until(lambda: listens(self.port), _START_SECONDS, "started")
            child.wait_until(
                lambda: kafka_client.has_metadata(self.bootstrap_servers), _START_SECONDS, "giving metadata"
            )
        except DevstackError:
            child.kill()
            raise

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()

    def kill(self) -> None:
        """kill -9: the next start recovers the log."""
        if self._child is not None:
            self._child.kill()

    def restart(self) -> None:
        """Stop and start on the same port with the same data."""
        self.stop()
        self.start()

    def wipe(self) -> None:
        """kill -9, remove the data, and start on the same port: another cluster, as for a volume that was lost."""
        self.kill()
        shutil.rmtree(self._folder / "data")
        self.start()

    def __enter__(self) -> "ApacheKafka":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _write_properties(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self._folder / "data"),
            # A typo must fail, not make a topic with one partition.
            "auto.create.topics.enable": "false",
            "default.replication.factor": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            # Groups of one or two members form at once instead of after three seconds.
            "group.initial.rebalance.delay.ms": "0",
            # How long a node that was killed is remembered, and so how long its successor waits.
            "broker.session.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "500",
            "log.cleaner.dedupe.buffer.size": str(4 * 1024 * 1024),
            "log.index.size.max.bytes": str(1024 * 1024),
            "num.network.threads": "2",
            "num.io.threads": "4",
        }
        if self._secure is not None:
            address = f",SECURE://127.0.0.1:{self._secure.port}"
            settings |= self._secure.properties
            settings["listeners"] += address
            settings["advertised.listeners"] += address
        path = self._folder / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return path
