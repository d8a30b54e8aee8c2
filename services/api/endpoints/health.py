"""How the service is (requirement C4)."""

from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, ConfigDict, Field

from services.api.context import Looks
from shared.health import Health, Report

router = APIRouter(tags=["health"])


class Component(BaseModel):
    status: Literal["ok", "unavailable"]
    latency_ms: float = Field(description="of the last look, in milliseconds")
    error: str | None = Field(description="the kind of failure")


class Components(BaseModel):
    database: Component
    kafka: Component
    allegro: Component


class HealthReport(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "status": "unavailable",
                "components": {
                    "database": {"status": "ok", "latency_ms": 0.61, "error": None},
                    "kafka": {"status": "ok", "latency_ms": 4.02, "error": None},
                    "allegro": {"status": "unavailable", "latency_ms": 3000.4, "error": "TimeoutError"},
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
    components = {
        name: Component(
            status="ok" if found.error is None else "unavailable", latency_ms=found.latency_ms, error=found.error
        )
        for name, found in (await probes.measure()).items()
    }
    good = all(component.status == "ok" for component in components.values())
    response.status_code = 200 if good else 503
    return HealthReport(status="ok" if good else "unavailable", components=Components(**components))


@router.get("/livez", responses={503: {"model": Probe, "description": "A loop stands still: restart the process"}})
async def livez(request: Request, response: Response) -> Probe:
    """Whether the process makes progress; also while PostgreSQL is away."""
    return _probe(response, _health(request).liveness())


@router.get("/readyz", responses={503: {"model": Probe, "description": "Send no requests: PostgreSQL is away"}})
async def readyz(request: Request, response: Response) -> Probe:
    """Whether requests can be answered."""
    return _probe(response, await _health(request).readiness())


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
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
