"""The columns of an export in their order: stable, new ones are only ever added before `cursor`."""

SUMMARY = (
    *("user_id", "order_id", "status", "fulfillment_status", "buyer_id", "buyer_login", "buyer_email"),
    *("total_amount", "currency", "bought_at", "allegro_updated_at", "revision", "observed_at", "observed_by"),
    *("gone_at", "gone_reason", "successor_order_id", "created_at", "updated_at"),
)
"""What every format has."""

CURSOR = "cursor"

CSV_HEADER = ",".join((*SUMMARY, CURSOR)).encode() + b"\r\n"
