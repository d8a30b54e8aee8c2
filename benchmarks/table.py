"""Large tables of realistic orders: few real bodies, copied within PostgreSQL under ids of their own."""

import csv
import io
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import asyncpg

from benchmarks.orders import order_bodies
from shared.allegro.bodies import order_facts
from shared.messages import RawJson

COLUMNS = (
    "user_token_id", "allegro_order_id", "status", "fulfillment_status", "buyer_id", "buyer_login", "buyer_email",
    "total_amount", "currency", "bought_at", "allegro_updated_at", "revision", "order_data", "observed_at",
    "observed_by",
)  # fmt: skip
_LOOKED_AT = datetime(2026, 11, 1, tzinfo=UTC)
_SAMPLE = 200
_FILL_SECONDS = 1800

# One real order a row; what differs is what the indexes hold.
# language=sql
_FILL = """
INSERT INTO orders ({columns})
SELECT {token}, md5(n::text), s.status, s.fulfillment_status, s.buyer_id, md5((n % 50000)::text),
       s.buyer_email, s.total_amount, s.currency, s.bought_at - n * interval '10 seconds', s.allegro_updated_at,
       s.revision, s.order_data, s.observed_at, s.observed_by
  FROM generate_series(1, $1::int) AS n
  JOIN sample_orders s ON s.number = n % (SELECT count(*) FROM sample_orders)
"""


def rows_for_copy(orders: Sequence[RawJson], looked_at: datetime, *, token_of: Callable[[int], int]) -> bytes:
    """The orders as COPY takes them, in the order of `COLUMNS`; `token_of` gives the token of the n-th."""
    text = io.StringIO()
    rows = csv.writer(text)
    for number, order in enumerate(orders):
        facts = order_facts(order)
        rows.writerow(
            [
                token_of(number),
                *(facts.order_id, facts.status, facts.fulfillment_status, facts.buyer_id, facts.buyer_login),
                *(facts.buyer_email, facts.total_amount, facts.currency, facts.bought_at, facts.updated_at),
                *(facts.revision, order.decode(), looked_at, "list"),
            ]
        )
    return text.getvalue().encode()


async def fill(connection: asyncpg.Connection, rows: int, *, token_of: str) -> None:
    """Add so many orders; `token_of` is the token of the n-th as an expression of SQL over `n`, from 1."""
    sample = rows_for_copy(list(order_bodies(_SAMPLE, seller=2)), _LOOKED_AT, token_of=lambda _number: 1)
    await connection.execute(
        "CREATE TABLE sample_orders AS SELECT 0 AS number, o.* FROM orders o WITH NO DATA;"
        "CREATE SEQUENCE sample_number MINVALUE 0;"
        "ALTER TABLE sample_orders ALTER number SET DEFAULT nextval('sample_number')"
    )
    await connection.copy_to_table("sample_orders", source=io.BytesIO(sample), columns=COLUMNS, format="csv")
    statement = _FILL.format(columns=", ".join(COLUMNS), token=token_of)
    await connection.execute(statement, rows, timeout=_FILL_SECONDS)
    await connection.execute("DROP TABLE sample_orders; DROP SEQUENCE sample_number", timeout=60)
