"""How the service is (requirement C4)."""

from datetime import datetime
from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, ConfigDict, Field

from services.api.context import Looks
from services.api.probes import Measurement
from shared.health import Health, Report

router = APIRouter(tags=["health"])


class Component(BaseModel):
    status: Literal["ok", "unavailable"]
    latency_ms: float = Field(description="of the last look, in milliseconds")
    error: str | None = Field(description="the kind of failure")


class AllegroComponent(Component):
    paused_since: datetime | None = Field(
        description="a service pauses its calls since, because most of them failed; nothing is lost meanwhile"
    )


class Components(BaseModel):
    database: Component
    kafka: Component
    allegro: AllegroComponent


class HealthReport(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "status": "unavailable",
                "components": {
                    "database": {"status": "ok", "latency_ms": 0.61, "error": None},
                    "kafka": {"status": "ok", "latency_ms": 4.02, "error": None},
                    "allegro": {
                        "status": "unavailable",
                        "latency_ms": 3000.4,
                        "error": "TimeoutError",
                        "paused_since": "2026-10-10T22:15:31Z",
                    },
                },
            }
        }
    )

    status: Literal["ok", "unavailable"] = Field(description="ok: every component answers")
    components: Components


class Probe(BaseModel):
    """What is wrong, by name; empty if nothing is."""

    wrong: dict[str, str]


@router.get("/health", responses={503: {"model": HealthReport, "description": "A component does not answer"}})
async def health(probes: Looks, response: Response) -> HealthReport:
    """Whether PostgreSQL, Kafka and Allegro answer, each with its latency; also while one of them is away."""
    found = await probes.measure()
    paused_since = await probes.paused_since()
    allegro = _component(found["allegro"], is_well=paused_since is None)
    components = Components(
        database=_component(found["database"]),
        kafka=_component(found["kafka"]),
        allegro=AllegroComponent(**allegro.model_dump(), paused_since=paused_since),
    )
    good = all(one.status == "ok" for one in (components.database, components.kafka, components.allegro))
    response.status_code = 200 if good else 503
    return HealthReport(status="ok" if good else "unavailable", components=components)


def _component(found: Measurement, *, is_well: bool = True) -> Component:
    status: Literal["ok", "unavailable"] = "ok" if found.error is None and is_well else "unavailable"
    return Component(status=status, latency_ms=found.latency_ms, error=found.error)


@router.get("/livez", responses={503: {"model": Probe, "description": "A loop stands still: restart the process"}})
async def livez(request: Request, response: Response) -> Probe:
    """Whether the process makes progress; also while PostgreSQL is away."""
    return _probe(response, _health(request).liveness())


@router.get("/readyz", responses={503: {"model": Probe, "description": "Send no requests: PostgreSQL is away"}})
async def readyz(request: Request, response: Response) -> Probe:
    """Whether requests can be answered."""
    return _probe(response, await _health(request).readiness())


_METRICS = """# HELP orders_backup_api_requests_total Answered requests.
# TYPE orders_backup_api_requests_total counter
orders_backup_api_requests_total{method="GET",route="/api/v1/tokens/",status="200"} 71.0
"""


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": _METRICS}}}},
)
async def metrics(request: Request) -> Response:
    """Metrics of this process, for Prometheus."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(REGISTRY), headers={"Content-Type": content_type})


def _health(request: Request) -> Health:
    state: Health = request.app.state.health
    return state


def _probe(response: Response, report: Report) -> Probe:
    response.status_code = 200 if report.good else 503
    return Probe(wrong=report.wrong)
