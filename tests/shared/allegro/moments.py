"""Holding a process at a chosen moment, to kill it there."""

import asyncio
import os
import signal
from asyncio.subprocess import Process

import asyncpg

from tests.shared.allegro.fake_allegro import FakeAllegro, Gate


def kill(process: Process) -> None:
    """SIGKILL to a process and its children: they are a process group of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class Moment:
    """A point of an exchange of secrets at which a process can be held: on Allegro's side or on PostgreSQL's."""

    def __init__(self, database_url: str, allegro: FakeAllegro) -> None:
        self.allegro = allegro
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
        await self._until("application_name LIKE 'orders-backup/caller%'", 0)

    async def _until(self, condition: str, count: int) -> None:
        connection = await asyncpg.connect(self._database_url)
        async with asyncio.timeout(60):
            while count != await connection.fetchval(
                f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {condition}"
            ):
                pass
        await connection.close()


async def _nothing() -> None:
    return
