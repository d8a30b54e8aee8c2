"""An order's life: the steps that it takes, and the state that they lead to. Pure.

A step is (kind, milliseconds). Every step is one event of the journal, except that rare orders have no BOUGHT event
(about 1 in 1000, #2945). A plan is the whole life that an order would have; how much of it has happened is for the
caller to cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from zlib import crc32

BOUGHT: Final = 0
FILLED_IN: Final = 1
READY: Final = 2
BUYER_CANCELLED: Final = 3
AUTO_CANCELLED: Final = 4
BUYER_MODIFIED: Final = 5
# 8 and more: the seller's status, by its place in FULFILLMENT.
_FULFILLMENT_BASE: Final = 8
FULFILLMENT: Final = (
    "NEW", "PROCESSING", "READY_FOR_SHIPMENT", "READY_FOR_PICKUP", "SENT", "PICKED_UP", "CANCELLED", "SUSPENDED",
    "RETURNED",
)  # fmt: skip

_TYPES: Final = (
    "BOUGHT", "FILLED_IN", "READY_FOR_PROCESSING", "BUYER_CANCELLED", "AUTO_CANCELLED", "BUYER_MODIFIED",
)  # fmt: skip
FULFILLMENT_CHANGED: Final = "FULFILLMENT_STATUS_CHANGED"
STATUSES: Final = ("BOUGHT", "FILLED_IN", "READY_FOR_PROCESSING", "CANCELLED")

_SECOND: Final = 1000
_HOUR: Final = 3_600_000
_DAY: Final = 24 * _HOUR
# Unpaid orders are cancelled after 7 days (#4646).
_AUTO_CANCEL: Final = 7 * _DAY
# No planned life is longer than this.
LONGEST_LIFE_MS: Final = 12 * _DAY

Step = tuple[int, int]


class Story(NamedTuple):
    """What is special about an order, from its dice."""

    cash: bool
    silent_bought: bool
    extended_term: bool


@dataclass(slots=True)
class State:
    """Where the steps have led."""

    status: str = "BOUGHT"
    fulfillment: str = "NEW"
    updated_ms: int = 0
    paid_ms: int | None = None
    ready_ms: int | None = None
    modified_ms: int | None = None
    surcharged_ms: tuple[int, ...] = ()
    changes: int = 0


def story(roll: bytes) -> Story:
    kind = roll[0]
    return Story(
        cash=kind < 24,
        silent_bought=roll[1] == 0 and roll[2] < 64,
        extended_term=24 <= kind < 28,
    )


def fulfillment_step(status: str) -> int:
    """The kind of the step to a seller's status; raises ValueError."""
    return _FULFILLMENT_BASE + FULFILLMENT.index(status)


PROCESSING: Final = fulfillment_step("PROCESSING")
READY_FOR_SHIPMENT: Final = fulfillment_step("READY_FOR_SHIPMENT")
SENT: Final = fulfillment_step("SENT")
PICKED_UP: Final = fulfillment_step("PICKED_UP")
RETURNED: Final = fulfillment_step("RETURNED")


def event_type(kind: int) -> str:
    return _TYPES[kind] if kind < _FULFILLMENT_BASE else FULFILLMENT_CHANGED


def plan(roll: bytes, bought_ms: int) -> list[Step]:
    """The whole life of an order whose form was made at `bought_ms`, in order of time."""
    kind = roll[0]
    steps = [(BOUGHT, bought_ms)]
    if kind < 24:  # cash on delivery: paid later, so ready at once and never filled in
        steps.append((READY, bought_ms))
        return _with_fulfillment(steps, roll, bought_ms)
    if kind >= 252:  # bought and never filled in
        steps.append((AUTO_CANCELLED, bought_ms + _AUTO_CANCEL))
        return steps
    # BOUGHT and FILLED_IN usually share the time; when they are seconds apart, their ids may be the other way round.
    filled_ms = bought_ms
    if roll[3] >= 150:
        filled_ms += 2 * _SECOND if roll[3] < 200 else roll[3] * 7 * _SECOND
    steps.append((FILLED_IN, filled_ms))
    if kind >= 246:
        steps.append((AUTO_CANCELLED, filled_ms + _AUTO_CANCEL))
        return steps
    if kind >= 240:
        steps.append((BUYER_CANCELLED, filled_ms + 20 * _SECOND + roll[4] * 60 * _SECOND))
        return steps
    if kind >= 234:  # the buyer corrects the address
        filled_ms += 5 * _SECOND + roll[4] * _SECOND
        steps.append((BUYER_MODIFIED, filled_ms))
    ready_ms = filled_ms + 8 * _SECOND + roll[5] * _SECOND
    steps.append((READY, ready_ms))
    if kind >= 230:
        steps.append((BUYER_CANCELLED, ready_ms + roll[4] * 60 * _SECOND + _SECOND))
        return steps
    if kind >= 226 or 24 <= kind < 28:  # a surcharge, or deferred money arriving: READY_FOR_PROCESSING recurs
        ready_ms += _HOUR + roll[6] * 60 * _SECOND
        steps.append((READY, ready_ms))
    return _with_fulfillment(steps, roll, ready_ms)


