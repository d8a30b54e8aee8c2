"""Answers that go on for long: how many there may be at a time, and that they end with the key they were asked with."""

from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from services.api.access import Caller
from services.api.heads import is_head
from services.api.problems import TooManyStreamsError

# Nobody knows when one ends; whoever waits may ask now and then.
_RETRY_AFTER = timedelta(seconds=5)


@dataclass
class Streams:
    """Those of one kind that are open in this process."""

    kind: str
    per_key: int
    in_all: int
    _open: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def one_more(self, name: str) -> Iterator[None]:
        """Raises TooManyStreamsError. `name`: of the key."""
        if self._open[name] >= self.per_key:
            raise TooManyStreamsError(
                f"The key {name!r} has {self.per_key} {self.kind} open, and may have no more at a time.",
                retry_after=_RETRY_AFTER,
            )
        if self._open.total() >= self.in_all:
            raise TooManyStreamsError(
                f"There are {self.in_all} {self.kind} open, and may be no more at a time.", retry_after=_RETRY_AFTER
            )
        self._open[name] += 1
        try:
            yield
        finally:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]


class Stream(StreamingResponse):
    """A long answer. It is closed as soon as nobody reads it any more, and with it what it has asked of PostgreSQL."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        caller: Caller,
        streams: Streams,
        media_type: str,
        headers: Mapping[str, str],
    ) -> None:
        self._pieces = _while_known(pieces, caller)
        self._caller = caller
        self._streams = streams
        super().__init__(self._pieces, media_type=media_type, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises TooManyStreamsError before anything is sent."""
        if is_head(scope):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            # In two steps, as a stream comes: the compression tells its headers by that.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        with self._streams.one_more(self._caller.name):
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._pieces):
            await super().stream_response(send)


async def _while_known(pieces: AsyncGenerator[bytes, None], caller: Caller) -> AsyncGenerator[bytes, None]:
    """Raises UnauthenticatedError as soon as the key is of no use any more."""
    async with aclosing(pieces):
        async for piece in pieces:
            await caller.check_again()
            yield piece
