"""Does the HTTP client slow down as concurrency grows? `make bench-http`

One process asks the simulated Allegro (another process) for single orders, with 5 and with 50 workers over one
client: httpx on its own transport, ours on reqwest (`shared.allegro.transport`), and bare aiohttp. The rounds are
interleaved, so that a busy machine disturbs all of them; the median of the rounds counts. CPU is this process's, of all
its threads: the rate of the fast clients is as much the simulated Allegro's, which is one process with one thread.
"""

import asyncio
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import httpx
import uvloop
from pydantic import SecretStr

from benchmarks.report import Measure, report
from benchmarks.seller import access_token
from devstack.allegro import SimulatedAllegro
from devstack.ports import free_port
from shared.allegro.http import ACCEPT, open_http
from shared.settings import AllegroSettings

_WORKERS = (5, 50)
_ROUNDS = 5
_REQUESTS = {"httpx": 1_000, "reqwest (ours)": 10_000, "aiohttp": 10_000}
_OPTIONS = ["--sellers", "1", "--history-orders", "200"]
_NO_LIMITS = ["--client-limit", "0", "--events-limit", "0", "--list-limit", "0", "--detail-limit", "0"]

Get = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def _plain_httpx(settings: AllegroSettings, authorization: str) -> AsyncIterator[Get]:
    headers = {"User-Agent": settings.allegro_user_agent, "Accept": ACCEPT}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as client:

        async def get(url: str) -> None:
            answer = await client.get(url, headers={"Authorization": authorization})
            answer.raise_for_status()

        yield get


@asynccontextmanager
async def _ours(settings: AllegroSettings, authorization: str) -> AsyncIterator[Get]:
    async with open_http(settings) as client:

        async def get(url: str) -> None:
            answer = await client.request("GET", url, headers={"Authorization": authorization}, timeout_seconds=30)
            if answer.status != httpx.codes.OK:
                raise RuntimeError(f"the simulated Allegro answers {answer.status}")

        yield get


@asynccontextmanager
async def _bare_aiohttp(settings: AllegroSettings, authorization: str) -> AsyncIterator[Get]:
    headers = {
        "Authorization": authorization,
        "Accept": ACCEPT,
        "User-Agent": settings.allegro_user_agent,
    }
    async with aiohttp.ClientSession(headers=headers) as client:

        async def get(url: str) -> None:
            async with client.get(url) as answer:
                answer.raise_for_status()
                await answer.read()

        yield get


_TRANSPORTS = {"httpx": _plain_httpx, "reqwest (ours)": _ours, "aiohttp": _bare_aiohttp}


@dataclass(frozen=True)
class Round:
    """One round, or the median of some."""

    rate: float
    """Requests a second."""
    cpu_us: float
    """Microseconds of CPU for a request."""


async def _round(get: Get, urls: list[str], workers: int, requests: int) -> Round:
    waiting = iter([urls[number % len(urls)] for number in range(requests)])

    async def work() -> None:
        for url in waiting:
            await get(url)

    started, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(workers)))
    return Round(requests / (time.perf_counter() - started), (time.process_time() - used) / requests * 1e6)


async def _connect(allegro: SimulatedAllegro) -> tuple[str, list[str]]:
    """A seller's authorization, and the addresses of some of his orders."""
    async with httpx.AsyncClient(base_url=allegro.url, trust_env=False) as http:
        authorization = f"Bearer {await access_token(http, allegro.environment())}"
        headers = {"User-Agent": allegro.environment()["ALLEGRO_USER_AGENT"], "Accept": ACCEPT}
        listed = await http.get("/order/checkout-forms", headers=headers | {"Authorization": authorization})
        orders = [order["id"] for order in listed.raise_for_status().json()["checkoutForms"]]
    return authorization, [f"{allegro.url}/order/checkout-forms/{order_id}" for order_id in orders]


async def _measure(settings: AllegroSettings, allegro: SimulatedAllegro) -> dict[tuple[str, int], Round]:
    authorization, urls = await _connect(allegro)
    rounds: dict[tuple[str, int], list[Round]] = {(name, workers): [] for name in _TRANSPORTS for workers in _WORKERS}
    for _number in range(_ROUNDS):
        for name, workers in rounds:
            async with _TRANSPORTS[name](settings, authorization) as get:
                await _round(get, urls[:workers], workers, 10 * workers)  # connections are opened before the measure
                rounds[name, workers].append(await _round(get, urls, workers, _REQUESTS[name]))
    return {
        key: Round(statistics.median(one.rate for one in values), statistics.median(one.cpu_us for one in values))
        for key, values in rounds.items()
    }


def main() -> None:
    """Run the benchmark; the exit code is 0 only if the goals are met."""
    with tempfile.TemporaryDirectory() as folder:
        allegro = SimulatedAllegro(
            Path(folder), free_port(), [*_OPTIONS, *_NO_LIMITS, "--device-limit", "0", "--device-interval", "1"]
        )
        allegro.start()
        try:
            allegro.wait_until_ready()
            settings = AllegroSettings(
                allegro_api_url=allegro.url,
                allegro_auth_url=allegro.url,
                allegro_client_id="devstack",
                allegro_client_secret=SecretStr(allegro.environment()["ALLEGRO_CLIENT_SECRET"]),
                allegro_user_agent=f"Benchmark/{secrets.randbelow(9)}.0 (+https://example.org/benchmark)",
            )
            rounds = uvloop.run(_measure(settings, allegro))
        finally:
            allegro.stop()
    for (name, workers), one in rounds.items():
        sys.stdout.write(f"{name:<26} {workers:>3} workers {one.rate:>8.0f} requests/s {one.cpu_us:>6.0f} us of CPU\n")
    rates = {key: one.rate for key, one in rounds.items()}
    ours, plain = "reqwest (ours)", "httpx"
    met = report(
        [
            # 50 workers are no slower than 5: the transport does not degrade.
            Measure(
                "http.ours.50-vs-5",
                rates[ours, 50],
                "requests/s",
                rates[ours, 5],
                rates[ours, 50] / rates[ours, 5],
                0.9,
            ),
            Measure(
                "http.ours-vs-httpx.50",
                rates[ours, 50],
                "requests/s",
                rates[plain, 50],
                rates[ours, 50] / rates[plain, 50],
                1.5,
            ),
            # There to be known: what aiohttp costs more is CPU, which a rate does not show.
            *(
                Measure(
                    f"http.ours-vs-aiohttp.{workers}",
                    rates[ours, workers],
                    "requests/s",
                    rates["aiohttp", workers],
                    rates[ours, workers] / rates["aiohttp", workers],
                    0.0,
                )
                for workers in _WORKERS
            ),
            *(
                Measure(
                    f"http.ours-cpu-vs-aiohttp.{workers}",
                    rounds[ours, workers].cpu_us,
                    "us of CPU a request",
                    rounds["aiohttp", workers].cpu_us,
                    rounds["aiohttp", workers].cpu_us / rounds[ours, workers].cpu_us,
                    0.0,
                )
                for workers in _WORKERS
            ),
        ]
    )
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
