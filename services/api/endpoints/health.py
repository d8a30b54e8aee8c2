"""How the service is (requirement C4)."""

import time
from collections.abc import Awaitable, Callable
from typing import Literal

import httpx
from fastapi import APIRouter, Response
from pydantic import BaseModel

from services.api.context import Context
from shared.kafka import partitions_of

router = APIRouter(tags=["health"])


class Component(BaseModel):
    status: Literal["ok", "unavailable"]
    latency_ms: float
    error: str | None


class Health(BaseModel):
    status: Literal["ok", "unavailable"]
    components: dict[str, Component]


@router.get("/health", responses={503: {"model": Health}})
async def health(context: Context, response: Response) -> Health:
    """Whether database, Kafka and Allegro answer, each with its latency in milliseconds."""

    async def allegro() -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=3.0) as http:
            # Any answer will do: without a token the API refuses, which shows that it is there.
            await http.get(context.settings.api_url + "/order/event-stats")

    components = {
        "database": await _measure(lambda: context.pool.fetchval("SELECT 1")),
        "kafka": await _measure(lambda: partitions_of(context.settings)),
        "allegro": await _measure(allegro),
    }
    good = all(component.status == "ok" for component in components.values())
    response.status_code = 200 if good else 503
    return Health(status="ok" if good else "unavailable", components=components)


async def _measure(ask: Callable[[], Awaitable[object]]) -> Component:
    started = time.perf_counter()
    error: str | None = None
    try:
        await ask()
    except Exception as failure:  # noqa: BLE001 - whatever it is, it is the answer to the question
        error = type(failure).__name__
    latency = round((time.perf_counter() - started) * 1000, 2)
    return Component(status="ok" if error is None else "unavailable", latency_ms=latency, error=error)
