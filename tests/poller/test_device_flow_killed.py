"""kill -9 of a poller at every await of the poll that brings the tokens: nothing waits for ever, nothing half (A2)."""

import asyncio
import hashlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest

from services.poller.devices import DevicePoller
from services.poller.leases import Leases
from services.poller.slots import Slots
from shared.allegro.http import open_http
from shared.encryption import Secret
from shared.token_vault import device_code_binding
from tests.canary import a_secret
from tests.poller.conftest import SETTINGS
from tests.shared.allegro.builders import Way, settings
from tests.shared.allegro.fake_allegro import FakeAllegro
from tests.shared.allegro.moments import Moment, kill

pytestmark = pytest.mark.integration

CODE = a_secret("device-code")


@pytest.fixture
async def allegro() -> AsyncIterator[FakeAllegro]:
    async with FakeAllegro().running() as fake:
        yield fake


@pytest.fixture
async def way(pool: asyncpg.Pool, allegro: FakeAllegro) -> AsyncIterator[Way]:
    chosen = settings(allegro.url)
    async with open_http(chosen) as http:
        yield await Way(pool, http, chosen).synchronise()


@asynccontextmanager
async def a_poller(database_url: str, allegro: FakeAllegro) -> AsyncIterator[Process]:
    """A process that is ready to poll."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.poller.device_worker", database_url, allegro.url),
        stdin=PIPE,
        stdout=PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    try:
        yield process
    finally:
        kill(process)
        await process.wait()


async def a_consent(way: Way, allegro: FakeAllegro) -> None:
    """A code that is due, and that the seller has agreed to."""
    task_id = uuid4()
    sealed = way.keyring.seal(Secret(CODE), belongs_to=device_code_binding(task_id))
    await way.pool.execute(
        "INSERT INTO device_authorizations (task_id, user_id, device_code, device_code_digest, key_id, user_code,"
        "  verification_uri, verification_uri_complete, interval_seconds, expires_at, next_poll_at)"
        " VALUES ($1, 'shop-1', $2, $3, $4, 'abc', 'u', 'u', 5, now() + interval '1 hour', now())",
        task_id,
        sealed.envelope,
        hashlib.sha256(CODE.encode()).digest(),
        sealed.key_id,
    )
    allegro.consented.add(CODE)


async def claiming(moment: Moment) -> None:
    """Nothing has been asked."""
    await moment.block("LOCK TABLE device_authorizations IN ACCESS EXCLUSIVE MODE")


async def asking_for_allowance(moment: Moment) -> None:
    """The row is leased, the limits are asked."""
    await moment.block("LOCK TABLE client_budgets IN ACCESS EXCLUSIVE MODE")


async def sending(moment: Moment) -> None:
    """Allegro has received the poll and not acted on it."""
    moment.allegro.on_received = moment.hold_answer


async def receiving(moment: Moment) -> None:
    """Allegro has issued the tokens; the answer is lost."""
    moment.allegro.on_exchanged = moment.hold_answer


async def storing(moment: Moment) -> None:
    """The tokens are there and not stored."""
    await moment.block("LOCK TABLE user_tokens IN ACCESS EXCLUSIVE MODE")


async def beginning(moment: Moment) -> None:
    """The tokens are stored, what begins with them is not; neither is committed."""
    await moment.block("LOCK TABLE task_history IN ACCESS EXCLUSIVE MODE")


async def committing(moment: Moment) -> None:
    """Everything is stored, and the commit is on its way: a trigger that runs at its beginning waits."""
    await moment.block(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER wait AFTER UPDATE OF access_token ON user_tokens"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()",
        "SELECT pg_advisory_xact_lock(1)",
    )


MOMENTS: list[Callable[[Moment], Awaitable[None]]] = [
    *(claiming, asking_for_allowance, sending, receiving, storing, beginning, committing)
]


@pytest.mark.parametrize("hold", MOMENTS)
async def test_a_poller_killed_at_any_moment_leaves_a_connected_seller_or_an_honest_end(
    database_url: str, way: Way, allegro: FakeAllegro, hold: Callable[[Moment], Awaitable[None]]
) -> None:
    await a_consent(way, allegro)
    moment = Moment(database_url, allegro)
    await hold(moment)
    async with a_poller(database_url, allegro) as process:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        await moment.reached()
        kill(process)
        await process.wait()
    await moment.release()

    end = await _taken_over(way)

    tokens = await way.pool.fetch("SELECT id, status FROM user_tokens")
    tasks = await way.pool.fetchval("SELECT count(*) FROM task_history")
    answer_lost = hold in (receiving, storing, beginning)
    assert allegro.codes_used == 1
    assert end["device_code"] is None
    if answer_lost:
        assert (end["status"], end["reason"], end["user_token_id"]) == ("FAILURE", "code_used", None)
        assert "Start again" in end["message"]
        assert (tokens, tasks) == ([], 0)
    else:
        assert (end["status"], end["reason"]) == ("SUCCESS", None)
        assert [token["status"] for token in tokens] == ["active"]
        assert tasks == 1
        await way.client.me(tokens[0]["id"])


async def _taken_over(way: Way) -> asyncpg.Record:
    """What the next replica does when the lease has run out, until the authorisation has ended."""
    slots = Slots("devices", 1)
    poller = DevicePoller(way.pool, way.oauth, way.vault, way.keyring, Leases(way.pool, seconds=60), slots, SETTINGS)
    async with asyncio.timeout(30):
        while True:
            row = await way.pool.fetchrow("SELECT * FROM device_authorizations")
            if row["status"] != "PENDING":
                return row
            await way.pool.execute("UPDATE device_authorizations SET lease_until = now(), next_poll_at = now()")
            await poller.turn()
            await slots.idle()
