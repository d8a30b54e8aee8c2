"""What every service has around its own work: start, loops that survive outages and bugs, a clean end."""

import asyncio
import gc
import logging
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import uvicorn
from aiokafka.errors import KafkaError
from prometheus_client import Counter

from shared import tracing
from shared.allocator import give_back_what_is_freed
from shared.database import TRANSIENT_DATABASE_ERRORS
from shared.errors import ConfigurationError, TransientError
from shared.health import Health
from shared.logs import configure
from shared.settings import ServiceSettings, load

logger = logging.getLogger(__name__)

_EXIT_CONFIGURATION = 2
# Python looks for cycles after 700 new objects; a batch in hand has many times as many, none of them in a cycle.
_NEW_OBJECTS = 100_000
_GC_GENERATIONS = (10, 10)
_FIRST_BACKOFF_SECONDS = 0.5
# Longer than clients and proxies keep a connection: whoever closes first must not be us, just as a request comes.
_KEPT_SECONDS = 75
_LONGEST_BACKOFF_SECONDS = 15.0
_STOP_SECONDS = 15.0
_CONNECTION_SECONDS = 5
MAX_HEAD_BYTES = 1 << 20
"""Of the address and the headers of a request; uvicorn answers more of them itself, with a plain 400."""

LOOP_FAILURES = Counter(
    "orders_backup_loop_failures_total",
    "Rounds of a loop that failed: `outage` passes by itself, any `bug` wants a person's look.",
    ["loop", "cause"],
)

_Settings = TypeVar("_Settings", bound=ServiceSettings)


def is_transient(error: BaseException) -> bool:
    """Whether it may go well later without anybody doing anything: PostgreSQL, Kafka or Allegro is away."""
    # The driver's complaints about arguments are InterfaceErrors as well, and ValueErrors: those are bugs.
    return isinstance(error, (TransientError, KafkaError, *TRANSIENT_DATABASE_ERRORS)) and not isinstance(
        error, ValueError
    )


def backoff_seconds(failures: int, *, jitter: float) -> float:
    """How long to wait after so many failures in a row: doubling, capped; `jitter` (0..1) moves it within its half."""
    delay = min(_FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 20), _LONGEST_BACKOFF_SECONDS)
    return delay * (0.5 + jitter / 2)


class BackgroundLoops:
    """The loops of a service. None of them ends by an error; all of them end within a deadline when asked to."""

    def __init__(self, health: Health, *, stop_seconds: float = _STOP_SECONDS) -> None:
        self._health = health
        self._stop_seconds = stop_seconds
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def run_every(
        self,
        name: str,
        seconds: float,
        work: Callable[[], Awaitable[bool | None]],
        *,
        wake: asyncio.Event | None = None,
        rest_seconds: float = 0.0,
        within_seconds: float = 120.0,
    ) -> None:
        """Do `work` every so many seconds, and at once when `wake` is set or `work` says that there is more (True).

        After a round `wake` is not heard for `rest_seconds`. `within_seconds` is the longest that one round may take
        without `health.progressed(name)`.
        """
        rounds = self._rounds(name, seconds, work, wake or asyncio.Event(), rest_seconds)
        self._start(name, rounds, within_seconds + seconds)

    def keep_running(self, name: str, work: Callable[[], Awaitable[None]], *, within_seconds: float = 120.0) -> None:
        """Run something that goes on until it is cancelled, and again whenever it fails.

        It has to call `health.progressed(name)` at least every `within_seconds`.
        """
        self._start(name, self._runs(name, work), within_seconds + _LONGEST_BACKOFF_SECONDS)

    def _start(self, name: str, loop: Any, within_seconds: float) -> None:
        self._health.expect(name, within_seconds=within_seconds)
        self._tasks[name] = asyncio.create_task(loop, name=name)

    async def _rounds(
        self,
        name: str,
        seconds: float,
        work: Callable[[], Awaitable[bool | None]],
        wake: asyncio.Event,
        rest_seconds: float,
    ) -> None:
        failures = 0
        while True:
            wake.clear()
            try:
                more = await work()
            except Exception as error:  # noqa: BLE001 - judged in one place; a loop ends only when it is asked to
                failures += 1
                await asyncio.sleep(self._judge(name, error, failures))
            else:
                failures = 0
                if not more:
                    await asyncio.sleep(rest_seconds)
                    await _wait(wake, seconds - rest_seconds)
            self._health.progressed(name)

    async def _runs(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        started = asyncio.get_running_loop().time
        while True:
            began = started()
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - as above
                failures = failures + 1 if started() - began < _LONGEST_BACKOFF_SECONDS else 1
                await asyncio.sleep(self._judge(name, error, failures))
            self._health.progressed(name)

    def _judge(self, name: str, error: Exception, failures: int) -> float:
        """Log and count an error; returns how long to wait."""
        delay = backoff_seconds(failures, jitter=random.random())  # noqa: S311 - spreads load, hides nothing
        if is_transient(error):
            LOOP_FAILURES.labels(name, "outage").inc()
            logger.warning("%s: waiting", name, extra={"error": repr(error), "retry_in_seconds": round(delay, 1)})
        else:
            LOOP_FAILURES.labels(name, "bug").inc()
            logger.error("%s: unexpected error", name, exc_info=error, extra={"retry_in_seconds": round(delay, 1)})
        return delay

    async def stop(self) -> None:
        """Cancel the loops and wait until they have ended, or the deadline has passed."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks.values(), timeout=self._stop_seconds)
            for task in late:
                logger.error("%s: did not stop in time", task.get_name())
        for name in self._tasks:
            self._health.forget(name)
        self._tasks.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._health.stopping()
        await self.stop()


async def _wait(wake: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        return


class _Server(uvicorn.Server):
    """Ends with exit code 0 when asked to by a signal, also while the start waits for PostgreSQL or Kafka.

    uvicorn's own waits for the end of the start, and raises the signal again at the end.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        serving = asyncio.current_task()

        def end(number: int) -> None:
            self.handle_exit(number, None)
            if not self.started and serving is not None:
                serving.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end, number)
        yield


