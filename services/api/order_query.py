"""Which orders a client asks for, and the walk along an index that finds them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import asyncpg
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from services.api.cursor import Position
from services.api.parameters import NO_NUL, Moment

FIELDS = {
    "order_id": "allegro_order_id AS order_id",
    "status": "status",
    "fulfillment_status": "fulfillment_status",
    "buyer_id": "buyer_id",
    "buyer_login": "buyer_login",
    "buyer_email": "buyer_email",
    "total_amount": "total_amount",
    "currency": "currency",
    "bought_at": "bought_at",
    "allegro_updated_at": "allegro_updated_at",
    "revision": "revision",
    "observed_at": "observed_at",
    "observed_by": "observed_by",
    "gone_at": "gone_at",
    "gone_reason": "gone_reason",
    "successor_order_id": "successor_order_id",
    "created_at": "created_at",
    "updated_at": "updated_at",
    "order_data": "order_data, order_raw",
}
"""What an order shows, and the columns it is made of; `order_data`, which is made of two, is the last."""

SUMMARY = tuple(name for name in FIELDS if name != "order_data")

Text = Annotated[str, Field(min_length=1, max_length=255, pattern=NO_NUL)]


def _names(value: object) -> object:
    """`fields=a,b` as a query has it."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [name.strip() for item in value for name in item.split(",")]
    return value


@dataclass(frozen=True)
class Query:
    """A statement and its arguments, but for the last one: how many rows."""

    statement: str
    arguments: tuple[Any, ...]
    walks: bool
    """One index has all rows of the answer in its order, so any plan is right. Otherwise it depends on the values."""

    async def fetch(self, pool: asyncpg.Pool, limit: int) -> Sequence[asyncpg.Record]:
        """The rows, at most `limit` of them."""
        if self.walks:
            return await pool.fetch(self.statement, *self.arguments, limit)  # type: ignore[no-any-return]
        # Prepared for this once: PostgreSQL plans it for these very values, where it would soon settle for one plan for
        # all of them, and meet every order for the sake of a rare one.
        async with pool.acquire() as connection:
            return await (await connection.prepare(self.statement)).fetch(*self.arguments, limit)  # type: ignore[no-any-return]


@dataclass
class Conditions:
    """What has to hold for a row, as SQL with numbered arguments."""

    texts: list[str] = field(default_factory=list)
    arguments: list[Any] = field(default_factory=list)

    def require(self, condition: str, *values: object) -> None:
        """Add a condition; each `?` stands for the next value."""
        for value in values:
            self.arguments.append(value)
            condition = condition.replace("?", f"${len(self.arguments)}", 1)
        self.texts.append(condition)

    def require_filters(self, asked: "OrderCriteria") -> None:
        """What a client may ask of the orders of a list or an export."""
        for condition, value in (
            ("status = ?", asked.status),
            ("fulfillment_status = ?", asked.fulfillment_status),
            ("buyer_login = ?", asked.buyer_login),
            ("bought_at >= ?", asked.bought_from),
            ("bought_at < ?", asked.bought_to),
            ("updated_at >= ?", asked.updated_since),
        ):
            if value is not None:
                self.require(condition, value)
        if asked.gone is not None:
            self.require("gone_at IS NOT NULL" if asked.gone else "gone_at IS NULL")


class OrderCriteria(BaseModel):
    """What a client may ask of orders; all that is given has to hold."""

    model_config = ConfigDict(extra="forbid")

    status: Text | None = Field(default=None, examples=["READY_FOR_PROCESSING"])
    fulfillment_status: Text | None = Field(default=None, examples=["SENT"])
    bought_from: Moment | None = Field(default=None, description="bought at or after")
    bought_to: Moment | None = Field(default=None, description="bought before")
    updated_since: Moment | None = Field(default=None, description="our copy changed at or after")
    buyer_login: Text | None = None
    gone: bool | None = Field(default=None, description="true: only orders that Allegro no longer has")


