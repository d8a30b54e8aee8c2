"""Run the simulated Allegro until it is told to stop; one JSON line on stdout says where it listens."""

import asyncio
import contextlib
import json
import signal
import sys

from simulator.server import Simulator
from simulator.settings import Settings, read_settings
from simulator.store import StateFileError


async def _serve(settings: Settings) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with Simulator(settings) as simulator:
        sys.stdout.write(json.dumps({"url": simulator.url}) + "\n")
        sys.stdout.flush()
        await stopped.wait()


def main() -> None:
    settings = read_settings(sys.argv[1:])
    factory = None
    with contextlib.suppress(ImportError):  # not on Windows
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            runner.run(_serve(settings))
        except StateFileError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
