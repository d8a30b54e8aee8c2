"""Who is calling: the one dependency that every endpoint under /api/v1 has.

Until there are API keys nobody is asked, so `ApiSettings` refuses any address but loopback unless told that something
else controls access.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends


@dataclass(frozen=True)
class Caller:
    """A client of the API, by the name that goes into the rows it creates."""

    name: str


async def identify() -> Caller:
    """The caller of this request."""
    return Caller("anonymous")


KnownCaller = Annotated[Caller, Depends(identify)]
