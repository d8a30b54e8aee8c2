"""A short way to the endpoints that are asked most (`make bench-api`).

They are declared like all others, and the framework documents them. What it finds out anew at each request, which of
its routes a path belongs to and which dependencies a function has, is found out here once, at the start. A request that
lacks something, or brings something that is not valid, goes the framework's way, which refuses it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, get_origin

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.convertors import StringConvertor
from starlette.routing import BaseRoute, Match

from services.api.access import Requires
from services.api.middleware import App, Receive, Scope, Send


class ShortWay:
    """Plain ASGI, innermost: calls an endpoint of `routes` itself, and leaves everything else to the framework."""

    def __init__(self, app: App, *, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._ends = [_End(route) for route in routes if isinstance(route, APIRoute)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            slashes = scope["path"].count("/")
            for end in self._ends:
                # No name in a path holds one: most endpoints are ruled out without a look at their pattern.
                if end.slashes != slashes:
                    continue
                match, found = end.route.matches(scope)
                if match is Match.FULL:
                    scope.update(found)
                    if await end.answer(scope, receive, send):
                        return
                    break
        await self._app(scope, receive, send)


class _End:
    """An endpoint, and what it takes from a request."""

    def __init__(self, route: APIRoute) -> None:
        """Raises TypeError for an endpoint that takes more than path, query, headers and the request."""
        takes = route.dependant
        required = [given.dependency for given in route.dependencies]
        self.route = route
        self.slashes = route.path.count("/")
        self._required = [each for each in required if isinstance(each, Requires)]
        self._path = takes.path_params
        self._headers = takes.header_params
        self._query = _QueryModel(takes.query_params[0]) if takes.query_params else None
        self._request_name = takes.request_param_name
        if (
            len(takes.dependencies) != len(self._required)
            or len(takes.query_params) > 1
            or takes.body_params
            or takes.cookie_params
            or self._request_name is None
            or any(not isinstance(convertor, StringConvertor) for convertor in route.param_convertors.values())
        ):
            raise TypeError(
                f"{route.path}: there is no short way to it: it takes more than names in a path, a query and headers"
            )

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether it was answered; raises what the endpoint raises."""
        request = Request(scope, receive, send)
        for required in self._required:
            await required(request)
        values = self._values(request)
        if values is None:
            return False
        response = await self.route.endpoint(**values)
        await response(scope, receive, send)
        return True

    def _values(self, request: Request) -> dict[str, Any] | None:
        """What the endpoint is called with; None: something is missing or not valid."""
        values: dict[str, Any] = {str(self._request_name): request}
        for fields, given in ((self._path, request.path_params), (self._headers, request.headers)):
            for field in fields:
                if not _take(field, given.get(field.alias), values):
                    return None
        if self._query is not None and not _take(self._query.field, self._query.given(request), values):
            return None
        return values


class _QueryModel:
    """A query that is one model."""

    def __init__(self, field: Any) -> None:
        """Raises TypeError for a single parameter: a query is as easily one model."""
        model = field.field_info.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TypeError(f"{field.name}: a short way takes a query as one model")
        self.field = field
        self._lists = {
            name for name, info in model.model_fields.items() if get_origin(info.annotation) in (tuple, list, set)
        }

    def given(self, request: Request) -> Mapping[str, Any]:
        """As the model takes it: of a name that comes more than once the last value, or all for one that is a list."""
        if not request.scope["query_string"]:
            return {}
        query = request.query_params
        return {name: query.getlist(name) if name in self._lists else query[name] for name in query}


def _take(field: Any, given: object, values: dict[str, Any]) -> bool:
    """Put what was given into the values, or what holds where nothing was; False: it is missing or not valid."""
    if given is None:
        values[field.name] = field.default
        return not field.field_info.is_required()
    values[field.name], errors = field.validate(given, values, loc=())
    return not errors
