"""Errors as RFC 9457 problem details: one class a type, one table of what becomes of an error, answered in one place.

Every type stands in `docs/api.md`; a test compares the two.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from http import HTTPStatus
from math import ceil
from typing import Any, ClassVar

import msgspec
from aiokafka.errors import KafkaError
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from shared.allegro.errors import (
    AccessDeniedError,
    AllegroError,
    InvalidClientError,
    RateLimitedError,
    ReauthorizationRequiredError,
)
from shared.database import TRANSIENT_DATABASE_ERRORS
from shared.errors import OrdersBackupError
from shared.kafka import PublishFailedError
from shared.logs import current_correlation_id, scrub
from shared.token_vault import DifferentSellerError, TokenUnreadableError

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:problem-type:orders-backup:"
_AWAY_RETRY = timedelta(seconds=5)


class InvalidField(BaseModel):
    """One violation: where the field stands, its name, and what is wrong with it."""

    location: str = Field(description="body, query, path or header")
    field: str
    message: str


class ProblemBody(BaseModel):
    """What every answer of 400 and above looks like (RFC 9457)."""

    type: str = Field(description="names the kind of problem; documented in docs/api.md")
    title: str = Field(description="the kind of problem, for a person; the same every time")
    status: int
    detail: str = Field(description="this very problem, for a person")
    correlation_id: str = Field(description="finds the request in the logs of all services")


class Problem(OrdersBackupError):  # noqa: N818 - the RFC's word
    """An answer that is not what was asked for. `detail` says what is wrong, for a person."""

    status: ClassVar[HTTPStatus]
    slug: ClassVar[str]
    title: ClassVar[str]
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str, *, retry_after: timedelta | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after
        self.members = members

    @classmethod
    def example(cls) -> dict[str, Any]:
        """For the documentation."""
        return {
            "summary": cls.title,
            "value": {
                "type": TYPE_PREFIX + cls.slug,
                "title": cls.title,
                "status": int(cls.status),
                "detail": f"{cls.title}.",
                "correlation_id": "5f0c2b7e9d1a4c38b6e2f4a09c7d1e35",
            },
        }

    def response(self) -> Response:
        """The answer; its correlation id is that of the request."""
        body = {
            "type": TYPE_PREFIX + self.slug,
            "title": self.title,
            "status": int(self.status),
            "detail": scrub(self.detail),
            "correlation_id": current_correlation_id(),
            **self.members,
        }
        response = Response(msgspec.json.encode(body), self.status, dict(self.headers), MEDIA_TYPE)
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(max(1, ceil(self.retry_after.total_seconds())))
        return response


class BadRequestError(Problem):
    status, slug, title = HTTPStatus.BAD_REQUEST, "bad-request", "The request cannot be read"


class InvalidInputError(Problem):
    status, slug, title = HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-input", "The input is not valid"


class InvalidCursorError(Problem):
    status, slug, title = HTTPStatus.BAD_REQUEST, "invalid-cursor", "The cursor is not of this list"


class UnauthenticatedError(Problem):
    status, slug, title = HTTPStatus.UNAUTHORIZED, "unauthenticated", "A key of this API is needed"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class NotAllowedError(Problem):
    status, slug, title = HTTPStatus.FORBIDDEN, "not-allowed", "The key's scope does not allow this"


class UserNotAllowedError(Problem):
    status, slug, title = HTTPStatus.FORBIDDEN, "user-not-allowed", "The key is not for this user"


class ForeignOriginError(Problem):
    status, slug, title = HTTPStatus.FORBIDDEN, "foreign-origin", "Pages of other sites may not call the API"


class AddressTooLongError(Problem):
    status, slug, title = HTTPStatus.REQUEST_URI_TOO_LONG, "address-too-long", "The address is too long"


class ForeignHostError(Problem):
    status, slug, title = HTTPStatus.MISDIRECTED_REQUEST, "foreign-host", "The API is not offered under this name"


class NotFoundError(Problem):
    status, slug, title = HTTPStatus.NOT_FOUND, "not-found", "There is nothing here"


class UnknownUserError(Problem):
    status, slug, title = HTTPStatus.NOT_FOUND, "unknown-user", "No seller is connected for this user"

    def __init__(self, user_id: str) -> None:
        super().__init__(f"No seller is connected for user {user_id!r}.")


class UnknownTokenError(Problem):
    status, slug, title = HTTPStatus.NOT_FOUND, "unknown-token", "There is no such token"

    def __init__(self, token_id: int) -> None:
        super().__init__(f"There is no token {token_id}.")


class UnknownAuthorizationError(Problem):
    status, slug, title = HTTPStatus.NOT_FOUND, "unknown-authorization", "There is no such authorisation"


class UnknownOrderError(Problem):
    status, slug, title = HTTPStatus.NOT_FOUND, "unknown-order", "There is no such order"


class UnknownTaskError(Problem):
    status, slug, title = HTTPStatus.NOT_FOUND, "unknown-task", "There is no such task"


class UnknownReconciliationError(Problem):
    status, slug, title = HTTPStatus.NOT_FOUND, "unknown-reconciliation", "There is no such comparison"


class UnknownDeadLetterError(Problem):
    status, slug, title = HTTPStatus.NOT_FOUND, "unknown-dead-letter", "There is no such dead letter"


class MethodNotAllowedError(Problem):
    status, slug, title = HTTPStatus.METHOD_NOT_ALLOWED, "method-not-allowed", "Not with this method"


class TooLargeError(Problem):
    status, slug, title = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", "The body is too large"


class ConsentRequiredError(Problem):
    status, slug, title = HTTPStatus.CONFLICT, "consent-required", "The seller has to give consent again"


class OtherSellerError(Problem):
    status, slug, title = HTTPStatus.CONFLICT, "other-seller", "The tokens belong to another seller"


class TaskEndedError(Problem):
    status, slug, title = HTTPStatus.CONFLICT, "task-ended", "The task has ended already"


class DeadLetterResolvedError(Problem):
    status, slug, title = HTTPStatus.CONFLICT, "dead-letter-resolved", "The dead letter has been dealt with"


class DeadLetterUnsendableError(Problem):
    status, slug, title = HTTPStatus.CONFLICT, "dead-letter-unsendable", "Kafka takes no such record"


class RequestInProgressError(Problem):
    status, slug, title = HTTPStatus.CONFLICT, "request-in-progress", "The same request is being worked on"


class IdempotencyKeyReusedError(Problem):
    status, slug, title = (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "idempotency-key-reused",
        "The idempotency key belongs to another request",
    )


class TooManyRequestsError(Problem):
    status, slug, title = HTTPStatus.TOO_MANY_REQUESTS, "too-many-requests", "The key's allowance is used up"


class TooManyStreamsError(Problem):
    status, slug, title = HTTPStatus.TOO_MANY_REQUESTS, "too-many-streams", "Too many long answers at a time"


class AllegroUnavailableError(Problem):
    status, slug, title = HTTPStatus.BAD_GATEWAY, "allegro-unavailable", "Allegro did not answer as it should"


class AllegroRefusesError(Problem):
    status, slug, title = HTTPStatus.BAD_GATEWAY, "allegro-refuses", "Allegro refuses this application"


class AllegroLimitError(Problem):
    status, slug, title = HTTPStatus.SERVICE_UNAVAILABLE, "allegro-limit", "Allegro asks us to wait"


class KafkaUnavailableError(Problem):
    status, slug, title = HTTPStatus.SERVICE_UNAVAILABLE, "kafka-unavailable", "Kafka is not reachable"


class DatabaseUnavailableError(Problem):
    status, slug, title = HTTPStatus.SERVICE_UNAVAILABLE, "database-unavailable", "PostgreSQL is not reachable"


class UnavailableError(Problem):
    status, slug, title = HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "The service cannot answer now"


class InternalError(Problem):
    status, slug, title = HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "An error of ours"


def problem_of(error: Exception) -> Problem:
    """What a client is told of an error; whatever is not known here is a bug, and an `InternalError`."""
    retry_after: timedelta | None = getattr(error, "retry_after", None)
    match error:
        case Problem():
            return error
        case HTTPException():
            return _of_http(error)
        case ReauthorizationRequiredError():
            return ConsentRequiredError(str(error))
        case DifferentSellerError():
            return OtherSellerError(str(error))
        case RateLimitedError():
            return AllegroLimitError(str(error), retry_after=retry_after or _AWAY_RETRY)
        case InvalidClientError() | AccessDeniedError():
            return AllegroRefusesError(str(error))
        case AllegroError():
            return AllegroUnavailableError(str(error), retry_after=retry_after)
        case TokenUnreadableError():
            return UnavailableError(str(error))
        case PublishFailedError() | KafkaError():
            return KafkaUnavailableError("Kafka is not reachable at the moment; try again.", retry_after=_AWAY_RETRY)
        # The driver's complaints about arguments are InterfaceErrors as well, and ValueErrors: those are bugs.
        case ValueError():
            return _internal()
        case _ if isinstance(error, TRANSIENT_DATABASE_ERRORS):
            return DatabaseUnavailableError(
                "PostgreSQL is not reachable at the moment; try again.", retry_after=_AWAY_RETRY
            )
        case _:
            return _internal()


def _internal() -> InternalError:
    return InternalError("It is in our logs under this correlation id; please report it.")


def _of_validation(error: RequestValidationError) -> Problem:
    fields = [_invalid_field(item, error.body) for item in error.errors()]
    detail = "; ".join(f"{field.field}: {field.message}" for field in fields)
    return InvalidInputError(detail, errors=[field.model_dump() for field in fields])


def _invalid_field(violation: Mapping[str, Any], body: Any) -> InvalidField:
    location, *path = violation["loc"]
    message = violation["msg"].removeprefix("Value error, ")
    if violation["type"] == "json_invalid":
        return InvalidField(location=location, field=location, message=f"{message}: {violation['ctx']['error']}")
    name = _field_name(path, body if location == "body" else None)
    return InvalidField(location=location, field=name or location, message=message)


def _field_name(path: Sequence[int | str], body: Any) -> str:
    """The path as the client wrote it: without the names that a union of models puts into it."""
    named: list[str] = []
    place = body
    for depth, part in enumerate(path, start=1):
        last = depth == len(path)
        if isinstance(place, Mapping) and part not in place and not last:
            continue
        named.append(str(part))
        if isinstance(place, Mapping):
            place = place.get(part)
        elif isinstance(place, list) and isinstance(part, int) and part < len(place):
            place = place[part]
    return ".".join(named)


def _of_http(error: HTTPException) -> Problem:
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return NotFoundError("There is no such endpoint; see /docs.")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "others")
            return MethodNotAllowedError(f"This endpoint takes {allowed}.")
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return TooLargeError("The body is larger than any endpoint takes.")
        case _:
            return BadRequestError(str(error.detail))


async def _on_validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it below
    return _of_validation(error).response()


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it below
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        error.headers = {"Allow": _allowed(request)}
    response = _of_http(error).response()
    response.headers.update(error.headers or {})
    return response


def _allowed(request: Request) -> str:
    """Every method of the address (RFC 9110, 10.2.1); the framework names those of the first endpoint alone."""
    endpoints: Iterable[APIRoute] = request.app.state.endpoints
    found = (route.methods or () for route in endpoints if route.matches(request.scope)[0] is not Match.NONE)
    allowed = {method for methods in found for method in methods}
    return ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))


def install(app: FastAPI, endpoints: Sequence[APIRoute]) -> None:
    """The framework's own errors become problems too; all others are answered by the frame (`middleware.py`)."""
    app.state.endpoints = endpoints
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)


def all_types() -> tuple[type[Problem], ...]:
    """Every type there is, by status."""
    return tuple(sorted(Problem.__subclasses__(), key=lambda kind: (kind.status, kind.slug)))


def documented(*kinds: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """What an endpoint's documentation says of the problems it may answer with."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        answer = by_status.setdefault(
            int(kind.status),
            {
                "description": "",
                "content": {
                    MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}, "examples": {}},
                },
            },
        )
        answer["description"] = "; ".join(filter(None, [answer["description"], kind.title]))
        answer["content"][MEDIA_TYPE]["examples"][kind.slug] = {"$ref": f"#/components/examples/{kind.slug}"}
    return by_status
