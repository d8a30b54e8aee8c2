"""The checks at the end of a run: each returns what is wrong, in words; nothing wrong is an empty list."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Any

import asyncpg

from devstack.chaos.injector import Injected
from devstack.chaos.watch import Life

MOST_MEMORY_MB = 150.0
MOST_GROWTH_MB = 30.0
# A process that lived shorter tells nothing about growth. In its first seconds its caches fill, and it does all at once
# what has waited for it.
_LONG_LIFE_SECONDS = 60
_START_SECONDS = 20
# What was lost with the broker is sent out again as soon as its topics are found to be new. A request for a look in a
# log that had outgrown its reader's position by then is passed over, and made again after two minutes, give or take a
# tenth (`services/poller/redelivery.py`); half a minute more for groups to form and for the look itself. Measured:
# 128 s. The rest is for slower machines. While faults go on, the second request may be lost as the first was, to a
# fault of its own, and the third is made after two minutes more (measured: 277 s).
UNDISTURBED_LIMIT_SECONDS = 180.0
RECOVERY_LIMIT_SECONDS = 360.0

# Events that the initial load covers need no look of their own. An order that is not stored, or gone, had vanished when
# it was looked for: what became of its events cannot be told from looks.
# language=sql
_EVENTS = """
SELECT e.event_id, e.user_token_id, e.allegro_order_id, o.id IS NULL OR o.gone_at IS NOT NULL AS vanished
  FROM order_events e JOIN journal_cursors c USING (user_token_id)
  LEFT JOIN orders o USING (user_token_id, allegro_order_id)
 WHERE e.event_id > coalesce(c.covered_event_id, 0) AND e.allegro_order_id IS NOT NULL
 ORDER BY e.event_id
