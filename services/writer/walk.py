"""How far a bulk load is committed: the unbroken part of its sequence. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from services.writer.batch import Walked


@dataclass(frozen=True)
class WalkState:
    """What `run_windows` knows of a walk."""

    run_id: UUID
    attempt: int
    next_sequence: int
    position: datetime
    boundary_order_ids: tuple[str, ...]


def advance(state: WalkState, walked: Iterable[Walked]) -> WalkState:
    """Move over the orders that follow without a gap.

    The position is the latest purchase time among them; the ids bought at exactly that moment are kept, so that a
    resumed walk, which asks from that moment on, can tell the orders it has counted from those it has not.
    """
    by_sequence = {order.sequence: order for order in walked}
    boundary = list(state.boundary_order_ids)
    position, sequence = state.position, state.next_sequence
    while (order := by_sequence.get(sequence)) is not None:
        sequence += 1
        bought_at = order.bought_at or position
        if bought_at > position:
            position, boundary = bought_at, []
        if bought_at == position:
            boundary.append(order.order_id)
    return replace(state, next_sequence=sequence, position=position, boundary_order_ids=tuple(boundary))


def is_complete(state: WalkState, orders: int) -> bool:
    """Whether everything that the walk gave a number to is committed."""
    return state.next_sequence >= orders


def advance_all(states: Sequence[WalkState], walked: dict[tuple[UUID, int], list[Walked]]) -> list[WalkState]:
    """Advance each walk by the orders of its present attempt; those of an earlier attempt count for nothing."""
    return [advance(state, walked.get((state.run_id, state.attempt), ())) for state in states]
