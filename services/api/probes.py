"""Whether PostgreSQL, Kafka and Allegro answer, and how fast; asked once for all who want to know at the same time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

import httpx

from services.api.problems import UnavailableError
from services.api.settings import ApiSettings
from shared.allegro.errors import AllegroUnavailableError
from shared.allegro.http import open_http
from shared.database import TRANSIENT_DATABASE_ERRORS
from shared.kafka import partitions_of

_ANSWER_SECONDS = 3.0
_NOBODY_CAN_TELL: tuple[type[Exception], ...] = (*TRANSIENT_DATABASE_ERRORS, UnavailableError)
# Allegro is not to be asked more often than this because somebody watches us closely.
_FRESH_SECONDS = {"database": 0.0, "kafka": 1.0, "allegro": 15.0}


@dataclass(frozen=True)
class Measurement:
    """One look at a component. `error` is the kind of failure; `None`: it answered."""

    latency_ms: float
    error: str | None
    measured_at: float


class Probes:
    """One probe a component; whoever asks while a look is under way gets its result."""

    def __init__(
        self,
        settings: ApiSettings,
        ask_database: Callable[[], Awaitable[object]],
        ask_outage: Callable[[], Awaitable[datetime | None]],
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._ask_outage = ask_outage
        self._http = open_http(settings, transport=transport)
        self._ask: dict[str, Callable[[], Awaitable[object]]] = {
            "database": ask_database,
            "kafka": self._ask_kafka,
            "allegro": self._ask_allegro,
        }
        self._locks = {name: asyncio.Lock() for name in self._ask}
        self._last: dict[str, Measurement] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def measure(self) -> dict[str, Measurement]:
        """All components, looked at together."""
        found = await asyncio.gather(*(self._measure(name) for name in self._ask))
        return dict(zip(self._ask, found, strict=True))

    async def paused_since(self) -> datetime | None:
        """Since when a service pauses its calls to Allegro; None if none does, or nobody can tell."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await self._ask_outage()
        except _NOBODY_CAN_TELL:
            return None

    async def _measure(self, name: str) -> Measurement:
        asked_at = time.monotonic()
        async with self._locks[name]:
            last = self._last.get(name)
            if last is None or last.measured_at < asked_at - _FRESH_SECONDS[name]:
                last = self._last[name] = await _look(self._ask[name])
            return last

    async def _ask_kafka(self) -> None:
        await partitions_of(self._settings)

    async def _ask_allegro(self) -> None:
        # Without a token the API refuses, which shows that it is there. The time-out is that of `_look`.
        answer = await self._http.request(
            "GET", self._settings.api_url + "/order/event-stats", timeout_seconds=2 * _ANSWER_SECONDS
        )
        if answer.is_server_error:
            raise AllegroUnavailableError(str(answer.status))


async def _look(ask: Callable[[], Awaitable[object]]) -> Measurement:
    started = time.perf_counter()
    error: str | None = None
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await ask()
    except Exception as failure:  # noqa: BLE001 - whatever it is, it is the answer to the question
        error = type(failure).__name__
    latency_ms = round((time.perf_counter() - started) * 1000, 2)
    return Measurement(latency_ms, error, time.monotonic())
