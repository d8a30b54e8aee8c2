"""Compression says of an answer what Starlette's middleware says, also to who takes none."""

from typing import Any

import pytest
from starlette.middleware.gzip import GZipMiddleware

from services.api.compression import Compression
from services.api.middleware import App, Message, Receive, Scope, Send

_EXCLUDED = ("image/*", "text/event-stream", "application/zip")
_LARGE = b"x" * 2000
_JSON = (b"content-type", b"application/json")


def answering(status: int, headers: list[tuple[bytes, bytes]], *bodies: bytes) -> App:
    """Answers with these bodies, one after the other; the length stands in the head if there is only one."""
    length = [(b"content-length", str(len(bodies[0])).encode())] if len(bodies) == 1 else []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
        for place, body in enumerate(bodies, 1):
            await send({"type": "http.response.body", "body": body, "more_body": place < len(bodies)})

    return app


async def sent_by(app: App, encoding: bytes) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("nobody reads")

    async def send(message: Message) -> None:
        sent.append(dict(message))

    scope: dict[str, Any] = {"type": "http", "method": "GET", "headers": [(b"accept-encoding", encoding)]}
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("encoding", [b"", b"br", b"gzip", b"br, gzip;q=0.5"])
@pytest.mark.parametrize(
    "app",
    [
        answering(200, [_JSON], b"{}"),
        answering(200, [_JSON], _LARGE),
        answering(200, [_JSON, (b"vary", b"Origin")], _LARGE),
        answering(200, [_JSON, (b"vary", b"accept-encoding")], _LARGE),
        answering(200, [(b"content-type", b"application/x-ndjson")], _LARGE, b"", _LARGE),
        answering(200, [(b"content-type", b"text/event-stream; charset=utf-8")], b"data: 1\n\n", b""),
        answering(200, [(b"content-type", b"Image/PNG")], _LARGE),
        answering(200, [(b"content-type", b"application/zip")], _LARGE),
        answering(200, [_JSON, (b"content-encoding", b"br")], _LARGE),
        answering(206, [_JSON], _LARGE),
        answering(200, [], _LARGE),
        answering(404, [(b"content-type", b"application/problem+json")], _LARGE),
    ],
)
async def test_an_answer_goes_out_as_by_starlette(app: App, encoding: bytes) -> None:
    theirs = GZipMiddleware(app, minimum_size=1024, compresslevel=3, exclude_content_types=_EXCLUDED)

    ours = Compression(app, minimum_size=1024, level=3, excluded=_EXCLUDED)

    assert await sent_by(ours, encoding) == await sent_by(theirs, encoding)


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_varies_by_nothing(status: int) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body"})

    sent = await sent_by(Compression(app, minimum_size=1024, level=3, excluded=_EXCLUDED), b"")

    assert sent[0]["headers"] == []
