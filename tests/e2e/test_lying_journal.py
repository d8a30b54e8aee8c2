"""The lying journal: events that never come, come twice, hours late, in no order; lists that skip and repeat; merges.

After one reconciliation every order equals the ledger, nothing went back, and the counters of the runs are exact
(promises P1-P4, P12). The full size, 30 sellers and 20,000 orders, is in docs/faults.md.
"""

import io

import pytest
from rich.console import Console

from devstack.chaos.run import Options, run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_after_one_reconciliation_everything_equals_the_ledger() -> None:
    said = io.StringIO()

    code = run(
        Options(calm=True, sellers=10, orders=200, live_rate=20, minutes=0.6, drain_seconds=400),
        Console(file=said, width=160),
    )

    assert code == 0, said.getvalue()
