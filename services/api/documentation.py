"""What the OpenAPI document says beyond the endpoints: their groups, and the model of our problems."""

from collections.abc import Iterable
from typing import Any

from services.api.examples import complete
from services.api.idempotency import HEADER
from services.api.problems import (
    MEDIA_TYPE,
    IdempotencyKeyReusedError,
    InvalidField,
    ProblemBody,
    RequestInProgressError,
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
_RATE_HEADERS = {
    "RateLimit-Policy": {
        "description": "how many requests (q) the key is good for in how many seconds (w)",
        "schema": {"type": "string", "example": '"minute";q=12000;w=60'},
    },
    "RateLimit": {
        "description": "how many are left (r), and in how many seconds (t) all of them are again",
        "schema": {"type": "string", "example": '"minute";r=11999;t=1'},
    },
}


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
    for method, path, scope in scopes:
        # OpenAPI 3.1 lets the requirement name roles for schemes other than OAuth, too.
        operation = generated["paths"][path][method.lower()]
        operation["security"] = [{_SCHEME: [scope.value]}]
        if method == "POST":
            _take_an_idempotency_key(operation)
        for answer in operation["responses"].values():
            answer.setdefault("headers", {}).update(_RATE_HEADERS)
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


def _take_an_idempotency_key(operation: dict[str, Any]) -> None:
    operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
    responses = operation["responses"]
    for status, answer in documented(RequestInProgressError, IdempotencyKeyReusedError).items():
        known = responses.setdefault(str(status), answer)
        if known is not answer:
            known["description"] = f"{known['description']}; {answer['description']}"
            known["content"][MEDIA_TYPE]["examples"] |= answer["content"][MEDIA_TYPE]["examples"]
