"""HTTP as clients and networks really speak it."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from simulator.wire import Answer, BadRequestError, Request, Server, parse_head


def echo(request: Request) -> Answer:
    if request.path == "/stream":
        pieces: Iterator[bytes] = (b"%d\n" % number for number in range(3))
        return Answer(200, stream=pieces)
    if request.path == "/late":
        return Answer(200, b"late", delay_seconds=0.01)
    return Answer(200, f"{request.method} {request.path} {request.query} ".encode() + request.body)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    failures: list[BaseException | None] = []
    server = Server(echo, failures.append)
    yield await server.start("127.0.0.1", 0)
    await server.stop()
    assert failures == []


async def talk(port: int, *pieces: bytes) -> bytes:
    """Send the pieces one by one, and read until the server has closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


CLOSE = b"Connection: close\r\n\r\n"


async def test_a_request_may_come_in_pieces(port: int) -> None:
    whole = b"POST /a?b=c HTTP/1.1\r\nContent-Length: 5\r\n" + CLOSE + b"hello"

    answer = await talk(port, *(whole[place : place + 1] for place in range(len(whole))))

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nPOST /a b=c hello")


async def test_requests_may_come_in_one_piece_and_are_answered_in_their_order(port: int) -> None:
    answer = await talk(port, b"GET /late HTTP/1.1\r\n\r\nGET /second HTTP/1.1\r\n" + CLOSE)

    assert answer.index(b"late") < answer.index(b"GET /second")


async def test_a_chunked_body_is_put_together(port: int) -> None:
    answer = await talk(
        port, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + CLOSE, b"3\r\nabc\r\n", b"2;x=y\r\nde\r\n0\r\n\r\n"
    )

    assert answer.endswith(b"abcde")


async def test_a_stream_is_sent_in_chunks(port: int) -> None:
    answer = await talk(port, b"GET /stream HTTP/1.1\r\n" + CLOSE)

    assert b"transfer-encoding: chunked" in answer
    assert answer.endswith(b"2\r\n0\n\r\n2\r\n1\n\r\n2\r\n2\n\r\n0\r\n\r\n")


async def test_a_client_that_waits_is_told_to_continue(port: int) -> None:
    answer = await talk(port, b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n" + CLOSE, b"o", b"k")

    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


async def test_what_is_not_http_is_refused(port: int) -> None:
    assert (await talk(port, b"hello\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("head", [b"GET /", b"GET / SMTP/1.0", b"GET / HTTP/1.1\r\nno colon"])
def test_a_broken_head_is_refused(head: bytes) -> None:
    with pytest.raises(BadRequestError):
        parse_head(head)
