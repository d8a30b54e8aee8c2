"""What schemathesis asks beyond its own checks: whether each answer is one that the key's scope allows."""

import os
from typing import Any

import schemathesis

from services.api.problems import TYPE_PREFIX
from shared.api_keys import AccessScope

SCOPE = "ORDERS_BACKUP_SCOPE"
"""Environment variable with the scope of the key that is sent."""
_BEFORE_THE_SCOPE = (
    *("not-allowed", "unauthenticated", "bad-request", "not-found", "method-not-allowed", "invalid-input"),
    *("address-too-long", "idempotency-key-reused", "request-in-progress"),
)


@schemathesis.check
def scope_is_kept(
    _context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """What the scope does not hold is not answered, and what it holds is not refused for the scope's sake."""
    (requirement,) = case.operation.definition.raw.get("security", [{}])
    if not requirement:
        return
    (needed,) = requirement["key"]
    problem = None
    if response.headers.get("content-type") == ["application/problem+json"]:
        problem = response.json()["type"].removeprefix(TYPE_PREFIX)
    if AccessScope(os.environ[SCOPE]).includes(AccessScope(needed)):
        assert problem != "not-allowed", f"the scope holds {needed}"
    else:
        # `unknown-user` would tell something already: only what is wrong with any request may come before the scope.
        assert problem in _BEFORE_THE_SCOPE, f"needs the scope {needed}: {response.status_code} {problem}"
