"""The plan of faults: repeatable, complete, and never more than the product promises to bear."""

from hypothesis import given, settings
from hypothesis import strategies as st

from devstack.chaos.plan import Kind, make_plan, service_of

_SEEDS = st.integers(0, 2**32)
# How long a plan takes to make on a busy machine is of no interest.
_UNTIMED = settings(deadline=None, max_examples=50)


@_UNTIMED
@given(seed=_SEEDS, minutes=st.integers(0, 30))
def test_the_same_seed_gives_the_same_plan(seed: int, minutes: int) -> None:
    assert make_plan(seed, minutes * 60) == make_plan(seed, minutes * 60)


@_UNTIMED
@given(seed=_SEEDS)
def test_three_minutes_hold_every_kind_of_fault(seed: int) -> None:
    assert {injection.kind for injection in make_plan(seed, 180)} == set(Kind)


@_UNTIMED
@given(seed=_SEEDS, seconds=st.floats(0, 600))
def test_every_fault_is_over_when_the_time_is_up(seed: int, seconds: float) -> None:
    assert all(injection.until_seconds <= seconds for injection in make_plan(seed, seconds))


@_UNTIMED
@given(seed=_SEEDS)
def test_within_three_minutes_every_working_service_is_struck_in_every_way(seed: int) -> None:
    plan = make_plan(seed, 180)

    for service in ("poller", "enricher", "writer"):
        struck = [injection for injection in plan if service_of(injection.target) == service]
        assert {Kind.KILL, Kind.PAUSE, Kind.RESTART} <= {injection.kind for injection in struck}
        assert all(injection.for_seconds == 30 for injection in struck if injection.kind is Kind.PAUSE)
        shifts = [injection.shift_seconds for injection in struck if injection.kind is Kind.CLOCK]
        assert min(shifts) < 0 < max(shifts)
        # Dealt in turn, so that both replicas are struck.
        assert len({injection.target for injection in struck} - {service}) >= 1
    all_shifts = {injection.shift_seconds for injection in plan if injection.kind is Kind.CLOCK}
    assert {86_400.0, -86_400.0} <= all_shifts


@_UNTIMED
@given(seed=_SEEDS)
def test_servers_are_struck_while_replicas_are(seed: int) -> None:
    plan = make_plan(seed, 180)
    standing_still = [injection for injection in plan if injection.kind in (Kind.PAUSE, Kind.CLOCK)]

    overlapping = [
        injection
        for injection in plan
        if not injection.target
        and any(other.at_seconds < injection.at_seconds < other.until_seconds for other in standing_still)
    ]

    assert len(overlapping) >= 3


@_UNTIMED
@given(seed=_SEEDS)
def test_nobody_is_struck_who_is_still_held_and_one_replica_of_each_service_goes_on(seed: int) -> None:
    plan = [injection for injection in make_plan(seed, 600) if injection.target]

    for number, injection in enumerate(plan):
        for earlier in plan[:number]:
            if earlier.until_seconds >= injection.at_seconds:
                assert service_of(injection.target) != service_of(earlier.target)


@_UNTIMED
@given(seed=_SEEDS)
def test_faults_come_in_order_and_another_seed_gives_another_plan(seed: int) -> None:
    plan = make_plan(seed, 180)

    assert plan == sorted(plan, key=lambda injection: injection.at_seconds)
    assert plan != make_plan(seed + 1, 180)
