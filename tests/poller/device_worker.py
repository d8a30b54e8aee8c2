"""Run as a process: a poller that polls the device codes that are due once, after a line on stdin."""

import asyncio
import sys

from services.poller.devices import DevicePoller
from services.poller.leases import Leases
from services.poller.slots import Slots
from shared.allegro.http import open_http
from shared.database import open_pool
from tests.poller.conftest import SETTINGS
from tests.shared.allegro.builders import Way, settings


async def poll(database_url: str, allegro_url: str) -> None:
    pool = await open_pool(database_url, service="caller", max_size=4)
    chosen = settings(allegro_url)
    async with open_http(chosen) as http:
        way = Way(pool, http, chosen)
        slots = Slots("devices", 1)
        poller = DevicePoller(pool, way.oauth, way.vault, way.keyring, Leases(pool, seconds=60), slots, SETTINGS)
        print("ready", flush=True)  # noqa: T201 - the test reads it
        await asyncio.to_thread(sys.stdin.readline)
        await poller.turn()
        await slots.idle()
    await pool.close()


if __name__ == "__main__":
    asyncio.run(poll(*sys.argv[1:]))
