"""What clients may put into paths, queries and bodies: types that hold only what PostgreSQL can store."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any
from uuid import UUID

from fastapi import Path, Request
from fastapi.dependencies.utils import get_dependant, get_flat_params
from fastapi.params import ParamTypes
from fastapi.routing import APIRoute
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from services.api.problems import InvalidField, InvalidInputError

# PostgreSQL's text holds no NUL.
NO_NUL = r"^[^\x00]*$"
_BIGINT = 2**63 - 1
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]")


def refuse_unknown_query(request: Request) -> None:
    """Raises InvalidInputError that names what the route does not have: a misspelt filter filters nothing."""
    if not request.scope["query_string"]:
        return
    route: APIRoute = request.scope["route"]
    unknown = request.query_params.keys() - _query_names(route.path, route.endpoint)
    if unknown:
        fields = [InvalidField(location="query", field=name, message="no such parameter") for name in sorted(unknown)]
        detail = "; ".join(f"{field.field}: {field.message}" for field in fields)
        raise InvalidInputError(detail, errors=[field.model_dump() for field in fields])


@cache
def _query_names(path: str, endpoint: Callable[..., Any]) -> frozenset[str]:
    # Not `route.dependant`: a route cannot be a key of the cache.
    parameters = get_flat_params(get_dependant(path=path, call=endpoint))
    # Fields of a model of the query do not say where they stand.
    places = {ParamTypes.query, None}
    return frozenset(each.alias for each in parameters if getattr(each.field_info, "in_", None) in places)


class RequestBody(BaseModel):
    """Base of every body: a field that we do not know is a mistake of the client's, and told."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside of the years 1 to 9999") from None


def _written_out(moment: object) -> object:
    """A number would be taken for seconds since 1970, or for milliseconds if it is large."""
    if isinstance(moment, int | float) or (isinstance(moment, str) and not _DATE.match(moment)):
        raise ValueError("not a point in time with its offset, such as 2026-10-10T22:15:31Z")
    return moment


Moment = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_in_utc)]
"""A point in time with its offset (RFC 3339)."""


def _can_stand_in_a_path(user_id: str) -> str:
    """Servers and clients take an encoded slash for a separator, and dots for steps: such a user is never found."""
    if "/" in user_id or user_id in (".", ".."):
        raise ValueError("cannot stand in an address: it holds a slash or is a step of dots")
    return user_id


UserId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=255,
        pattern=NO_NUL,
        description="your own name for the seller; without a slash",
        examples=["my-shop"],
    ),
    AfterValidator(_can_stand_in_a_path),
]
UserIdInPath = Annotated[str, Path(min_length=1, max_length=255, description="your own name for the seller")]
TokenId = Annotated[int, Path(ge=1, le=_BIGINT, description="our id of a connected seller")]
TaskId = Annotated[UUID, Path(description="as given when it was started")]
RowId = Annotated[int, Path(ge=1, le=_BIGINT)]
