"""The poller as a process: it names what is wrong, answers while it waits, and ends cleanly."""

import asyncio
import base64
import os
import signal
import sys
from pathlib import Path

import asyncpg
import httpx
import pytest

from devstack.ports import free_port
from shared.encryption import Keyring, Secret
from shared.token_vault import refresh_binding
from tests.canary import a_secret

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent.parent


def environment(**variables: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "ALLEGRO_CLIENT_ID": "client",
        "ALLEGRO_CLIENT_SECRET": a_secret("client"),
        "ALLEGRO_USER_AGENT": "Tests/1.0 (+https://example.com/tests)",
        "ALLEGRO_API_URL": "http://127.0.0.1:1",
        "ALLEGRO_AUTH_URL": "http://127.0.0.1:1",
        "ENCRYPTION_KEYS": "k1:" + base64.b64encode(bytes(32)).decode(),
        **variables,
    }


async def start(
    tmp_path: Path, *, stdout: int = asyncio.subprocess.DEVNULL, **variables: str
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.poller"),
        cwd=tmp_path,
        env=environment(**variables),
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_a_missing_setting_ends_it_with_one_line_that_names_it(tmp_path: Path) -> None:
    process = await start(tmp_path, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")

    _, complaints = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 2
    assert complaints.decode().strip().count("\n") == 0
    assert "DATABASE_URL" in complaints.decode()


@pytest.mark.parametrize(
    ("configured", "said"),
    [
        pytest.param(
            "k2", "ENCRYPTION_KEYS: key 'k1' is missing, 1 stored secrets were encrypted with it", id="missing"
        ),
        pytest.param("k1", "key 'k1' does not open it (wrong key or altered row)", id="wrong"),
    ],
)
async def test_a_key_that_does_not_fit_the_stored_tokens_stops_the_start_with_one_line(
    tmp_path: Path, database_url: str, kafka_bootstrap: str, fresh_topics: str, configured: str, said: str
) -> None:
    keyring = Keyring({"k1": b"1" * 32})
    connection = await asyncpg.connect(database_url)
    sealed = keyring.seal(Secret(a_secret("refresh")), belongs_to=refresh_binding(1))
    await connection.execute(
        "INSERT INTO user_tokens (user_id, access_token, refresh_token, key_id) VALUES ('shop-1', $1, $1, 'k1')",
        sealed.envelope,
    )
    await connection.close()

    process = await start(
        tmp_path,
        DATABASE_URL=database_url,
        KAFKA_BOOTSTRAP_SERVERS=kafka_bootstrap,
        KAFKA_TOPIC_PREFIX=fresh_topics,
        ENCRYPTION_KEYS=f"{configured}:" + base64.b64encode(b"2" * 32).decode(),
    )
    _, complaints = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 2
    assert said in complaints.decode()
    assert complaints.decode().strip().count("\n") == 0


async def test_it_can_be_asked_to_end_while_it_waits_for_postgresql(tmp_path: Path) -> None:
    process = await start(
        tmp_path,
        stdout=asyncio.subprocess.PIPE,
        DATABASE_URL="postgresql://nobody@127.0.0.1:1/none",
        KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1",
    )
    assert process.stdout is not None
    async with asyncio.timeout(40):
        while b"PostgreSQL is not reachable yet" not in await process.stdout.readline():
            pass

    process.send_signal(signal.SIGTERM)

    await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0


async def test_it_gets_ready_and_ends_cleanly_leaving_no_lease(
    tmp_path: Path, database_url: str, kafka_bootstrap: str, fresh_topics: str
) -> None:
    port = free_port()
    process = await start(
        tmp_path,
        DATABASE_URL=database_url,
        KAFKA_BOOTSTRAP_SERVERS=kafka_bootstrap,
        KAFKA_TOPIC_PREFIX=fresh_topics,
        POLLER_HTTP_PORT=str(port),
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        readiness = await _when_ready(client)
        liveness = await client.get("/livez")
        metrics = await client.get("/metrics")

    process.send_signal(signal.SIGTERM)
    ended = await asyncio.wait_for(process.wait(), 30)

    connection = await asyncpg.connect(database_url)
    leased = await connection.fetchval("SELECT count(*) FROM active_sync_schedules WHERE lease_owner IS NOT NULL")
    await connection.close()
    assert readiness.json() == {"status": "ok"}
    assert liveness.status_code == 200
    assert "orders_backup_journal_polls_total" in metrics.text
    assert ended == 0
    assert leased == 0


async def _when_ready(client: httpx.AsyncClient) -> httpx.Response:
    async with asyncio.timeout(40):
        while True:
            try:
                answer = await client.get("/readyz")
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                continue
            if answer.status_code == 200:
                return answer
            await asyncio.sleep(0.1)
