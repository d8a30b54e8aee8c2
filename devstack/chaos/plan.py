"""Which fault strikes whom, and when: a pure function of the seed, so that a run can be repeated.

Each service has a lane of faults of its own, and the servers have one. Within a lane one follows the other; the lanes
go on side by side, so a replica may be struck while another service stands still and the broker has lost its data.
Every round of a lane deals each of its faults once, in an order of its own, to the service's replicas in turn. So
one replica of each service is always left alone by pauses, kills and clocks; what strikes servers strikes all.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import count, cycle

from devstack.stack import SERVICES, replica_names

REPLICAS = 2
PAUSE_SECONDS = 30.0
# No fault in the first seconds, when everything starts, so that there is work to disturb.
_FIRST_SECONDS = (3.0, 8.0)
_SPACING_SECONDS = (2.0, 5.0)
_SERVERS_SPACING_SECONDS = (6.0, 12.0)
_CLOCK_SECONDS = 15.0
_AWAY_SECONDS = (0.0, 3.0)
_ALLEGRO_AWAY_SECONDS = (3.0, 8.0)
_CLOCK_SHIFTS_SECONDS = (30.0, 3_600.0, 86_400.0)


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
    SPOILED = "records that nobody can read"
    REFRESHES = "access tokens ended, refreshes clash"
    ALLEGRO_AWAY = "Allegro in maintenance"


_OF_A_REPLICA = (Kind.KILL, Kind.RESTART, Kind.PAUSE, Kind.CLOCK)
_OF_SERVERS = (
    *(Kind.POSTGRES_FAST, Kind.POSTGRES_IMMEDIATE, Kind.BROKER_RESTART, Kind.BROKER_WIPE, Kind.TOPICS),
    *(Kind.SPOILED, Kind.REFRESHES, Kind.ALLEGRO_AWAY),
)
_OF_THE_BROKER = (Kind.BROKER_RESTART, Kind.BROKER_WIPE, Kind.TOPICS, Kind.OFFSETS, Kind.SPOILED)
CONSUMERS = ("enricher", "writer")
# What is done before the target is itself again, besides the time that the fault is to last: an estimate, which keeps
# the plan near to what happens. What really keeps two faults apart are the injector's locks.
_TAKES_SECONDS = {
    Kind.KILL: 3.0,
    Kind.RESTART: 6.0,
    Kind.CLOCK: 6.0,
    Kind.OFFSETS: 12.0,
    Kind.TOPICS: 3.0,
    Kind.SPOILED: 10.0,
}


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
        """When it is over, by the plan."""
        return self.at_seconds + self.for_seconds

    @property
    def holds(self) -> frozenset[str]:
        """What no other fault may work on meanwhile: services and servers by name."""
        held = set()
        if self.kind in _OF_A_REPLICA or self.kind is Kind.OFFSETS:
            held.add(service_of(self.target))
        if self.kind in _OF_THE_BROKER:
            held.add("Kafka")
        if self.kind is Kind.REFRESHES:
            held.add("api")  # two replicas have to be there, to clash
        if self.kind in (Kind.POSTGRES_FAST, Kind.POSTGRES_IMMEDIATE):
            held.add("PostgreSQL")
        return frozenset(held)

    def is_like(self, other: "Injection") -> bool:
        """Whether both do the same to the same service."""
        return (self.kind, service_of(self.target), self.shift_seconds > 0) == (
            *(other.kind, service_of(other.target), other.shift_seconds > 0),
        )

    def __str__(self) -> str:
        shift = f" by {self.shift_seconds:+g} s" if self.shift_seconds else ""
        duration = f" for {self.for_seconds:.1f} s" if self.for_seconds else ""
        return f"{self.kind}{f': {self.target}' if self.target else ''}{shift}{duration}"


@dataclass(frozen=True)
class _Card:
    """A fault that has no time yet."""

    kind: Kind
    target: str
    for_seconds: float = 0.0
    shift_seconds: float = 0.0


def make_plan(seed: int, seconds: float) -> list[Injection]:
    """The faults of a run of so many seconds, in the order in which they begin; by the plan all are over by then."""
    rolls = random.Random(seed)  # noqa: S311 - a run can be repeated by its seed
    plan: list[Injection] = []
    for number, service in enumerate(SERVICES):
        plan += _lane(_rounds_of_service(service, number, rolls), _SPACING_SECONDS, seconds, rolls)
    plan += _lane(_rounds_of_servers(rolls), _SERVERS_SPACING_SECONDS, seconds, rolls)
    return sorted(plan, key=lambda injection: injection.at_seconds)


def _lane(
    rounds: Iterator[list[_Card]], spacing: tuple[float, float], seconds: float, rolls: random.Random
) -> Iterator[Injection]:
    """One after the other until the time is up; what does not fit any more makes way for what is shorter."""
    at = rolls.uniform(*_FIRST_SECONDS)
    while True:
        dealt = False
        for card in next(rounds):
            if at + card.for_seconds > seconds:
                continue
            dealt = True
            yield Injection(at, card.kind, card.target, card.for_seconds, card.shift_seconds)
            at += card.for_seconds + _TAKES_SECONDS.get(card.kind, 0.0) + rolls.uniform(*spacing)
        if not dealt:
            return


def _rounds_of_service(service: str, number: int, rolls: random.Random) -> Iterator[list[_Card]]:
    """A pause, a kill, a restart, a clock set forward and one set back; for a consumer, its offsets as well."""
    replicas = replicas_of(service)
    rolls.shuffle(replicas)
    targets = cycle(replicas)
    # Each service begins elsewhere, so that one round of three of them holds every shift in both directions.
    shifts = len(_CLOCK_SHIFTS_SECONDS)
    for turn in count(number):
        forward, backward = _CLOCK_SHIFTS_SECONDS[turn % shifts], -_CLOCK_SHIFTS_SECONDS[(turn + 1) % shifts]
        cards = [
            _Card(Kind.PAUSE, next(targets), PAUSE_SECONDS),
            _Card(Kind.KILL, next(targets), rolls.uniform(*_AWAY_SECONDS)),
            _Card(Kind.RESTART, next(targets)),
            *(_Card(Kind.CLOCK, next(targets), _CLOCK_SECONDS, shift) for shift in (forward, backward)),
        ]
        if service in CONSUMERS:
            cards.append(_Card(Kind.OFFSETS, service))
        rolls.shuffle(cards)
        yield cards


def _rounds_of_servers(rolls: random.Random) -> Iterator[list[_Card]]:
    while True:
        cards = [_Card(kind, "", _duration(kind, rolls)) for kind in _OF_SERVERS]
        rolls.shuffle(cards)
        yield cards


def _duration(kind: Kind, rolls: random.Random) -> float:
    match kind:
        case Kind.ALLEGRO_AWAY:
            return rolls.uniform(*_ALLEGRO_AWAY_SECONDS)
        case Kind.POSTGRES_FAST | Kind.POSTGRES_IMMEDIATE:
            return rolls.uniform(*_AWAY_SECONDS)
        case _:
            return 0.0


def service_of(name: str) -> str:
    """The service of a replica."""
    return name.partition("-")[0]


def replicas_of(service: str) -> list[str]:
    """Every replica of a service."""
    return [name for name in replica_names(REPLICAS) if service_of(name) == service]
