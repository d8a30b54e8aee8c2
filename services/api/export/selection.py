"""Which orders an export holds, and the statement that reads the next of them. Pure."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from services.api.order_query import Conditions, OrderCriteria, Text
from shared.export.position import selection_of

EVERYBODY = 0
"""Instead of a token: all sellers' orders in one walk."""


class OrderExport(OrderCriteria):
    """Query parameters of an export."""

    format: Literal["ndjson", "csv", "parquet"] = "ndjson"
    user_id: list[Text] = Field(
        default_factory=list, max_length=1000, description="of these users; may be given again. None: of all"
    )
    cursor: str | None = Field(
        default=None, max_length=200, description="of the order to go on with, or `next` of a manifest"
    )
    limit: int | None = Field(default=None, ge=1, description="at most so many orders; the manifest tells how to go on")
    header: bool | None = Field(
        default=None, description="CSV: names of the columns first; unless given, only without `cursor`"
    )
    manifest: bool = Field(default=True, description="false: leave out the last record, and with it the proof")

    def filters(self) -> dict[str, str]:
        """What was asked for, as it stands in the manifest."""
        chosen = self.model_dump(
            mode="json", exclude={"format", "cursor", "limit", "header", "manifest"}, exclude_none=True
        )
        users = sorted(set(chosen.pop("user_id")))
        texts = {name: str(value) for name, value in chosen.items()}
        return texts | ({"user_id": ",".join(users)} if users else {})

    def selection(self) -> bytes:
        """What a cursor of this export belongs to."""
        return selection_of([self.format, *(f"{name}={value}" for name, value in sorted(self.filters().items()))])

    def statement(
        self, columns: Sequence[str], token_id: int, after: int, until: int, looked_at: int
    ) -> tuple[str, list[Any]]:
        """The next rows of one walk in the order of their ids, and all arguments but the last: how many.

        Ids never change, so a row is met once whatever happens to it meanwhile. Of the next `looked_at` rows only
        those come that meet the filters: a statement ends, however few these are.
        """
        walk = _walk(token_id, after, until)
        filters = Conditions(arguments=walk.arguments)
        filters.require_filters(self)
        asked = f"id, user_token_id, {', '.join(columns)}"
        source, conditions = "orders", walk.texts
        # Without filters every row that is looked at comes. With them, the inner limit keeps them out of the scan.
        if filters.texts:
            filters.arguments.append(looked_at)
            limit = f"ORDER BY id LIMIT ${len(filters.arguments)}"
            source = f"(SELECT * FROM orders WHERE {' AND '.join(walk.texts)} {limit}) o"  # noqa: S608 - as below
            conditions = filters.texts
        return (
            # Names of columns only; every value is an argument.
            f"SELECT {asked} FROM {source}"  # noqa: S608
            f" WHERE {' AND '.join(conditions)} ORDER BY id LIMIT ${len(filters.arguments) + 1}",
            filters.arguments,
        )


def last_looked_at(token_id: int, after: int, until: int, looked_at: int) -> tuple[str, list[Any]]:
    """The statement that says the id of the last of the next `looked_at` rows of a walk; none: there are fewer."""
    walk = _walk(token_id, after, until)
    walk.arguments.append(looked_at - 1)
    return (
        f"SELECT id FROM orders WHERE {' AND '.join(walk.texts)}"  # noqa: S608 - as above
        f" ORDER BY id OFFSET ${len(walk.arguments)} LIMIT 1",
        walk.arguments,
    )


def _walk(token_id: int, after: int, until: int) -> Conditions:
    conditions = Conditions()
    if token_id != EVERYBODY:
        conditions.require("user_token_id = ?", token_id)
    conditions.require("id > ?", after)
    conditions.require("id <= ?", until)
    return conditions
