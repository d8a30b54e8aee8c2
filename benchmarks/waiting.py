"""How long new events wait until the look at their order is committed: from Allegro's journal to our tables.

When an event became visible is its id (microseconds of the journal write), when it was first served is what the
simulated Allegro notes, and when a look was committed PostgreSQL itself tells (`track_commit_timestamp`). All three
are the clock of one machine. Every look is noted by a trigger, since a later look at the same order hides the earlier.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from benchmarks.stack import BenchStack, Seller

_NOTE_LOOKS = """
CREATE TABLE bench_looks (user_token_id bigint, allegro_order_id text, observed_at timestamptz);
CREATE FUNCTION bench_note_look() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO bench_looks VALUES (NEW.user_token_id, NEW.allegro_order_id, NEW.observed_at);
    RETURN NULL;
END $$;
CREATE TRIGGER bench_note_look AFTER INSERT OR UPDATE OF observed_at ON orders
   FOR EACH ROW EXECUTE FUNCTION bench_note_look()
"""

_LOOKS = """
SELECT user_token_id, allegro_order_id, (extract(epoch FROM observed_at) * 1000000)::bigint AS observed_us,
       (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint AS committed_us
  FROM bench_looks
"""

# Events that the initial load covers need no look of their own.
_EVENTS = """
SELECT e.user_token_id, e.event_id, e.allegro_order_id
  FROM order_events e JOIN journal_cursors c USING (user_token_id)
 WHERE e.event_id > c.covered_event_id AND e.user_token_id = ANY($1::bigint[])
"""


@dataclass(frozen=True)
class Wait:
    """What became of one event; microseconds since 1970."""

    visible: int
    served: int
    looked: int
    committed: int


async def note_looks(pool: asyncpg.Pool) -> None:
    """From now on, every look at an order is noted."""
    await pool.execute(_NOTE_LOOKS)


async def forget_looks(pool: asyncpg.Pool) -> None:
    await pool.execute("TRUNCATE bench_looks")


async def waits(
    stack: BenchStack, pool: asyncpg.Pool, sellers: Sequence[Seller], *, since: int, until: int
) -> list[Wait]:
    """Of every event that became visible between the two moments; raises RuntimeError if one was never looked at."""
    async with stack.control() as control:
        served = await control.first_served()
    seller_ids = {seller.token_id: seller.seller_id for seller in sellers}
    looks: defaultdict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
    for row in await pool.fetch(_LOOKS):
        looks[row["user_token_id"], row["allegro_order_id"]].append((row["observed_us"], row["committed_us"]))
    for each in looks.values():
        each.sort()
    found = []
    for row in await pool.fetch(_EVENTS, list(seller_ids)):
        if not since <= row["event_id"] < until:
            continue
        token_id, event_id, order_id = row
        each = looks[token_id, order_id]
        later = each[bisect_left(each, (event_id, 0)) :]
        if not later:
            raise RuntimeError(f"nobody looked at order {order_id} after event {event_id}")
        committed, looked = min((committed, looked) for looked, committed in later)
        found.append(Wait(event_id, served[seller_ids[token_id]][event_id], looked, committed))
    return found


def stages(found: Sequence[Wait]) -> str:
    """Where the time goes, for whoever watches: p50 and p99 of each stage in milliseconds."""
    spans = {
        "until shown": [wait.served - wait.visible for wait in found],
        "until looked at": [wait.looked - wait.served for wait in found],
        "until committed": [wait.committed - wait.looked for wait in found],
    }
    return ", ".join(
        f"{name} {quantile(each, 0.5) / 1000:.0f} ({quantile(each, 0.99) / 1000:.0f})" for name, each in spans.items()
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
