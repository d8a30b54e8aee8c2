"""What the OpenAPI document says beyond the endpoints: their groups, and the model of our problems."""

from typing import Any

from services.api.problems import InvalidField, ProblemBody, all_types

TAGS = [
    {"name": "connect a seller", "description": "Allegro's device flow: show the seller a link, wait for the consent."},
    {"name": "tokens", "description": "Connected sellers, and how their access stands. Never a secret."},
    {"name": "synchronisation", "description": "What runs, what ran, and what is to run."},
    {"name": "orders", "description": "The copy of the orders, complete as Allegro sent them, with their events."},
    {"name": "dead letters", "description": "Records that nobody could process."},
    {"name": "health", "description": "Whether the service lives, is ready, and what it reaches."},
]


def document(generated: dict[str, Any]) -> dict[str, Any]:
    """The framework's document with the model of our problems, which it knows only by reference."""
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
    return generated