"""

# language=sql
_LOOKS = """
SELECT user_token_id, order_id, (extract(epoch FROM observed_at) * 1000000)::bigint AS observed_us,
       (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint AS committed_us
  FROM chaos.looks
"""

# language=sql
_LEASES = """
SELECT 'schedule of token ' || user_token_id AS what FROM active_sync_schedules
 WHERE status <> 'active' OR lease_until < now() - $1::interval OR next_run < now() - $1::interval
       OR lease_until > now() + $2::interval OR next_run > now() + $2::interval
UNION ALL
SELECT 'cursor of token ' || user_token_id FROM journal_cursors WHERE published_event_id > stored_event_id
UNION ALL
SELECT 'calls are blocked until ' || blocked_until FROM client_budgets WHERE blocked_until > now() + $2::interval
UNION ALL
SELECT format('task %s (%s) is %s', task_id, kind, status) FROM task_history
 WHERE status IN ('queued', 'running', 'stopping') OR lease_owner IS NOT NULL
UNION ALL
SELECT 'device authorisation ' || task_id FROM device_authorizations WHERE status = 'PENDING'
UNION ALL
SELECT format('run %s (%s) has not ended: %s', run_id, kind, status) FROM sync_history WHERE completed_at IS NULL
UNION ALL
SELECT format('order %s is still to be fetched', allegro_order_id) FROM pending_fetches
UNION ALL
SELECT format('window of run %s is not finished', w.run_id) FROM run_windows w JOIN sync_history USING (run_id)
 WHERE NOT finished AND status = 'completed'
"""

# Events are counted by the run whose transaction stored them; orders by the run that looked at them; nothing twice. A
# transaction counts for the runs of each token what it did for that token.
# language=sql
_COUNTERS = """
SELECT format('the runs stored %s events and the table has %s', counted, present)
  FROM (SELECT (SELECT sum(events_stored) FROM sync_history) AS counted, (SELECT count(*) FROM order_events) AS present)
 WHERE counted IS DISTINCT FROM present
UNION ALL
SELECT format('the runs added %s orders and the table has %s', counted, present)
  FROM (SELECT (SELECT sum(orders_added) FROM sync_history) AS counted, (SELECT count(*) FROM orders) AS present)
 WHERE counted IS DISTINCT FROM present
UNION ALL
SELECT format('the runs changed %s orders, which changed %s times', counted, present)
  FROM (SELECT (SELECT sum(orders_updated) FROM sync_history) AS counted,
               (SELECT count(*) FROM chaos.changes WHERE op = 'updated') AS present)
 WHERE counted IS DISTINCT FROM present
UNION ALL
SELECT format('a transaction counted %s orders added, %s changed and %s events too many for token %s',
              sum(added), sum(updated), sum(events), user_token_id)
  FROM (SELECT user_token_id, xact, added, updated, events FROM chaos.counted
         UNION ALL
        SELECT user_token_id, xact, -(op = 'added')::int, -(op = 'updated')::int, 0 FROM chaos.changes
         UNION ALL
        SELECT user_token_id, xact, 0, 0, -1 FROM chaos.events) AS counted_and_done
 GROUP BY user_token_id, xact HAVING (sum(added), sum(updated), sum(events)) <> (0, 0, 0)
UNION ALL
SELECT format('run %s (%s) says %s orders processed and its walk %s', r.run_id, r.kind, r.orders_processed,
              w.next_sequence)
  FROM sync_history r JOIN run_windows w USING (run_id) WHERE r.orders_processed <> w.next_sequence
"""

_TOKENS = """
SELECT format('token %s is %s: %s', id, status, status_reason) FROM user_tokens WHERE status <> 'active'
"""

_DEAD_LETTERS = """
SELECT format('dead letter of %s on %s: %s', service, topic, error) FROM dead_letters
 WHERE value IS NULL OR value <> ALL($1::bytea[])
 UNION ALL
SELECT format('no dead letter of %s', encode(substr(s.value, 1, 100), 'escape')) FROM unnest($1::bytea[]) AS s (value)
 WHERE NOT EXISTS (SELECT FROM dead_letters d WHERE d.value = s.value)
"""

_OUTBOX = """
SELECT format('%s states wait to be published', count(*)) FROM order_state_outbox HAVING count(*) > 0
"""


async def stuck(connection: asyncpg.Connection) -> list[str]:
    """Leases, tasks, runs and looks that nobody ends."""
    late, ahead = "interval '60 seconds'", "interval '10 minutes'"  # a shifted clock writes hours or days ahead
    query = _LEASES.replace("$1::interval", late).replace("$2::interval", ahead)
    return [row[0] for row in await connection.fetch(query)]


async def wrong_rows(connection: asyncpg.Connection) -> dict[str, list[str]]:
    """What the tables themselves tell, by check."""
    found = {}
    for name, question in (
        ("counters", _COUNTERS),
        ("tokens", _TOKENS),
        ("outbox", _OUTBOX),
    ):
        found[name] = [row[0] for row in await connection.fetch(question)]
    return found


async def dead_letters(connection: asyncpg.Connection, spoiled: Collection[bytes]) -> list[str]:
    """Dead letters of anything but these records, and those of them that are none."""
    return [row[0] for row in await connection.fetch(_DEAD_LETTERS, list(spoiled))]


def may_differ(line: Mapping[str, Any], covered_event_id: int) -> bool:
    """Whether only a listing can bring an order, or its present state: by the ledger's word the journal did not tell
    after its last change, or there was nothing to tell and a page of the list left it out. Events that the initial
    load covers tell nothing, since the load brings their orders."""
    if line["announced"] is False:
        return True
    told = line["announced"] and int(line["last_event_id"]) > covered_event_id
    return bool(line["hidden"] and not told)


def too_much_memory(lives: Iterable[Life]) -> list[str]:
    """Processes that had more memory than a small multiple of what they have when idle, or ever more of it."""
    complaints: list[str] = []
    services, told = set(), set()
    for life in lives:
        if (most := max(life.memory)) > MOST_MEMORY_MB:
            complaints.append(f"{life.service} had {most:.0f} MB")
        if (growth := growth_of(life)) is not None:
            told.add(life.service)
            if growth > MOST_GROWTH_MB:
                complaints.append(f"{life.service} grew by {growth:.0f} MB in {len(life.memory)} s")
        services.add(life.service)
    if 2 * len(told) < len(services):
        complaints.append(f"of {sorted(services - told)} no process lived long enough to tell whether it grows")
    return complaints


def growth_of(life: Life) -> float | None:
    """How much more a process had in the last third of its life than in the first (MB); None if it was a short one."""
    if len(life.memory) < _LONG_LIFE_SECONDS:
        return None
    settled = life.memory[_START_SECONDS:]
    third = len(settled) // 3
    return median(settled[-third:]) - median(settled[:third])


def most_growth(lives: Iterable[Life]) -> dict[str, float]:
    """By service, the most that any of its processes grew that lived long enough."""
    most: dict[str, float] = {}
    for life in lives:
        if (growth := growth_of(life)) is not None:
            most[life.service] = max(most.get(life.service, growth), growth)
    return most


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of them (sorted) does not exceed; 0 of none."""
    return values[min(int(len(values) * share), len(values) - 1)] if values else 0.0


@dataclass(frozen=True)
class Wait:
    """One event: when Allegro's journal had it, and when the first look after that was committed; microseconds."""

    visible: int
    settled: int

    @property
    def seconds(self) -> float:
        return (self.settled - self.visible) / 1e6


async def waits(connection: asyncpg.Connection) -> tuple[list[Wait], list[str]]:
    """How long every event waited for its look, in the order of events; and in words those that got none."""
    looks: defaultdict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
    for row in await connection.fetch(_LOOKS):
        looks[row["user_token_id"], row["order_id"]].append((row["observed_us"], row["committed_us"]))
    for each in looks.values():
        each.sort()
    found, none = [], []
    for row in await connection.fetch(_EVENTS):
        each = looks[row["user_token_id"], row["allegro_order_id"]]
        later = each[bisect_left(each, (row["event_id"], 0)) :]
        if later:
            found.append(Wait(row["event_id"], min(committed for _, committed in later)))
        elif not row["vanished"]:
            none.append(f"nobody looked at order {row['allegro_order_id']} after event {row['event_id']}")
    return found, none


def note_recovery(done: Sequence[Injected], found: Sequence[Wait]) -> None:
    """How long after each fault the last event that Allegro had by its end was looked at, and that was stored;
    and how much of it no other fault lasted."""
    visible = [wait.visible for wait in found]
    settled = list(accumulate((wait.settled for wait in found), max))
    for one in done:
        before = bisect_right(visible, round(one.ended * 1e6))
        recovered = max(one.ended, settled[before - 1] / 1e6) if before else one.ended
        one.recovery_seconds = recovered - one.ended
        others = [(other.began, other.ended) for other in done if other is not one]
        one.undisturbed_seconds = one.recovery_seconds - _covered(one.ended, recovered, others)


def _covered(begin: float, end: float, intervals: Iterable[tuple[float, float]]) -> float:
    """How much of the time from `begin` to `end` lies in at least one of the intervals."""
    total, at = 0.0, begin
    for first, last in sorted(intervals):
        total += max(0.0, min(last, end) - max(first, at))
        at = max(at, min(last, end))
    return total


def too_slow(done: Iterable[Injected]) -> list[str]:
    """Faults after which it took too long."""
    return [
        f"{one.injection}: recovered after {one.recovery_seconds:.0f} s,"
        f" {one.undisturbed_seconds:.0f} of them undisturbed"
        for one in done
        if one.recovery_seconds > RECOVERY_LIMIT_SECONDS or one.undisturbed_seconds > UNDISTURBED_LIMIT_SECONDS
    ]


def in_vain(done: Iterable[Injected]) -> list[str]:
    """Faults that did nothing, and of whose like none did anything: that proves nothing."""
    vain = [one for one in done if one.in_vain]
    effective = [one for one in done if not one.in_vain]
    return [
        f"{one.injection}: {one.in_vain}"
        for one in vain
        if not any(other.injection.is_like(one.injection) for other in effective)
    ]


def not_struck(wanted: Iterable[str], struck: Mapping[str, int]) -> list[str]:
    """Faults of Allegro that were switched on and never struck."""
    return [f"{name} never struck" for name in wanted if not struck.get(name)]


def nothing_looked_at(looked_through: Mapping[str, int]) -> list[str]:
    """A search for secrets that had nothing to look through finds none."""
    return [f"there were no {what} to look through" for what, number in looked_through.items() if not number]


def wrong_listing(run: Mapping[str, Any], *, listed: int, looked_at: int, added: int, updated: int) -> list[str]:
    """The counters of a listing that ran alone, against the ledger and what the database's triggers counted.

    A list that leaves orders out shows fewer than the ledger has, and then they were looked at.
    """
    shown = min(max(run["orders_processed"], listed - looked_at), listed)
    expected = {"orders_processed": shown, "orders_added": added, "orders_updated": updated}
    return [
        f"the last listing of {run['user_id']} says {name} {run[name]} instead of {right}"
        for name, right in expected.items()
        if run[name] != right
    ] + ([] if run["status"] == "completed" else [f"the last listing of {run['user_id']} is {run['status']}"])


def unexpected_changes(changes: Iterable[Mapping[str, Any]], withheld: Container[str]) -> list[str]:
    """What a listing brought to light although the journal had told of it: it had been lost."""
    return [
        f"order {one['order_id']} was {one['op']} by the last listing, and its events had come"
        for one in changes
        if one["order_id"] not in withheld
    ]
