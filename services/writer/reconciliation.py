"""What a listing brings to light beyond the orders that it lists (requirements B9, B11, promise P12).

Orders that it should have listed and did not are owed a look, which decides: a list alone proves nothing. An order
that is gone is linked with the one it was merged into. And what a run found out is noted, order by order, by its
effects: a record that comes again has none.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from services.writer.batch import OrderKey
from shared.messages import CoveredRange, OrderEvent

# An answer that is wrongly empty must not cost a request for every order that a seller ever had. Those that
# nobody looked at for the longest time come first: the next listing takes the next ones, and this one says so.
_MOST_LOOKS_A_RANGE = 1000

# An order that was looked at since is known better than by the list. A listing that has ended wants nothing more.
_WANT_UNLISTED = """
WITH unlisted AS (
    SELECT o.user_token_id, o.allegro_order_id, count(*) OVER () - $6 AS too_many
      FROM run_windows w
      JOIN sync_history r USING (run_id)
      JOIN orders o ON o.user_token_id = w.user_token_id
     WHERE w.run_id = $1 AND NOT w.finished AND r.completed_at IS NULL AND o.bought_at >= $2 AND o.bought_at < $3
       AND o.gone_at IS NULL AND o.observed_at < $5 AND NOT o.allegro_order_id = ANY($4::text[])
     ORDER BY o.observed_at LIMIT $6
), wanted AS (
    INSERT INTO pending_fetches AS p (user_token_id, allegro_order_id, wanted_after, run_ids, next_attempt_at)
    SELECT user_token_id, allegro_order_id, $5, ARRAY[$1::uuid], now() FROM unlisted ORDER BY allegro_order_id
    ON CONFLICT (user_token_id, allegro_order_id) DO UPDATE
       SET wanted_after = greatest(p.wanted_after, excluded.wanted_after),
           run_ids = (SELECT array_agg(DISTINCT run_id) FROM unnest(p.run_ids || excluded.run_ids) AS r (run_id))
)
UPDATE sync_history SET orders_unseen = greatest(orders_unseen, beyond.too_many)
  FROM (SELECT too_many FROM unlisted LIMIT 1) beyond
 WHERE run_id = $1 AND beyond.too_many > 0
"""

# A merged form has the line items of those that it was made of, and vanishes like them when it is merged again: of all
# that share one, the form with the most is where they are now. Both orders are of one buyer, and both may come first.
_LINK = """
WITH gone AS (
    SELECT g.id
      FROM unnest($1::bigint[], $2::text[]) AS k (token_id, order_id)
      JOIN orders g ON g.user_token_id = k.token_id AND g.allegro_order_id = k.order_id
     WHERE g.gone_at IS NOT NULL
     UNION
    SELECT g.id
      FROM unnest($3::bigint[], $4::text[]) AS k (token_id, buyer_login)
      JOIN orders g ON g.user_token_id = k.token_id AND g.buyer_login = k.buyer_login
     WHERE g.gone_at IS NOT NULL
), items AS (
    SELECT id, user_token_id, buyer_login,
           ARRAY(SELECT jsonb_array_elements_text(jsonb_path_query_array(order_data, '$.lineItems[*].id'))) AS ids
      FROM orders JOIN gone USING (id)
), found AS (
    SELECT DISTINCT ON (i.id) i.id, s.allegro_order_id
      FROM items i
      JOIN orders s ON s.user_token_id = i.user_token_id AND s.buyer_login = i.buyer_login AND s.id <> i.id
     CROSS JOIN LATERAL (SELECT jsonb_path_query_array(s.order_data, '$.lineItems[*].id') AS ids) l
     WHERE l.ids ?| i.ids AND (s.gone_at IS NULL OR jsonb_array_length(l.ids) > cardinality(i.ids))
     ORDER BY i.id, jsonb_array_length(l.ids) DESC, s.allegro_order_id
), linked AS (
    UPDATE orders o SET successor_order_id = f.allegro_order_id, updated_at = now()
      FROM found f
     WHERE o.id = f.id AND o.successor_order_id IS DISTINCT FROM f.allegro_order_id
    RETURNING o.user_token_id, o.allegro_order_id
), noted AS (
    INSERT INTO order_state_outbox (user_token_id, allegro_order_id) SELECT * FROM linked
)
UPDATE reconciliation_findings r SET finding = 'merged'
  FROM linked l
 WHERE r.user_token_id = l.user_token_id AND r.allegro_order_id = l.allegro_order_id AND r.finding = 'gone'
