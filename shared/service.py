"""The frame of a service: settings in, an ASGI application with its loops, a clean end.

A service is an async context manager of loops (`Work`) inside a FastStream application. It answers `/livez` from
the start, even while PostgreSQL or Kafka is away, and waits for them in the background.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import uvicorn
from aiokafka.errors import KafkaError
from faststream.asgi import AsgiFastStream
from prometheus_client import Counter

from shared import logs
from shared.database import TRANSIENT_DATABASE_ERRORS
from shared.errors import ConfigurationError, TransientError
from shared.health import Health
from shared.settings import LogSettings, load

logger = logging.getLogger(__name__)

EXIT_CONFIGURATION = 2

_FIRST_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 30.0
_PAUSE_AFTER_BUG_SECONDS = 10.0
_SHUTDOWN_SECONDS = 20.0

_failures = Counter(
    "orders_backup_loop_failures_total", "Turns of a background loop that failed, by kind of cause.", ["loop", "cause"]
)

WORTH_WAITING_FOR: tuple[type[Exception], ...] = (TransientError, KafkaError, *TRANSIENT_DATABASE_ERRORS)
"""What goes away by itself: a service waits for it and sets nothing aside."""

_Settings = TypeVar("_Settings", bound=LogSettings)

Work = Callable[[Health], Coroutine[Any, Any, None]]
"""Opens what the service needs and works until it is cancelled."""


class Wake(Protocol):
    """What lets a sleeping loop start its next turn early (an asyncio.Event)."""

    def clear(self) -> None: ...

    async def wait(self) -> object: ...


async def run_every(
    name: str,
    interval_seconds: float,
    turn: Callable[[], Awaitable[object]],
    *,
    progressed: Callable[[], None],
    wake: Wake | None = None,
) -> None:
    """Repeat `turn` for ever: the one place where a loop's failures are handled.

    A failure that is worth waiting for is repeated with growing pauses. Anything else is a bug: it is logged with its
    traceback and the loop goes on after a pause, since the other turns of a service must not stand still for it.
    """
    delay = _FIRST_RETRY_SECONDS
    while True:
        try:
            await turn()
        except WORTH_WAITING_FOR as error:
            _failures.labels(name, "transient").inc()
            logger.warning("a turn failed, trying again", extra={"loop": name, "error": repr(error)})
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_RETRY_SECONDS)
        except Exception:
            _failures.labels(name, "bug").inc()
            logger.exception("a turn failed for an unknown cause", extra={"loop": name})
            await asyncio.sleep(_PAUSE_AFTER_BUG_SECONDS)
        else:
            delay = _FIRST_RETRY_SECONDS
            progressed()
            await _sleep(interval_seconds, wake)


async def _sleep(seconds: float, wake: Wake | None) -> None:
    if wake is None:
        await asyncio.sleep(seconds)
        return
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        return
    wake.clear()


def build_app(work: Work) -> AsgiFastStream:
    """An application that works in the background and tells how it is."""
    health = Health()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        task = asyncio.create_task(work(health), name="work")
        task.add_done_callback(_end_process_if_failed)
        try:
            yield
        finally:
            task.cancel()
            _, pending = await asyncio.wait([task], timeout=_SHUTDOWN_SECONDS)
            if pending:
                logger.error("the service did not end in time", extra={"seconds": _SHUTDOWN_SECONDS})

    return AsgiFastStream(lifespan=lifespan, asgi_routes=health.routes(), logger=logger)


def _end_process_if_failed(task: asyncio.Task[None]) -> None:
    """A service without its work must not look alive: whoever started it starts it again."""
    if task.cancelled():
        return
    error = task.exception()
    if isinstance(error, ConfigurationError):
        logger.critical(str(error))
    else:
        logger.critical("the service's work ended", exc_info=error)
    signal.raise_signal(signal.SIGTERM)


def run(
    service: str,
    settings_class: type[_Settings],
    build: Callable[[_Settings], Any],
    *,
    address: Callable[[_Settings], tuple[str, int]],
) -> None:
    """Run a service until SIGTERM or SIGINT; a wrong setting ends it at once with one line that names the variable."""
    try:
        settings = load(settings_class)
        app = build(settings)
    except ConfigurationError as error:
        print(f"{service}: {error}", file=sys.stderr)  # noqa: T201 - logs are not configured yet
        raise SystemExit(EXIT_CONFIGURATION) from None
    logs.configure(settings, service=service)
    host, port = address(settings)
    uvicorn.run(
        app,
        host=host,
        port=port,
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(_SHUTDOWN_SECONDS),
    )
