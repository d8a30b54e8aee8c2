"""Are the tables equal to what Allegro served? Compares PostgreSQL with the simulator's ledger of truth.

Pure comparison above, streams below. Memory does not depend on how many orders there are: the ledger arrives as one
JSON document a line and is compared a few hundred lines at a time.
"""

import json
from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, Protocol

import asyncpg

_CHUNK = 200
_SHOWN = 10

Kind = Literal["order", "event"]
Fault = Literal["missing", "extra", "different"]


@dataclass(frozen=True)
class Difference:
    """One row that is not as it should be."""

    fault: Fault
    kind: Kind
    seller_id: str
    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.fault} {self.kind} {self.id} of seller {self.seller_id}: {self.reason}"


@dataclass
class Comparison:
    """What was found; `differences` counts all of them, `shown` holds the first."""

    orders: int = 0
    events: int = 0
    merged: int = 0
    """Stored orders that were merged with others: their copies have to say so."""
    differences: int = 0
    shown: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return self.differences == 0

    def count(self, kind: Kind) -> None:
        """One more entry of the ledger was looked at."""
        if kind == "order":
            self.orders += 1
        else:
            self.events += 1

    def add(self, difference: Difference) -> None:
        self.differences += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(difference)


def parse(document: str | bytes) -> Any:
    """JSON without loss: 0.1 stays 0.1, and an object that has a field twice is a list of its fields."""
    return json.loads(document, parse_float=Decimal, object_pairs_hook=_object)


def _object(fields: list[tuple[str, Any]]) -> dict[str, Any] | list[tuple[str, Any]]:
    found = dict(fields)
    return found if len(found) == len(fields) else fields


def first_difference(expected: Any, stored: Any, path: str = "$") -> str | None:
    """Where two JSON values part, in words; None if they are equal."""
    if isinstance(expected, Mapping) and isinstance(stored, Mapping):
        for key in expected:
            if key not in stored:
                return f"{path}.{key} is not stored"
        for key in stored:
            if key not in expected:
                return f"{path}.{key} is stored and was never served"
        pairs: Iterable[tuple[str, Any, Any]] = ((f"{path}.{key}", expected[key], stored[key]) for key in expected)
    elif isinstance(expected, list) and isinstance(stored, list):
        if len(expected) != len(stored):
            return f"{path} has {len(stored)} elements instead of {len(expected)}"
        pairs = (
            (f"{path}[{number}]", one, other) for number, (one, other) in enumerate(zip(expected, stored, strict=True))
        )
    else:
        # In Python, True == 1; in JSON it is not.
        same_type = isinstance(expected, bool) == isinstance(stored, bool)
        return None if same_type and expected == stored else f"{path} is {stored!r} instead of {expected!r}"
    for inner_path, one, other in pairs:
        difference = first_difference(one, other, inner_path)
        if difference is not None:
            return difference
    return None


@dataclass(frozen=True)
class Entry:
    """One line of the ledger. What Allegro no longer serves (merged, too old) may be stored, in whatever state."""

    id: str
    document: Any
    served: bool = True
    successor: str | None = None
    """The order that it was merged into."""


@dataclass(frozen=True)
class Copy:
    """What is stored of one entry; only orders go and have successors."""

    document: Any
    gone: bool = False
    successor: str | None = None


def order_entry(line: Mapping[str, Any]) -> Entry:
    """What the ledger says of an order; one whose body is no JSON is nowhere to be stored."""
    served = line["state"] == "listed" and "order_base64" not in line
    return Entry(line["order_id"], line["order"], served, line["successor"] if line["state"] == "merged" else None)


def event_entry(line: Mapping[str, Any]) -> Entry:
    """What the ledger says of an event; one that had left the journal may have been seen or not."""
    return Entry(line["event_id"], line["event"], served=not line["expired"])


def compare_chunk(
    kind: Kind,
    seller_id: str,
    expected: Sequence[Entry],
    stored: Mapping[str, Copy],
    result: Comparison,
    may_differ: Container[str] = frozenset(),
) -> None:
    """Add what distinguishes the stored copies from the ledger's entries of the same ids."""
    for entry in expected:
        if entry.id in may_differ:
            continue
        copy = stored.get(entry.id)
        if entry.successor is not None and copy is not None:
            result.merged += 1
        if entry.served:
            result.count(kind)
        reason = _what_is_wrong(entry, copy)
        if reason is not None:
            result.add(Difference("missing" if copy is None else "different", kind, seller_id, entry.id, reason))


