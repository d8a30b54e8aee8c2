"""What the poller tells Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

polls = Counter(
    "orders_backup_journal_polls_total",
    "Looks into a seller's journal by outcome: events, empty, failed (Allegro), postponed (Kafka is away, or Allegro is"
    " for all).",
    ["outcome"],
)
published_events = Counter(
    "orders_backup_journal_events_published_total", "Journal events published, repeated ones included."
)
rewinds = Counter(
    "orders_backup_journal_rewinds_total",
    "Journals read again from the stored cursor, which did not follow: the writer is late, or Kafka lost records.",
)
gaps = Counter(
    "orders_backup_journal_gaps_total",
    "Cursors older than Allegro's journal: events are missing for good, a complete listing was queued.",
)
schedule_delay_seconds = Histogram(
    "orders_backup_schedule_delay_seconds",
    "How late schedules are claimed; rising values mean more poller replicas are needed.",
    buckets=(0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900, 3600),
)
redeliveries = Counter(
    "orders_backup_redeliveries_total", "What got stuck and was sent out again: window, fetch.", ["what"]
)
stalled_runs = Gauge(
    "orders_backup_stalled_runs",
    "Runs that wait for something: look at their reason where it lasts, and Allegro is not away.",
)
tasks = Counter("orders_backup_tasks_total", "Tasks begun or refused, by kind.", ["kind", "outcome"])
device_polls = Counter(
    "orders_backup_device_polls_total",
    "Looks at pending consents by outcome: pending, slow_down, success, ended, unavailable, not_permitted.",
    ["outcome"],
)
cursors = Gauge(
    "orders_backup_cursors",
    "Active sellers by the age of their cursor: below `age` and not below the one before it; `older` needs a look.",
    ["age"],
)
pending_fetches = Gauge(
    "orders_backup_pending_fetches",
    "Orders that are owed a look, by `state`: `first` has not been tried, `retry` failed and waits for its time.",
    ["state"],
)
unfinished_runs = Gauge("orders_backup_unfinished_runs", "Runs that have not ended, by kind.", ["kind"])
open_dead_letters = Gauge(
    "orders_backup_dead_letters_open", "Dead letters that nobody has replayed or dropped: each wants a look."
)
