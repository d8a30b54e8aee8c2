"""What the writer tells Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

from services.writer.store import Written
from shared.ended_runs import count_ended


class Metrics:
    """Counters of effects, not of records: a redelivered batch moves only `records` and `batch_seconds`."""

    def __init__(self) -> None:
        self.records = Counter("orders_backup_writer_records_total", "Records consumed, repeated ones included.")
        self.events = Counter("orders_backup_events_stored_total", "Order events stored for the first time.")
        self.orders = Counter(
            "orders_backup_orders_stored_total",
            "Observations of orders by effect: added, updated, unchanged.",
            ["effect"],
        )
        self.dead_letters = Counter(
            "orders_backup_dead_letters_total", "Records set aside; any rise wants a person's look."
        )
        self.found_by_listing = Counter(
            "orders_backup_orders_found_by_listing_total",
            "Orders missing, stale, merged or gone that only a comparison with Allegro's list brought to light; high"
            " values mean that the journal loses events.",
            ["finding"],
        )
        self.announced_later = Counter(
            "orders_backup_orders_announced_later_total",
            "Of the orders found by a listing, those whose change the journal told of afterwards, within an interval.",
            ["finding"],
        )
        self.waits = Counter(
            "orders_backup_writer_waits_total", "Transactions held back because PostgreSQL or Kafka was away."
        )
        self.order_states = Counter(
            "orders_backup_order_states_published_total", "States published to `order-state`, repeated ones included."
        )
        self.order_state_lag = Gauge(
            "orders_backup_order_state_lag_seconds",
            "How long the oldest change has waited for `order-state`; rising values mean Kafka is away or too slow.",
        )
        self.freshness_seconds = Histogram(
            "orders_backup_freshness_seconds",
            "From an order's newest event in Allegro's journal to our copy showing it; up to SYNC_INTERVAL_SECONDS of"
            " it is waiting for the next look.",
            buckets=(1, 2.5, 5, 10, 30, 60, 120, 180, 240, 300, 600, 1800, 3600, 21600, 86400),
        )
        self.batch_seconds = Histogram(
            "orders_backup_writer_batch_seconds",
            "Time to store a batch, or half of a large one; rising values mean the database is the bottleneck.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )

    def observe(self, written: Written, records: int) -> None:
        """Count what a batch changed."""
        self.records.inc(records)
        self.events.inc(written.events)
        self.orders.labels("added").inc(written.orders_added)
        self.orders.labels("updated").inc(written.orders_updated)
        self.orders.labels("unchanged").inc(written.orders_unchanged)
        self.dead_letters.inc(written.dead_letters)
        for seconds in written.waited_seconds:
            self.freshness_seconds.observe(seconds)
        count_ended(written.ended_runs)
        for finding, orders in written.found_by_listing.items():
            self.found_by_listing.labels(finding).inc(orders)
        for finding, orders in written.announced_later.items():
            self.announced_later.labels(finding).inc(orders)
