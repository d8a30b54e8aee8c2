"""Which fault strikes whom, and when: a pure function of the seed, so that a run can be repeated.

Every round holds each kind of fault once, in an order of its own. No fault strikes a replica that another one still
holds, and one replica of each service is always left alone by pauses, kills and clocks; what strikes servers strikes
all.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from devstack.stack import SERVICES, replica_names

REPLICAS = 2
PAUSE_SECONDS = 30.0
_SPACING_SECONDS = (5.0, 9.0)
# No fault in the first seconds, when everything starts, so that there is work to disturb.
_FIRST_SECONDS = 5.0
_CLOCK_SECONDS = 25.0
_AWAY_SECONDS = (0.0, 3.0)
_ALLEGRO_AWAY_SECONDS = (3.0, 8.0)
_CLOCK_SHIFTS_SECONDS = (-86_400.0, -3_600.0, -30.0, 30.0, 3_600.0, 86_400.0)


class Kind(StrEnum):
    """What is done; each has a method in `devstack.chaos.injector`."""

    KILL = "kill -9 of a service"
    RESTART = "restart of a service"
    PAUSE = "SIGSTOP of a service"
    CLOCK = "clock of a process shifted"
    POSTGRES_FAST = "restart of PostgreSQL (fast)"
    POSTGRES_IMMEDIATE = "restart of PostgreSQL (immediate)"
    BROKER_RESTART = "restart of the broker"
    BROKER_WIPE = "loss of the broker's data"
    TOPICS = "topics deleted and created again"
    OFFSETS = "offsets of a group reset to the beginning"
    REFRESHES = "access tokens ended, refreshes clash"
    ALLEGRO_AWAY = "Allegro in maintenance"


_OF_A_REPLICA = (Kind.KILL, Kind.RESTART, Kind.PAUSE, Kind.CLOCK)
_CONSUMERS = ("enricher", "writer")


@dataclass(frozen=True)
class Injection:
    """One fault: seconds after the first moment, what, whom, for how long, and how far a clock is shifted."""

    at_seconds: float
    kind: Kind
    target: str = ""
    for_seconds: float = 0.0
    shift_seconds: float = 0.0

    @property
    def until_seconds(self) -> float:
        """When the target is itself again."""
        return self.at_seconds + self.for_seconds

    @property
    def holds(self) -> Sequence[str]:
        """The replicas that it works on."""
        if self.kind in _OF_A_REPLICA:
            return [self.target]
        return [name for name in replica_names(REPLICAS) if self.kind is Kind.OFFSETS and self.target == _service(name)]

    def __str__(self) -> str:
        shift = f" by {self.shift_seconds:+g} s" if self.shift_seconds else ""
        duration = f" for {self.for_seconds:.1f} s" if self.for_seconds else ""
        return f"{self.kind}{f': {self.target}' if self.target else ''}{shift}{duration}"


def make_plan(seed: int, seconds: float) -> list[Injection]:
    """The faults of a run of so many seconds, in the order in which they begin; all have ended by then."""
    rolls = random.Random(seed)  # noqa: S311 - a run can be repeated by its seed
    plan: list[Injection] = []
    kinds = _rounds(rolls)
    waiting: list[Kind] = []
    at = _FIRST_SECONDS
    while at < seconds:
        waiting.append(next(kinds))
        possible = (_injection(kind, at, plan, rolls) for kind in waiting)
        injection = next((one for one in possible if one is not None and one.until_seconds <= seconds), None)
        if injection is not None:
            waiting.remove(injection.kind)
            plan.append(injection)
        at += rolls.uniform(*_SPACING_SECONDS)
    return plan


def _rounds(rolls: random.Random) -> Iterator[Kind]:
    """Every kind once, then every kind once more. The first round begins with what takes longest to show."""
    yield Kind.PAUSE
    while True:
        kinds = list(Kind)
        rolls.shuffle(kinds)
        yield from kinds


def _injection(kind: Kind, at: float, before: Sequence[Injection], rolls: random.Random) -> Injection | None:
    """A fault of this kind; None if everybody whom it could strike is held."""
    held = {name for earlier in before if earlier.until_seconds >= at for name in earlier.holds}
    shift = 0.0
    match kind:
        case Kind.KILL | Kind.RESTART | Kind.PAUSE | Kind.CLOCK:
            free = [name for name in replica_names(REPLICAS) if not held & set(_siblings(name))]
            if kind is Kind.CLOCK:
                shift = rolls.choice(_CLOCK_SHIFTS_SECONDS)
        case Kind.OFFSETS:
            free = [service for service in _CONSUMERS if not held & set(_siblings(service))]
        case _:
            free = [""]
    if not free:
        return None
    return Injection(at, kind, rolls.choice(free), _duration(kind, rolls), shift)


def _duration(kind: Kind, rolls: random.Random) -> float:
    match kind:
        case Kind.PAUSE:
            return PAUSE_SECONDS
        case Kind.CLOCK:
            return _CLOCK_SECONDS
        case Kind.ALLEGRO_AWAY:
            return rolls.uniform(*_ALLEGRO_AWAY_SECONDS)
        case Kind.KILL | Kind.POSTGRES_FAST | Kind.POSTGRES_IMMEDIATE:
            return rolls.uniform(*_AWAY_SECONDS)
        case _:
            return 0.0


def _service(name: str) -> str:
    return name.partition("-")[0]


def _siblings(name: str) -> list[str]:
    """Every replica of the same service."""
    assert _service(name) in SERVICES  # noqa: S101 - names come from the stack
    return [replica for replica in replica_names(REPLICAS) if _service(replica) == _service(name)]
