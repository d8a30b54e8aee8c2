"""Comparing what is stored with what was served."""

from decimal import Decimal
from typing import Any

import pytest

from devstack.ledger import Comparison, Copy, Difference, Entry, compare_chunk, first_difference, order_entry, parse


@pytest.mark.parametrize(
    ("expected", "stored"),
    [
        ({"a": 1, "b": [{"c": None}]}, {"b": [{"c": None}], "a": 1}),
        (1, Decimal("1.0")),
        (parse("1.10"), parse("1.1")),
        (parse('{"a":1,"a":2}'), parse('{"a":1, "a":2}')),
        ("ż\u0000", "ż\u0000"),
        ([], []),
    ],
)
def test_equal_json(expected: Any, stored: Any) -> None:
    assert first_difference(expected, stored) is None


@pytest.mark.parametrize(
    ("expected", "stored", "reason"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "$.a.b is 2 instead of 1"),
        ({"a": 1}, {}, "$.a is not stored"),
        ({}, {"a": 1}, "$.a is stored and was never served"),
        ({"a": None}, {}, "$.a is not stored"),
        ([1, 2], [1], "$ has 1 elements instead of 2"),
        ([{"a": "x"}], [{"a": "y"}], "$[0].a is 'y' instead of 'x'"),
        (True, 1, "$ is 1 instead of True"),
        ("1", 1, "$ is 1 instead of '1'"),
        (parse("0.1"), parse("0.10000000000000001"), "$ is Decimal('0.10000000000000001') instead of Decimal('0.1')"),
        ({}, [], "$ is [] instead of {}"),
        (parse('{"a":1,"a":2}'), parse('{"a":2}'), "$ is {'a': 2} instead of [('a', 1), ('a', 2)]"),
    ],
)
def test_a_difference_is_told_with_its_place(expected: Any, stored: Any, reason: str) -> None:
    assert first_difference(expected, stored) == reason


def test_every_missing_and_changed_row_is_counted() -> None:
    result = Comparison()

    expected = [Entry("a", {"x": 1}), Entry("b", {"x": 1}), Entry("c", {"x": 1})]
    compare_chunk("order", "7", expected, {"a": Copy({"x": 1}), "b": Copy({"x": 2})}, result)

    assert result == Comparison(
        orders=3,
        differences=2,
        shown=[
            Difference("different", "order", "7", "b", "$.x is 2 instead of 1"),
            Difference("missing", "order", "7", "c", "Allegro served it and it is not stored"),
        ],
    )
    assert not result.equal


def test_what_allegro_no_longer_serves_may_be_stored_or_not() -> None:
    result = Comparison()

    expected = [Entry("merged", None, served=False, successor="whole"), Entry("too-old", None, served=False)]
    compare_chunk("order", "7", expected, {"too-old": Copy({"x": 1})}, result)

    assert result == Comparison()


@pytest.mark.parametrize(
    ("copy", "reason"),
    [
        (Copy({}), "it was merged into whole and is not marked as gone"),
        (Copy({}, gone=True), "its successor is None instead of whole"),
        (Copy({}, gone=True, successor="other"), "its successor is other instead of whole"),
    ],
)
def test_the_copy_of_a_merged_order_says_where_it_went(copy: Copy, reason: str) -> None:
    result = Comparison()

    merged = Entry("merged", None, served=False, successor="whole")
    compare_chunk("order", "7", [merged], {"merged": Copy({}, gone=True, successor="whole")}, result)
    compare_chunk("order", "7", [merged], {"merged": copy}, result)

    assert result.merged == 2
    assert result.shown == [Difference("different", "order", "7", "merged", reason)]


def test_a_listed_order_is_not_gone() -> None:
    result = Comparison()

    compare_chunk("order", "7", [Entry("a", {"x": 1})], {"a": Copy({"x": 1}, gone=True)}, result)

    assert [found.reason for found in result.shown] == ["it is marked as gone and Allegro serves it"]


def test_an_order_that_may_differ_is_not_looked_at() -> None:
    result = Comparison()

    compare_chunk("order", "7", [Entry("a", {}), Entry("b", {})], {}, result, may_differ={"a"})

    assert [found.id for found in result.shown] == ["b"]


@pytest.mark.parametrize(
    ("line", "served"),
    [
        ({"state": "listed", "order": {}}, True),
        ({"state": "merged", "order": None, "last_order": {}}, False),
        ({"state": "aged_out", "order": None, "last_order": {}}, False),
        ({"state": "listed", "order": None, "order_base64": "e30="}, False),
    ],
)
def test_only_a_readable_listed_order_is_asked_for(line: dict[str, Any], served: bool) -> None:
    successor = "b" if line["state"] == "merged" else None

    assert order_entry({"order_id": "a", "successor": "b", **line}) == Entry("a", line["order"], served, successor)


def test_only_the_first_differences_are_kept() -> None:
    result = Comparison()

    compare_chunk("event", "7", [Entry(str(number), {}) for number in range(1000)], {}, result)

    assert (result.events, result.differences, len(result.shown)) == (1000, 1000, 10)
