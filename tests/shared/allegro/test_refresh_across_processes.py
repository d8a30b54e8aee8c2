"""Real processes around one token: a crowd that meets an expired one, and kill -9 at every await of a refresh (P7)."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest

from shared.allegro.errors import AllegroUnavailableError, ReauthorizationRequiredError
from tests.shared.allegro.builders import Way
from tests.shared.allegro.fake_allegro import FakeAllegro
from tests.shared.allegro.moments import Moment, kill

pytestmark = pytest.mark.integration


@asynccontextmanager
async def callers(
    database_url: str, allegro: FakeAllegro, token_id: int, what: str, count: int = 1
) -> AsyncIterator[Process]:
    """Processes that are ready to call; a line on stdin starts them."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.shared.allegro.caller",
        database_url,
        allegro.url,
        str(token_id),
        what,
        str(count),
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


def _fire(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")


@pytest.mark.parametrize("what", ["expired", "refused"])
async def test_fifty_processes_that_meet_a_useless_token_refresh_it_once_and_all_go_on(
    database_url: str, way: Way, allegro: FakeAllegro, what: str
) -> None:
    token_id = await way.connected(allegro.pair())
    if what == "expired":
        await way.expire(token_id)
    else:
        allegro.revoke_access()

    async with callers(database_url, allegro, token_id, "call", 50) as process:
        _fire(process)
        assert process.stdout is not None
        outcomes = [json.loads(await process.stdout.readline()) for _ in range(50)]

    assert outcomes == [{"generation": 3}] * 50
    assert allegro.refreshes == 1


Hold = Callable[[Moment], Awaitable[None]]


async def announcing(moment: Moment) -> None:
    """The intention is being written down."""
    await moment.block("SELECT 1 FROM user_tokens FOR UPDATE")


async def locking(moment: Moment) -> None:
    """The intention is written down, the row is not locked yet."""
    await moment.block(
        "UPDATE user_tokens SET refresh_after = clock_timestamp()",
        "SELECT 1 FROM user_tokens FOR UPDATE",
    )


async def asking_for_allowance(moment: Moment) -> None:
    """The row is locked, the limits are asked."""
    await moment.block("LOCK TABLE client_budgets IN ACCESS EXCLUSIVE MODE")


async def sending(moment: Moment) -> None:
    """Allegro has received the request and not acted on it."""
    moment.allegro.on_received = moment.hold_answer


async def receiving(moment: Moment) -> None:
    """Allegro has issued the new pair; the answer is lost."""
    moment.allegro.on_exchanged = moment.hold_answer


async def storing(moment: Moment) -> None:
    """The new pair is there and not stored."""
    await moment.block("LOCK TABLE active_sync_schedules IN ACCESS EXCLUSIVE MODE")


async def committing(moment: Moment) -> None:
    """The new pair is stored and not committed: a trigger that runs at the commit waits."""
    await moment.block(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER wait AFTER UPDATE OF access_token ON user_tokens"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()",
        "SELECT pg_advisory_xact_lock(1)",
    )


@pytest.mark.parametrize("within_grace", [True, False], ids=["within-grace", "after-grace"])
@pytest.mark.parametrize("hold", [announcing, locking, asking_for_allowance, sending, receiving, storing, committing])
async def test_a_process_killed_during_a_refresh_leaves_no_token_silently_dead(
    database_url: str, way: Way, allegro: FakeAllegro, hold: Hold, within_grace: bool
) -> None:
    token_id = await way.connected(allegro.pair())
    moment = Moment(database_url, allegro)
    await hold(moment)
    async with callers(database_url, allegro, token_id, "refresh") as process:
        _fire(process)
        await moment.reached()
        kill(process)
        await process.wait()
    await moment.release()
    answer_lost = allegro.refreshes == 1 and (await way.row(token_id))["generation"] == 2
    if not within_grace:
        allegro.grace_seconds = 0.0

    row = await _recover(way, token_id)

    assert answer_lost is (hold in (receiving, storing))
    if answer_lost and not within_grace:
        assert (row["status"], row["schedule"]) == ("reauthorization_required", "paused")
    else:
        assert (row["status"], row["schedule"]) == ("active", "active")
        await way.client.me(token_id)


async def _recover(way: Way, token_id: int) -> asyncpg.Record:
    """What any other process does: calls, and refreshes what is due, until the token works or is given up."""
    async with asyncio.timeout(60):
        while True:
            try:
                await way.client.me(token_id)
                for due in await way.vault.due_tokens(10):
                    await way.vault.refresh(due)
            except ReauthorizationRequiredError:
                return await way.row(token_id)
            except AllegroUnavailableError:
                # Time passes: the pause after a failure, and the time for which a refusal is not believed.
                await way.change(
                    token_id,
                    "refresh_after = refresh_after - interval '20 s',"
                    " grant_rejected_at = grant_rejected_at - interval '20 s'",
                )
                continue
            row = await way.row(token_id)
            if row["refresh_in"] > timedelta(hours=1):
                return row