"""

# The first load of a seller finds everything missing, which tells nothing: the other listings are comparisons.
_NOTE = """
INSERT INTO reconciliation_findings (run_id, allegro_order_id, user_token_id, finding, cause)
SELECT f.run_id, f.order_id, f.token_id,
       CASE WHEN f.finding = 'gone' AND o.successor_order_id IS NOT NULL THEN 'merged' ELSE f.finding END,
       CASE WHEN f.owed OR EXISTS (SELECT FROM pending_fetches p
                                    WHERE p.user_token_id = f.token_id AND p.allegro_order_id = f.order_id)
            THEN 'owed' ELSE 'unannounced' END
  FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::bool[])
       AS f (run_id, token_id, order_id, finding, owed)
  JOIN sync_history r ON r.run_id = f.run_id AND r.kind IN ('reconcile', 'full', 'manual')
  JOIN orders o ON o.user_token_id = f.token_id AND o.allegro_order_id = f.order_id
 ORDER BY f.run_id, f.order_id
ON CONFLICT DO NOTHING
RETURNING finding, cause,
          (SELECT coalesce(o.gone_reason LIKE 'aged out: %', false) FROM orders o
            WHERE o.user_token_id = reconciliation_findings.user_token_id
              AND o.allegro_order_id = reconciliation_findings.allegro_order_id) AS aged_out
"""


# The journal is read every few minutes: it may have told of a change already that a listing shows before.
_ANNOUNCE = """
UPDATE reconciliation_findings f SET cause = 'owed'
  FROM unnest($1::bigint[], $2::text[], $3::timestamptz[]) AS e (token_id, order_id, wanted_after)
 WHERE f.user_token_id = e.token_id AND f.allegro_order_id = e.order_id AND f.cause = 'unannounced'
   AND e.wanted_after <= f.found_at
RETURNING f.finding
"""


@dataclass(frozen=True)
class Finding:
    """An order whose copy a run had to correct."""

    run_id: UUID
    key: OrderKey
    finding: str
    """missing, stale or gone; whether a gone order was merged is seen from its successor."""
    owed: bool
    """Whether somebody else had wanted the look that found it."""


async def want_unlisted(connection: asyncpg.Connection, run_id: UUID, covered: Sequence[CoveredRange]) -> None:
    """Owe a look to every stored order that a listing should have shown and did not."""
    for part in covered:
        await connection.execute(
            _WANT_UNLISTED,
            run_id,
            part.bought_from,
            part.bought_until,
            list(part.order_ids),
            part.observed_at,
            _MOST_LOOKS_A_RANGE,
        )


async def link_merged(
    connection: asyncpg.Connection, *, gone: Collection[OrderKey], buyers_of_new: Collection[tuple[int, str]]
) -> None:
    """Link orders that are gone with the forms that have their line items now.

    `gone` are those that went just now, `buyers_of_new` the tokens and buyers of the orders that just came.
    """
    if gone or buyers_of_new:
        await connection.execute(
            _LINK,
            [token_id for token_id, _ in gone],
            [order_id for _, order_id in gone],
            [token_id for token_id, _ in buyers_of_new],
            [buyer for _, buyer in buyers_of_new],
        )


async def announce(connection: asyncpg.Connection, events: Sequence[OrderEvent]) -> Mapping[str, int]:
    """Note that the journal tells of these changes; returns how many a listing had found before, by finding."""
    named = [(event.token_id, event.order_id, event.wanted_after) for event in events if event.order_id is not None]
    if not named:
        return {}
    rows = await connection.fetch(_ANNOUNCE, *(list(column) for column in zip(*named, strict=True)))
    return Counter(row["finding"] for row in rows)


async def note(connection: asyncpg.Connection, findings: Sequence[Finding]) -> Mapping[str, int]:
    """Note what runs found; returns how many orders nobody else would have led us to, by finding."""
    if not findings:
        return {}
    rows = await connection.fetch(
        _NOTE,
        [finding.run_id for finding in findings],
        [finding.key[0] for finding in findings],
        [finding.key[1] for finding in findings],
        [finding.finding for finding in findings],
        [finding.owed for finding in findings],
    )
    return Counter(row["finding"] for row in rows if row["cause"] == "unannounced" and not row["aged_out"])
