"""The circuit, by any sequence of calls: it opens only for an outage, lets one probe through, and always comes back."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared.circuit import Circuit, Ticket

_SELLER = 7


def opened(now: float = 0.0, parties: int = 3) -> Circuit:
    circuit = Circuit()
    for number in range(9):
        if not circuit.is_open:
            call(circuit, _SELLER + number % parties, now, failed=True)
    assert circuit.is_open
    return circuit


def call(circuit: Circuit, party: int, now: float, *, failed: bool) -> None:
    ticket = circuit.admit(party, now)
    assert ticket is not None
    circuit.record(ticket, now, failed=failed)
    circuit.release(ticket)


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=200))
def test_it_never_opens_while_a_third_of_each_partys_calls_succeeds(outcomes: list[tuple[int, bool]]) -> None:
    circuit = Circuit()
    for number, (party, failed) in enumerate(outcomes):
        for answer in (failed, failed, False):
            call(circuit, party, number, failed=answer)

    assert not circuit.is_open


@given(
    broken=st.integers(1, 12),
    calls=st.lists(st.tuples(st.integers(0, 11), st.integers(1, 30), st.floats(0, 20)), max_size=100),
)
def test_broken_parties_never_stop_the_others_however_much_more_often_they_call(
    broken: int, calls: list[tuple[int, int, float]]
) -> None:
    """The others are a few more than a fifth of all, and each of them calls now and then."""
    circuit = Circuit()
    well = range(100, 100 + broken // 4 + 1)
    now = 0.0
    for party, times, seconds in calls:
        for other in well:
            call(circuit, other, now, failed=False)
        for _ in range(times):
            call(circuit, party % broken, now, failed=True)
        now += seconds

    assert not circuit.is_open


@pytest.mark.parametrize("seconds_between", [20.0, 60.0, 200.0])
def test_a_seller_who_seldom_calls_gets_through_while_all_calls_of_another_fail(seconds_between: float) -> None:
    circuit = Circuit()
    for number in range(100):
        now = number * seconds_between
        call(circuit, 8, now, failed=False)
        for step in range(24):
            call(circuit, 7, now + step * seconds_between / 24, failed=True)

    assert not circuit.is_open


def test_a_seller_of_whom_nothing_was_known_gets_through_at_once_and_closes_what_another_opened() -> None:
    circuit = opened(parties=1)

    refused = circuit.admit(_SELLER, 1)
    call(circuit, 8, 1, failed=False)
    for _ in range(50):
        call(circuit, _SELLER, 2, failed=True)

    assert refused is None
    assert not circuit.is_open


def test_sellers_of_whom_nothing_was_known_are_let_through_until_three_have_failed() -> None:
    circuit = opened(parties=1)
    assert not circuit.refuses_all

    call(circuit, 8, 1, failed=True)
    repeated = circuit.admit(8, 1)
    call(circuit, 9, 1, failed=True)

    assert repeated is None
    assert circuit.refuses_all
    assert circuit.admit(10, 1) is None
    assert circuit.pause_left(10, 1) == 4.0  # they were no probes: the pause is no longer for them


@pytest.mark.parametrize("parties", [1, 2, 3, 5, 8, 100])
def test_it_opens_when_all_parties_fail_however_many_there_are(parties: int) -> None:
    circuit = Circuit()
    calls = 0
    while not circuit.is_open:
        call(circuit, calls % parties, 0.1 * calls, failed=True)
        calls += 1

    assert calls == 8


@pytest.mark.parametrize("parties", [3, 20, 1000])
def test_it_opens_when_parties_that_were_well_begin_to_fail(parties: int) -> None:
    circuit = Circuit()
    for party in range(parties):
        call(circuit, party, 0, failed=False)
    calls = 0
    while not circuit.is_open:
        call(circuit, calls % parties, 1 + 0.1 * calls, failed=True)
        calls += 1

    assert calls <= 40


def test_two_accidents_beside_a_broken_seller_are_no_outage() -> None:
    circuit = Circuit()
    for party in (8, 9):
        call(circuit, party, 0, failed=True)
    for _ in range(100):
        call(circuit, 7, 1, failed=True)

    assert not circuit.is_open


def test_a_seller_who_is_gone_for_long_says_nothing_any_more() -> None:
    circuit = Circuit()
    call(circuit, 8, 0, failed=False)
    for _ in range(8):
        call(circuit, 7, 301, failed=True)

    assert circuit.is_open


def test_a_few_failures_are_no_outage_and_old_ones_are_forgotten() -> None:
    circuit = Circuit()
    for number in range(100):
        call(circuit, _SELLER, number * 10.0, failed=True)  # one order that always fails: six in a minute

    assert not circuit.is_open


@given(st.integers(1, 12))
def test_a_failed_probe_makes_the_pause_longer_up_to_a_minute(probes: int) -> None:
    circuit = opened()
    now = 0.0
    pauses = []
    for _ in range(probes):
        now += circuit.pause_left(_SELLER, now)
        probe = circuit.admit(_SELLER, now)
        assert probe is not None
        assert probe.is_probe
        circuit.record(probe, now, failed=True)
        pauses.append(circuit.pause_left(_SELLER, now))

    assert pauses == [min(5.0 * 2**number, 60.0) for number in range(1, probes + 1)]


@pytest.mark.parametrize("parties", [1, 2, 3])
@pytest.mark.parametrize("prober", [_SELLER, 1000])
def test_a_probe_that_succeeds_closes_it_for_everybody(parties: int, prober: int) -> None:
    circuit = opened(parties=parties)

    call(circuit, prober, 5, failed=False)

    assert not circuit.is_open
    assert all(circuit.pause_left(_SELLER + number, 5) == 0 for number in range(parties))


def test_outcomes_of_calls_that_began_before_it_opened_decide_nothing() -> None:
    circuit = Circuit()
    early = [circuit.admit(_SELLER, 0) for _ in range(20)]
    for ticket in early[:8]:
        assert ticket is not None
        circuit.record(ticket, 0, failed=True)
    for ticket in early[8:]:
        assert ticket is not None
        circuit.record(ticket, 1, failed=False)

    assert circuit.is_open
    assert circuit.admit(_SELLER, 4.9) is None


def test_a_probe_that_was_cancelled_does_not_keep_it_shut_for_ever() -> None:
    circuit = opened()
    probe = circuit.admit(_SELLER, 5)
    assert probe is not None
    refused = circuit.admit(_SELLER, 6)
    circuit.release(probe)

    again = circuit.admit(_SELLER, 6)

    assert refused is None
    assert again is not None


@dataclass
class _Model:
    now: float = 0.0
    calls: list[Ticket] = field(default_factory=list)


class AnyCalls(RuleBasedStateMachine):
    """Calls of several parties that overlap, end in any order, fail, succeed or are cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.circuit = Circuit()
        self.model = _Model()

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds: float) -> None:
        self.model.now += seconds

    @rule(party=st.integers(1, 5))
    def call(self, party: int) -> None:
        ticket = self.circuit.admit(party, self.model.now)
        if ticket is None:
            assert self.circuit.is_open
            assert 0 < self.circuit.pause_left(party, self.model.now) <= 60 + 1e-9  # floats are rounded
        else:
            assert self.circuit.is_open or not ticket.is_probe
            self.model.calls.append(ticket)

    @precondition(lambda self: self.model.calls)
    @rule(data=st.data(), failed=st.sampled_from([True, True, True, False, None]))
    def end(self, data: st.DataObject, failed: bool | None) -> None:
        ticket = self.model.calls.pop(data.draw(st.integers(0, len(self.model.calls) - 1)))
        was_open = self.circuit.is_open
        if failed is not None:
            self.circuit.record(ticket, self.model.now, failed=failed)
        self.circuit.release(ticket)
        if was_open and failed is not False:
            assert self.circuit.is_open, "only a success closes it"

    @invariant()
    def few_ask_while_it_is_open(self) -> None:
        """One probe at a time, of this opening; whoever is asked besides is one of three at most."""
        if self.circuit.is_open:
            asked = [ticket for ticket in self.model.calls if ticket.opening == self.circuit.openings]
            assert sum(ticket.is_probe for ticket in asked) <= 1
            assert sum(not ticket.is_probe for ticket in asked) <= 2

    def teardown(self) -> None:
        """Whatever happened: with nobody calling, a minute later somebody may, and a success closes it."""
        for ticket in self.model.calls:
            self.circuit.release(ticket)
        later = self.model.now + 60
        last = self.circuit.admit(1, later)
        assert last is not None
        self.circuit.record(last, later, failed=False)
        assert not self.circuit.is_open
        assert math.isclose(self.circuit.pause_left(1, later), 0)


TestAnyCalls = AnyCalls.TestCase
