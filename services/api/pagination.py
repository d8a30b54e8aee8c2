"""Pages of any list: at most `limit` rows, and a cursor for the next page in the body and in the `Link` header."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode

from fastapi import Query, Request
from pydantic import BaseModel, Field

from services.api.cursor import Position
from services.api.order_query import Conditions

Cursor = Annotated[str | None, Query(max_length=500, description="`next` of the page before; none: the first page")]
Limit = Annotated[int, Query(ge=1, le=500, description="rows of a page")]
NEXT = Field(description="cursor of the following page; null: this is the last")

Item = TypeVar("Item")
Row = TypeVar("Row")


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    items: list[Item]
    next: str | None = NEXT


def cut(rows: Sequence[Row], limit: int, position: Callable[[Row], Position]) -> tuple[Sequence[Row], str | None]:
    """The page out of `limit + 1` rows that were asked for, and the cursor of the next one if there is one."""
    page = rows[:limit]
    return page, position(page[-1]).encode() if len(rows) > limit else None


def newest_of(
    select: str, conditions: Conditions, order: str, token_ids: Sequence[int] | None
) -> tuple[str, list[Any]]:
    """The statement for a page of what belongs to these tokens, and all arguments but the last: how many.

    `token_ids` None: of all. Otherwise each one's newest rows are read from the index that begins with the token: along
    the times of all of them a key of a few users would meet everybody else's rows.
    """
    arguments = conditions.arguments
    if token_ids is None:
        where = f" WHERE {' AND '.join(conditions.texts)}" if conditions.texts else ""
        return f"{select}{where} {order} LIMIT ${len(arguments) + 1}", arguments
    of_one = " AND ".join(["user_token_id = asked.token_id", *conditions.texts])
    tokens, limit = f"${len(arguments) + 1}", f"${len(arguments) + 2}"
    return (
        # Names and conditions of ours; every value is an argument.
        f"SELECT newest.* FROM unnest({tokens}::bigint[]) asked (token_id)"  # noqa: S608
        f" CROSS JOIN LATERAL ({select} WHERE {of_one} {order} LIMIT {limit}) newest {order} LIMIT {limit}",
        [*arguments, list(token_ids)],
    )


def links(request: Request, following: str | None) -> dict[str, str]:
    """The `Link` header (RFC 8288) to the next page, if there is one.

    It is relative to the address that the client asked, of which we may know little: a proxy speaks TLS in front of us,
    under another name, and may take a part of the path away.
    """
    if following is None:
        return {}
    kept = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    return {"Link": f'<?{urlencode([*kept, ("cursor", following)])}>; rel="next"'}
