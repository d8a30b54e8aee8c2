"""Real processes around one token: a crowd that meets an expired one, and kill -9 at every await of a refresh (P7)."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest

from shared.allegro.errors import AllegroUnavailableError, ReauthorizationRequiredError
from tests.shared.allegro.builders import Way
from tests.shared.allegro.fake_allegro import FakeAllegro, Gate

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
        _kill(process)
        await process.wait()


def _fire(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")


def _kill(process: Process) -> None:
    """SIGKILL to the caller and its parent: they are a process group of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


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


class Moment:
    """A point of a refresh at which a process can be held: on Allegro's side or on PostgreSQL's."""

    def __init__(self, database_url: str, allegro: FakeAllegro, token_id: int) -> None:
        self.allegro = allegro
        self.token_id = token_id
        self._database_url = database_url
        self._gate = Gate()
        self._blocker: asyncpg.Connection | None = None

    async def block(self, *statements: str) -> None:
        """Hold locks in an open transaction, so that the process waits at the statement that needs them."""
        self._blocker = await asyncpg.connect(self._database_url)
        *before, lock = statements
        for statement in before:
            await self._blocker.execute(statement)
        await self._blocker.execute("BEGIN")
        await self._blocker.execute(lock)

    async def hold_answer(self) -> None:
        await self._gate.hold()

    async def reached(self) -> None:
        """Until the process is there."""
        if self.allegro.on_received == self.hold_answer or self.allegro.on_exchanged == self.hold_answer:
            await self._gate.reached.wait()
        else:
            await self._until("wait_event_type = 'Lock'", 1)

    async def release(self) -> None:
        """Let go of everything, and wait until PostgreSQL has noticed that the process is dead."""
        self._gate.open()
        if self._blocker is not None:
            await self._blocker.close()
        self.allegro.on_received = self.allegro.on_exchanged = _nothing
        await self._until("application_name = 'orders-backup/caller'", 0)

    async def _until(self, condition: str, count: int) -> None:
        connection = await asyncpg.connect(self._database_url)
        async with asyncio.timeout(30):
            while count != await connection.fetchval(
                f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {condition}"
            ):
                pass
        await connection.close()


async def _nothing() -> None:
    return


Hold = Callable[[Moment], Awaitable[None]]


async def announcing(moment: Moment) -> None:
    """The intention is being written down."""
    await moment.block(f"SELECT 1 FROM user_tokens WHERE id = {moment.token_id} FOR UPDATE")


async def locking(moment: Moment) -> None:
    """The intention is written down, the row is not locked yet."""
    await moment.block(
        "UPDATE user_tokens SET refresh_after = clock_timestamp()",
        f"SELECT 1 FROM user_tokens WHERE id = {moment.token_id} FOR UPDATE",
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
    moment = Moment(database_url, allegro, token_id)
    await hold(moment)
    async with callers(database_url, allegro, token_id, "refresh") as process:
        _fire(process)
        await moment.reached()
        _kill(process)
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
