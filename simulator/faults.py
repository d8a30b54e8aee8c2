"""What goes wrong on purpose: which faults are switched on, and when they strike. All off at first.

A fault is written `{"rate": 0.05}`; a number means its rate (for `list_lag_seconds`: its seconds), `true` means always.
`endpoints`, `sellers` and `times` narrow it down. The same seed and the same requests in the same order meet the same
faults.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from simulator.dice import Dice, Rolls

API_ENDPOINTS: Final = ("me", "events", "event_stats", "list", "detail")
AUTH_ENDPOINTS: Final = ("device", "token")
ENDPOINTS: Final = (*API_ENDPOINTS, *AUTH_ENDPOINTS)

# Every fault, and its usual `amount`: seconds unless the comment says otherwise.
_AMOUNTS: Final[Mapping[str, float]] = {
    "journal_missing": 0,
    "journal_duplicate": 2,  # until the event is written again
    "journal_late": 5,  # more than usual
    "journal_shuffle": 3,  # at most so much more than usual
    "event_stats_null": 0,
    "list_lag_seconds": 5,
    "list_repeat": 0,
    "list_skip": 0,
    "list_slip": 0,
    "list_empty": 0,
    "total_count_lies": 7,  # at most so many orders too few or too many
    "merges": 0,
    "http_429": 0,  # in Retry-After; 0: no such header
    "http_5xx": 0,
    "timeout": 0,  # until the connection is closed; 0: not before an hour
    "slow_body": 5,  # that a body takes
    "cut_connection": 0,
    "malformed_json": 0,
    "captcha_403": 0,
    "refresh_answer_lost": 0,
    "invalid_grant_once": 0,
    "token_endpoint_429": 0,  # in Retry-After; 0: no such header
    "unlink": 0,
    "expire_all_tokens": 0,
    "maintenance": 0,
    "toxic": 5_000_000,  # bytes of a big body
}
_OTHER_NAMES: Final = {"token_429": "token_endpoint_429"}
_IN_SECONDS: Final = frozenset({"list_lag_seconds"})
_USUAL_ENDPOINTS: Final[Mapping[str, tuple[str, ...]]] = {
    "captcha_403": AUTH_ENDPOINTS,
    "malformed_json": API_ENDPOINTS,
}

TOXIC_KINDS: Final = ("nul", "duplicate_keys", "huge_number", "invalid_utf8", "deep", "big")


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Whom a fault hits, how often, and how; empty means no restriction."""

    rate: float = 1.0
    # Below 0: the usual one.
    amount: float = -1.0
    times: int | None = None
    endpoints: tuple[str, ...] = ()
    sellers: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
    orders: dict[str, str] = {}


class UnknownFaultError(ValueError):
    """The name or the value of a fault makes no sense; the text says why."""


class Faults:
    def __init__(self, seed: int) -> None:
        self._dice = Dice(seed, "faults")
        self._rolls: dict[str, Rolls] = {}
        self._active: dict[str, Fault] = {}
        # How often each has struck.
        self.struck: dict[str, int] = {}

    def describe(self) -> dict[str, Any]:
        """What is on, as it can be given to `replace`."""
        return {name: msgspec.to_builtins(fault) for name, fault in self._active.items()}

    def replace(self, wanted: Mapping[str, object]) -> None:
        """These and no others. Raises UnknownFaultError, and then nothing has changed."""
        self._active = _read_all(wanted)

    def merge(self, wanted: Mapping[str, object]) -> None:
        """Change only those named; null, false or 0 switches one off. Raises UnknownFaultError."""
        changed = _read_all(wanted)
        named = {_OTHER_NAMES.get(name, name) for name in wanted}
        kept = {name: fault for name, fault in self._active.items() if name not in named}
        self._active = {**kept, **changed}

    def get(self, name: str) -> Fault | None:
        """The fault if it is on, whatever its rate."""
        return self._active.get(name)

    @property
    def name_sellers(self) -> bool:
        """Whether it matters for any that is on whose request it is."""
        return any(fault.sellers for fault in self._active.values())

    def strikes(self, name: str, endpoint: str | None = None, seller: str | None = None) -> Fault | None:
        """The fault if it is on and hits this time, which counts as one of its times."""
        fault = self._active.get(name)
        if fault is None or not _concerns(name, fault, endpoint, seller) or not self.rolls(name).happens(fault.rate):
            return None
        if fault.times is not None:
            if fault.times <= 0:
                return None
            fault.times -= 1
        self.note(name)
        return fault

    def note(self, name: str) -> None:
        """Count a strike; `strikes` does it itself, a fault without dice has to be counted where it shows."""
        self.struck[name] = self.struck.get(name, 0) + 1

    def rolls(self, name: str) -> Rolls:
        rolls = self._rolls.get(name)
        if rolls is None:
            rolls = self._rolls[name] = Rolls(self._dice.scoped(name))
        return rolls


def _concerns(name: str, fault: Fault, endpoint: str | None, seller: str | None) -> bool:
    endpoints = fault.endpoints or _USUAL_ENDPOINTS.get(name, ENDPOINTS)
    if endpoint is not None and endpoint not in endpoints:
        return False
    return not fault.sellers or seller in fault.sellers


def _read_all(wanted: Mapping[str, object]) -> dict[str, Fault]:
    faults = {_OTHER_NAMES.get(name, name): value for name, value in wanted.items()}
    read = {name: _read(name, value) for name, value in faults.items()}
    return {name: fault for name, fault in read.items() if fault is not None}


def _read(name: str, value: object) -> Fault | None:
    if name not in _AMOUNTS:
        raise UnknownFaultError(f"no fault is called {name!r}; there are {', '.join(_AMOUNTS)}")
    if value in (None, False, 0):
        return None
    document: object = value
    if isinstance(value, bool):
        document = {}
    elif isinstance(value, int | float):
        document = {"amount" if name in _IN_SECONDS else "rate": value}
    try:
        fault = msgspec.convert(document, Fault)
    except msgspec.ValidationError as error:
        raise UnknownFaultError(f"{name}: {error}") from None
    _check(name, fault)
    if fault.amount < 0:
        fault.amount = _AMOUNTS[name]
    return fault


def _check(name: str, fault: Fault) -> None:
    if not 0 <= fault.rate <= 1:
        raise UnknownFaultError(f"{name}: rate must be between 0 and 1")
    for endpoint in fault.endpoints:
        if endpoint not in ENDPOINTS:
            raise UnknownFaultError(f"{name}: no endpoint is called {endpoint!r}; there are {', '.join(ENDPOINTS)}")
    for kind in (*fault.kinds, *fault.orders.values()):
        if kind not in TOXIC_KINDS:
            raise UnknownFaultError(f"{name}: no kind is called {kind!r}; there are {', '.join(TOXIC_KINDS)}")
