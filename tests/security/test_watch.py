"""The suite notices a secret of its own wherever the product might let one out; planted here, and taken back."""

import logging
from pathlib import Path

import asyncpg
import httpx
import pytest

from devstack.kafka_client import finish
from shared.encryption import Secret
from tests.canary import Watch, a_secret

PLANTED = a_secret("planted")


@pytest.mark.parametrize("level", [logging.DEBUG, logging.ERROR])
@pytest.mark.parametrize("name", ["services.poller.devices", "shared.token_vault", "cli"])
def test_a_log_line_of_ours_is_seen_at_every_level(watch: Watch, name: str, level: int) -> None:
    logging.getLogger(name).log(level, "refused", extra={"answer": [PLANTED]})

    leaks = watch.take()
    assert [leak.place for leak in leaks] == [f"log line of {name}"]


def test_a_traceback_is_seen(watch: Watch) -> None:
    try:
        raise ValueError(PLANTED)
    except ValueError:
        logging.getLogger("shared").exception("unexpected error")

    leaks = watch.take()
    assert len(leaks) == 1


def test_a_secret_that_is_kept_as_one_is_no_find(watch: Watch) -> None:
    logging.getLogger("shared").error("refresh token: %s", PLANTED, extra={"secret": Secret(PLANTED)})

    leaks = watch.take()
    assert leaks == []


@pytest.mark.integration
def test_a_row_is_seen_before_its_database_is_gone(watch: Watch, database_url: str) -> None:
    async def plant() -> None:
        connection = await asyncpg.connect(database_url)
        await connection.execute("INSERT INTO user_tokens (user_id, status_reason) VALUES ('shop-1', $1)", PLANTED)
        await connection.close()

    async def remove() -> None:
        connection = await asyncpg.connect(database_url)
        await connection.execute("DELETE FROM user_tokens")
        await connection.close()

    finish(plant())
    watch.look_at_database(database_url)
    finish(remove())

    leaks = watch.take()
    assert [leak.place for leak in leaks] == ["table user_tokens"]


async def test_an_answer_is_seen_and_only_the_start_of_a_flow_may_name_its_code(watch: Watch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(201, json={"device_code": PLANTED, "task_id": "t"})

    hooks = {"response": [watch.look_at_answer]}
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), event_hooks=hooks) as http:
        await http.post("http://api/api/v1/tokens/auth/initialize")
        allowed = watch.take()
        await http.get("http://api/api/v1/tokens/")

    leaks = watch.take()
    assert allowed == []
    assert [leak.place for leak in leaks] == ["answer to GET /api/v1/tokens/"]


def test_a_log_file_is_seen(watch: Watch, tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text(f"Access token expired: {PLANTED}")
    watch.look_at_log_files(tmp_path)
    log.unlink()

    leaks = watch.take()
    assert [leak.place for leak in leaks] == ["api.log"]
