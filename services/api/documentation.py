"""What the OpenAPI document says beyond the endpoints: their groups, and the model of our problems."""

from collections.abc import Iterable
from typing import Any

from services.api.examples import complete
from services.api.problems import InvalidField, ProblemBody, all_types
from shared.api_keys import AccessScope

TAGS = [
    {"name": "connect a seller", "description": "Allegro's device flow: show the seller a link, wait for the consent."},
    {"name": "tokens", "description": "Connected sellers, and how their access stands. Never a secret."},
    {"name": "synchronisation", "description": "What runs, what ran, and what is to run."},
    {"name": "orders", "description": "The copy of the orders, complete as Allegro sent them, with their events."},
    {"name": "dead letters", "description": "Records that nobody could process."},
    {"name": "health", "description": "Whether the service lives, is ready, and what it reaches."},
]


_SCHEME = "key"


def document(generated: dict[str, Any], scopes: Iterable[tuple[str, str, AccessScope]]) -> dict[str, Any]:
    """The framework's document with what it does not know: the model of our problems, and each endpoint's scope."""
    generated["components"]["securitySchemes"] = {
        _SCHEME: {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "aob_...",
            "description": "a key of `orders-backup api-keys create`; each operation names the scope that it needs",
        }
    }
    for method, path, scope in scopes:
        # OpenAPI 3.1 lets the requirement name roles for schemes other than OAuth, too.
        generated["paths"][path][method.lower()]["security"] = [{_SCHEME: [scope.value]}]
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
