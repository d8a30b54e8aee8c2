"""One trace leads from an API call or a poll through Kafka and every service to the commit, without a secret (A8)."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import asyncpg
import httpx
import pytest

from benchmarks.stack import NO_LIMITS, BenchStack, bench_stack, give_schedules
from shared.database import open_pool
from simulator.oauth import CANARY
from tests.otlp import Collector, Span, collector

pytestmark = [pytest.mark.integration, pytest.mark.e2e, pytest.mark.timeout(300)]

_CALLERS_TRACE = "0af7651916cd43dd8448eb211c80319c"
_CALLERS_SPAN = "b7ad6b7169203331"
_ID = "trace-me"
_PATIENCE_SECONDS = 120.0
_LOOK_SECONDS = 0.2


@pytest.fixture
def collecting() -> Iterator[Collector]:
    with collector() as listening:
        yield listening


@pytest.fixture
def stack(database_url: str, kafka_bootstrap: str, collecting: Collector) -> Iterator[BenchStack]:
    servers = {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap}
    environment = {
        "KAFKA_SESSION_TIMEOUT_SECONDS": "6",
        "KAFKA_TOPIC_PARTITIONS": "3",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collecting.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    with bench_stack(["--sellers", "1", "--orders", "20", *NO_LIMITS], environment, choice=servers) as running:
        yield running


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=4)
    yield opened
    opened.terminate()


async def until(collecting: Collector, sought: Callable[[Sequence[Span]], Sequence[Span]]) -> Sequence[Span]:
    """The spans that are sought, as soon as all of them have been sent."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not (found := sought(collecting.spans())):  # noqa: ASYNC110 - other processes' work
            await asyncio.sleep(_LOOK_SECONDS)
    return found


def stored_by(services: Sequence[str], *names: str) -> Callable[[Sequence[Span]], Sequence[Span]]:
    """Finds the spans of a trace that leads through these services to the commit, and has spans named so."""

    def find(spans: Sequence[Span]) -> Sequence[Span]:
        for trace_id in {span.trace_id for span in spans}:
            mine = [span for span in spans if span.trace_id == trace_id]
            if {span.name for span in mine}.issuperset(names) and any(
                way(mine, span) == list(services) for span in mine if span.name == "store"
            ):
                return mine
        return []

    return find


def way(spans: Sequence[Span], last: Span) -> list[str]:
    """The services that a span's ancestors belong to, from the first of them to its own."""
    by_id = {span.span_id: span for span in spans}
    services: list[str] = []
    span: Span | None = last
    while span is not None:
        service = span.service.removeprefix("orders-backup-")
        if services[:1] != [service]:
            services.insert(0, service)
        span = by_id.get(span.parent_id)
    return services


async def test_one_trace_leads_from_the_call_to_the_commit(
    stack: BenchStack, pool: asyncpg.Pool, collecting: Collector
) -> None:
    sellers = await stack.connect_sellers(pool, 1)
    await give_schedules(pool, sellers, interval_seconds=3600)
    environment = stack.environment(**stack.fresh_topics(partitions=3))
    traced = {"traceparent": f"00-{_CALLERS_TRACE}-{_CALLERS_SPAN}-01", "X-Request-ID": _ID}
    with stack.services(environment, api=1, poller=1, enricher=1, writer=1) as running:
        base = f"http://127.0.0.1:{running['api'][0].port}/api/v1"
        async with httpx.AsyncClient(base_url=base, timeout=30) as client:
            asked = await client.post("/sync/manual/bench-0", json={"kind": "full"}, headers=traced)
            asked.raise_for_status()
            loaded = await until(
                collecting, stored_by(["api", "poller", "enricher", "writer"], "begin full", "Allegro list")
            )
            order_id = await pool.fetchval("SELECT allegro_order_id FROM orders LIMIT 1")
            again = await client.post("/sync/manual/bench-0", json={"kind": "orders", "order_ids": [order_id]})
            again.raise_for_status()
            looked = await until(
                collecting,
                stored_by(["api", "poller", "enricher", "writer"], "begin orders", "send fetches", "Allegro detail"),
            )

    call = next(span for span in loaded if span.service == "orders-backup-api" and span.name.startswith("POST"))
    assert (call.trace_id, call.parent_id) == (_CALLERS_TRACE, _CALLERS_SPAN)
    assert call.name == "POST /api/v1/sync/manual/{user_id}"
    assert call.attributes["orders_backup.correlation_id"] == _ID
    assert {span.trace_id for span in looked} != {_CALLERS_TRACE}
    bodies = collecting.bodies()
    assert not any(CANARY.encode() in body or b"eyJhbGci" in body or b"Bearer" in body for body in bodies)
    assert not any(order_id.encode() in body for body in bodies)


async def test_one_trace_leads_from_the_poll_to_the_commit(
    stack: BenchStack, pool: asyncpg.Pool, collecting: Collector
) -> None:
    sellers = await stack.connect_sellers(pool, 1)
    environment = stack.environment(**stack.fresh_topics(partitions=3))
    with stack.services(environment, poller=1, enricher=1, writer=1):
        await give_schedules(pool, sellers, interval_seconds=1)
        async with stack.control() as control:
            await control.start_live(5, 5.0, events_per_order=1, history=0)
        # Events are stored straight from the poll, their orders by way of the enricher.
        events = await until(collecting, stored_by(["poller", "writer"], "poll journal", "Allegro events"))
        orders = await until(collecting, stored_by(["poller", "enricher", "writer"], "poll journal"))

    assert [span.name for span in events if not span.parent_id] == ["poll journal"]
    assert [span.name for span in orders if not span.parent_id] == ["poll journal"]
