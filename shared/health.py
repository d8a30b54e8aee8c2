"""Whether a service lives, and whether it is ready: by what it has done lately, not by its being there."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from faststream.asgi import AsgiResponse, get
from prometheus_client import make_asgi_app

from shared.logs import scrub

if TYPE_CHECKING:
    from faststream.asgi.types import ASGIApp, Scope

_CHECK_SECONDS = 3.0


@dataclass(frozen=True)
class Report:
    """An answer: good if nothing is wrong; each thing that is wrong has a name and a reason."""

    wrong: dict[str, str]

    @property
    def good(self) -> bool:
        return not self.wrong

    def response(self) -> AsgiResponse:
        """200, or 503 with what is wrong."""
        body = {"status": "ok"} if self.good else {"status": "unavailable", "wrong": self.wrong}
        return AsgiResponse(
            json.dumps(body).encode(), 200 if self.good else 503, headers={"content-type": "application/json"}
        )


@dataclass
class _Loop:
    """A loop that has to be heard of now and then."""

    within_seconds: float
    heard_at: float


class Health:
    """What `/livez` and `/readyz` know.

    Alive means that every loop has gone round within its deadline: a consumer that is stuck is dead although its
    process is not. A loop that waits for PostgreSQL or Kafka goes round, so an outage restarts nobody; readiness says
    what is away.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._loops: dict[str, _Loop] = {}
        self._checks: dict[str, Callable[[], Awaitable[object]]] = {}
        self._started = False

    def expect(self, name: str, *, within_seconds: float) -> None:
        """From now on, `progressed(name)` has to be heard at least this often."""
        self._loops[name] = _Loop(within_seconds, self._monotonic())

    def forget(self, name: str) -> None:
        """The loop has ended as it should."""
        self._loops.pop(name, None)

    def progressed(self, name: str) -> None:
        """The loop went round, or finished a piece of a long round."""
        self._loops[name].heard_at = self._monotonic()

    def add_check(self, name: str, check: Callable[[], Awaitable[object]]) -> None:
        """Something that has to work for the service to be ready; `check` raises if it does not."""
        self._checks[name] = check

    def started(self) -> None:
        """Everything that the service needs is open and its loops run."""
        self._started = True

    def stopping(self) -> None:
        """Ask for no more work: the service is about to end."""
        self._started = False

    def liveness(self) -> Report:
        """Every loop that was not heard of within its deadline."""
        now = self._monotonic()
        return Report(
            {
                name: f"no progress for {now - loop.heard_at:.0f} s"
                for name, loop in self._loops.items()
                if now - loop.heard_at > loop.within_seconds
            }
        )

    async def readiness(self) -> Report:
        """What is not started, stuck or away."""
        wrong = self.liveness().wrong
        if not self._started:
            wrong["service"] = "not started"
        reasons = await asyncio.gather(*(self._run(check) for check in self._checks.values()))
        wrong |= {name: reason for name, reason in zip(self._checks, reasons, strict=True) if reason is not None}
        return Report(wrong)

    async def _run(self, check: Callable[[], Awaitable[object]]) -> str | None:
        """Why the check fails, None if it does not."""
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await check()
        except TimeoutError:
            return f"no answer within {_CHECK_SECONDS:g} s"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer to the question
            return scrub(f"{type(error).__name__}: {error}")
        return None

    def asgi_routes(self) -> "list[tuple[str, ASGIApp]]":
        """`/livez`, `/readyz` and `/metrics` for a FastStream app."""

        @get(include_in_schema=False)
        async def livez(_scope: "Scope") -> AsgiResponse:
            return self.liveness().response()

        @get(include_in_schema=False)
        async def readyz(_scope: "Scope") -> AsgiResponse:
            return (await self.readiness()).response()

        metrics: Any = make_asgi_app()
        return [("/livez", livez), ("/readyz", readyz), ("/metrics", metrics)]
