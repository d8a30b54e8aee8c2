"""Errors as RFC 9457 problem details: one class a type, one handler, each type documented in `docs/api.md`."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from shared.allegro.errors import AllegroError, ReauthorizationRequiredError
from shared.allegro.oauth import InvalidClientError
from shared.database import TRANSIENT_DATABASE_ERRORS
from shared.errors import OrdersBackupError
from shared.logs import current_correlation_id, scrub

MEDIA_TYPE = "application/problem+json"
_TYPES = "https://allegro-orders-backup.example/problems"


class Problem(OrdersBackupError):  # noqa: N818 - the RFC's word
    """An answer that is not what was asked for; `detail` says what is wrong, for a person."""

    status = HTTPStatus.BAD_REQUEST
    type = "bad-request"
    title = "The request cannot be carried out"

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members


class UnknownUserError(Problem):
    status, type, title = HTTPStatus.NOT_FOUND, "unknown-user", "No such user"

    def __init__(self, user_id: str) -> None:
        super().__init__(f"No seller is connected for user {user_id!r}.")


class NotFoundError(Problem):
    status, type, title = HTTPStatus.NOT_FOUND, "not-found", "Not found"


class ConflictError(Problem):
    status, type, title = HTTPStatus.CONFLICT, "conflict", "The present state does not allow it"


class ConsentRequiredError(Problem):
    status, type, title = HTTPStatus.CONFLICT, "consent-required", "The seller has to give consent again"


class AllegroAwayError(Problem):
    status, type, title = HTTPStatus.BAD_GATEWAY, "allegro-unavailable", "Allegro did not answer as it should"


class UnavailableError(Problem):
    status, type, title = HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "The service cannot answer now"


class InvalidCursorError(Problem):
    status, type, title = HTTPStatus.BAD_REQUEST, "invalid-cursor", "The cursor is not one of ours"


def answer(status: int, type_: str, title: str, detail: str, **members: Any) -> JSONResponse:
    """A problem details body; the correlation id finds it in the logs."""
    body = {
        "type": f"{_TYPES}/{type_}",
        "title": title,
        "status": int(status),
        "detail": scrub(detail),
        "correlation_id": current_correlation_id(),
        **members,
    }
    return JSONResponse(body, status_code=int(status), media_type=MEDIA_TYPE)


def _from_problem(problem: Problem) -> JSONResponse:
    return answer(problem.status, problem.type, problem.title, problem.detail, **problem.members)


async def _on_problem(_request: Request, error: Exception) -> JSONResponse:
    match error:
        case Problem():
            return _from_problem(error)
        case ReauthorizationRequiredError():
            return _from_problem(ConsentRequiredError(str(error)))
        case AllegroError() | InvalidClientError():
            return _from_problem(AllegroAwayError(str(error)))
        case _:
            return _from_problem(UnavailableError("PostgreSQL is not reachable at the moment; try again."))


async def _on_validation(_request: Request, error: Exception) -> JSONResponse:
    errors = error.errors() if isinstance(error, RequestValidationError) else []
    fields = [{"field": ".".join(str(part) for part in item["loc"]), "message": item["msg"]} for item in errors]
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in fields)
    return answer(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-input", "The input is not valid", detail, errors=fields)


async def _on_http(_request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    title = HTTPStatus(status).phrase
    kind = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}.get(status, "bad-request")
    response = answer(status, kind, title, f"{title}.")
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    return response


async def _on_bug(_request: Request, _error: Exception) -> JSONResponse:
    return answer(
        HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "An error of ours", "It is in our logs; please report it."
    )


def install(app: FastAPI) -> None:
    """Turn every error into a problem, here and nowhere else."""
    for kind in (Problem, AllegroError, InvalidClientError, *TRANSIENT_DATABASE_ERRORS):
        app.add_exception_handler(kind, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
