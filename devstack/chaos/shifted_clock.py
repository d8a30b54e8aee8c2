"""`python -m devstack.chaos.shifted_clock SECONDS MODULE`: run a module whose wall clock is wrong, until it jumps.

SIGUSR1 sets it right, as the daemon does that keeps a host's time.

A host's clock cannot be shifted for one process alone, so Python's doors to it are exchanged before the module is
imported: `time.time`, `time.time_ns`, `datetime.now` and its relatives. The monotonic clock stays, as it does on a real
machine whose wall clock jumps. No code of the product knows of this.
"""

import datetime as real
import importlib
import runpy
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

SET_RIGHT = signal.SIGUSR1


@dataclass
class Shift:
    """By how much this process's wall clock is wrong."""

    seconds: float

    def end(self, *_: object) -> None:
        """Set the clock right."""
        self.seconds = 0.0


def shift_clock(shift: Shift) -> None:
    """From now on this process believes that it is so much later."""
    original_time, original_time_ns = time.time, time.time_ns
    time.time = lambda: original_time() + shift.seconds
    time.time_ns = lambda: original_time_ns() + round(shift.seconds * 1e9)
    real.datetime = _shifted(real.datetime, shift)  # type: ignore[misc]


def _shifted(original: type[real.datetime], shift: Shift) -> type[real.datetime]:
    class AnyDatetime(type):
        """Values made in C are of the original class and have to pass for ours."""

        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, original)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, original)

    class datetime(original, metaclass=AnyDatetime):  # type: ignore[valid-type,misc]  # noqa: N801 - it is taken for the real one
        __slots__ = ()  # modules in C expect the original's size

        def __new__(cls, *arguments: Any, **named: Any) -> Self:
            made: Self = original(*arguments, **named)  # type: ignore[assignment]
            return made

        @classmethod
        def now(cls, tz: real.tzinfo | None = None) -> Self:
            return cls._later(original.now, tz)

        @classmethod
        def _later(cls, now: Callable[[real.tzinfo | None], Any], tz: real.tzinfo | None) -> Self:
            moment: Self = now(tz) + real.timedelta(seconds=shift.seconds)
            return moment

    return datetime


def main(arguments: list[str]) -> None:
    """Shift the clock and become the module."""
    seconds, module = float(arguments[0]), arguments[1]
    importlib.import_module("shared.messages")  # msgspec takes the real class for a type of a field, and no other
    shift = Shift(seconds)
    shift_clock(shift)
    signal.signal(SET_RIGHT, shift.end)
    sys.argv = [module, *arguments[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
