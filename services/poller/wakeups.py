"""NOTIFY makes the poller quicker; without it, everything happens a little later."""

import asyncio
from collections.abc import Callable, Mapping

import asyncpg

_CHECK_SECONDS = 10.0


async def listen(database_url: str, wakes: Mapping[str, asyncio.Event], progressed: Callable[[], None]) -> None:
    """Set the event of each channel that is notified; raises the driver's errors when the connection is lost.

    A connection of its own: one from a pool forgets its listeners when it is given back.
    """
    connection = await asyncpg.connect(database_url, timeout=10, command_timeout=10)

    def wake(_connection: object, _pid: int, channel: str, _payload: str) -> None:
        wakes[channel].set()

    try:
        for channel, event in wakes.items():
            await connection.add_listener(channel, wake)
            event.set()  # what was notified while nobody listened
        while True:
            await connection.fetchval("SELECT 1")  # notices a connection that is dead at the other end
            progressed()
            await asyncio.sleep(_CHECK_SECONDS)
    finally:
        connection.terminate()
