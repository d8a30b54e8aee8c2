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

_EVENTS = "SELECT user_token_id, event_id, allegro_order_id FROM order_events WHERE user_token_id = ANY($1::bigint[])"
# What is planned is what the simulated Allegro is asked to do; less of it would be another, easier question.
_LEAST_SHARE_OF_PLAN = 0.95


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


async def waits(
    stack: BenchStack, pool: asyncpg.Pool, sellers: Sequence[Seller], *, since: int, until: int, planned: float
) -> list[Wait]:
    """Of every event that became visible between the two moments and was shown to us since.

    Raises RuntimeError if one was shown and is not stored, if nobody looked at its order after it, or if fewer than
    95 % of the `planned` events were shown at all.
    """
    async with stack.control() as control:
        served = await control.first_served()
    looks: defaultdict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
    for row in await pool.fetch(_LOOKS):
        looks[row["user_token_id"], row["allegro_order_id"]].append((row["observed_us"], row["committed_us"]))
    for each in looks.values():
        each.sort()
    token_ids = [seller.token_id for seller in sellers]
    order_ids = {(row[0], row[1]): row[2] for row in await pool.fetch(_EVENTS, token_ids)}
    found = []
    for seller in sellers:
        for event_id, served_at in served.get(seller.seller_id, {}).items():
            if not since <= event_id < until:
                continue
            order_id = order_ids.get((seller.token_id, event_id))
            if order_id is None:
                raise RuntimeError(f"event {event_id} was shown and is not stored")
            later = looks[seller.token_id, order_id]
            later = later[bisect_left(later, (event_id, 0)) :]
            if not later:
                raise RuntimeError(f"nobody looked at order {order_id} after event {event_id}")
            committed, looked = min((committed, looked) for looked, committed in later)
            found.append(Wait(event_id, served_at, looked, committed))
    if len(found) < planned * _LEAST_SHARE_OF_PLAN:
        raise RuntimeError(f"{len(found)} events were shown, {planned:.0f} were planned: nothing is measured")
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
