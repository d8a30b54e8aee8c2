"""How tasks stand, looked up once a second however many clients listen."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

Seen = TypeVar("Seen")

LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class _Look(Generic[Seen]):
    began: float
    seen: "asyncio.Future[Seen]"


class TaskLooks(Generic[Seen]):
    """Shares each look among all who ask within `LOOK_SECONDS`; remembers nothing for longer."""

    def __init__(self) -> None:
        self._looks: dict[UUID, _Look[Seen]] = {}

    async def at(self, task_id: UUID, look_now: Callable[[], Awaitable[Seen]]) -> Seen:
        """How the task stood at most `LOOK_SECONDS` ago; raises what the look raises."""
        now = asyncio.get_running_loop().time()
        self._looks = {key: look for key, look in self._looks.items() if now - look.began < LOOK_SECONDS}
        look = self._looks.get(task_id)
        if look is None:
            look = _Look(now, asyncio.ensure_future(look_now()))
            look.seen.add_done_callback(_heard)
            self._looks[task_id] = look
        # Whoever goes away must not take the look from the others.
        return await asyncio.shield(look.seen)


def _heard(seen: "asyncio.Future[Seen]") -> None:
    """An error belongs to those who wait; if all are gone, to nobody."""
    if not seen.cancelled():
        seen.exception()
