"""Load on an HTTP server by a client that costs little itself: raw connections, answers counted by their length."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

_OK = b"HTTP/1.1 200"
_LENGTH = b"content-length:"


class _Connection(asyncio.Protocol):
    """One request at a time on a kept connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[None] | None = None
        self._received = bytearray()
        self._missing = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is no subclass of it.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._missing < 0:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._received[:end]).lower()
            if not head.upper().startswith(_OK):
                raise RuntimeError(f"not 200: {bytes(self._received[:500])!r}")
            start = head.index(_LENGTH) + len(_LENGTH)
            self._missing = end + 4 + int(head[start:].split(b"\r\n", 1)[0])
        if len(self._received) >= self._missing:
            self._received.clear()
            self._missing = -1
            if self._answered is not None:
                self._answered.set_result(None)

    async def ask(self, request: bytes) -> None:
        assert self._transport is not None  # noqa: S101 - connected
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._answered

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


@dataclass(frozen=True)
class Load:
    """Requests that are asked in turn, by so many connections."""

    url: str
    paths: Sequence[str]
    connections: int

    def _requests(self) -> "itertools.cycle[bytes]":
        host = urlsplit(self.url).netloc
        return itertools.cycle([f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode() for path in self.paths])

    async def _connect(self) -> list[_Connection]:
        parts = urlsplit(self.url)
        host, port = parts.hostname or "127.0.0.1", parts.port or 80
        loop = asyncio.get_running_loop()
        made = [await loop.create_connection(_Connection, host, port) for _ in range(self.connections)]
        return [connection for _, connection in made]

    async def most(self, seconds: float) -> float:
        """Answers a second if every connection asks as soon as it was answered."""
        requests = self._requests()
        connections = await self._connect()
        began = time.perf_counter()
        answers = 0

        async def ask(connection: _Connection) -> None:
            nonlocal answers
            while time.perf_counter() - began < seconds:
                await connection.ask(next(requests))
                answers += 1

        await asyncio.gather(*map(ask, connections))
        took = time.perf_counter() - began
        for connection in connections:
            connection.close()
        return answers / took

    async def times(self, rate: float, seconds: float) -> list[float]:
        """Seconds that each answer took at a steady rate, counted from when it was due, sorted."""
        requests = self._requests()
        connections = await self._connect()
        free: asyncio.Queue[_Connection] = asyncio.Queue()
        for connection in connections:
            free.put_nowait(connection)
        taken: list[float] = []
        began = time.perf_counter()

        async def ask(due: float) -> None:
            connection = await free.get()
            await connection.ask(next(requests))
            taken.append(time.perf_counter() - due)
            free.put_nowait(connection)

        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                due = began + number / rate
                delay = due - time.perf_counter()
                if delay > 0:
                    await asyncio.sleep(delay)
                group.create_task(ask(due))
        for connection in connections:
            connection.close()
        return sorted(taken)


async def body_of(url: str, path: str) -> bytes:
    """One answer's body; raises RuntimeError if it is not a plain 200."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(_OK):
        raise RuntimeError(f"{path}: {answer[:500]!r}")
    return body


async def drain(url: str, path: str) -> int:
    """Read an answer of any length without keeping it; returns its bytes on the wire."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n\r\n".encode())
    received, end = 0, b""
    while piece := await reader.read(1 << 20):
        received += len(piece)
        end = (end + piece)[-5:]
    writer.close()
    if end != b"0\r\n\r\n":
        raise RuntimeError(f"{path}: the answer broke off after {received} bytes")
    return received