class OrderFilter(OrderCriteria):
    """Query parameters of the list of orders."""

    sort: Literal["bought_at", "-bought_at", "updated_at", "-updated_at"] = Field(
        default="-bought_at", description="a minus sign: newest first"
    )
    fields: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        default=SUMMARY,
        description="names of the fields to show, separated by commas; `order_data` only if it is named",
        examples=["order_id,order_data"],
    )
    cursor: str | None = Field(default=None, max_length=500, description="`next` of the page before")
    limit: int = Field(default=50, ge=1, le=500)

    @field_validator("fields")
    @classmethod
    def _exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in FIELDS]
        if unknown:
            raise ValueError(f"there is no {', '.join(unknown)}; there are {', '.join(FIELDS)}")
        # In one order, so that PostgreSQL meets few different statements.
        return tuple(name for name in FIELDS if name in names)

    @property
    def order(self) -> str:
        """What a cursor of this list belongs to."""
        return f"orders:{self.sort}"

    def queries(self, token_id: int) -> Iterator[Query]:
        """What to ask, in this order, until the page is full: rows with a time first, then those without.

        Behind a cursor one statement asks for both: the last page of a list would take a second way to PostgreSQL to
        find that no order is without a time. For a first page, which is mostly full, two are cheaper to plan.
        """
        position = None if self.cursor is None else Position.decode(self.cursor, order=self.order)
        key = self.sort.lstrip("-")
        dated = self._conditions(token_id)
        undated = Conditions([*dated.texts, f"{key} IS NULL"], dated.arguments)
        dated.require(f"{key} IS NOT NULL")
        parts = [dated, undated] if key == "bought_at" else [dated]
        if position is None:
            for part in parts:
                yield self._query(key, [part])
            return
        if position.moment is None:
            undated.require(f"id {self._beyond} ?", position.row_id)
            parts = parts[1:]
        else:
            dated.require(f"({key}, id) {self._beyond} (?, ?)", position.moment, position.row_id)
        if parts:
            yield self._query(key, parts)

    @property
    def _beyond(self) -> str:
        return "<" if self.sort.startswith("-") else ">"

    @property
    def _direction(self) -> str:
        return " DESC" if self.sort.startswith("-") else ""

    def _conditions(self, token_id: int) -> Conditions:
        conditions = Conditions()
        conditions.require("user_token_id = ?", token_id)
        conditions.require_filters(self)
        return conditions

    def _query(self, key: str, parts: Sequence[Conditions]) -> Query:
        """One statement for rows of several kinds, one kind after the other; they share their arguments."""
        columns = ", ".join(FIELDS[name] for name in self.fields)
        limit = f"LIMIT ${len(parts[0].arguments) + 1}"
        # Names of columns only, from the tables above; every value is an argument.
        selects = [
            f"SELECT {columns}, id AS row_id, {key} AS sort_key FROM orders WHERE {' AND '.join(part.texts)}"  # noqa: S608
            f" ORDER BY {key}{self._direction}, id{self._direction} {limit}"
            for part in parts
        ]
        # UNION ALL promises no order, and a parallel plan of it keeps none.
        order = f"ORDER BY sort_key IS NULL, sort_key{self._direction}, row_id{self._direction}"
        union = f"SELECT * FROM (({') UNION ALL ('.join(selects)})) AS page {order} {limit}"  # noqa: S608 - as above
        statement = selects[0] if len(parts) == 1 else union
        return Query(statement, tuple(parts[0].arguments), self._walks)

    @property
    def _walks(self) -> bool:
        equal = sum(value is not None for value in (self.status, self.fulfillment_status, self.buyer_login))
        if self.gone:
            return False
        if self.sort.lstrip("-") == "updated_at":
            return not equal and self.bought_from is None and self.bought_to is None
        return equal <= 1 and self.updated_since is None
