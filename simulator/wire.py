"""A small HTTP/1.1 server, made for this: one call for a request, and answers that may go wrong on purpose.

Why not a framework: the server serves benchmarks on the same machine, so each microsecond here is one less for what
is measured, and a framework would not let us cut an answer in half. Answers that need no waiting are written without
a task. It is no server for the open internet.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, cast
from urllib.parse import parse_qsl, unquote

_MOST_HEAD_BYTES: Final = 64 * 1024
_MOST_BODY_BYTES: Final = 64 * 1024 * 1024
_HIGH_WATER_BYTES: Final = 256 * 1024
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_DRIPS: Final = 20


class BadRequestError(Exception):
    """Bytes that are not HTTP."""


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes = b""

    def parameters(self) -> dict[str, str]:
        """The query; of a name that is repeated, the last value."""
        return dict(parse_qsl(self.query, keep_blank_values=True)) if self.query else {}

    def all_parameters(self) -> list[tuple[str, str]]:
        return parse_qsl(self.query, keep_blank_values=True)

    def form(self) -> dict[str, str]:
        """The body of a form post; Latin letters in it are UTF-8."""
        return dict(parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True))


@dataclass(slots=True)
class Answer:
    """An answer, and how it reaches the client."""

    status: int
    body: bytes = b""
    content_type: bytes = b"application/json"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    delay_seconds: float = 0.0
    # Seconds that the body takes, in small pieces.
    drip_seconds: float = 0.0
    # Send only so many bytes of head and body, then drop the connection.
    cut_at: int | None = None
    # Send nothing; the connection is dropped after these seconds (0: when the client gives up).
    silent_seconds: float | None = None
    # Pieces of a body of unknown length, instead of `body`.
    stream: Iterator[bytes] | None = None


Handler = Callable[[Request], Answer]


def _head(answer: Answer, length: int | None, date: bytes, closing: bool) -> bytes:
    lines = [
        b"HTTP/1.1 %d %b" % (answer.status, _REASONS.get(answer.status, "").encode()),
        b"content-type: " + answer.content_type,
        b"date: " + date,
        b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length,
    ]
    lines.extend(name + b": " + value for name, value in answer.headers)
    if closing:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def parse_head(head: bytes) -> Request:
    """Read a request's head (without the empty line); raises BadRequestError."""
    first, *lines = head.decode("latin-1").split("\r\n")
    try:
        method, target, version = first.split(" ")
    except ValueError:
        raise BadRequestError(first) from None
    if not version.startswith("HTTP/1."):
        raise BadRequestError(version)
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequestError(line)
        headers[name.lower()] = value.strip()
    if version == "HTTP/1.0":
        headers.setdefault("connection", "close")
    path, _, query = target.partition("?")
    return Request(method, unquote(path) if "%" in path else path, query, headers)


