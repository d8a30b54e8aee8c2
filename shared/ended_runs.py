"""Runs that have ended, for Prometheus: the writer ends most of them, the poller those that it stops or gives up.

Whoever ends a run counts it, once the statement that did so is committed; `completed_at` says who was the first.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import Counter

ENDED_RUNS = Counter(
    "orders_backup_runs_ended_total",
    "Runs that have ended, by kind and outcome: completed, stopped, failed, or stalled, which left orders out.",
    ["kind", "outcome"],
)


def count_ended(runs: Iterable[Mapping[str, Any]]) -> None:
    """Count rows of runs that were ended just now, by their `kind` and `status`."""
    for run in runs:
        ENDED_RUNS.labels(run["kind"], run["status"]).inc()