def _with_fulfillment(steps: list[Step], roll: bytes, ready_ms: int) -> list[Step]:
    at_ms = ready_ms + 10 * 60 * _SECOND + roll[8] * 90 * _SECOND
    if roll[9] >= 24:
        steps.append((PROCESSING, at_ms))
        at_ms += _HOUR // 2 + roll[10] * 120 * _SECOND
    if roll[9] >= 250:  # forgotten by the seller
        return steps
    if roll[9] >= 128:
        steps.append((READY_FOR_SHIPMENT, at_ms))
        at_ms += _HOUR // 2 + roll[11] * 60 * _SECOND
    if roll[9] >= 12:
        steps.append((SENT, at_ms))
        at_ms += _DAY + roll[12] * 20 * 60 * _SECOND
    if roll[9] >= 80:
        steps.append((PICKED_UP, at_ms))
        if roll[13] < 6:
            steps.append((RETURNED, at_ms + _DAY + roll[14] * _HOUR // 4))
    return steps


def until(steps: Sequence[Step], at_ms: int) -> list[Step]:
    """The steps that have been taken by that time."""
    return [step for step in steps if step[1] <= at_ms]


def state_of(steps: Sequence[Step], told: Story) -> State:
    """The state after these steps.

    `updated_ms` moves with the buyer's steps only: Allegro's `updatedAt` is blind to what sellers do (#4355, #9905).
    """
    state = State()
    for kind, at_ms in steps:
        if kind >= _FULFILLMENT_BASE:
            state.fulfillment = FULFILLMENT[kind - _FULFILLMENT_BASE]
            state.changes += 1
            continue
        state.updated_ms = max(at_ms, state.updated_ms)
        # BOUGHT and FILLED_IN of an order share a revision, and so do the steps of a cash order (sandbox 2026).
        if kind == READY:
            _make_ready(state, at_ms, told)
        elif kind == FILLED_IN:
            state.status = "FILLED_IN"
        elif kind == BUYER_MODIFIED:
            state.modified_ms = at_ms
            state.changes += 1
        elif kind != BOUGHT:
            state.status = "CANCELLED"
            state.changes += 1
    return state


def _make_ready(state: State, at_ms: int, told: Story) -> None:
    state.status = "READY_FOR_PROCESSING"
    if state.ready_ms is not None:
        state.changes += 1
        if not told.extended_term:
            state.surcharged_ms = (*state.surcharged_ms, at_ms)
        return
    state.ready_ms = state.paid_ms = at_ms
    state.changes += 0 if told.cash else 1


_REVISIONS: Final = tuple(
    tuple(b"%08x" % crc32(bytes((shape, changes))) for changes in range(64)) for shape in range(16)
)


def revision(roll: bytes, changes: int) -> bytes:
    """8 hex digits, neither unique between orders nor ordered (#3217, #10716): use it with the form's id only."""
    return _REVISIONS[roll[7] & 15][changes & 63]


def next_kind(state: State, told: Story) -> int | None:
    """The usual next step from a state, or None at the end of an order's life."""
    if state.status == "CANCELLED":
        return None
    if state.status == "BOUGHT":
        return READY if told.cash else FILLED_IN
    if state.status == "FILLED_IN":
        return READY
    return _NEXT_FULFILLMENT.get(state.fulfillment)


_NEXT_FULFILLMENT: Final = {
    "NEW": PROCESSING,
    "PROCESSING": READY_FOR_SHIPMENT,
    "READY_FOR_SHIPMENT": SENT,
    "READY_FOR_PICKUP": PICKED_UP,
    "SENT": PICKED_UP,
    "SUSPENDED": PROCESSING,
}
