"""`Idempotency-Key`: a POST that is sent again starts nothing again and gets the first answer (requirement G3).

As draft-ietf-httpapi-idempotency-key-header says, with the answers of Stripe's API: what succeeded is stored for a day
and answered again; what was refused or failed is not stored, and may be tried again under the same key. Answers may
hold a device code, so they are stored encrypted.
"""

import asyncio
import base64
import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import asyncpg

from services.api.access import Caller
from services.api.changes import ChangeRoutes
from services.api.middleware import App, Message, Receive, Scope, Send
from services.api.problems import (
    BadRequestError,
    IdempotencyKeyReusedError,
    InvalidField,
    InvalidInputError,
    RequestInProgressError,
    UnavailableError,
)
from shared.database import TRANSIENT_DATABASE_ERRORS
from shared.encryption import DecryptionError, Keyring, Secret
from shared.key_rotation import answer_binding

logger = logging.getLogger(__name__)

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
_FORM = re.compile(r"[\x21-\x7e]{1,255}")
_LIFE = timedelta(days=1)
# Twice the deadline of a request: whoever has not answered by then never will.
_GIVEN_UP = timedelta(seconds=120)
# Somebody waits for the answer that says that it failed.
_RELEASE_SECONDS = 5.0
_KEPT_HEADERS = frozenset({b"content-type", b"location", b"link"})

# A row that is too old, or whose request died, is taken over; `created_at` tells the requests under one key apart.
# language=sql
_CLAIM = """
INSERT INTO idempotent_requests AS present (caller, idempotency_key, request_digest) VALUES ($1, $2, $3)
    ON CONFLICT (caller, idempotency_key) DO UPDATE
   SET request_digest = excluded.request_digest, answer = NULL, created_at = clock_timestamp()
 WHERE present.created_at < now() - $4::interval
    OR (present.answer IS NULL AND present.created_at < now() - $5::interval
        AND present.request_digest = excluded.request_digest)
RETURNING created_at
"""

_READ = "SELECT request_digest, answer FROM idempotent_requests WHERE caller = $1 AND idempotency_key = $2"

_STORE = """
UPDATE idempotent_requests SET answer = $4 WHERE caller = $1 AND idempotency_key = $2 AND created_at = $3
"""

_RELEASE = """
DELETE FROM idempotent_requests WHERE caller = $1 AND idempotency_key = $2 AND created_at = $3 AND answer IS NULL
"""


class Storage(Protocol):
    """What is needed of `context.Resources`."""

    @property
    def pool(self) -> asyncpg.Pool: ...

    @property
    def keyring(self) -> Keyring: ...


