"""Faults hit whom they are told to, as often as they are told to, and the same calls in every run."""

import pytest

from simulator.faults import CATALOGUE, TOXIC_KINDS, Faults, poison


def some_faults(document: object, seed: int = 1) -> Faults:
    faults = Faults(seed)
    faults.change(document, keep=False)
    return faults


def test_nothing_goes_wrong_unless_told() -> None:
    faults = Faults(1)

    assert not faults
    assert not any(faults.strikes(name) for name in CATALOGUE)


def test_the_same_calls_are_hit_in_every_run() -> None:
    runs = [some_faults({"http_5xx": 0.3}) for _ in range(2)]

    hits = [[bool(run.strikes("http_5xx", "detail")) for _ in range(1000)] for run in runs]

    assert hits[0] == hits[1]
    assert 200 < sum(hits[0]) < 400


def test_only_the_chosen_endpoints_are_hit() -> None:
    faults = some_faults({"http_5xx": {"rate": 1, "endpoints": ["detail"]}, "captcha_403": True})

    assert faults.strikes("http_5xx", "detail")
    assert not faults.strikes("http_5xx", "list")
    assert faults.strikes("captcha_403", "device")
    assert not faults.strikes("captcha_403", "list")


def test_only_the_chosen_sellers_are_hit() -> None:
    faults = some_faults({"timeout": {"sellers": ["110000002"]}})

    assert faults.strikes("timeout", "list", "110000002")
    assert not faults.strikes("timeout", "list", "110000001")
    assert not faults.strikes("timeout", "list")


def test_a_count_is_used_up() -> None:
    faults = some_faults({"invalid_grant_once": {"count": 2}})

    assert [bool(faults.strikes("invalid_grant_once", "token")) for _ in range(4)] == [True, True, False, False]
    assert faults.happened == {"invalid_grant_once": 2}


def test_a_fault_by_key_hits_the_same_keys_whenever_asked() -> None:
    faults = some_faults({"toxic": 0.2})

    first = [bool(faults.strikes_key("toxic", key)) for key in range(500)]
    backwards = [bool(faults.strikes_key("toxic", key)) for key in reversed(range(500))]

    assert first == backwards[::-1]
    assert 50 < sum(first) < 150


def test_rules_are_replaced_or_kept() -> None:
    faults = some_faults({"timeout": 0.5, "merges": 0.1})

    faults.change({"timeout": None, "list_lag_seconds": 4}, keep=True)
    assert faults.document() == {"merges": {"rate": 0.1}, "list_lag_seconds": {"seconds": 4.0}}
    faults.change({"toxic": True}, keep=False)
    assert list(faults.document()) == ["toxic"]
    faults.clear()
    assert not faults


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {"unknown": 1},
        {"timeout": 2},
        {"timeout": -1},
        {"timeout": "often"},
        {"timeout": {"rate": 1, "often": True}},
        {"http_5xx": {"endpoints": ["nowhere"]}},
        {"http_5xx": {"status": 404}},
    ],
)
def test_a_wrong_rule_is_refused_and_changes_nothing(document: object) -> None:
    faults = some_faults({"merges": 0.5})

    with pytest.raises(ValueError, match=r".+"):
        faults.change(document, keep=False)

    assert faults.document() == {"merges": {"rate": 0.5}}


@pytest.mark.parametrize("kind", TOXIC_KINDS)
def test_a_poisoned_body_is_still_an_object_with_its_members(kind: str) -> None:
    import json

    poisoned = json.loads(poison(b'{"id":"one"}', kind, "one"))

    assert poisoned["id"] == "one"
    assert "toxic" in poisoned
