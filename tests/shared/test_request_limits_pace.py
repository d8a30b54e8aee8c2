"""The arithmetic of pacing: in no window, wherever it begins, more than the limit; nearly all of it used (P5, E1)."""

from bisect import bisect_right

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.limits.pace import Pace

MINUTE = 60.0
LIMITS = [1, 10, 60, 100, 1000, 9000]


def most_in_a_minute(moments: list[float]) -> int:
    """The fullest window, wherever it begins."""
    moments = sorted(moments)
    return max(bisect_right(moments, start + MINUTE - 1e-9) - number for number, start in enumerate(moments))


def greedy(pace: Pace, pauses: list[float]) -> list[float]:
    """When requests go out that want to go at once, but for these pauses before them."""
    now, next_slot, sent = 1000.0, float("-inf"), []
    for pause in pauses:
        slot = pace.slot(next_slot, now + pause)
        now = max(now + pause, slot)
        next_slot = slot + pace.interval
        sent.append(now)
    return sent


@pytest.mark.parametrize("limit", LIMITS)
def test_a_backlog_uses_nearly_all_and_never_more(limit: int) -> None:
    sent = greedy(Pace.of(limit, minute_seconds=MINUTE), [0.0] * (4 * limit + 10))

    assert most_in_a_minute(sent) <= limit
    assert len([moment for moment in sent if moment < 1000 + 3 * MINUTE]) >= 3 * limit * 0.95


@given(limit=st.integers(1, 300), pauses=st.lists(st.floats(0, 3), min_size=2, max_size=400))
@example(limit=60, pauses=[0.0] * 30 + [40.0] + [0.0] * 100)
def test_no_minute_holds_more_than_the_limit_however_requests_come(limit: int, pauses: list[float]) -> None:
    assert most_in_a_minute(greedy(Pace.of(limit, minute_seconds=MINUTE), pauses)) <= limit


@given(limit=st.sampled_from(LIMITS[1:]), data=st.data())
def test_not_even_if_each_request_arrives_late_by_up_to_a_second(limit: int, data: st.DataObject) -> None:
    sent = greedy(Pace.of(limit, minute_seconds=MINUTE), [0.0] * min(2 * limit, 1500))
    late = data.draw(st.lists(st.floats(0, 1.0), min_size=1, max_size=20))

    arrived = [moment + late[number % len(late)] for number, moment in enumerate(sent)]

    assert most_in_a_minute(arrived) <= limit


@given(limit=st.sampled_from(LIMITS), minute=st.floats(1, 60))
def test_a_scaled_minute_keeps_the_allowance(limit: int, minute: float) -> None:
    pace = Pace.of(limit, minute_seconds=minute)

    assert 0.95 * limit <= minute / pace.interval <= limit


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        pytest.param(0, 1, id="at-least-one"),
        pytest.param(5, 5, id="what-is-needed"),
        pytest.param(1000, 18, id="no-more-than-an-eighth-of-a-second"),
    ],
)
def test_chunks_follow_demand(waiting: int, expected: int) -> None:
    assert Pace.of(9000, minute_seconds=MINUTE).chunk(waiting, seconds=0.125) == expected


def test_a_few_may_always_be_asked_for() -> None:
    assert Pace.of(10, minute_seconds=MINUTE).chunk(50, seconds=0.125) == 8
