"""What the README tells a newcomer to type works, word for word, in a fresh copy of the repository."""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.stack import without_ours

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

_ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^## First steps\n.*?```sh\n(.*?)```", re.DOTALL | re.MULTILINE)
_MOST_COMMANDS = 10
_OF_MAKE = ("ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL")
_SECONDS = 600
_DOCTOR = "(. .data/services.env; orders-backup doctor)"


def _commands() -> list[str]:
    found = _BLOCK.search((_ROOT / "README.md").read_text())
    assert found is not None, "README.md has no block of commands under its first steps"
    return [line for line in found[1].splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture
def fresh() -> Iterator[Path]:
    """The repository as somebody has it who has just run `make install`: no data, no settings.

    Everybody may enter it: PostgreSQL does not run as root, so under root it runs as somebody else.
    """
    copy = Path(tempfile.mkdtemp(prefix="orders-backup-newcomer-"))
    copy.chmod(0o755)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=_ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (_ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(_ROOT / name, copy / name)
    (copy / ".venv").symlink_to(_ROOT / ".venv")

    yield copy

    shutil.rmtree(copy)


def test_there_are_few_of_them() -> None:
    assert len("&&".join(_commands()).split("&&")) < _MOST_COMMANDS
    assert _DOCTOR in (_ROOT / "README.md").read_text()


def test_a_newcomer_connects_a_seller_and_takes_the_orders_along(fresh: Path) -> None:
    # Job control, as at a prompt: `wait %2` and `kill %1` name jobs.
    commands = "\n".join((*_commands(), _DOCTOR))
    script = f"set -m\nresult=0\ntrap 'result=$?' ERR\n{commands}\ntrap - ERR\nkill -INT %1\nwait %1\nexit $result\n"
    environment = without_ours(os.environ) | {"PYTHONUNBUFFERED": "1"}
    for name in _OF_MAKE:  # whoever typed `make test ARGS=...` meant the tests
        environment.pop(name, None)
    with (fresh / "output").open("wb") as output:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=fresh,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            code = shell.wait(_SECONDS)
        finally:
            shell.kill()
            shell.wait()
            _stop_what_is_left(fresh)

    said = (fresh / "output").read_text(errors="replace")
    assert code == 0, said
    assert "my-shop is connected" in said
    exported = [json.loads(line) for line in (fresh / "orders.ndjson").read_text().splitlines()]
    assert len(exported) > 100
    assert "READY_FOR_PROCESSING" in said


def _stop_what_is_left(fresh: Path) -> None:
    """Should the script have been cut short: the stack holds its folder's lock, and ends by a signal."""
    found = subprocess.run(["fuser", str(fresh / ".data" / "lock")], capture_output=True, text=True, check=False)
    for pid in found.stdout.split():
        os.kill(int(pid), signal.SIGTERM)
