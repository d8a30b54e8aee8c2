"""Run as a process: so many callers (one seller each) that call the counting server as fast as the limits let them."""

import asyncio
import sys

from shared.allegro.http import exchange, open_http
from shared.database import open_pool
from shared.request_limits import Endpoint, RequestLimits, Traffic
from tests.shared.allegro.builders import settings


async def work(database_url: str, url: str, sellers: int, limit: int, minute: float, traffic: Traffic) -> None:
    pool = await open_pool(database_url, service="limits-worker", max_size=4)
    chosen = settings(url, allegro_client_limit_per_minute=limit, allegro_limit_minute_seconds=minute)
    async with open_http(chosen) as http:
        limits = RequestLimits(pool, chosen)

        async def call() -> None:
            while True:
                await limits.acquire(Endpoint.ME, token_id=1, traffic=traffic)
                answer = await exchange(http, Endpoint.ME, "GET", f"{url}/{traffic}", timeout_seconds=10)
                if answer.status == 429:
                    await limits.block(answer.retry_after)

        async def watch() -> None:
            while True:
                await limits.notice_block()
                limits.noticed.clear()
                try:
                    async with asyncio.timeout(0.5):
                        await limits.noticed.wait()
                except TimeoutError:
                    continue

        await asyncio.gather(watch(), *(call() for _ in range(sellers)))


if __name__ == "__main__":
    _, database_url, url, sellers, limit, minute, traffic = sys.argv
    asyncio.run(work(database_url, url, int(sellers), int(limit), float(minute), traffic))  # type: ignore[arg-type]
