"""Answers of any size over real connections: no more is read than what can be held (P10)."""

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from shared.allegro.answer import Answer
from shared.allegro.errors import AnswerTooLargeError
from shared.allegro.http import MAX_ANSWER_BYTES, open_http
from tests.shared.allegro.builders import settings

CHUNK = b"x" * (1 << 20)
SIZE = 128 * len(CHUNK)


class Server:
    """Sends a body of 128 MB to whoever asks, and counts what was taken of it."""

    def __init__(self) -> None:
        self.sent = 0
        self.status = 200

    async def long(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(status=self.status)
        await answer.prepare(request)
        while self.sent < SIZE:
            await answer.write(CHUNK)
            self.sent += len(CHUNK)
        return answer

    async def packed(self, request: web.Request) -> web.StreamResponse:
        """A hundred kilobytes that unpack to as many megabytes, for whoever says that it unpacks."""
        assert "gzip" in request.headers.get("Accept-Encoding", "")
        return web.Response(body=gzip.compress(bytes(SIZE)), headers={"Content-Encoding": "gzip"})

    async def exact(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * int(request.query["size"]))


@pytest.fixture
async def server() -> Server:
    return Server()


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/long", server.long)
    app.router.add_get("/packed", server.packed)
    app.router.add_get("/exact", server.exact)
    async with TestServer(app, host="127.0.0.1") as running:
        yield str(running.make_url("/")).rstrip("/")


async def test_of_a_body_that_does_not_end_no_more_is_read_than_can_be_held(server: Server) -> None:
    async with serving(server) as url, open_http(settings(url)) as http:
        with pytest.raises(AnswerTooLargeError, match=str(MAX_ANSWER_BYTES)):
            await http.request("GET", f"{url}/long", timeout_seconds=30)
        answer = await http.request("GET", f"{url}/exact", params={"size": "3"}, timeout_seconds=30)

    assert MAX_ANSWER_BYTES < server.sent < SIZE
    assert len(answer.body) == 3


async def test_a_small_body_that_unpacks_to_a_large_one_is_not_held_either(server: Server) -> None:
    async with serving(server) as url, open_http(settings(url)) as http:
        with pytest.raises(AnswerTooLargeError):
            await http.request("GET", f"{url}/packed", timeout_seconds=30)


@pytest.mark.parametrize(("size", "fits"), [(99, True), (100, True), (101, False)])
async def test_a_body_of_just_the_size_that_is_read_is_whole(server: Server, size: int, fits: bool) -> None:
    async with serving(server) as url, open_http(settings(url)) as http:
        if fits:
            answer = await http.request(
                "GET", f"{url}/exact", params={"size": str(size)}, max_bytes=100, timeout_seconds=30
            )
            assert len(answer.body) == size
        else:
            with pytest.raises(AnswerTooLargeError):
                await http.request("GET", f"{url}/exact", params={"size": str(size)}, max_bytes=100, timeout_seconds=30)


async def test_the_error_for_a_body_that_is_too_large_does_not_hold_it(server: Server) -> None:
    """Whoever keeps the error keeps its traceback, and the traceback every variable on the way."""
    async with serving(server) as url, open_http(settings(url)) as http:
        with pytest.raises(AnswerTooLargeError) as raised:
            await http.request("GET", f"{url}/exact", params={"size": "101"}, max_bytes=100, timeout_seconds=30)

    held = [value for entry in raised.traceback for value in entry.frame.f_locals.values()]
    assert not [value for value in held if isinstance(value, Answer) and value.body]


async def test_of_a_refusal_with_a_large_body_the_status_is_known(server: Server) -> None:
    server.status = 503
    async with serving(server) as url, open_http(settings(url)) as http:
        answer = await http.request("GET", f"{url}/long", timeout_seconds=30)

    assert (answer.status, answer.body) == (503, b"")
