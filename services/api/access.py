"""Who is calling, what they may do, and whose data they may see: the seam that every endpoint under /api/v1 uses.

- A route declares its scope: `@router.get("", dependencies=[READ])`. One that declares none stops the start.
- A list without a user takes `caller: KnownCaller` and filters by `caller.users` with `visible(...)`.
- A single thing is looked up by a dependency (`KnownUser`, `KnownToken`) or followed by `caller.sees(user_id)`: what a
  key does not open does not exist for it (404), so that nothing is learnt by asking.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.routing import APIRoute

from services.api.parameters import refuse_unknown_query
from services.api.problems import NotAllowedError, UserNotAllowedError
from shared.api_keys import AccessScope


@dataclass
class Caller:
    """Who makes this one request: the name of the key, what it may do, and the only users it is for (None: all)."""

    name: str
    scope: AccessScope
    users: list[str] | None
    check_again: Callable[[], Awaitable[None]]
    """For answers that go on for long: raises UnauthenticatedError when the caller may no longer."""
    subject: str | None = None
    """The user whose data the call turned out to be about: for the audit."""

    def sees(self, user_id: str | None) -> bool:
        """Whether what belongs to this user exists for the caller; what belongs to nobody is for keys of all users."""
        self.subject = user_id
        return self.users is None or user_id in self.users

    def require(self, user_id: str) -> None:
        """Raises UserNotAllowedError: for calls that name a user who may not exist yet."""
        if not self.sees(user_id):
            raise UserNotAllowedError(f"The key {self.name!r} is not for user {user_id!r}.")


def visible(column: str, argument: int) -> str:
    """A condition in SQL that holds for rows whose user the caller may see; the argument is `caller.users`."""
    return f"(${argument}::text[] IS NULL OR {column} = ANY(${argument}))"


def visible_token(column: str, argument: int) -> str:
    """The same for rows that know only their token; rows without one are for keys of all users."""
    owned = f"SELECT id FROM user_tokens WHERE user_id = ANY(${argument})"  # noqa: S608 - a number
    return f"(${argument}::text[] IS NULL OR {column} IN ({owned}))"


def caller_of(request: Request) -> Caller:
    """As `gate.Gate` found out."""
    caller: Caller = request.scope["state"]["caller"]
    return caller


async def _caller(request: Request) -> Caller:
    # A coroutine, since a plain function would be run by a thread.
    return caller_of(request)


KnownCaller = Annotated[Caller, Depends(_caller)]


@dataclass(frozen=True)
class Requires:
    """The dependency by which a route declares its scope."""

    scope: AccessScope

    async def __call__(self, request: Request) -> None:
        """Raises NotAllowedError, and InvalidInputError for what no query of the route means."""
        caller = caller_of(request)
        if not caller.scope.includes(self.scope):
            raise NotAllowedError(f"The key {caller.name!r} has the scope {caller.scope}; this needs {self.scope}.")
        refuse_unknown_query(request)


READ: Any = Depends(Requires(AccessScope.READ))
CONTROL: Any = Depends(Requires(AccessScope.CONTROL))
ADMIN: Any = Depends(Requires(AccessScope.ADMIN))


def declared_scopes(routes: Iterable[object]) -> Iterator[tuple[str, str, AccessScope]]:
    """Method, path and scope of every route; raises TypeError for one that does not declare exactly one scope."""
    for route in routes:
        if not isinstance(route, APIRoute):
            raise TypeError(f"{route}: not an endpoint that can declare a scope")
        scopes = [given.dependency.scope for given in route.dependencies if isinstance(given.dependency, Requires)]
        if len(scopes) != 1:
            raise TypeError(f"{route.path}: declare its scope, as in dependencies=[READ]")
        for method in sorted(route.methods or ()):
            yield method, route.path, scopes[0]
