"""Slots taken ahead: each is used once, when it is due, and not when it has grown old (P5)."""

from hypothesis import given
from hypothesis import strategies as st

from shared.limits.pace import Pace
from shared.limits.slots import Demand, Slots

PACE = Pace.of(600, minute_seconds=60)
LIFETIME = PACE.lifetime + PACE.tolerance


@given(
    count=st.integers(0, 50),
    looks=st.lists(st.floats(0, 1.0), max_size=200),
)
def test_no_slot_is_used_before_it_is_due_nor_long_after_nor_twice(count: int, looks: list[float]) -> None:
    slots = Slots(PACE, first=100.0, count=count)
    now, unused = 99.0, [100.0 + number * PACE.interval for number in range(count)]

    for pause in looks:
        now += pause
        unused = [slot for slot in unused if now - slot <= LIFETIME + 1e-6]
        if slots.use(now):
            assert unused
            assert unused.pop(0) <= now + 1e-6


def test_it_says_how_long_to_wait_for_the_next_slot() -> None:
    slots = Slots(PACE, first=100.0, count=1)

    assert not slots.use(99.0)
    assert slots.wait(99.0) == 1.0
    assert slots.use(100.0)
    assert slots.wait(100.0) is None


def test_demand_is_what_came_scaled_to_the_time_asked_for() -> None:
    demand = Demand()
    demand.within(0.125, now=50.0)
    demand.calls += 80

    assert demand.within(0.125, now=51.0) == 10
    assert demand.within(0.125, now=52.0) == 0


def test_a_burst_is_not_taken_for_a_flood() -> None:
    demand = Demand()
    demand.within(0.125, now=50.0)
    demand.calls += 80

    assert demand.within(0.125, now=50.001) == 160
