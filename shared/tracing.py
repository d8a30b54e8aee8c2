"""Traces (OpenTelemetry): one from an API call or a poll, through Kafka, to the commit.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT is set, and then not there: the SDK is not loaded, and every place that could
begin a span looks at one variable instead. Spans hold names of our own, numbers, our ids and Allegro's `Trace-Id`. They
hold no address, header, body or text of an error: those may hold tokens (requirement A8). An error is told by its type.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.logs import correlation_id
from shared.settings import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

Attributes = Mapping[str, str | int]
Kind = Literal["internal", "server", "client", "producer", "consumer"]

_HEADER = "traceparent"
_KINDS: Mapping[str, SpanKind] = {kind.name.lower(): kind for kind in SpanKind}
_OFF: AbstractContextManager[None] = nullcontext()
_PROPAGATOR = TraceContextTextMapPropagator()
# For one attempt and its repetitions: the end of the process waits for the last spans, too.
_EXPORT_SECONDS = 5.0
# Of one consumed batch; the SDK keeps 128.
_MAX_LINKS = 64

_tracer: trace.Tracer | None = None


def configure(settings: TracingSettings, *, service: str) -> "TracerProvider | None":
    """Send this process' spans to the collector that the settings name; without one, trace nothing (None)."""
    if not settings.otel_exporter_otlp_endpoint:
        return None
    return trace_to(_exporter(settings), service=service, share=settings.otel_traces_sampler_arg)


def trace_to(exporter: "SpanExporter", *, service: str, share: float = 1.0) -> "TracerProvider":
    """Trace this `share` (0..1) of what begins here, and of what began elsewhere what was traced there.

    The provider that is returned sends the rest when it is shut down, which it does itself when the process ends.
    """
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    global _tracer
    resource = Resource.create(
        {"service.name": f"orders-backup-{service}", "service.instance.id": uuid4().hex},
    )
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)), resource=resource)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = provider.get_tracer("orders-backup")
    return provider


def _exporter(settings: TracingSettings) -> "SpanExporter":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    # Each attempt is a warning, and then comes an error: one line about an absent collector is enough.
    logging.getLogger(OTLPSpanExporter.__module__).setLevel(logging.ERROR)
    return OTLPSpanExporter(
        endpoint=f"{settings.otel_exporter_otlp_endpoint}/v1/traces",
        headers=settings.otlp_headers(),
        timeout=_EXPORT_SECONDS,
    )


def is_on() -> bool:
    """Whether anything is traced, so that nobody gathers what nobody gets."""
    return _tracer is not None


def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "internal",
    parent: str | None = None,
    links: Iterable[str] = (),
) -> AbstractContextManager[None]:
    """A span around the block, below the present one, or below that of `parent`, a traceparent from elsewhere.

    `links` are the traceparents of what is done together with it. An exception that leaves the block makes it failed.
    """
    if _tracer is None:
        return _OFF
    return _span(_tracer, name, attributes, kind, parent, links)


@contextmanager
def _span(
    tracer: trace.Tracer,
    name: str,
    attributes: Attributes | None,
    kind: Kind,
    parent: str | None,
    links: Iterable[str],
) -> Iterator[None]:
    with tracer.start_as_current_span(
        name,
        context=None if parent is None else _context(parent),
        kind=_KINDS[kind],
        attributes=_with_correlation(attributes),
        links=list(_links(links)),
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield
        except Exception as error:
            current.set_attribute("error.type", type(error).__name__)
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def add_span(name: str, attributes: Attributes, *, kind: Kind, parent: str, started_ns: int) -> None:
    """A span that began at `started_ns` (Unix time) and ends now: for work that several traces share."""
    if _tracer is not None:
        added = _tracer.start_span(
            name, context=_context(parent), kind=_KINDS[kind], attributes=attributes, start_time=started_ns
        )
        added.end()


def tell(attributes: Attributes, *, name: str | None = None, failed: str | None = None) -> None:
    """Add to the present span what is known only now; `failed`: the kind of failure."""
    if _tracer is None:
        return
    current = trace.get_current_span()
    current.set_attributes(dict(attributes))
    if name is not None:
        current.update_name(name)
    if failed is not None:
        current.set_status(Status(StatusCode.ERROR, failed))


def traceparent() -> str | None:
    """The present span as W3C Trace Context writes it, to go on elsewhere; None if nothing is traced."""
    if _tracer is None:
        return None
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get(_HEADER)


def _context(parent: str) -> Context:
    """Where the parent is; an unreadable one is none, and a trace of its own begins."""
    return _PROPAGATOR.extract({_HEADER: parent}, context=Context())


def _links(parents: Iterable[str]) -> Iterator[Link]:
    for parent in list(dict.fromkeys(parents))[:_MAX_LINKS]:
        linked = trace.get_current_span(_context(parent)).get_span_context()
        if linked.is_valid:
            yield Link(linked)


def _with_correlation(attributes: Attributes | None) -> Attributes:
    """The correlation id leads from a trace to the logs."""
    identifier = correlation_id.get()
    own = {} if identifier is None else {"orders_backup.correlation_id": identifier}
    return {**own, **(attributes or {})}
