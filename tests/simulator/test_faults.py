"""Faults hit whom they are told to, as often as they are told to, and the same calls in every run."""

import json

import pytest

from simulator.faults import TOXIC_KINDS, Fault, Faults, UnknownFaultError
from simulator.toxic import UNREADABLE, kind_of, poison


def some_faults(**wanted: object) -> Faults:
    faults = Faults(1)
    faults.replace(wanted)
    return faults


def test_nothing_goes_wrong_unless_told() -> None:
    assert not any(Faults(1).strikes(name) for name in ("http_5xx", "timeout", "journal_missing"))


def test_the_same_calls_are_hit_in_every_run() -> None:
    hits = []
    for _ in range(2):
        run = some_faults(http_5xx=0.3)
        hits.append([run.strikes("http_5xx", "detail") is not None for _ in range(1000)])

    assert hits[0] == hits[1]
    assert 200 < sum(hits[0]) < 400


def test_endpoints_and_sellers_narrow_a_fault_down() -> None:
    faults = some_faults(http_5xx={"endpoints": ["detail"]}, timeout={"sellers": ["110000002"]}, captcha_403=True)

    assert faults.strikes("http_5xx", "detail")
    assert not faults.strikes("http_5xx", "list")
    assert faults.strikes("timeout", "list", "110000002")
    assert not faults.strikes("timeout", "list", "110000001")
    assert faults.strikes("captcha_403", "device")
    assert not faults.strikes("captcha_403", "list")


def test_times_are_used_up() -> None:
    faults = some_faults(http_429={"times": 2})

    assert [faults.strikes("http_429") is not None for _ in range(4)] == [True, True, False, False]
    assert faults.struck == {"http_429": 2}


def test_faults_are_replaced_or_merged() -> None:
    faults = some_faults(timeout=0.5, merges=0.1)

    faults.merge({"timeout": None, "list_lag_seconds": 4})
    assert faults.describe() == {"merges": {"rate": 0.1, "amount": 0}, "list_lag_seconds": {"amount": 4}}

    faults.replace({"token_429": True})
    assert list(faults.describe()) == ["token_endpoint_429"]
    faults.merge({"token_429": 0})
    assert faults.describe() == {}


@pytest.mark.parametrize(
    "wanted",
    [
        {"unknown": 1},
        {"timeout": 2},
        {"timeout": "often"},
        {"timeout": {"often": True}},
        {"http_5xx": {"endpoints": ["nowhere"]}},
        {"toxic": {"kinds": ["sweet"]}},
    ],
)
def test_a_wrong_fault_is_refused_and_changes_nothing(wanted: dict[str, object]) -> None:
    faults = some_faults(merges=0.5)

    with pytest.raises(UnknownFaultError):
        faults.replace(wanted)

    assert faults.describe() == {"merges": {"rate": 0.5, "amount": 0}}


@pytest.mark.parametrize("kind", sorted(set(TOXIC_KINDS) - UNREADABLE))
def test_a_readable_poison_leaves_an_object_with_its_members(kind: str) -> None:
    poisoned = json.loads(poison(kind, b'{"id":"one"}', Fault(amount=100)))

    assert poisoned["id"] == "one"
    assert "toxic" in poisoned


@pytest.mark.parametrize("kind", sorted(UNREADABLE))
def test_an_unreadable_poison_is_refused_by_readers(kind: str) -> None:
    with pytest.raises((UnicodeDecodeError, RecursionError)):
        json.loads(poison(kind, b'{"id":"one"}', None))


def test_a_poisoned_order_stays_poisoned() -> None:
    faults = some_faults(toxic={"rate": 0.2})
    ids = [f"order-{number}" for number in range(1000)]

    first = [kind_of(faults, one) for one in ids]

    assert first == [kind_of(faults, one) for one in ids]
    assert 100 < sum(kind is not None for kind in first) < 300
    assert kind_of(some_faults(toxic={"orders": {"order-7": "nul"}}), "order-7") == "nul"
