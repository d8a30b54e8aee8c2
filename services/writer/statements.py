"""The SQL of the writer: set-based statements over `unnest`, a constant number of them a batch.

Arrays are bound one a column. Rows are sorted by key before they are locked, so that two writers cannot deadlock.
"""

INSERT_EVENTS = """
INSERT INTO order_events (user_token_id, event_id, event_type, occurred_at, allegro_order_id, revision,
                          event_data, event_raw)
SELECT token_id, event_id, event_type, occurred_at, order_id, revision, data, raw
  FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::jsonb[],
              $8::bytea[]) AS e (token_id, event_id, event_type, occurred_at, order_id, revision, data, raw)
 ORDER BY token_id, event_id
ON CONFLICT DO NOTHING
RETURNING user_token_id, event_id
"""

# An order looked at since the event happened needs no other look (promise P6). One that could not be looked at is tried
# anew: its lane reads from here what was never tried (services/enricher/owed.py).
WANT_FETCHES = """
INSERT INTO pending_fetches AS p (user_token_id, allegro_order_id, wanted_after, bought_at, run_ids, next_attempt_at)
SELECT w.token_id, w.order_id, w.wanted_after, w.bought_at, string_to_array(w.run_ids, ',')::uuid[],
       now() + $6::float8 * interval '1 second'
  FROM unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::text[])
       AS w (token_id, order_id, wanted_after, bought_at, run_ids)
 WHERE NOT EXISTS (SELECT FROM orders o
                    WHERE o.user_token_id = w.token_id AND o.allegro_order_id = w.order_id
                      AND o.observed_at >= w.wanted_after)
 ORDER BY w.token_id, w.order_id
ON CONFLICT (user_token_id, allegro_order_id) DO UPDATE
   SET wanted_after = greatest(p.wanted_after, excluded.wanted_after),
       bought_at = coalesce(excluded.bought_at, p.bought_at),
       attempts = 0,
       next_attempt_at = least(p.next_attempt_at, excluded.next_attempt_at),
       run_ids = (SELECT array_agg(DISTINCT run_id) FROM unnest(p.run_ids || excluded.run_ids) AS r (run_id))
"""

# The later look wins; equal content is not written again (promise P3). xmax is 0 for a row that is new. Whatever
# changes an order notes it for the topic of states.
UPSERT_ORDERS = """
WITH changed AS (
    INSERT INTO orders AS o (user_token_id, allegro_order_id, status, fulfillment_status, buyer_id, buyer_login,
                             buyer_email, total_amount, currency, bought_at, allegro_updated_at, revision,
                             order_data, order_raw, observed_at, observed_by)
    SELECT *
      FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::numeric[],
                  $9::text[], $10::timestamptz[], $11::timestamptz[], $12::text[], $13::jsonb[], $14::bytea[],
                  $15::timestamptz[], $16::text[])
           AS n (token_id, order_id, status, fulfillment_status, buyer_id, buyer_login, buyer_email, total_amount,
                 currency, bought_at, allegro_updated_at, revision, data, raw, observed_at, observed_by)
     ORDER BY token_id, order_id
    ON CONFLICT (user_token_id, allegro_order_id) DO UPDATE
       SET status = excluded.status,
           fulfillment_status = excluded.fulfillment_status,
           buyer_id = excluded.buyer_id,
           buyer_login = excluded.buyer_login,
           buyer_email = excluded.buyer_email,
           total_amount = excluded.total_amount,
           currency = excluded.currency,
           bought_at = excluded.bought_at,
           allegro_updated_at = excluded.allegro_updated_at,
           revision = excluded.revision,
           order_data = excluded.order_data,
           order_raw = excluded.order_raw,
           observed_at = excluded.observed_at,
           observed_by = excluded.observed_by,
           gone_at = NULL,
           gone_reason = NULL,
           successor_order_id = NULL,
           updated_at = now()
     WHERE excluded.observed_at > o.observed_at
       AND (o.order_data IS DISTINCT FROM excluded.order_data
            OR o.order_raw IS DISTINCT FROM excluded.order_raw
            OR o.gone_at IS NOT NULL)
    RETURNING o.user_token_id, o.allegro_order_id, (xmax = 0) AS added
), noted AS (
    INSERT INTO order_state_outbox (user_token_id, allegro_order_id) SELECT user_token_id, allegro_order_id FROM changed
)
SELECT user_token_id, allegro_order_id, added FROM changed
"""

