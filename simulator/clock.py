"""The clock, and what is due when. Times are integers: microseconds or milliseconds since 1970, UTC."""

import heapq
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count
from typing import Protocol

SECOND_US = 1_000_000
DAY_MS = 86_400_000


class Clock(Protocol):
    def now_us(self) -> int:
        """Microseconds since 1970."""
        ...


class SystemClock:
    def now_us(self) -> int:
        return time.time_ns() // 1000


class ManualClock:
    """A clock for tests: it stands still until it is moved."""

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us

    def now_us(self) -> int:
        return self._now_us

    def advance(self, seconds: float) -> None:
        self._now_us += round(seconds * SECOND_US)


class Agenda:
    """What happens later, in order of time; equal times keep the order in which they were put down."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Callable[[int], None]]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_us(self) -> int | None:
        return self._heap[0][0] if self._heap else None

    def add(self, due_us: int, action: Callable[[int], None]) -> None:
        heapq.heappush(self._heap, (due_us, next(self._numbers), action))

    def run_due(self, now_us: int) -> None:
        """Do everything that is due; actions are told the time at which they were due, not the time it is."""
        while self._heap and self._heap[0][0] <= now_us:
            due_us, _, action = heapq.heappop(self._heap)
            action(due_us)


@lru_cache(maxsize=4096)
def _date(day: int) -> bytes:
    return datetime.fromtimestamp(day * 86400, UTC).strftime("%Y-%m-%dT").encode()


_MINUTES = tuple(f"{hour:02}:{minute:02}:".encode() for hour in range(24) for minute in range(60))
_SECONDS = tuple(f"{second:02}.{millisecond:03}Z".encode() for second in range(60) for millisecond in range(1000))


def iso(at_ms: int) -> str:
    return iso_bytes(at_ms).decode()


def iso_bytes(at_ms: int) -> bytes:
    """`2026-10-10T20:24:12.523Z`, as Allegro writes times; by tables, since every order has a handful of them."""
    day, rest = divmod(at_ms, DAY_MS)
    minute, rest = divmod(rest, 60_000)
    return _date(day) + _MINUTES[minute] + _SECONDS[rest]


def parse_iso(text: str) -> int:
    """Milliseconds since 1970 of any ISO 8601 time with a zone; raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"no time zone in {text!r}")
    return round(moment.timestamp() * 1000)
