"""A collector that keeps what it is sent: traces by OTLP over HTTP, as any service of this product sends them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """A span as it was sent; an empty `parent_id`: the trace begins here."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    seconds: float
    attributes: Mapping[str, str]


class Collector:
    """What has come so far."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._bodies: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, headers: Mapping[str, str], body: bytes) -> None:
        with self._lock:
            self._bodies.append(body)
            self.headers.append(headers)

    def bodies(self) -> list[bytes]:
        with self._lock:
            return list(self._bodies)

    def spans(self) -> list[Span]:
        return [span for body in self.bodies() for span in _spans(body)]


def _spans(body: bytes) -> Iterator[Span]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = {item.key: item.value.string_value for item in resource.resource.attributes}["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    service=service,
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                    attributes={
                        item.key: item.value.string_value or str(item.value.int_value) for item in span.attributes
                    },
                )


@contextmanager
def collector() -> Iterator[Collector]:
    """One that listens on loopback until the block ends."""
    collecting = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                collecting.take(dict(self.headers), body)
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collecting.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collecting
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
