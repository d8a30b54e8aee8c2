"""One JSON line a measure; `ratio` is always so that larger is better, and `ratio >= goal` is success.

A measure without a goal (0) is there to be known.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Measure:
    """What was measured and what it was measured against."""

    bench: str
    value: float
    unit: str
    reference: float
    ratio: float
    goal: float


def report(measures: list[Measure], *, show: Callable[[str], object] = sys.stdout.write) -> bool:
    """Print the measures; returns whether all goals are met."""
    for measure in measures:
        # More than anybody reads: whoever compares ratio and goal finds what we found.
        numbers = {
            name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(measure).items()
        }
        show(json.dumps(numbers) + "\n")
    return all(measure.ratio >= measure.goal for measure in measures)