class _Connection(asyncio.Protocol):
    def __init__(self, server: "Server") -> None:
        self._server = server
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._asked_to_continue = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are not of that class, only of its shape.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.forget(self)
        self._may_write.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            self._serve_buffered()

    def drop(self) -> None:
        self._transport.abort()

    def _serve_buffered(self) -> None:
        """Answer every whole request in the buffer, one after the other."""
        while self._task is None and not self._transport.is_closing():
            try:
                request = self._next_request()
            except BadRequestError:
                self._write(Answer(400, b"bad request", b"text/plain"), closing=True)
                return
            if request is None:
                return
            self._answer(request, self._server.handle(request))

    def _next_request(self) -> Request | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MOST_HEAD_BYTES:
                raise BadRequestError("the head is too long")
            return None
        request = parse_head(bytes(self._buffer[:end]))
        start = end + 4
        if "transfer-encoding" in request.headers:
            taken = _read_chunks(self._buffer, start)
        else:
            taken = _read_length(self._buffer, start, request.headers.get("content-length", "0"))
        if taken is None:
            self._continue_if_asked(request)
            return None
        request.body, consumed = taken
        del self._buffer[:consumed]
        self._asked_to_continue = False
        return request

    def _continue_if_asked(self, request: Request) -> None:
        if request.headers.get("expect", "").lower() == "100-continue" and not self._asked_to_continue:
            self._asked_to_continue = True
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _answer(self, request: Request, answer: Answer) -> None:
        closing = request.headers.get("connection", "").lower() == "close"
        if request.method == "HEAD":
            answer.body = b""
        if (
            answer.delay_seconds
            or answer.drip_seconds
            or answer.silent_seconds is not None
            or answer.stream is not None
        ):
            self._task = asyncio.get_running_loop().create_task(self._answer_slowly(answer, closing))
            self._task.add_done_callback(self._answered)
        else:
            self._write(answer, closing)

    def _answered(self, task: "asyncio.Task[None]") -> None:
        self._task = None
        if task.cancelled():
            return
        if task.exception() is not None:
            self._server.report(task.exception())
            self.drop()
            return
        self._serve_buffered()

    def _write(self, answer: Answer, closing: bool) -> None:
        head = _head(answer, len(answer.body), self._server.date(), closing)
        if answer.cut_at is not None:
            self._cut(head, answer)
            return
        self._transport.write(head + answer.body)
        if closing:
            self._transport.close()

    def _cut(self, head: bytes, answer: Answer) -> None:
        """Send a part and close; `close` lets the part reach the client, as a reset might not."""
        whole = head + answer.body
        self._transport.write(whole[: answer.cut_at])
        self._transport.close()

    async def _answer_slowly(self, answer: Answer, closing: bool) -> None:
        if answer.delay_seconds:
            await asyncio.sleep(answer.delay_seconds)
        if answer.silent_seconds is not None:
            await asyncio.sleep(answer.silent_seconds or 3600.0)
            self.drop()
        elif answer.stream is not None:
            await self._stream(answer, answer.stream, closing)
        elif answer.drip_seconds:
            await self._drip(answer, closing)
        else:
            self._write(answer, closing)

    async def _drip(self, answer: Answer, closing: bool) -> None:
        self._transport.write(_head(answer, len(answer.body), self._server.date(), closing))
        size = max(1, -(-len(answer.body) // _DRIPS))
        for start in range(0, len(answer.body), size):
            await asyncio.sleep(answer.drip_seconds / _DRIPS)
            self._transport.write(answer.body[start : start + size])
        if closing:
            self._transport.close()

    async def _stream(self, answer: Answer, stream: Iterator[bytes], closing: bool) -> None:
        self._transport.write(_head(answer, None, self._server.date(), closing))
        for piece in stream:
            if piece:
                self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            # Also lets others have their turn.
            await asyncio.sleep(0)
            await self._may_write.wait()
            if self._transport.is_closing():
                return
        self._transport.write(b"0\r\n\r\n")
        if closing:
            self._transport.close()


def _read_length(buffer: bytearray, start: int, text: str) -> tuple[bytes, int] | None:
    if not text.isdigit() or int(text) > _MOST_BODY_BYTES:
        raise BadRequestError(f"content-length {text}")
    end = start + int(text)
    return (bytes(buffer[start:end]), end) if len(buffer) >= end else None


def _read_chunks(buffer: bytearray, start: int) -> tuple[bytes, int] | None:
    """The body of a chunked request, without trailers."""
    body = bytearray()
    while True:
        line_end = buffer.find(b"\r\n", start)
        if line_end < 0:
            return None
        try:
            size = int(bytes(buffer[start:line_end]).split(b";")[0], 16)
        except ValueError:
            raise BadRequestError("chunk size") from None
        start = line_end + 2
        if len(buffer) < start + size + 2 or len(body) > _MOST_BODY_BYTES:
            return None
        body += buffer[start : start + size]
        start += size + 2
        if size == 0:
            return bytes(body), start


class Server:
    """Listens, and gives every request to the handler."""

    def __init__(self, handle: Handler, report: Callable[[BaseException | None], None]) -> None:
        self.handle = handle
        self.report = report
        self.connections: set[_Connection] = set()
        self._date = (0, b"")
        self._listener: asyncio.Server | None = None
        self._empty: asyncio.Event | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: _Connection(self), host, port, backlog=1024)
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self.connections:
            self._empty = asyncio.Event()
            for connection in list(self.connections):
                connection.drop()
            await self._empty.wait()

    def forget(self, connection: _Connection) -> None:
        self.connections.discard(connection)
        if self._empty is not None and not self.connections:
            self._empty.set()

    def date(self) -> bytes:
        now = int(asyncio.get_running_loop().time())
        if self._date[0] != now:
            self._date = (now, formatdate(usegmt=True).encode())
        return self._date[1]
