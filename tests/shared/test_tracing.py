"""Spans: where they belong, what they must not hold, and that nothing is there when nobody asked for them."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode

from shared import tracing
from shared.allegro.errors import AllegroUnavailableError
from shared.allegro.http import exchange, open_http
from shared.errors import ConfigurationError
from shared.logs import correlated
from shared.messages import headers, traceparent_of
from shared.request_limits import Endpoint
from shared.settings import TracingSettings, load
from tests.canary import a_secret
from tests.otlp import collector
from tests.shared.allegro.builders import settings

_A_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_UNTRACED_PARENT = _A_PARENT[:-1] + "0"


class Kept(SpanExporter):
    """Keeps what was exported."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans.extend(spans)
        return SpanExportResult.SUCCESS


class Traces:
    """The spans of this process, by name."""

    def __init__(self, provider: TracerProvider, kept: Kept) -> None:
        self._provider = provider
        self._kept = kept

    def one(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.all() if span.name == name]
        return found

    def all(self) -> list[ReadableSpan]:
        self._provider.force_flush()
        return self._kept.spans


@pytest.fixture(autouse=True)
def off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins without tracing, and leaves none behind."""
    monkeypatch.setattr(tracing, "_tracer", None)


@pytest.fixture
def traces() -> Iterator[Traces]:
    kept = Kept()
    provider = tracing.trace_to(kept, service="test")
    yield Traces(provider, kept)
    provider.shutdown()


def test_a_trace_goes_on_where_its_parent_stood_in_a_record(traces: Traces) -> None:
    with tracing.span("poll"):
        carried = headers(correlation_id="an-id", traceparent=tracing.traceparent())
    with tracing.span("process", kind="consumer", parent=traceparent_of(carried)):
        pass

    poll, process = traces.one("poll"), traces.one("process")
    assert process.context.trace_id == poll.context.trace_id
    assert process.parent is not None
    assert process.parent.span_id == poll.context.span_id


def test_work_that_several_traces_share_is_a_span_in_each(traces: Traces) -> None:
    parents = []
    for _ in range(2):
        with tracing.span("poll"):
            parents.append(tracing.traceparent() or "")

    for parent in parents:
        tracing.add_span("store", {"records": 3}, kind="consumer", parent=parent, started_ns=1_000_000_000)

    stored = [span for span in traces.all() if span.name == "store"]
    polls = [span for span in traces.all() if span.name == "poll"]
    assert {span.context.trace_id for span in stored} == {span.context.trace_id for span in polls}
    assert [span.start_time for span in stored] == [1_000_000_000] * 2


@pytest.mark.parametrize("garbage", ["", "00-zz", "\0", "ff-" + "0" * 32 + "-" + "0" * 16 + "-01", "ą" * 5000])
def test_an_unreadable_parent_begins_a_trace_of_its_own(traces: Traces, garbage: str) -> None:
    with tracing.span("process", parent=garbage, links=[garbage, _A_PARENT]):
        pass

    span = traces.one("process")
    assert span.parent is None
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [_A_PARENT.split("-")[1]]


def test_what_is_not_traced_where_it_began_is_not_traced_here(traces: Traces) -> None:
    with tracing.span("process", parent=_UNTRACED_PARENT):
        inside = tracing.traceparent()

    assert traces.all() == []
    assert inside is not None
    assert inside.endswith("-00")


def test_nothing_is_traced_of_a_share_of_nothing() -> None:
    kept = Kept()
    provider = tracing.trace_to(kept, service="test", share=0.0)

    with tracing.span("poll"):
        pass
    provider.shutdown()

    assert kept.spans == []


def test_a_span_leads_to_the_logs_by_the_correlation_id(traces: Traces) -> None:
    with correlated("follow-me"), tracing.span("poll", {"orders_backup.token_id": 7}):
        pass

    attributes = traces.one("poll").attributes
    assert dict(attributes or {}) == {"orders_backup.correlation_id": "follow-me", "orders_backup.token_id": 7}


def test_an_error_is_told_by_its_type_and_never_by_its_text(traces: Traces) -> None:
    secret = a_secret("trace")

    with pytest.raises(ValueError, match=secret), tracing.span("poll"):
        raise ValueError(f"refused: {secret}")

    span = traces.one("poll")
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "ValueError"
    assert span.events == ()
    assert secret not in span.to_json()


async def test_a_call_to_allegro_tells_no_address_no_header_and_no_body(traces: Traces) -> None:
    token, code = a_secret("token"), a_secret("code")
    ours = settings()

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(401, json={"error": f"expired: {token}"}, headers={"Trace-Id": "allegro-1"})

    async with open_http(ours, transport=httpx.MockTransport(answer)) as http:
        await exchange(
            http,
            Endpoint.DETAIL,
            "GET",
            f"https://api.allegro.pl/{code}",
            timeout_seconds=5,
            headers={"Authorization": f"Bearer {token}"},
        )

    span = traces.one("Allegro detail")
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "orders_backup.endpoint": "detail",
        "http.response.status_code": 401,
        "allegro.trace_id": "allegro-1",
    }
    assert span.events == ()


async def test_a_call_without_an_answer_is_a_failed_span(traces: Traces) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError(f"no way to {request.url}")

    async with open_http(settings(), transport=httpx.MockTransport(refuse)) as http:
        with pytest.raises(AllegroUnavailableError):
            await exchange(http, Endpoint.LIST, "GET", "https://api.allegro.pl/", timeout_seconds=5)

    assert traces.one("Allegro list").status.description == "AllegroUnavailableError"


def test_what_is_traced_goes_to_the_collector_with_its_headers() -> None:
    with collector() as collecting:
        ours = TracingSettings(
            otel_exporter_otlp_endpoint=collecting.endpoint + "/", otel_exporter_otlp_headers="x-team=a%20b,x-two=2=3"
        )
        provider = tracing.configure(ours, service="writer")
        with tracing.span("poll"):
            pass
        assert provider is not None
        provider.shutdown()

    (span,) = collecting.spans()
    assert (span.service, span.name, span.parent_id) == ("orders-backup-writer", "poll", "")
    sent = {name.lower(): value for name, value in collecting.headers[0].items()}
    assert (sent["x-team"], sent["x-two"]) == ("a b", "2=3")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a b=c"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
    ],
)
def test_a_wrong_setting_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigurationError, match=variable) as refusal:
        load(TracingSettings)

    assert value not in str(refusal.value)


def test_off_means_that_nothing_is_traced_and_no_parent_is_sent() -> None:
    provider = tracing.configure(TracingSettings(), service="writer")

    with tracing.span("poll"):
        inside = tracing.traceparent()
        tracing.tell({"a": 1})

    assert (provider, inside, tracing.is_on()) == (None, None, False)
    assert traceparent_of(headers(correlation_id="an-id", traceparent=inside)) is None


def test_off_means_that_the_sdk_is_not_even_loaded() -> None:
    program = (
        "import json, sys\n"
        "import services.api.app, services.poller.app, services.enricher.app, services.writer.app\n"
        "from shared import tracing\n"
        "from shared.settings import TracingSettings\n"
        "tracing.configure(TracingSettings(otel_exporter_otlp_endpoint=''), service='writer')\n"
        "print(json.dumps([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'requests'))]))\n"
    )

    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert json.loads(answer.stdout) == []
