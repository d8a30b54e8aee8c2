"""The embedded PostgreSQL: starts, stops, survives."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from devstack.errors import DevstackError
from devstack.postgres import Postgres

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A durable server of this module's own, in a folder that only this user may enter."""
    folder = tmp_path_factory.mktemp("private")
    folder.chmod(0o700)
    with Postgres(folder / "postgres") as server:
        yield server


async def fetch(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_it_is_utf8_compares_by_bytes_and_knows_polish_letters(postgres: Postgres) -> None:
    row = await fetch(
        postgres.url(),
        "SELECT (current_setting('server_encoding'), lower('ŻÓŁĆ'), 'a' < 'B', current_setting('TimeZone'))::text",
    )

    assert row == "(UTF8,żółć,f,UTC)"


async def test_it_keeps_data_on_disk(postgres: Postgres) -> None:
    assert await fetch(postgres.url(), "SHOW fsync") == "on"


async def test_it_wants_the_password(postgres: Postgres) -> None:
    password = postgres.url().split(":")[2].split("@")[0]

    with pytest.raises(asyncpg.InvalidPasswordError):
        await fetch(postgres.url().replace(password, "guess"), "SELECT 1")


def test_only_its_owner_reads_the_password(postgres: Postgres) -> None:
    mode = (postgres.folder / "password").stat().st_mode

    assert stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_what_was_committed_survives_a_restart(postgres: Postgres, mode: str) -> None:
    table = f"restart_{mode}"
    await fetch(postgres.url(), f"CREATE TABLE {table} AS SELECT 1 AS one")
    url = postgres.url()

    postgres.restart("immediate" if mode == "immediate" else "fast")

    assert postgres.url() == url
    assert await fetch(url, f"SELECT one FROM {table}") == 1


async def test_what_was_committed_survives_a_kill(postgres: Postgres) -> None:
    await fetch(postgres.url(), "CREATE TABLE killed AS SELECT 1 AS one")
    postgres.kill()

    postgres.start()

    assert await fetch(postgres.url(), "SELECT one FROM killed") == 1


async def test_it_starts_again_after_the_machine_lost_power(tmp_path: Path) -> None:
    server = Postgres(tmp_path / "postgres", durable=False)
    server.start()
    await fetch(server.url(), "CREATE TABLE kept AS SELECT 1 AS one")
    pid_file = server.folder / "data" / "postmaster.pid"
    left_behind = pid_file.read_text()
    server.stop()
    # The number in the file now belongs to somebody else: this test.
    pid_file.write_text(left_behind.replace(left_behind.split("\n", 1)[0], str(os.getpid()), 1))

    with server:
        assert await fetch(server.url(), "SELECT one FROM kept") == 1


def test_a_second_server_in_the_same_folder_is_refused(postgres: Postgres) -> None:
    second = Postgres(postgres.folder)

    with pytest.raises(DevstackError, match=r"Another PostgreSQL \(process \d+\) already works in"):
        second.start()


def test_an_interrupted_creation_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "postgres" / "data.new" / "base").mkdir(parents=True)

    with Postgres(tmp_path / "postgres", durable=False) as server:
        assert server.running


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
def test_a_launcher_that_is_killed_takes_the_server_along(tmp_path: Path) -> None:
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from pathlib import Path\n"
            "from devstack.postgres import Postgres\n"
            "server = Postgres(Path(sys.argv[1]), durable=False)\n"
            "server.start()\n"
            "print(server.pid, flush=True)\n"
            "time.sleep(60)\n",
            str(tmp_path / "postgres"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert launcher.stdout is not None
    with launcher.stdout:
        server = psutil.Process(int(launcher.stdout.readline()))

    launcher.kill()
    launcher.wait()

    _, alive = psutil.wait_procs([server], timeout=20)
    assert alive == []
