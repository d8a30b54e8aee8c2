"""Results are found among what benchmarks print, and the documentation shows those that are kept."""

import json
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.record import measures_of, table, with_table
from benchmarks.report import Measure, report

_ROOT = Path(__file__).parents[2]
_PAGE = (_ROOT / "docs" / "benchmarks.md").read_text()
_KEPT = json.loads((_ROOT / "docs" / "benchmarks.json").read_text())

_NUMBERS = st.integers(-(10**9), 10**9).map(float)


def kept(*measures: Measure) -> dict[str, dict[str, object]]:
    return {"writer": {"date": "2026-11-23", "machine": "m", "measures": [vars(one) for one in measures]}}


@given(st.lists(st.builds(Measure, st.text(), _NUMBERS, st.text(), _NUMBERS, _NUMBERS, _NUMBERS), max_size=5))
def test_what_is_reported_is_found_again(measures: list[Measure]) -> None:
    printed: list[str] = []

    report(measures, show=printed.append)

    assert list(measures_of(["begin\n", *printed, '{"other": 1}\n'])) == measures


def test_a_goal_that_was_missed_is_said() -> None:
    met, missed = Measure("a", 2.0, "s", 1.0, 1.0, 1.0), Measure("b", 2.0, "s", 1.0, 0.99, 1.0)

    rows = [row for row in table(kept(met, missed)).splitlines() if row.startswith(("| a", "| b"))]

    assert [row.endswith("| yes |") for row in rows] == [True, False]


def test_a_measure_without_a_goal_is_neither_met_nor_missed() -> None:
    rows = table(kept(Measure("known", 2.0, "s", 1.0, 0.5, 0.0))).splitlines()

    assert [row for row in rows if row.startswith("| known")] == ["| known | 2 s | 1 | 0.5 | | |"]


def test_what_was_measured_and_how_is_said() -> None:
    measured = {**kept(Measure("a", 1.0, "s", 1.0, 1.0, 1.0))["writer"], "commit": "abc+", "arguments": "--orders 5"}

    page = table({"writer": measured})

    assert page.startswith('### `make bench-writer ARGS="--orders 5"`\n\n2026-11-23, m, at abc+\n')


def test_results_take_the_place_of_former_ones() -> None:
    once = with_table(_PAGE, kept(Measure("old-one", 1.0, "s", 1.0, 1.0, 1.0)))
    twice = with_table(once, kept(Measure("new-one", 1.0, "s", 1.0, 1.0, 1.0)))

    assert "| old-one |" in once
    assert "| old-one |" not in twice
    assert twice.replace("new-one", "old-one") == once


def test_the_page_shows_what_is_kept() -> None:
    assert with_table(_PAGE, _KEPT) == _PAGE


def test_the_page_explains_every_benchmark() -> None:
    targets = re.findall(r"^bench-([a-z-]+):", (_ROOT / "Makefile").read_text(), re.MULTILINE)

    assert [name for name in targets if f"| `{name}` |" not in _PAGE] == []
    assert set(_KEPT) <= set(targets)
