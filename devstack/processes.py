"""Child processes that are waited for, stopped politely, and never outlive the process that started them."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from devstack.errors import DevstackError

# The folder in which `python -m` finds our packages.
ROOT = Path(__file__).parent.parent

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.02


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of a log, for an error message."""
    try:
        with log.open(encoding="utf-8", errors="replace") as text:
            return "".join(deque(text, maxlen=lines)).rstrip()
    except FileNotFoundError:
        return ""


def _die_with_parent(death_signal: signal.Signals, parent: int) -> Callable[[], None]:
    """What the child runs between fork and exec, so that `kill -9` of its launcher ends it too."""
    libc = ctypes.CDLL(None, use_errno=True)

    def arrange() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)

    return arrange


class Child:
    """One supervised program: same command, same log, started as often as needed."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        death_signal: signal.Signals = signal.SIGKILL,
        grace_seconds: float = 20.0,
    ) -> None:
        self.name = name
        self.log = log
        self.starts = 0
        self._command = [str(part) for part in command]
        self._env = dict(env) if env is not None else None
        self._folder = folder
        self._stop_signal = stop_signal
        self._death_signal = death_signal
        self._grace_seconds = grace_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._asked_to_stop = False

    @property
    def pid(self) -> int:
        if self._process is None:
            raise DevstackError(f"{self.name} was never started")
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs and before it was started; negative: the signal that ended it."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it in a process group of its own, so that Ctrl-C in the terminal reaches only the launcher."""
        if self.running:
            raise DevstackError(f"{self.name} runs already (process {self.pid})")
        if threading.current_thread() is not threading.main_thread():
            # Linux ends the child when the *thread* that started it ends.
            raise RuntimeError(f"{self.name} must be started by the main thread")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        arrange = _die_with_parent(self._death_signal, os.getpid()) if sys.platform == "linux" else None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own commands, no shell
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._folder,
                start_new_session=True,
                preexec_fn=arrange,
            )
        self._asked_to_stop = False
        self.starts += 1

    def wait_until(self, ready: Callable[[], bool], seconds: float, what: str = "ready") -> None:
        """Wait for `ready`; a child that ends or takes too long is an error that shows the tail of its log."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.running:
                raise DevstackError(
                    f"{self.name} ended with exit code {self.exit_code} before it was {what}. Its last lines:\n"
                    f"{tail(self.log)}"
                )
            if time.monotonic() > deadline:
                raise DevstackError(
                    f"{self.name} was not {what} after {seconds:g} s. Its last lines:\n{tail(self.log)}"
                )
            time.sleep(_POLL_SECONDS)

    def wait_until_http(self, url: str, seconds: float) -> None:
        """Wait until `url` answers 2xx."""
        self.wait_until(lambda: answers(url), seconds, f"answering at {url}")

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None if it still runs after `seconds`."""
        if self._process is None:
            return None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program itself; one that has ended is left alone."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def ask_to_stop(self, stop_signal: signal.Signals | None = None) -> None:
        """Send the stop signal, once, and do not wait; `stop` does. Many servers take a second one for impatience."""
        if not self._asked_to_stop:
            self._asked_to_stop = True
            self.send(stop_signal or self._stop_signal)

    def stop(self, stop_signal: signal.Signals | None = None) -> int | None:
        """Ask it to end, wait, and kill what is left of its process group; returns the exit code."""
        if self._process is None:
            return None
        self.ask_to_stop(stop_signal)
        code = self.wait(self._grace_seconds)
        self._kill_group()
        return code if code is not None else self._process.wait()

    def kill(self) -> None:
        """kill -9, the whole process group."""
        if self._process is not None:
            self._kill_group()
            self._process.wait()

    def _kill_group(self) -> None:
        assert self._process is not None  # noqa: S101 - both callers looked
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def answers(url: str, seconds: float = 2.0) -> bool:
    """Whether `url` answers 2xx."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as answer:  # noqa: S310 - our own loopback URLs
            return 200 <= int(answer.status) < 300
    except (urllib.error.URLError, OSError, ValueError):
        return False


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
    seconds: float = 600,
) -> str:
    """Run a short program to its end; its output, or an error that holds it."""
    words = [str(part) for part in command]
    try:
        result = subprocess.run(  # noqa: S603 - our own commands, no shell
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(env) if env is not None else None,
            cwd=folder,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DevstackError(f"{' '.join(words[:4])} ... did not end within {seconds:g} s") from error
    output = result.stdout.decode(errors="replace")
    if result.returncode != 0:
        raise DevstackError(f"{' '.join(words[:4])} ... ended with exit code {result.returncode}:\n{output.rstrip()}")
    return output
