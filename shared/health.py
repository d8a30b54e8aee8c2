"""Liveness and readiness of a service: live means *polled and progressed*, not *process up* (requirement C4)."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import make_asgi_app

Check = Callable[[], Awaitable[Any]]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_CHECK_TIMEOUT_SECONDS = 3.0


class Health:
    """What a service says of itself: its loops report progress, its checks are asked when somebody wants to know."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._progress: dict[str, float] = {}
        self._deadlines: dict[str, float] = {}
        self._checks: dict[str, Check] = {}

    def watch(self, loop: str, *, deadline_seconds: float) -> Callable[[], None]:
        """Expect progress of a loop at least this often; returns what the loop calls when it has progressed."""
        self._deadlines[loop] = deadline_seconds

        def progressed() -> None:
            self._progress[loop] = self._monotonic()

        progressed()
        return progressed

    def check(self, name: str, ask: Check) -> None:
        """Add a condition of readiness: `ask` raises, or answers False, while it does not hold."""
        self._checks[name] = ask

    def stuck(self) -> dict[str, float]:
        """Loops past their deadline, with the seconds since they last progressed."""
        now = self._monotonic()
        ages = {loop: now - moment for loop, moment in self._progress.items()}
        return {loop: round(age, 1) for loop, age in ages.items() if age > self._deadlines[loop]}

    async def failing(self) -> dict[str, str]:
        """Conditions of readiness that do not hold, with what they say."""
        names = list(self._checks)
        answers = await asyncio.gather(*(self._ask(self._checks[name]) for name in names))
        failing = {name: answer for name, answer in zip(names, answers, strict=True) if answer is not None}
        failing.update({loop: f"no progress for {age} s" for loop, age in self.stuck().items()})
        if not self._checks:
            failing["start"] = "not started yet"
        return failing

    async def _ask(self, check: Check) -> str | None:
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_SECONDS):
                return "not yet" if await check() is False else None
        except TimeoutError:
            return f"no answer within {_CHECK_TIMEOUT_SECONDS} s"
        except Exception as error:  # noqa: BLE001 - whatever a check raises is its answer
            return type(error).__name__

    def routes(self) -> list[tuple[str, AsgiApp]]:
        """`/livez`, `/readyz` and `/metrics` for an ASGI application."""
        return [("/livez", self._livez), ("/readyz", self._readyz), ("/metrics", make_asgi_app())]

    async def _livez(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        stuck = self.stuck()
        await _answer(send, 503 if stuck else 200, {"status": "stuck" if stuck else "ok", "stuck": stuck})

    async def _readyz(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        failing = await self.failing()
        await _answer(send, 503 if failing else 200, {"status": "not ready" if failing else "ok", "failing": failing})


async def _answer(send: Send, status: int, body: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