class _Lifespan:
    """The ASGI app, watched: a wrong configuration found at start-up is told in one line, not by a traceback, and an
    end that nobody asked for (FastStream starts its broker after it has reported a complete start-up) ends the process.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.error: BaseException | None = None
        self.ended: Callable[[], None] = lambda: None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        failure: dict[str, Any] = {}

        async def hold_failures(message: Any) -> None:
            if message["type"].endswith(".failed"):
                failure.update(message)
            else:
                await send(message)

        try:
            await self._app(scope, receive, hold_failures)
        except Exception as error:
            self.error = error
            if not isinstance(error, ConfigurationError):
                logger.critical("the service cannot go on", exc_info=error)
            raise
        finally:
            if failure:
                await send(failure | {"message": ""})
            self.ended()


def run(
    name: str,
    settings_class: type[_Settings],
    build_app: Callable[[_Settings], Any],
    *,
    new_objects: int = _NEW_OBJECTS,
) -> NoReturn:
    """Start a service and serve until SIGTERM or SIGINT; after so many `new_objects` Python looks for cycles.

    Its address is that of the settings `<name>_http_host` and `<name>_http_port`. Exit codes: 0 asked to end, 1 an
    error ended it, 2 wrong configuration (one line on stderr that names the variable), 3 the address is taken.
    """
    try:
        settings = load(settings_class)
        configure(settings, service=name)
        tracing.configure(settings, service=name)
        lifespan = _Lifespan(build_app(settings))
    except ConfigurationError as error:
        _exit_misconfigured(name, error)
    server = _Server(
        uvicorn.Config(
            lifespan,
            host=getattr(settings, f"{name}_http_host"),
            port=getattr(settings, f"{name}_http_port"),
            lifespan="on",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_CONNECTION_SECONDS,
            timeout_keep_alive=_KEPT_SECONDS,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
    )
    lifespan.ended = partial(setattr, server, "should_exit", True)
    give_back_what_is_freed()
    # What is loaded by now stays: the collector need not walk through it again and again, with everybody waiting.
    gc.collect()
    gc.freeze()
    gc.set_threshold(new_objects, *_GC_GENERATIONS)
    address_taken: SystemExit | None = None
    try:
        with suppress(asyncio.CancelledError):  # asked to end before the start was complete
            server.run()
    except SystemExit as end:
        address_taken = end
    if isinstance(lifespan.error, ConfigurationError):
        _exit_misconfigured(name, lifespan.error)
    if lifespan.error is not None:
        sys.exit(1)
    sys.exit(address_taken.code if address_taken else 0)


def _exit_misconfigured(name: str, error: ConfigurationError) -> NoReturn:
    sys.stderr.write(f"orders-backup {name}: {error}\n")
    sys.exit(_EXIT_CONFIGURATION)
