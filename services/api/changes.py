"""Which requests may change something: known by method and path before the framework looks for the endpoint."""

from collections.abc import Iterable
from dataclasses import dataclass

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Match

from services.api.browsers import SAFE_METHODS
from services.api.middleware import Scope


@dataclass(frozen=True)
class Change:
    """The endpoint that a request is for, and what its path names."""

    route: str
    parameters: dict[str, str]


class ChangeRoutes:
    """The endpoints with other methods than GET."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._routes = [
            route for route in routes if isinstance(route, APIRoute) and (route.methods or set()) - SAFE_METHODS
        ]

    def find(self, scope: Scope) -> Change | None:
        """None: the request changes nothing, or there is no such endpoint."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            return None
        for route in self._routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                return Change(route.path, {name: str(value) for name, value in found["path_params"].items()})
        return None