def _what_is_wrong(entry: Entry, copy: Copy | None) -> str | None:
    if copy is None:
        return "Allegro served it and it is not stored" if entry.served else None
    if entry.successor is not None:
        if not copy.gone:
            return f"it was merged into {entry.successor} and is not marked as gone"
        if copy.successor != entry.successor:
            return f"its successor is {copy.successor} instead of {entry.successor}"
    if not entry.served:
        return None
    return (
        "it is marked as gone and Allegro serves it" if copy.gone else first_difference(entry.document, copy.document)
    )


class Truth(Protocol):
    """Where the ledger comes from."""

    def ledger(self, kind: str, seller_id: str) -> AsyncIterator[str]:
        """What is true of one seller's `orders` or `events`, a JSON document each."""
        ...


@dataclass(frozen=True)
class _Table:
    """How one kind of document is stored."""

    kind: Kind
    entry: Callable[[Mapping[str, Any]], Entry]
    documents: str
    extra: str


_STORED_ORDERS = _Table(
    "order",
    order_entry,
    documents="SELECT allegro_order_id AS id, order_data::text AS document, order_raw AS raw,"
    " gone_at IS NOT NULL AS gone, successor_order_id AS successor FROM orders"
    " WHERE user_token_id = $1 AND allegro_order_id = ANY($2)",
    extra="SELECT allegro_order_id AS id FROM orders LEFT JOIN ledger_ids ON ledger_ids.id = allegro_order_id"
    " WHERE user_token_id = $1 AND ledger_ids.id IS NULL",
)
_STORED_EVENTS = _Table(
    "event",
    event_entry,
    documents="SELECT event_id::text AS id, event_data::text AS document, event_raw AS raw,"
    " false AS gone, NULL AS successor FROM order_events"
    " WHERE user_token_id = $1 AND event_id = ANY($2::text[]::bigint[])",
    extra="SELECT event_id::text AS id FROM order_events LEFT JOIN ledger_ids ON ledger_ids.id = event_id::text"
    " WHERE user_token_id = $1 AND ledger_ids.id IS NULL",
)


async def compare(
    truth: Truth,
    seller_ids: Sequence[str],
    connection: asyncpg.Connection,
    *,
    may_differ: Container[str] = frozenset(),
) -> Comparison:
    """Compare every order and event of these sellers with what is stored for them, but for orders that may differ."""
    result = Comparison()
    for seller_id in seller_ids:
        tokens = await connection.fetch("SELECT id FROM user_tokens WHERE seller_id = $1 ORDER BY id", seller_id)
        if not tokens:
            result.add(Difference("missing", "order", seller_id, "*", "nobody connected this seller"))
        for token in tokens:
            for table in (_STORED_ORDERS, _STORED_EVENTS):
                await _compare_table(truth, table, seller_id, token["id"], connection, result, may_differ)
    return result


async def _compare_table(
    truth: Truth,
    table: _Table,
    seller_id: str,
    token_id: int,
    connection: asyncpg.Connection,
    result: Comparison,
    may_differ: Container[str],
) -> None:
    """One pass over the ledger; its ids are noted in a temporary table, to find stored rows that it does not have."""
    await connection.execute("CREATE TEMPORARY TABLE IF NOT EXISTS ledger_ids (id text PRIMARY KEY)")
    await connection.execute("TRUNCATE ledger_ids")
    async for expected in _chunks(truth.ledger(f"{table.kind}s", seller_id), table.entry):
        ids = [entry.id for entry in expected]
        rows = await connection.fetch(table.documents, token_id, ids)
        stored = {row["id"]: _copy(row) for row in rows}
        compare_chunk(table.kind, seller_id, expected, stored, result, may_differ)
        await connection.copy_records_to_table("ledger_ids", records=[(id_,) for id_ in ids])
    async with connection.transaction():
        async for row in connection.cursor(table.extra, token_id):
            result.add(
                Difference("extra", table.kind, seller_id, row["id"], "it is stored and Allegro never served it")
            )


def _copy(row: Mapping[str, Any]) -> Copy:
    return Copy(parse(row["raw"] if row["raw"] is not None else row["document"]), row["gone"], row["successor"])


async def _chunks(lines: AsyncIterator[str], entry: Callable[[Mapping[str, Any]], Entry]) -> AsyncIterator[list[Entry]]:
    chunk: list[Entry] = []
    async for line in lines:
        chunk.append(entry(parse(line)))
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
