"""The circuit, by any sequence of calls: it opens only for an outage, lets one probe through, and always comes back."""

import math
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared.circuit import Circuit, Ticket


def opened(now: float = 0.0) -> Circuit:
    circuit = Circuit()
    for _ in range(8):
        fail(circuit, now)
    assert circuit.is_open
    return circuit


def fail(circuit: Circuit, now: float) -> None:
    ticket = circuit.admit(now)
    assert ticket is not None
    circuit.record(ticket, now, failed=True)


@given(st.lists(st.booleans(), max_size=200))
def test_it_never_opens_while_a_third_of_the_calls_succeeds(outcomes: list[bool]) -> None:
    circuit = Circuit()
    for number, failed in enumerate(outcomes):
        for answer in (failed, failed, False):
            ticket = circuit.admit(number)
            assert ticket is not None
            circuit.record(ticket, number, failed=answer)

    assert not circuit.is_open


def test_a_few_failures_are_no_outage_and_old_ones_are_forgotten() -> None:
    circuit = Circuit()
    for number in range(100):
        fail(circuit, number * 10.0)  # one order that always fails: six in a minute

    assert not circuit.is_open


@given(st.integers(1, 12))
def test_a_failed_probe_makes_the_pause_longer_up_to_a_minute(probes: int) -> None:
    circuit = opened()
    now = 0.0
    pauses = []
    for _ in range(probes):
        now += circuit.pause_left(now)
        probe = circuit.admit(now)
        assert probe is not None
        assert probe.is_probe
        circuit.record(probe, now, failed=True)
        pauses.append(circuit.pause_left(now))

    assert pauses == [min(5.0 * 2**number, 60.0) for number in range(1, probes + 1)]


def test_outcomes_of_calls_that_began_before_it_opened_decide_nothing() -> None:
    circuit = Circuit()
    early = [circuit.admit(0) for _ in range(20)]
    for ticket in early[:8]:
        assert ticket is not None
        circuit.record(ticket, 0, failed=True)
    for ticket in early[8:]:
        assert ticket is not None
        circuit.record(ticket, 1, failed=False)

    assert circuit.is_open
    assert circuit.admit(4.9) is None


def test_a_probe_that_was_cancelled_does_not_keep_it_shut_for_ever() -> None:
    circuit = opened()
    probe = circuit.admit(5)
    assert probe is not None
    refused = circuit.admit(6)
    circuit.release(probe)

    again = circuit.admit(6)

    assert refused is None
    assert again is not None


def call(circuit: Circuit, now: float, party: str, *, failed: bool) -> None:
    ticket = circuit.admit(now)
    assert ticket is not None
    circuit.record(ticket, now, failed=failed, party=party)


@given(calls=st.integers(8, 300), healthy=st.integers(2, 20), every=st.floats(1, 280))
def test_one_whose_every_call_fails_stops_nobody_else(calls: int, healthy: int, every: float) -> None:
    circuit = Circuit()
    for number in range(healthy):
        call(circuit, 0.0, f"healthy {number}", failed=False)
    for number in range(calls):
        now = number * 0.1
        call(circuit, now, "broken", failed=True)
        if now % every < 0.1:
            call(circuit, now, f"healthy {number % healthy}", failed=False)

    assert not circuit.is_open


@given(parties=st.integers(1, 50))
def test_where_the_calls_of_all_fail_it_opens_soon(parties: int) -> None:
    circuit = Circuit()
    for number in range(parties):
        call(circuit, 0.0, f"seller {number}", failed=False)
    failures = 0
    while not circuit.is_open:
        call(circuit, 100.0, f"seller {failures % parties}", failed=True)
        failures += 1

    assert failures == 8


def test_those_who_have_not_called_for_long_do_not_count() -> None:
    circuit = Circuit()
    for number in range(3):
        call(circuit, 0.0, f"gone {number}", failed=False)
    for _ in range(8):
        call(circuit, 1000.0, "the only one", failed=True)

    assert circuit.is_open


@dataclass
class _Model:
    now: float = 0.0
    calls: list[Ticket] = field(default_factory=list)


class AnyCalls(RuleBasedStateMachine):
    """Calls that overlap, end in any order, fail, succeed or are cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.circuit = Circuit()
        self.model = _Model()

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds: float) -> None:
        self.model.now += seconds

    @rule()
    def call(self) -> None:
        ticket = self.circuit.admit(self.model.now)
        if ticket is None:
            assert self.circuit.is_open
            assert 0 < self.circuit.pause_left(self.model.now) <= 60
        else:
            assert ticket.is_probe == self.circuit.is_open
            self.model.calls.append(ticket)

    @precondition(lambda self: self.model.calls)
    @rule(data=st.data(), failed=st.sampled_from([True, True, True, False, None]))
    def end(self, data: st.DataObject, failed: bool | None) -> None:
        ticket = self.model.calls.pop(data.draw(st.integers(0, len(self.model.calls) - 1)))
        was_open = self.circuit.is_open
        if failed is not None:
            self.circuit.record(ticket, self.model.now, failed=failed)
        self.circuit.release(ticket)
        if was_open and not ticket.is_probe:
            assert self.circuit.is_open, "only a probe closes it"
        if was_open and ticket.is_probe and failed is False:
            assert not self.circuit.is_open

    @invariant()
    def one_probe_at_a_time(self) -> None:
        assert sum(ticket.is_probe for ticket in self.model.calls) <= 1

    def teardown(self) -> None:
        """Whatever happened: with nobody calling, a minute later somebody may, and a success closes it."""
        for ticket in self.model.calls:
            self.circuit.release(ticket)
        later = self.model.now + 60
        last = self.circuit.admit(later)
        assert last is not None
        self.circuit.record(last, later, failed=False)
        assert not self.circuit.is_open
        assert math.isclose(self.circuit.pause_left(later), 0)


TestAnyCalls = AnyCalls.TestCase
