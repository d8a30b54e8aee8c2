"""The command line against a real API process, on a real PostgreSQL; Allegro answers from a thread."""

import base64
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncpg
import pytest

from cli.app import main
from devstack.ports import free_port, release
from devstack.processes import Child
from shared.database import open_pool
from tests.canary import Watch, a_secret

ROOT = Path(__file__).parents[2]


class _Allegro(BaseHTTPRequestHandler):
    """Gives out one device code, knows one app and no refresh token, and answers nobody without a token."""

    def do_GET(self) -> None:  # the standard library's name
        self.send_response(401)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:  # the standard library's name
        self.rfile.read(int(self.headers.get("content-length", "0")))
        if self.path == "/auth/oauth/token":
            known = "Basic " + base64.b64encode(f"client:{a_secret('client')}".encode()).decode()
            is_known = self.headers.get("authorization") == known
            self._answer(400 if is_known else 401, {"error": "invalid_grant" if is_known else "invalid_client"})
            return
        self._answer(
            200,
            {
                "device_code": a_secret("device-code"),
                "user_code": "abcd1234",
                "verification_uri": "https://allegro.pl/skojarz-aplikacje",
                "verification_uri_complete": "https://allegro.pl/skojarz-aplikacje?code=abcd1234",
                "expires_in": 3600,
                "interval": 5,
            },
        )

    def _answer(self, status: int, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def allegro_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Allegro)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    yield f"http://127.0.0.1:{server.server_port}"

    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def environment(database_url: str, kafka_bootstrap: str, fresh_topics: str, allegro_url: str) -> dict[str, str]:
    """What a service and the command line are started with."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    port = free_port()
    return clean | {
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": database_url,
        "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap,
        "KAFKA_TOPIC_PREFIX": fresh_topics,
        "KAFKA_TOPIC_PARTITIONS": "3",
        "ALLEGRO_API_URL": allegro_url,
        "ALLEGRO_AUTH_URL": allegro_url,
        "ALLEGRO_CLIENT_ID": "client",
        "ALLEGRO_CLIENT_SECRET": a_secret("client"),
        "ALLEGRO_USER_AGENT": "Tests/1.0 (+https://example.com/tests)",
        "ENCRYPTION_KEYS": "k1:" + base64.b64encode(bytes(32)).decode(),
        "API_HTTP_PORT": str(port),
        "ORDERS_BACKUP_API_URL": f"http://127.0.0.1:{port}",
    }


@pytest.fixture
def api(environment: dict[str, str], tmp_path: Path) -> Iterator[Path]:
    """A running API; the path of its log."""
    log = tmp_path / "api.log"
    child = Child(
        "api",
        [sys.executable, "-m", "services.api"],
        log=log,
        env=environment,
        folder=tmp_path,
        grace_seconds=15.0,
    )
    child.start()
    child.wait_until_http(f"{environment['ORDERS_BACKUP_API_URL']}/readyz", 60.0)

    yield log

    child.ask_to_stop()
    child.stop()
    release(int(environment["API_HTTP_PORT"]))


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def orders_backup(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], watch: Watch
) -> Run:
    """Runs the command line: exit code, standard output, standard error."""

    def run(*arguments: str, **variables: str) -> Result:
        for name, value in {**environment, **variables}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["orders-backup", *arguments])
        capsys.readouterr()
        # A thread of its own: commands run event loops.
        with ThreadPoolExecutor(1) as executor:
            code = executor.submit(_exit_code).result()
        printed = capsys.readouterr()
        watch.look(f"output of {arguments}", printed.out + printed.err)
        return Result(code, printed.out, printed.err)

    return run


def _exit_code() -> int:
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_pool(database_url, service="test", max_size=2)
    yield pool
    await pool.close()
