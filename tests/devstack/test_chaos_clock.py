"""A process whose wall clock is wrong: everything that tells the time is, the monotonic clock is not."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from devstack.processes import ROOT

_PROGRAM = """
import json, sys, time
from datetime import UTC, datetime
import asyncpg, pydantic
from shared.allegro.bodies import listed_order
from shared.messages import OrderMissing, decode

class Model(pydantic.BaseModel):
    moment: pydantic.AwareDatetime

print(json.dumps({
    "time": time.time(), "time_ns": time.time_ns() / 1e9, "now": datetime.now(UTC).timestamp(),
    "monotonic": time.monotonic(), "arguments": sys.argv[1:],
    "same": isinstance(datetime.fromtimestamp(0, UTC), datetime),
    "read": Model.model_validate_json('{"moment": "2026-10-10T12:00:00Z"}').moment.isoformat(),
    "record": decode(
        OrderMissing(token_id=1, order_id="a", observed_at=datetime.now(UTC), reason="404").encode()
    ).observed_at.timestamp(),
    "order": listed_order(b'{"id": "a", "lineItems": [{"boughtAt": "2026-10-10T12:00:00Z"}]}').bought_at.isoformat(),
}))
"""


def test_only_the_wall_clock_is_shifted(tmp_path: Path) -> None:
    (tmp_path / "tells.py").write_text(_PROGRAM)
    command = [sys.executable, "-W", "error", "-m", "devstack.chaos.shifted_clock", "-3600", "tells", "word"]

    answer = subprocess.run(
        command, capture_output=True, check=True, cwd=tmp_path, env={"PYTHONPATH": f"{ROOT}:{tmp_path}"}, timeout=60
    )

    told = json.loads(answer.stdout)
    for clock in ("time", "time_ns", "now", "record"):
        assert -60 < told[clock] - (datetime.now(UTC).timestamp() - 3600) <= 0, clock
    assert -60 < told["monotonic"] - time.monotonic() <= 0
    assert told["arguments"] == ["word"]
    assert told["same"]
    assert told["read"] == told["order"] == "2026-10-10T12:00:00+00:00"


_JUMPS = """
import os, time
from datetime import UTC, datetime
from devstack.chaos.shifted_clock import SET_RIGHT

print(time.time(), datetime.now(UTC).timestamp(), flush=True)
os.kill(os.getpid(), SET_RIGHT)
print(time.time(), datetime.now(UTC).timestamp())
"""


def test_a_signal_sets_it_right(tmp_path: Path) -> None:
    (tmp_path / "jumps.py").write_text(_JUMPS)
    command = [sys.executable, "-m", "devstack.chaos.shifted_clock", "86400", "jumps"]

    answer = subprocess.run(
        command, capture_output=True, check=True, cwd=tmp_path, env={"PYTHONPATH": f"{ROOT}:{tmp_path}"}, timeout=60
    )

    wrong, right = ([float(told) - time.time() for told in line.split()] for line in answer.stdout.splitlines())
    assert all(86340 < ahead <= 86401 for ahead in wrong)
    assert all(-60 < ahead <= 0 for ahead in right)