# A look that confirms what is stored, and was exact (detail) or owed, moves the version only: an older look that comes
# late must not bring back what it showed. The mass of list observations of a full listing writes nothing.
MOVE_OBSERVATIONS = """
UPDATE orders o
   SET observed_at = n.observed_at
  FROM unnest($1::bigint[], $2::text[], $3::timestamptz[]) AS n (token_id, order_id, observed_at)
 WHERE o.user_token_id = n.token_id AND o.allegro_order_id = n.order_id AND o.observed_at < n.observed_at
RETURNING o.user_token_id, o.allegro_order_id
"""

SETTLE_FETCHES = """
DELETE FROM pending_fetches p
 USING unnest($1::bigint[], $2::text[], $3::timestamptz[]) AS l (token_id, order_id, observed_at)
 WHERE p.user_token_id = l.token_id AND p.allegro_order_id = l.order_id AND p.wanted_after <= l.observed_at
RETURNING p.user_token_id, p.allegro_order_id, p.run_ids,
          extract(epoch FROM clock_timestamp() - p.wanted_after)::float8 AS waited
"""

# The attempt number fences off a repeated record. Nothing to set: what was owed has been settled meanwhile.
POSTPONE_FETCHES = """
UPDATE pending_fetches p
   SET attempts = f.attempts, last_error = f.error,
       next_attempt_at = now() + f.retry_after * interval '1 second'
  FROM unnest($1::bigint[], $2::text[], $3::int[], $4::text[], $5::float8[])
       AS f (token_id, order_id, attempts, error, retry_after)
 WHERE p.user_token_id = f.token_id AND p.allegro_order_id = f.order_id AND p.attempts < f.attempts
RETURNING p.user_token_id, p.allegro_order_id, p.run_ids
"""

GIVE_UP_FETCHES = """
DELETE FROM pending_fetches p
 USING unnest($1::bigint[], $2::text[], $3::timestamptz[]) AS f (token_id, order_id, wanted_after)
 WHERE p.user_token_id = f.token_id AND p.allegro_order_id = f.order_id AND p.wanted_after <= f.wanted_after
RETURNING p.user_token_id, p.allegro_order_id, p.run_ids
"""

# A look that found nothing, where there is no copy to mark: one that was made before may come after it, a page of the
# lagging list for instance, and must not show as alive what was merged into another order meanwhile (P3, P12).
NOTE_MISSING = """
INSERT INTO missing_orders AS k (user_token_id, allegro_order_id, observed_at, reason)
SELECT token_id, order_id, observed_at, reason
  FROM unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::text[]) AS m (token_id, order_id, observed_at, reason)
 WHERE NOT EXISTS (SELECT FROM orders o WHERE o.user_token_id = m.token_id AND o.allegro_order_id = m.order_id)
 ORDER BY token_id, order_id
ON CONFLICT (user_token_id, allegro_order_id) DO UPDATE
   SET observed_at = excluded.observed_at, reason = excluded.reason
 WHERE k.observed_at < excluded.observed_at
"""

RECALL_MISSING = """
DELETE FROM missing_orders k
 USING unnest($1::bigint[], $2::text[]) AS n (token_id, order_id)
 WHERE k.user_token_id = n.token_id AND k.allegro_order_id = n.order_id
RETURNING k.user_token_id, k.allegro_order_id, k.observed_at, k.reason
"""

# The copy stays (promise P12); a look made later may find the order again. Returns the orders that went just now. An
# order older than the year for which Allegro keeps it (#9729) is gone for its age: the journal does not tell of that.
MARK_GONE = """
WITH missing AS (
    SELECT o.id, m.observed_at,
           CASE WHEN o.bought_at < coalesce(o.gone_at, m.observed_at) - interval '365 days'
                THEN 'aged out: ' || m.reason ELSE m.reason END AS reason
      FROM unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::text[])
           AS m (token_id, order_id, observed_at, reason)
      JOIN orders o ON o.user_token_id = m.token_id AND o.allegro_order_id = m.order_id
), changed AS (
    UPDATE orders o
       SET gone_at = coalesce(o.gone_at, m.observed_at), gone_reason = m.reason, observed_at = m.observed_at,
           updated_at = now()
      FROM missing m
     WHERE o.id = m.id AND o.observed_at < m.observed_at
       AND (o.gone_at IS NULL OR o.gone_reason IS DISTINCT FROM m.reason)
    RETURNING o.user_token_id, o.allegro_order_id, o.gone_at = m.observed_at AS went
), noted AS (
    INSERT INTO order_state_outbox (user_token_id, allegro_order_id) SELECT user_token_id, allegro_order_id FROM changed
)
SELECT user_token_id, allegro_order_id FROM changed WHERE went
"""

