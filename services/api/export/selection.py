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

    def statement(self, columns: Sequence[str], token_id: int, after: int, until: int) -> tuple[str, list[Any]]:
        """The next rows of one walk in the order of their ids, and all arguments but the last: how many.

        Ids never change, so a row is met once whatever happens to it meanwhile.
        """
        conditions = Conditions()
        if token_id != EVERYBODY:
            conditions.require("user_token_id = ?", token_id)
        conditions.require("id > ?", after)
        conditions.require("id <= ?", until)
        conditions.require_filters(self)
        return (
            # Names of columns only; every value is an argument.
            f"SELECT id, user_token_id, {', '.join(columns)} FROM orders"  # noqa: S608
            f" WHERE {' AND '.join(conditions.texts)} ORDER BY id LIMIT ${len(conditions.arguments) + 1}",
            conditions.arguments,
        )
