"""Reading the orders of an export chunk by chunk.

Each chunk is one statement of its own: no transaction and no connection is held while a client reads slowly, and the
next chunk is read while this one goes out. An order that was stored when the export began is met exactly once, as it
was when its chunk was read; one whose storing was not committed yet may be missing, and is in the next export.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import asyncpg

from services.api.export.forms import Form, Writing
from services.api.export.selection import EVERYBODY, OrderExport, last_looked_at
from services.api.problems import InvalidCursorError
from shared.export.manifest import FORMAT, Manifest
from shared.export.position import ExportPosition, ForeignPositionError

# What one statement should bring, of documents or of what is written of them: enough to be worth a round trip, little
# enough to hold several times.
_CHUNK_BYTES = 1 << 20
_FIRST_ROWS = 100
_MOST_ROWS = 2000
# Through so many rows one statement looks for those that meet the filters: some hundredths of a second in memory, and
# well within any deadline where each has to come from a disk.
_LOOKED_AT = 20_000

Rows = Sequence[asyncpg.Record]


@dataclass(frozen=True)
class _Chunk:
    """Rows of one walk behind the id `after`; none: nothing up to there meets the filters."""

    walk: int
    after: int
    rows: Rows


class Export:
    """One export from where it begins to its end or its limit."""

    def __init__(
        self, pool: asyncpg.Pool, asked: OrderExport, form: Form, walks: Sequence[int], start: ExportPosition
    ) -> None:
        self._pool = pool
        self._asked = asked
        self._form = form
        self._walks = walks
        self._position = start
        self._users: dict[int, str] = {}
        self._held = 0
        self._rows_at_once = _FIRST_ROWS
        self._reached_limit = False

    @classmethod
    async def begin(
        cls, pool: asyncpg.Pool, asked: OrderExport, form: Form, token_ids: Sequence[int] | None
    ) -> "Export":
        """`token_ids`: of these sellers only; None: of all. Raises InvalidCursorError."""
        walks = [EVERYBODY] if token_ids is None else sorted(token_ids)
        export = cls(pool, asked, form, walks, await _start(pool, asked, walks))
        await export._learn_users()
        return export

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The answer's body, piece by piece; the last one is the manifest."""
        writing = await asyncio.to_thread(self._form.open)
        with_header = self._position.is_start if self._asked.header is None else self._asked.header
        if begin := writing.begin(header=with_header):
            yield begin
        chunks = self._chunks()
        upcoming = asyncio.ensure_future(anext(chunks, None))
        try:
            while (chunk := await upcoming) is not None:
                upcoming = asyncio.ensure_future(anext(chunks, None))
                # The statement goes out before we write what the one before it brought.
                await asyncio.sleep(0)
                # Nothing is a piece, too: it sends nothing, but shows the frame that we come on (`middleware.py`).
                yield await self._written(writing, chunk) if chunk.rows else b""
        finally:
            upcoming.cancel()
            with suppress(asyncio.CancelledError):
                await upcoming
        if rest := await writing.rest():
            self._pass(rest)
            yield rest
        if end := writing.end(self._manifest() if self._asked.manifest else None):
            yield end

    async def _written(self, writing: Writing, chunk: _Chunk) -> bytes:
        # A cursor leads to its order, and not once more through what did not meet the filters in front of it.
        self._position = replace(self._position, token_id=chunk.walk, after=chunk.after)
        cursor = None if self._position.is_start else self._position.encode()
        body = await writing.chunk(chunk.rows, self._users, cursor)
        self._position = replace(self._position, after=chunk.rows[-1]["id"])
        self._held += len(chunk.rows)
        self._pass(body)
        share = max(len(body), self._documents_bytes(chunk.rows)) / _CHUNK_BYTES
        self._rows_at_once = max(1, min(_MOST_ROWS, int(len(chunk.rows) / share)))
        return body

    def _pass(self, body: bytes) -> None:
        """Count what goes out with all orders that were held for it; nothing: they are still held."""
        if body:
            position = self._position
            self._position = position.past(body, self._held, token_id=position.token_id, after=position.after)
            self._held = 0

    def _documents_bytes(self, rows: Rows) -> int:
        if "order_data" not in self._form.columns:
            return 0
        return sum(len(row["order_data"]) + len(row["order_raw"] or b"") for row in rows)

    async def _chunks(self) -> AsyncGenerator[_Chunk, None]:
        """It runs ahead of `_position`, so it keeps its own place."""
        left = self._asked.limit
        for walk in self._walks:
            if walk < self._position.token_id:
                continue
            after: int | None = self._position.after if walk == self._position.token_id else 0
            while after is not None:
                # One more than may go out tells whether there are more.
                wanted = self._rows_at_once if left is None else min(self._rows_at_once, left + 1)
                rows = await self._read(walk, after, wanted)
                if left is not None and len(rows) > left:
                    self._reached_limit = True
                    rows = rows[:left]
                yield _Chunk(walk, after, rows)
                if self._reached_limit:
                    return
                left = None if left is None else left - len(rows)
                after = rows[-1]["id"] if len(rows) == wanted else await self._passed(walk, after)

    async def _read(self, walk: int, after: int, wanted: int) -> Rows:
        until = self._position.until
        statement, arguments = self._asked.statement(self._form.columns, walk, after, until, _LOOKED_AT)
        rows: Rows = await self._pool.fetch(statement, *arguments, wanted)
        if not self._users.keys() >= {row["user_token_id"] for row in rows}:
            await self._learn_users()
        return rows

    async def _passed(self, walk: int, after: int) -> int | None:
        """Up to which id a statement has looked that did not bring all that was wanted; None: to the walk's end."""
        statement, arguments = last_looked_at(walk, after, self._position.until, _LOOKED_AT)
        passed: int | None = await self._pool.fetchval(statement, *arguments)
        return passed

    async def _learn_users(self) -> None:
        for row in await self._pool.fetch("SELECT id, user_id FROM user_tokens"):
            self._users[row["id"]] = row["user_id"]

    def _manifest(self) -> Manifest:
        return Manifest(
            format=FORMAT,
            orders=self._position.orders,
            digest=self._position.digest.hex(),
            finished_at=datetime.now(UTC),
            filters=self._asked.filters(),
            next=self._position.encode() if self._reached_limit else None,
        )


async def _start(pool: asyncpg.Pool, asked: OrderExport, walks: Sequence[int]) -> ExportPosition:
    selection = asked.selection()
    if asked.cursor is None:
        newest = await pool.fetchval("SELECT coalesce(max(id), 0) FROM orders")
        return ExportPosition(selection, until=newest)
    try:
        position = ExportPosition.decode(asked.cursor)
    except ForeignPositionError as error:
        raise InvalidCursorError(f"cursor: {error}.") from error
    # With a cursor of everybody's orders, a walk seller by seller would begin anew behind its count.
    if position.selection != selection or position.token_id not in walks:
        raise InvalidCursorError(
            "cursor: it is of an export in another format, with other filters or of other sellers."
        )
    return position