LOCK_CURSORS = """
SELECT user_token_id, stored_event_id FROM journal_cursors
 WHERE user_token_id = ANY($1::bigint[]) ORDER BY user_token_id FOR UPDATE
"""

MOVE_CURSORS = """
UPDATE journal_cursors c
   SET stored_event_id = n.event_id, stored_at = now(), rewinds = 0
  FROM unnest($1::bigint[], $2::bigint[]) AS n (token_id, event_id)
 WHERE c.user_token_id = n.token_id AND c.stored_event_id < n.event_id
"""

COUNT_STORED = """
UPDATE journal_cursors c
   SET orders_stored = c.orders_stored + n.added
  FROM unnest($1::bigint[], $2::bigint[]) AS n (token_id, added)
 WHERE c.user_token_id = n.token_id
"""

# A journal run exists from its first new event on: an empty poll, or one of known events only, leaves no row. What it
# took to read the events is known when the first of them is published.
COUNT_EVENTS = """
INSERT INTO sync_history AS r (run_id, user_token_id, user_id, kind, last_event_id, events_stored, requests)
SELECT n.run_id, n.token_id, t.user_id, 'journal', n.last_event_id, n.events, n.requests
  FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
       AS n (run_id, token_id, last_event_id, events, requests)
  JOIN user_tokens t ON t.id = n.token_id
 ORDER BY n.run_id
ON CONFLICT (run_id) DO UPDATE
   SET events_stored = r.events_stored + excluded.events_stored,
       last_event_id = greatest(r.last_event_id, excluded.last_event_id),
       requests = r.requests + CASE WHEN r.events_stored = 0 AND r.task_id IS NULL THEN excluded.requests ELSE 0 END,
       progress_at = now()
 WHERE r.completed_at IS NULL OR r.status IN ('stopped', 'failed')
"""

# The look at an order may be stored before the event that led to it.
BEGIN_RUNS = """
INSERT INTO sync_history (run_id, user_token_id, user_id, kind, last_event_id)
SELECT n.run_id, n.token_id, t.user_id, 'journal', n.last_event_id
  FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS n (run_id, token_id, last_event_id)
  JOIN user_tokens t ON t.id = n.token_id
 ORDER BY n.run_id
ON CONFLICT (run_id) DO NOTHING
"""

# An ended run's numbers stay, whatever it caused comes later. Only what a stopped walk had read is still counted. A
# listing processes what it lists, whatever it then looks at besides.
COUNT_ORDERS = """
UPDATE sync_history r
   SET orders_processed = r.orders_processed + n.walked
                          + CASE WHEN r.kind IN ('journal', 'orders') THEN n.looked ELSE 0 END,
       orders_added = r.orders_added + n.added,
       orders_updated = r.orders_updated + n.updated,
       orders_unseen = r.orders_unseen + n.unseen,
       requests = r.requests + n.requests,
       progress_at = CASE WHEN n.walked + n.looked + n.added + n.updated > 0 THEN now() ELSE r.progress_at END
  FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
       AS n (run_id, walked, looked, added, updated, requests, unseen)
 WHERE r.run_id = n.run_id
   AND (r.completed_at IS NULL
        OR r.status = 'stopped' AND EXISTS (SELECT FROM run_windows w WHERE w.run_id = r.run_id AND NOT w.finished))
RETURNING r.run_id
"""

# Changes that belong to no run that could still count them are runs of their own, so that all runs together have added
# and updated exactly what was added and updated.
NOTE_LATE_CHANGES = """
INSERT INTO sync_history (run_id, user_token_id, user_id, kind, status, completed_at,
                          orders_processed, orders_added, orders_updated)
SELECT gen_random_uuid(), n.token_id, t.user_id, 'journal', 'completed', now(), n.added + n.updated, n.added, n.updated
  FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS n (token_id, added, updated)
  JOIN user_tokens t ON t.id = n.token_id
RETURNING kind, status
"""

LOCK_WALKS = """
SELECT run_id, attempt, next_sequence, position, boundary_order_ids FROM run_windows
 WHERE run_id = ANY($1::uuid[]) AND NOT finished ORDER BY run_id FOR UPDATE
"""

