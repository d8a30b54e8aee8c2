"""What the OpenAPI document says beyond the endpoints: their groups, our problems, and the headers of answers."""

from collections.abc import Iterable
from typing import Any

from services.api.examples import complete
from services.api.idempotency import HEADER, REPLAYED
from services.api.problems import (
    MEDIA_TYPE,
    AddressTooLongError,
    BadRequestError,
    DatabaseUnavailableError,
    ForeignHostError,
    ForeignOriginError,
    IdempotencyKeyReusedError,
    InternalError,
    InvalidCursorError,
    InvalidField,
    InvalidInputError,
    NotAllowedError,
    Problem,
    ProblemBody,
    RequestInProgressError,
    TooLargeError,
    TooManyRequestsError,
    UnauthenticatedError,
    UnavailableError,
    all_types,
    documented,
)
from shared.api_keys import AccessScope

TAGS = [
    {"name": "connect a seller", "description": "Allegro's device flow: show the seller a link, wait for the consent."},
    {"name": "tokens", "description": "Connected sellers, and how their access stands. Never a secret."},
    {"name": "synchronisation", "description": "What runs, what ran, and what is to run."},
    {"name": "orders", "description": "The copy of the orders, complete as Allegro sent them, with their events."},
    {"name": "dead letters", "description": "Records that nobody could process."},
    {"name": "audit", "description": "Who asked for which change, when, and how it ended."},
    {"name": "health", "description": "Whether the service lives, is ready, and what it reaches."},
]


_SCHEME = "key"
_IDEMPOTENCY_KEY = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "your own name for this very request: sent again within a day, it starts nothing again and gets the"
    " first answer",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[\x21-\x7e]+$"},
    "example": "6f1f8c0e-6a3b-4f0d-9a55-0d8c1f7a2b44",
}
_HEADERS: dict[str, tuple[str, str]] = {
    "X-Request-ID": (
        "the correlation id: as it was sent, or a new one; in the logs of all services",
        "5f0c2b7e9d1a4c38b6e2f4a09c7d1e35",
    ),
    "RateLimit-Policy": ("how many requests (q) the key is good for in how many seconds (w)", '"minute";q=12000;w=60'),
    "RateLimit": (
        "how many are left (r), and in how many seconds (t) all of them are again",
        '"minute";r=11999;t=1',
    ),
    "Link": (
        "the next page, relative to this address (RFC 8288); absent on the last one",
        '<?limit=50&cursor=WyJydW5zIiwiMjAyNi0xMC0xMFQyMjoxNTozMloiLCI3Il0>; rel="next"',
    ),
    "ETag": ("this version, for `If-None-Match`", 'W/"0f6d3f1b7c3e4a5d8e9f0a1b2c3d4e5f"'),
    "Content-Disposition": ("a name for the file", 'attachment; filename="orders.ndjson"'),
    "Retry-After": ("seconds to wait before asking again, where that is known", "5"),
    "WWW-Authenticate": ("how to prove who asks", "Bearer"),
    REPLAYED: (f"`true`: the answer to an earlier request with this `{HEADER}`", "true"),
}
# What the frame around all endpoints may answer (`middleware.py`), and what may come of any under /api/.
_BY_THE_FRAME = (BadRequestError, AddressTooLongError, ForeignHostError, InternalError, UnavailableError)
_BY_ANY = (
    *_BY_THE_FRAME,
    UnauthenticatedError,
    NotAllowedError,
    InvalidInputError,
    TooManyRequestsError,
    DatabaseUnavailableError,
)
_BY_CHANGES = (ForeignOriginError, TooLargeError)
_WHERE_WAITING_HELPS = ("409", "429", "502", "503")


def document(generated: dict[str, Any], scopes: Iterable[tuple[str, str, AccessScope]]) -> dict[str, Any]:
    """The framework's document with what it does not know: the model of our problems, and each endpoint's scope."""
    generated["components"]["securitySchemes"] = {
        _SCHEME: {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "aob_...",
            "description": "a key of `orders-backup keys create`; each operation names the scope that it needs",
        }
    }
    generated["components"]["headers"] = {
        name: {"description": text, "schema": {"type": "string"}, "example": example}
        for name, (text, example) in _HEADERS.items()
    }
    for operations in generated["paths"].values():
        for operation in operations.values():
            _may_answer(operation, *_BY_THE_FRAME)
            _tells(operation, "X-Request-ID", *operation["responses"])
    for method, path, scope in scopes:
        # OpenAPI 3.1 lets the requirement name roles for schemes other than OAuth, too.
        operation = generated["paths"][path][method.lower()]
        operation["security"] = [{_SCHEME: [scope.value]}]
        _complete(operation, method)
        operation["responses"] = dict(sorted(operation["responses"].items()))
    schemas = generated["components"]["schemas"]
    problem = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
    problem["properties"]["errors"] = {
        "type": "array",
        "items": {"$ref": "#/components/schemas/InvalidField"},
        "description": "of `invalid-input` alone: every violation",
    }
    schemas["ProblemBody"] = problem
    schemas["InvalidField"] = InvalidField.model_json_schema()
    generated["components"]["examples"] = {kind.slug: kind.example() for kind in all_types()}
    complete(generated)
    return generated


def _complete(operation: dict[str, Any], method: str) -> None:
    """What an operation under /api/ takes and answers by its method and parameters, whatever its module says."""
    _may_answer(operation, *_BY_ANY)
    if method != "GET":
        _may_answer(operation, *_BY_CHANGES)
    if method == "POST":
        operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
        _may_answer(operation, RequestInProgressError, IdempotencyKeyReusedError)
    names = {parameter["name"] for parameter in operation.get("parameters", ())}
    if "cursor" in names:
        _may_answer(operation, InvalidCursorError)
    responses = operation["responses"]
    well = [status for status in responses if status.startswith("2")]
    is_file = any("text/csv" in responses[status].get("content", {}) for status in well)
    _tells(operation, "X-Request-ID", *responses)
    _tells(operation, "RateLimit-Policy", *responses)
    _tells(operation, "RateLimit", *responses)
    _tells(operation, "WWW-Authenticate", "401")
    _tells(operation, "Retry-After", *(status for status in _WHERE_WAITING_HELPS if status in responses))
    if "304" in responses:
        _tells(operation, "ETag", "200", "304")
    if is_file:
        _tells(operation, "Content-Disposition", *well)
    elif "cursor" in names:
        _tells(operation, "Link", *well)
    if method == "POST":
        _tells(operation, REPLAYED, *well)


def _may_answer(operation: dict[str, Any], *kinds: type[Problem]) -> None:
    """Add problems to those that the operation has by its module."""
    for kind in kinds:
        ((status, answer),) = documented(kind).items()
        known = operation["responses"].setdefault(str(status), answer)
        shown = known["content"].setdefault(MEDIA_TYPE, answer["content"][MEDIA_TYPE])["examples"]
        if known is not answer and kind.title not in known["description"].split("; "):
            known["description"] = f"{known['description']}; {kind.title}"
        shown.update(answer["content"][MEDIA_TYPE]["examples"])


def _tells(operation: dict[str, Any], header: str, *statuses: str) -> None:
    for status in statuses:
        headers = operation["responses"][status].setdefault("headers", {})
        headers[header] = {"$ref": f"#/components/headers/{header}"}
