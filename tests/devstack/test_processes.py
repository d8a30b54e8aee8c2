"""Children are waited for, stopped, killed, and never outlive their launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from devstack.errors import DevstackError
from devstack.processes import Child

# Says when it is up, and ends with code 7 when it is asked to.
_POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("up", flush=True)
time.sleep(60)
"""
_DEAF = _POLITE.replace("lambda *_: sys.exit(7)", "signal.SIG_IGN")
_WITH_GRANDCHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def a_child(code: str, folder: Path, grace_seconds: float = 20) -> Child:
    return Child("the child", [sys.executable, "-c", code], log=folder / "child.log", grace_seconds=grace_seconds)


def is_up(child: Child) -> bool:
    return child.log.read_text() != ""


def wait_until_gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_a_polite_child_is_asked_to_end(tmp_path: Path) -> None:
    child = a_child(_POLITE, tmp_path)
    child.start()
    child.wait_until(lambda: is_up(child), 10)

    code = child.stop()

    assert code == 7
    assert not child.running


def test_a_deaf_child_is_killed_after_its_grace(tmp_path: Path) -> None:
    child = a_child(_DEAF, tmp_path, grace_seconds=0.2)
    child.start()
    child.wait_until(lambda: is_up(child), 10)

    code = child.stop()

    assert code == -signal.SIGKILL


def test_killing_a_child_kills_its_own_children(tmp_path: Path) -> None:
    child = a_child(_WITH_GRANDCHILD, tmp_path)
    child.start()
    child.wait_until(lambda: is_up(child), 10)
    grandchild = int(child.log.read_text())

    child.kill()

    assert wait_until_gone(grandchild)


def test_a_child_can_be_started_again_after_a_kill(tmp_path: Path) -> None:
    child = a_child(_POLITE, tmp_path)
    child.start()
    child.kill()
    child.log.unlink()  # both write to its end

    child.start()
    child.wait_until(lambda: is_up(child), 10)

    assert child.stop() == 7
    assert child.starts == 2


def test_a_child_that_ends_too_early_shows_its_last_lines(tmp_path: Path) -> None:
    child = a_child("import sys; print('the disk is full'); sys.exit(3)", tmp_path)
    child.start()

    with pytest.raises(DevstackError, match=r"(?s)exit code 3 before it was ready.*the disk is full"):
        child.wait_until(lambda: False, 10)

    child.stop()


def test_a_child_that_takes_too_long_shows_its_last_lines(tmp_path: Path) -> None:
    child = a_child(_POLITE, tmp_path)
    child.start()
    child.wait_until(lambda: is_up(child), 10)

    with pytest.raises(DevstackError, match=r"(?s)not ready after 0\.1 s.*up"):
        child.wait_until(lambda: False, 0.1)

    child.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
def test_a_launcher_that_is_killed_takes_its_children_along(tmp_path: Path) -> None:
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from pathlib import Path\n"
            "from devstack.processes import Child\n"
            "child = Child('c', [sys.executable, '-c', 'import time; time.sleep(60)'], log=Path(sys.argv[1]))\n"
            "child.start()\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(60)\n",
            str(tmp_path / "child.log"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert launcher.stdout is not None
    with launcher.stdout:
        child = int(launcher.stdout.readline())

    launcher.kill()
    launcher.wait()

    assert wait_until_gone(child)
