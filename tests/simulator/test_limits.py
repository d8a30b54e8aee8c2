"""The limits of section 6 of allegro-api.md."""

from typing import Any

import pytest

from simulator.clock import ManualClock
from simulator.limits import Limits, PerMinute, TooManyRequestsError
from simulator.settings import Settings

NOW_US = 1_791_670_000_000_000


def some_limits(clock: ManualClock, **settings: Any) -> Limits:
    off = {"client_limit": 0, "events_limit": 0, "list_limit": 0, "detail_limit": 0, "device_limit": 0}
    return Limits(Settings(**{**off, **settings}), clock)


def allowed(limits: Limits, client: str = "app", caller: str = "seller", endpoint: Any = "detail") -> bool:
    try:
        limits.check(client, caller, endpoint)
    except TooManyRequestsError:
        return False
    return True


def test_a_client_over_its_limit_is_blocked_for_a_minute() -> None:
    clock = ManualClock(NOW_US)
    limits = some_limits(clock, client_limit=5)

    assert [allowed(limits) for _ in range(6)] == [True] * 5 + [False]
    clock.advance(59.9)
    assert not allowed(limits)
    clock.advance(60)
    assert allowed(limits)


def test_calls_during_the_block_prolong_it() -> None:
    clock = ManualClock(NOW_US)
    limits = some_limits(clock, client_limit=1)
    allowed(limits)

    for _ in range(4):
        assert not allowed(limits)
        clock.advance(40)

    assert not allowed(limits)


def test_the_window_slides() -> None:
    clock = ManualClock(NOW_US)
    limits = some_limits(clock, client_limit=60)

    for _ in range(200):
        assert allowed(limits)
        clock.advance(1.02)


def test_all_sellers_share_the_clients_limit_and_other_clients_do_not() -> None:
    limits = some_limits(ManualClock(NOW_US), client_limit=2)

    assert allowed(limits, caller="one")
    assert allowed(limits, caller="two", endpoint="list")
    assert not allowed(limits, caller="three", endpoint="events")
    assert allowed(limits, client="another")


def test_authorisation_does_not_count_against_the_client() -> None:
    limits = some_limits(ManualClock(NOW_US), client_limit=1)

    assert all(allowed(limits, endpoint="token") for _ in range(5))


def test_a_tokens_limit_blocks_that_endpoint_only_and_is_not_prolonged() -> None:
    clock = ManualClock(NOW_US)
    limits = some_limits(clock, events_limit=2)

    assert [allowed(limits, endpoint="events") for _ in range(3)] == [True, True, False]
    assert allowed(limits, endpoint="list")
    assert allowed(limits, caller="another", endpoint="events")
    clock.advance(30)
    assert not allowed(limits, endpoint="events")
    clock.advance(31)
    assert allowed(limits, endpoint="events")


def test_a_scaled_minute_is_shorter() -> None:
    clock = ManualClock(NOW_US)
    limits = some_limits(clock, client_limit=1, time_scale=60.0)
    allowed(limits)
    assert not allowed(limits)

    clock.advance(1.1)

    assert allowed(limits)


@pytest.mark.parametrize(("told", "expected"), [(True, 60), (False, None)])
def test_retry_after_is_told_only_if_asked_for(told: bool, expected: int | None) -> None:
    limits = some_limits(ManualClock(NOW_US), client_limit=1, retry_after=told)
    allowed(limits)

    with pytest.raises(TooManyRequestsError) as error:
        limits.check("app", "seller", "detail")

    assert error.value.retry_after_seconds == expected


def test_limits_can_be_changed_while_it_runs() -> None:
    limits = some_limits(ManualClock(NOW_US), client_limit=1)
    allowed(limits)
    assert not allowed(limits)

    limits.change(PerMinute(client=0))

    assert all(allowed(limits) for _ in range(5))