@dataclass(frozen=True)
class Answer:
    """An answer as it went out."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def as_text(self) -> str:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.headers]
        return json.dumps([self.status, headers, base64.b64encode(self.body).decode()])

    @classmethod
    def from_text(cls, text: str) -> "Answer":
        status, headers, body = json.loads(text)
        return cls(
            status,
            [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            base64.b64decode(body),
        )

    async def send(self, send: Send) -> None:
        headers = [*self.headers, (b"content-length", str(len(self.body)).encode()), (REPLAYED.encode(), b"true")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


@dataclass(frozen=True)
class _Request:
    """One request under one key, and the storage of its answer."""

    caller: str
    key: str
    digest: bytes
    storage: Storage

    async def claim(self) -> datetime | Answer:
        """When it was claimed, or what was answered before.

        Raises IdempotencyKeyReusedError, RequestInProgressError, UnavailableError.
        """
        pool = self.storage.pool
        claimed_at: datetime | None = await pool.fetchval(_CLAIM, self.caller, self.key, self.digest, _LIFE, _GIVEN_UP)
        if claimed_at is not None:
            return claimed_at
        row = await pool.fetchrow(_READ, self.caller, self.key)
        if row is not None and row["request_digest"] != self.digest:
            raise IdempotencyKeyReusedError(f"{HEADER} {self.key!r} came with another request before; take a new one.")
        # No row: the other request has just failed.
        if row is None or row["answer"] is None:
            raise RequestInProgressError(
                f"The first request with {HEADER} {self.key!r} is not answered yet; ask again.",
                retry_after=timedelta(seconds=1),
            )
        return self._opened(row["answer"])

    async def store(self, claimed_at: datetime, answer: Answer) -> None:
        """What was started has been started: its answer goes out also where it cannot be stored."""
        sealed = self.storage.keyring.seal(Secret(answer.as_text()), belongs_to=self._binding())
        try:
            await self.storage.pool.execute(_STORE, self.caller, self.key, claimed_at, sealed.envelope)
        except TRANSIENT_DATABASE_ERRORS as error:
            logger.warning("answer not stored under its idempotency key", extra={"error": repr(error)})

    async def release(self, claimed_at: datetime) -> None:
        """Nothing was started; a row that cannot be removed now is given up by itself."""
        try:
            await self.storage.pool.execute(_RELEASE, self.caller, self.key, claimed_at, timeout=_RELEASE_SECONDS)
        except TRANSIENT_DATABASE_ERRORS as error:
            logger.warning("idempotency key not released", extra={"error": repr(error)})

    def _opened(self, envelope: bytes) -> Answer:
        try:
            return Answer.from_text(self.storage.keyring.open(envelope, belongs_to=self._binding()).reveal())
        except DecryptionError as error:
            raise UnavailableError(f"The answer stored for this {HEADER} cannot be read: {error}") from error

    def _binding(self) -> str:
        return answer_binding(self.caller, self.key)


class Idempotency:
    """Plain ASGI in front of the endpoints, inside of the compression."""

    def __init__(self, app: App, *, changes: ChangeRoutes, storage: Callable[[], Storage]) -> None:
        self._app = app
        self._changes = changes
        self._storage = storage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _key(scope)
        if key is None or self._changes.find(scope) is None:
            await self._app(scope, receive, send)
            return
        caller: Caller = scope["state"]["caller"]
        body = await _read(receive)
        request = _Request(caller.name, key, _digest(scope, body), self._storage())
        claimed = await request.claim()
        if isinstance(claimed, Answer):
            await claimed.send(send)
            return
        collected = _Collected()
        try:
            await self._app(scope, _repeated(body, receive), collected.take)
        except (Exception, asyncio.CancelledError):
            # Cancelled: by the deadline of the frame. What had been started by then is safe to start again.
            await request.release(claimed)
            raise
        if 200 <= collected.status < 300:
            await request.store(claimed, collected.answer())
        else:
            await request.release(claimed)
        for message in collected.messages:
            await send(message)


class _Collected:
    """An answer that is held back until it is stored; those to POSTs are small."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def take(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    def answer(self) -> Answer:
        start, *pieces = self.messages
        kept = [(name, value) for name, value in start["headers"] if name in _KEPT_HEADERS]
        return Answer(self.status, kept, b"".join(piece.get("body", b"") for piece in pieces))


def _key(scope: Scope) -> str | None:
    """The key that was sent with a POST; raises InvalidInputError."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    given = dict(scope["headers"]).get(HEADER.lower().encode())
    if given is None:
        return None
    key: str = given.decode("latin-1")
    if not _FORM.fullmatch(key):
        field = InvalidField(location="header", field=HEADER, message="1 to 255 printable characters without spaces")
        raise InvalidInputError(f"{field.field}: {field.message}", errors=[field.model_dump()])
    return key


async def _read(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequestError("The body broke off.")
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _repeated(body: bytes, receive: Receive) -> Receive:
    """The body again, and then whatever else the client does."""
    waiting = [body]

    async def receive_again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return receive_again


def _digest(scope: Scope, body: bytes) -> bytes:
    hashed = hashlib.sha256()
    for part in (scope["method"].encode(), scope["path"].encode(), scope.get("query_string", b""), body):
        hashed.update(len(part).to_bytes(8) + part)
    return hashed.digest()