MOVE_WALK = """
UPDATE run_windows
   SET next_sequence = $2, position = $3, boundary_order_ids = $4, progress_at = now()
 WHERE run_id = $1
"""

# A walk tells the sum of its requests, again and again; the looks that its run causes come on top of it. The row is
# locked already (LOCK_WALKS), so what stood there before is what stands there now.
NOTE_PROGRESS = """
WITH walk AS (
    UPDATE run_windows w SET requests = greatest(w.requests, $2)
      FROM run_windows before
     WHERE w.run_id = $1 AND before.run_id = w.run_id
    RETURNING w.run_id, w.requests - before.requests AS more
)
UPDATE sync_history r
   SET requests = r.requests + walk.more, orders_expected = coalesce($3, r.orders_expected), progress_at = now()
  FROM walk WHERE r.run_id = walk.run_id
"""

# A walk that has shown everything stands at the end of its window.
FINISH_WALK = """
UPDATE run_windows SET finished = true, position = CASE WHEN $2 THEN bought_to ELSE position END
 WHERE run_id = $1
"""

# A listing is complete when the orders that it should have shown have been looked at. Those that could not be for now
# stay owed; nothing waits for them, and the run says how many they are.
FINISH_WALKED_RUNS = """
WITH ended AS (
    UPDATE sync_history r
       SET (status, error) = (SELECT CASE WHEN n = 0 THEN 'completed' ELSE 'stalled' END,
                                     CASE WHEN n > 0 THEN n || ' orders could not be looked at' END
                                FROM (SELECT count(*) + r.orders_unseen AS n FROM pending_fetches p
                                       WHERE p.user_token_id = r.user_token_id AND r.run_id = ANY(p.run_ids)) missed),
           completed_at = now()
      FROM run_windows w
     WHERE r.user_token_id = ANY($1::bigint[]) AND r.completed_at IS NULL AND w.run_id = r.run_id AND w.finished
       AND NOT EXISTS (SELECT FROM pending_fetches p
                        WHERE p.user_token_id = r.user_token_id AND r.run_id = ANY(p.run_ids) AND p.attempts = 0)
    RETURNING r.task_id, r.kind, r.status, r.error
), tasks AS (
    UPDATE task_history t
       SET status = ended.status, finished_at = now(), error = ended.error, lease_owner = NULL, lease_until = NULL
      FROM ended WHERE t.task_id = ended.task_id
)
SELECT kind, status FROM ended
"""

FINISH_RUN = """
WITH run AS (
    UPDATE sync_history
       SET status = $2, completed_at = now(), error = $3
     WHERE run_id = $1 AND completed_at IS NULL
    RETURNING task_id, kind, status
), tasks AS (
    UPDATE task_history t
       SET status = $2, finished_at = now(), error = $3, lease_owner = NULL, lease_until = NULL
      FROM run WHERE t.task_id = run.task_id
)
SELECT kind, status FROM run
"""

# Runs without a walk end when the cursor passed their last event and nothing is owed to them any more.
FINISH_SETTLED_RUNS = """
WITH ended AS (
    UPDATE sync_history r
       SET status = CASE WHEN r.orders_unseen = 0 THEN 'completed' ELSE 'stalled' END,
           error = CASE WHEN r.orders_unseen > 0 THEN r.orders_unseen || ' orders could not be looked at' END,
           completed_at = now()
      FROM journal_cursors c
     WHERE r.user_token_id = ANY($1::bigint[]) AND r.completed_at IS NULL AND r.kind IN ('journal', 'orders')
       AND c.user_token_id = r.user_token_id AND (r.last_event_id IS NULL OR c.stored_event_id >= r.last_event_id)
       AND NOT EXISTS (SELECT FROM pending_fetches p
                        WHERE p.user_token_id = r.user_token_id AND r.run_id = ANY(p.run_ids))
    RETURNING r.task_id, r.kind, r.status, r.error
), tasks AS (
    UPDATE task_history t
       SET status = ended.status, finished_at = now(), error = ended.error, lease_owner = NULL, lease_until = NULL
      FROM ended WHERE t.task_id = ended.task_id
)
SELECT kind, status FROM ended
"""

INSERT_DEAD_LETTERS = """
INSERT INTO dead_letters (user_token_id, service, topic, partition, "offset", key, value, headers, digest,
                          error_type, error, attempts)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::bytea[], $7::bytea[],
                     $8::jsonb[], $9::bytea[], $10::text[], $11::text[], $12::int[])
ON CONFLICT DO NOTHING
RETURNING id
"""
